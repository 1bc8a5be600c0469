"""The contract that every backend keeps, as tests: ``pytest --pyargs contract_tests --backend URL``.

A backend that a URL is not enough for is named by a class: ``--harness package.module:ClassName`` (see `Harness`).
"""

from contract_tests.harness import Harness, UrlHarness

__all__ = ["Harness", "UrlHarness"]
