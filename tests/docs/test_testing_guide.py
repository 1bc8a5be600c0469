"""The tests in the guide on testing pass as a user runs them: in memory and on Redis, with the plugin."""

import re
from pathlib import Path

from tests.support.pages import parse
from tests.support.programs import run_pytest
from tests.support.servers import Server

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "testing.md"


def test_the_tests_of_the_guide_pass(tmp_path: Path, any_server: Server) -> None:
    """Each function of the guide that is a test passes on both backends; those that move a clock run once."""
    program = "\n".join(each.parsed for each in parse(GUIDE) if each.region.lexemes["marks"].run)
    (tmp_path / "test_guide.py").write_text(program)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["ailf.testing.plugin"]\n')
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    done = run_pytest("-v", "--ailf-url", "memory://", "--ailf-url", any_server.url, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    tests = len(re.findall(r"^def test_", program, re.MULTILINE))
    assert tests >= 15
    moved = len(re.findall(r"^def test_\w+\(.*ailf_clock", program, re.MULTILINE))
    without = len(re.findall(r"^def test_\w+\((?!.*ailf_)", program, re.MULTILINE))  # any fixture of ailf
    assert f"{2 * tests - moved - without} passed" in done.stdout
