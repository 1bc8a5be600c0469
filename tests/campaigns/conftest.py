"""Long runs, for `make campaign`: collected only with AILF_CAMPAIGN=1. Their figures are printed at the end."""

import itertools
from collections.abc import Callable

import pytest

from contract_tests.conftest import *  # noqa: F403 - the contract's fixtures
from tests.support.effort import CAMPAIGN, Tell

FIGURES = "figures"

collect_ignore_glob = [] if CAMPAIGN else ["*"]


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """Print a line of figures at the end of the run."""
    return lambda line: record_property(FIGURES, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests have recorded, also in other processes."""
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        for name, figures in getattr(report, "user_properties", ()):
            if name == FIGURES and report.when == "call":
                terminalreporter.write_line(f"{report.nodeid}: {figures}")
