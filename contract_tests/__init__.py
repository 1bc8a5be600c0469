"""The contract that every backend keeps, as tests: ``pytest --pyargs contract_tests --backend URL``.

A backend that a URL is not enough for is named by a class, ``--harness package.module:ClassName``, derived from
`contract_tests.harness.Harness`. The options come from `ailf_pytest.plugin`, which pytest loads by itself.
"""
