"""The tests of the contract that every backend keeps: ``pytest --pyargs contract_tests --backend URL``.

A backend that needs more than a URL is opened by a subclass of `contract_tests.harness.Harness`, which the option
``--harness package.module:ClassName`` names. The options come from `ailf_pytest.plugin`, which pytest loads by itself.
"""
