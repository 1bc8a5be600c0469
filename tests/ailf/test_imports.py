"""The core imports the standard library, attrs, pluggy, msgspec and itself, and nothing else."""

import dis
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

import ailf
from tests.support.programs import output_of

CORE = Path(ailf.__file__).parent
ALLOWED = sys.stdlib_module_names | {"ailf", "attrs", "msgspec", "pluggy"}
COMPATIBILITY_LAYER = CORE / "messaging"  # the names of earlier AILF; it imports the Redis backend by design
OPTIONAL = {  # what stands above the core, and is imported only by a program that asks for it
    CORE / "bridges" / "httpx.py": {"httpx", "httpx2"},  # each bridge imports the library that it bridges to
    CORE / "bridges" / "langchain.py": {"langchain_core"},
    CORE / "bridges" / "asgi.py": {"fastapi"},  # within a function: the middleware needs none
    CORE / "testing": {"pytest", "ailf_memory"},  # fixtures and schedules
    CORE / "cli": {"typer", "rich"},  # importing ailf.cli itself needs nothing
    CORE / "app" / "schedule.py": {"cronsim"},  # at the first cron expression
    CORE / "otel": {"opentelemetry"},
    CORE / "prometheus.py": {"prometheus_client"},
    CORE / "payload_types.py": {"typing_extensions"},  # for type checkers, which bring its types
    CORE / "providers" / "limits.py": {"typing_extensions"},  # as above
    CORE / "pydantic_models.py": {"pydantic", "pydantic_core"},  # within functions, for a type that is a model
}


def _files() -> list[Path]:
    return [each for each in sorted(CORE.rglob("*.py")) if COMPATIBILITY_LAYER not in each.parents]


def _imports(path: Path) -> Iterator[str]:
    """Yield the top-level names that a file imports, at any depth.

    They are read from its bytecode: parsing to a tree isn't safe on Python 3.11 while other threads show tracebacks.
    """
    todo = [compile(path.read_text(), str(path), "exec", dont_inherit=True)]
    while todo:
        code = todo.pop()
        todo += [each for each in code.co_consts if isinstance(each, CodeType)]
        for instruction in dis.get_instructions(code):
            if instruction.opname == "IMPORT_NAME":
                yield instruction.argval.partition(".")[0]


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(CORE)))
def test_a_file_of_the_core_imports_only_what_is_allowed(path: Path) -> None:
    """No file of the core imports a broker's library or a backend."""
    extra = [names for place, names in OPTIONAL.items() if place in (path, *path.parents)]
    assert set(_imports(path)) - ALLOWED.union(*extra) == set()


def test_importing_ailf_loads_the_core_alone() -> None:
    """`import ailf` loads none of what stands above the core, and no library but the three that it needs."""
    code = "import sys; before = set(sys.modules); import ailf; print(*sorted(set(sys.modules) - before))"
    loaded = output_of(sys.executable, "-c", code, cwd=CORE.parent).split()
    own = {"attr", "typing_extensions"}  # attrs' other name; what msgspec imports where it is installed
    assert {each.partition(".")[0] for each in loaded} <= ALLOWED | own
    above = [".".join(("ailf", *each.relative_to(CORE).with_suffix("").parts)) for each in OPTIONAL]
    above += ["ailf.llm", "ailf.bridges", "ailf.providers", "ailf.runner", "ailf.messaging.redis"]
    used = {"ailf.app.schedule", "ailf.payload_types", "ailf.pydantic_models"}  # they import their libraries when asked
    assert [each for each in loaded if any(f"{each}.".startswith(f"{name}.") for name in set(above) - used)] == []


def test_the_check_sees_imports_inside_functions(tmp_path: Path) -> None:
    """An import inside a function is found too."""
    hidden = tmp_path / "hidden.py"
    hidden.write_text("def late():\n    import redis.asyncio\n")
    assert list(_imports(hidden)) == ["redis"]
