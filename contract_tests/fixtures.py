"""The pytest hooks and fixtures that run the contract: each test on each backend and flavour, within a deadline.

No test is skipped silently: those that a backend can't run are counted and reported with the reason.

A test's id shows its clauses, the flavour and the backend: ``test_drain[S14-asyncio-redis://localhost:6379/0]``.
"""

import asyncio
import importlib
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest

import ailf
from ailf.driver import Capability
from ailf.urls import shown
from contract_tests.harness import Harness, UrlHarness
from contract_tests.world import World, run_test

__all__ = [
    "NewHarness",
    "asyncio_only",
    "clauses",
    "deselect",
    "needs",
    "new_harness",
    "pytest_collection_modifyitems",
    "pytest_generate_tests",
    "pytest_pyfunc_call",
    "pytest_report_collectionfinish",
    "world",
]

FLAVOURS = ("blocking", "asyncio")
NewHarness = Callable[[], Harness]
T = TypeVar("T")

_left_out = pytest.StashKey[Counter[str]]()


# --- marks of a test ---------------------------------------------------------------------------------------------


def clauses(test: Any) -> tuple[str, ...]:
    """Return the ids of clauses that a test's docstring begins with: ``S4, B8: …``."""
    match = re.match(r"([A-Z]\d+(?:, [A-Z]\d+)*): \S", test.__doc__ or "")
    return tuple(match[1].split(", ")) if match else ()


def asyncio_only(reason: str) -> Callable[[T], T]:
    """Mark a test that runs on asyncio only; `reason` says why it has no meaning on threads."""

    def mark(test: Any) -> Any:
        test.flavours = ("asyncio",)
        test.why = reason
        return test

    return mark


def needs(*parts: Capability | str) -> Callable[[T], T]:
    """Mark a test that needs capabilities of the backend, or optional parts of its harness, by their names."""

    def mark(test: Any) -> Any:
        test.needs = (*getattr(test, "needs", ()), *parts)
        return test

    return mark


# --- hooks and fixtures ------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with each of its flavours, on each backend that the command line names."""
    if "world" not in metafunc.fixturenames:
        return
    flavours = getattr(metafunc.function, "flavours", FLAVOURS)
    label = "+".join(clauses(metafunc.function))
    metafunc.parametrize("world", flavours, indirect=True, ids=[f"{label}-{each}" for each in flavours])
    named = metafunc.config.getoption("--backend", default=[]) + metafunc.config.getoption("--harness", default=[])
    if named:
        metafunc.parametrize("new_harness", named, indirect=True, ids=[_shown(each) for each in named])


def _shown(named: str) -> str:
    """Return the URL or class name for ids and reports, without credentials."""
    return shown(named) if "://" in named else named


def _make(named: str | NewHarness) -> NewHarness:
    """Return a function that makes harnesses: for a URL, or for the name of a class."""
    if callable(named):
        return named
    if "://" in named:
        return lambda: UrlHarness(named)
    module, _, name = named.partition(":")
    made: NewHarness = getattr(importlib.import_module(module), name)
    return made


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that a backend can't run; `pytest_report_collectionfinish` reports them."""
    counted = config.stash.setdefault(_left_out, Counter())
    dropped = []
    for item in items:
        reason = _unfit(item)
        if reason:
            counted[reason] += 1
            dropped.append(item)
    deselect(config, items, dropped)


def deselect(config: pytest.Config, items: list[pytest.Item], dropped: list[pytest.Item]) -> None:
    """Remove tests from those that run, and tell pytest."""
    if dropped:
        deselected = set(dropped)
        items[:] = [item for item in items if item not in deselected]
        config.hook.pytest_deselected(items=dropped)


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Report how many tests were left out, and why."""
    return [f"contract: {count} left out: {reason}" for reason, count in sorted(config.stash[_left_out].items())]


_harnesses: dict[object, Harness] = {}


def _unfit(item: pytest.Item) -> str:
    """Return why a test can't run on its backend, or ""; where a fixture chooses the backend, `world` checks it."""
    if not isinstance(item, pytest.Function) or "world" not in item.fixturenames:
        return ""
    params: dict[str, Any] = item.callspec.params
    named = params.get("new_harness", getattr(item.module, "HARNESS", None))
    if named is None:
        if item.module.__name__.startswith("contract_tests."):
            raise pytest.UsageError("no backend to test: run pytest --pyargs contract_tests --backend URL")
        lacks: dict[Capability | str, str] = getattr(item.module, "LACKS", {})  # a fixture of the module chooses
        return next((lacks[part] for part in _needs(item.function) if part in lacks), "")
    if named not in _harnesses:
        try:
            _harnesses[named] = _make(named)()
        except (ailf.AilfError, ImportError, AttributeError) as error:
            backend = _shown(named) if isinstance(named, str) else named
            raise pytest.UsageError(f"can't open the backend {backend}: {error}") from error
    return _reason(_harnesses[named], params["world"], _needs(item.function))


def _reason(harness: Harness, flavour: str, parts: Sequence[Capability | str]) -> str:
    if flavour not in harness.flavours:
        return f"the backend has no {flavour} flavour"
    return next(filter(None, (harness.lacks(part) for part in parts)), "")


def _needs(test: Any) -> tuple[Capability | str, ...]:
    """Return what a test needs: the `NEEDS` of its module, and its own."""
    return (*getattr(sys.modules[test.__module__], "NEEDS", ()), *getattr(test, "needs", ()))


@pytest.fixture
def new_harness(request: pytest.FixtureRequest) -> NewHarness:
    """A function that makes a harness of the backend to test, which the command line, the module or a fixture names."""
    named = getattr(request, "param", None) or getattr(request.module, "HARNESS", None)
    if named is None:
        raise pytest.UsageError("name what to test: pytest --pyargs contract_tests --backend URL")
    return _make(named)


@pytest.fixture
def world(request: pytest.FixtureRequest, new_harness: NewHarness) -> World:
    """The test's world: a new harness, and a flavour."""
    harness = new_harness()
    reason = _reason(harness, request.param, _needs(request.function))
    if reason:
        pytest.fail(f"this test can't run, and LACKS of its module doesn't leave it out: {reason}")
    return World(harness, request.param)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the contract's coroutine tests, each on an event loop of its own."""
    if "world" not in pyfuncitem.fixturenames or not inspect.iscoroutinefunction(pyfuncitem.function):
        return None
    arguments: dict[str, Any] = {
        name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.function).parameters
    }
    asyncio.run(run_test(arguments.pop("world"), pyfuncitem.function, **arguments))
    return True
