"""The core imports the standard library, attrs, pluggy, msgspec and itself, and nothing else."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ailf

CORE = Path(ailf.__file__).parent
ALLOWED = sys.stdlib_module_names | {"ailf", "attrs", "msgspec", "pluggy"}
PORCH = CORE / "messaging"  # the names of earlier AILF code; it leads to the Redis backend by design
MAY_USE_PYTEST = CORE / "testing"  # fixtures


def _files() -> list[Path]:
    return [each for each in sorted(CORE.rglob("*.py")) if PORCH not in each.parents]


def _imports(path: Path) -> Iterator[str]:
    """Return the top-level names that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(CORE)))
def test_a_file_of_the_core_imports_only_what_is_allowed(path: Path) -> None:
    """No file of the core reaches for a broker's library or for a backend."""
    allowed = ALLOWED | {"pytest"} if MAY_USE_PYTEST in path.parents else ALLOWED
    assert set(_imports(path)) - allowed == set()


def test_the_check_sees_imports_inside_functions(tmp_path: Path) -> None:
    """An import that is hidden in a function is found as well."""
    hidden = tmp_path / "hidden.py"
    hidden.write_text("def late():\n    import redis.asyncio\n")
    assert list(_imports(hidden)) == ["redis"]
