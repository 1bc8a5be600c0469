"""A project that runs its own tests with pytest must not notice that ailf is installed."""

from pathlib import Path
from textwrap import dedent

import pytest

from tests.support.programs import run_pytest

TEST = """
    import sys

    def test_of_the_project(backend):
        assert backend == "mine"
        ours = {name.partition(".")[0] for name in sys.modules} & {"ailf", "ailf_redis", "ailf_memory"}
        assert not ours
        assert "contract_tests.fixtures" not in sys.modules
"""
CONFTEST = """
    import pytest

    def pytest_addoption(parser):
        parser.addoption("--backend", default="mine")
        parser.addoption("--harness", default="mine")

    @pytest.fixture
    def backend(request):
        return request.config.getoption("--backend")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose own contract tests have our package's name and our options' names."""
    folder = tmp_path / "contract_tests"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "test_own.py").write_text(dedent(TEST))
    (tmp_path / "conftest.py").write_text(dedent(CONFTEST))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


@pytest.mark.parametrize("arguments", [(), ("contract_tests",), ("contract_tests/test_own.py", "--backend", "mine")])
def test_a_project_with_a_folder_of_that_name_runs_its_tests(project: Path, arguments: tuple[str, ...]) -> None:
    """Plain pytest starts, uses the project's own options, and imports nothing of ailf."""
    done = run_pytest(*arguments, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_suite_is_run_as_a_package(tmp_path: Path) -> None:
    """`pytest --pyargs contract_tests --backend URL` runs the contract."""
    done = run_pytest("--pyargs", "contract_tests", "--backend", "memory://", "-k", "test_unknown_urls", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_the_suite_says_whose_option_is_in_its_way(project: Path) -> None:
    """If the suite runs beside options of the same names, the error says what to do."""
    (project / "contract_tests").rename(project / "others")
    done = run_pytest("--pyargs", "contract_tests", "--backend", "memory://", cwd=project)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "from another folder" in done.stderr
