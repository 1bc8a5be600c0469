"""The contract that every backend keeps, as tests: ``pytest --pyargs contract_tests --backend URL``.

A backend that a URL is not enough for is named by a class, ``--harness package.module:ClassName``, derived from
`contract_tests.harness.Harness`. Nothing is imported here, because every pytest run of every user comes by: pytest
loads `contract_tests.plugin`.
"""
