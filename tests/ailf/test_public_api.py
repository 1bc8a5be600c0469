"""What users and backends may use is listed in public_api.txt and driver_api.txt, and can't change unnoticed.

After an intended change, write the listings again: ``python tests/ailf/test_public_api.py``.
"""

import ast
import difflib
import enum
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import ailf

LISTINGS = {
    "public_api.txt": (
        "ailf",
        "ailf.testing",
        "ailf.instruments",
        "ailf.llm",
        "ailf.bridges.asgi",
        "ailf.bridges.httpx",
        "ailf.bridges.langchain",
        "ailf.bridges.langchain",
        "ailf.bridges.asgi",
        "ailf.otel",
        "ailf.prometheus",
        "ailf.messaging.redis",
        "ailf_redis",
        "ailf_memory",
    ),
    "driver_api.txt": ("ailf.driver", "ailf.runtime", "ailf.limits", "ailf.urls", "ailf.hookspecs"),
}
"""The modules of each listing. A name stands where it is first met."""

ROOT = Path(__file__).parents[2]
PROTOCOLS = frozenset(
    "__enter__ __exit__ __aenter__ __aexit__ __iter__ __next__ __aiter__ __anext__ __await__".split()  # noqa: SIM905 - reads best
)


# --- the listing -------------------------------------------------------------------------------------------------


def listing(modules: tuple[str, ...]) -> str:
    """Return the public names of some modules with their signatures, one per line."""
    lines, seen = [], set()
    for module in map(importlib.import_module, modules):
        lines.append(f"# {module.__name__}")
        for name in module.__all__:
            if name not in seen:
                seen.add(name)
                lines += _describe(name, getattr(module, name))
    return "\n".join(lines) + "\n"


def _describe(name: str, thing: object) -> Iterator[str]:
    if isinstance(thing, type):
        bases = [each.__name__ for each in thing.__bases__ if each.__name__ not in {"object", "Generic"}]
        yield f"class {name}({', '.join(each for each in bases if not each.startswith('_'))})"
        if issubclass(thing, enum.Enum):
            yield from (f"    {each.name} = {each.value!r}" for each in thing)
        else:
            if issubclass(thing, msgspec.Struct):  # its signature is on the class
                yield f"    {name}{_signature(thing)}"
            yield from (f"    {line}" for line in _members(thing))
    elif inspect.isroutine(thing):
        yield f"def {name}{_signature(thing)}"
    else:
        yield f"{name} = {thing!r}" if isinstance(thing, str) else name


def _members(owner: type) -> Iterator[str]:
    for name in sorted(dir(owner)):
        home = next(each for each in owner.__mro__ if name in vars(each))
        if not home.__module__.startswith("ailf") or (name.startswith("_") and name not in PROTOCOLS | {"__init__"}):
            continue
        thing = vars(home)[name]
        if inspect.isfunction(thing):
            yield f"{'async ' if inspect.iscoroutinefunction(thing) else ''}def {name}{_signature(thing)}"
        else:
            yield f"{name}: {'property' if isinstance(thing, property) else 'attribute'}"


def _signature(function: object) -> str:
    """Return names, kinds and defaults. Mypy checks annotations, which look different in each version of Python."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    bare = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    written = str(signature.replace(parameters=bare, return_annotation=signature.empty))
    return re.sub(r" at 0x[0-9a-f]+", "", written)


@pytest.mark.parametrize("name", LISTINGS)
def test_names_and_signatures_are_the_listed_ones(name: str) -> None:
    """The interface is the listed one; the failure shows the difference."""
    expected = Path(__file__).with_name(name).read_text().splitlines()
    found = listing(LISTINGS[name]).splitlines()
    diff = "\n".join(difflib.unified_diff(expected, found, "listed", "found", lineterm="", n=1))
    assert not diff, f"the interface changed; if that is intended: python tests/ailf/test_public_api.py\n{diff}"


# --- __init__ ----------------------------------------------------------------------------------------------------


def _inits() -> list[Path]:
    packages = ("ailf", "ailf_memory", "ailf_redis")
    return [each for name in packages for each in sorted((ROOT / name).rglob("__init__.py"))]


COMMANDS = frozenset({"ailf.cli"})  # the package of a command has its `main`, and no public names
LAZY = frozenset({"ailf.messaging"})  # it imports its names on first use: redis-py may not be installed


def _module(path: Path) -> str:
    return ".".join(path.parent.relative_to(ROOT).parts)


@pytest.mark.parametrize("path", [each for each in _inits() if _module(each) not in COMMANDS | LAZY], ids=_module)
def test_an_init_is_imports_and_a_sorted_all(path: Path) -> None:
    """A package's `__init__` has only imports, a sorted `__all__`, and perhaps a `__dir__`."""
    docstring, *body = ast.parse(path.read_text()).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(docstring.value, ast.Constant), "a docstring comes first"
    if not body:
        return
    if isinstance(body[-1], ast.FunctionDef):
        assert body.pop().name == "__dir__", "only `__dir__` may follow `__all__`"
    *imports, last = body
    assert all(isinstance(each, ast.ImportFrom) for each in imports), "only `from … import …`"
    assert isinstance(last, ast.Assign | ast.AnnAssign), "`__all__` comes last"
    assert last.value is not None
    names = ast.literal_eval(last.value)
    imported = {alias.asname or alias.name for each in imports for alias in each.names}  # type: ignore[attr-defined]
    assert set(names) == imported
    assert len(set(names)) == len(names)
    assert names == sorted(names, key=_order), "sorted as ruff sorts it: constants, classes, functions"


def _order(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("path", _inits(), ids=_module)
def test_every_public_name_exists(path: Path) -> None:
    """Every name in `__all__` can be imported."""
    module = importlib.import_module(_module(path))
    assert [each for each in getattr(module, "__all__", ()) if not hasattr(module, each)] == []


@pytest.mark.parametrize("name", ["ailf", "ailf_redis", "ailf_memory"])
def test_dir_shows_the_public_names(name: str) -> None:
    """`dir` shows the public names of a package, not its modules."""
    module = importlib.import_module(name)
    assert dir(module) == sorted(module.__all__)


# --- abstract classes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interface", [ailf.Stream, ailf.AsyncStream])
def test_an_abstract_stream_is_not_made(interface: type) -> None:
    """An interface without a backend can't be made."""
    with pytest.raises(TypeError, match="abstract"):
        interface("tasks")


@pytest.mark.parametrize("interface", [ailf.PubSub, ailf.AsyncPubSub])
def test_an_abstract_pubsub_is_not_made(interface: type) -> None:
    """An interface without a backend can't be made."""
    with pytest.raises(TypeError, match="abstract"):
        interface()


if __name__ == "__main__":
    for name, modules in LISTINGS.items():
        Path(__file__).with_name(name).write_text(listing(modules))
