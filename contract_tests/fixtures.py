"""How pytest runs the contract: each test on each backend and flavour, within a deadline, and nothing skips silently.

A test's id tells its clauses, the flavour and the backend: ``test_drain[S14-asyncio-redis://localhost:6379/0]``.
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
from contract_tests.world import World, live

__all__ = [
    "NewHarness",
    "asyncio_only",
    "clauses",
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


# --- what a test says of itself ----------------------------------------------------------------------------------


def clauses(test: Any) -> tuple[str, ...]:
    """Return the clauses that a test's docstring begins with: ``S4, B8: …``."""
    found = re.match(r"([A-Z]\d+(?:, [A-Z]\d+)*): \S", test.__doc__ or "")
    return tuple(found[1].split(", ")) if found else ()


def asyncio_only(reason: str) -> Callable[[T], T]:
    """Mark a test that has no meaning on threads; the reason is there for readers."""

    def mark(test: Any) -> Any:
        test.flavours = ("asyncio",)
        test.why = reason
        return test

    return mark


def needs(*parts: Capability | str) -> Callable[[T], T]:
    """Mark a test that needs a capability of the backend, or an optional part of its harness."""

    def mark(test: Any) -> Any:
        test.needs = (*getattr(test, "needs", ()), *parts)
        return test

    return mark


# --- what pytest does with it ------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each flavour that it is for, and each backend that the command line names."""
    if "world" not in metafunc.fixturenames:
        return
    flavours = getattr(metafunc.function, "flavours", FLAVOURS)
    label = "+".join(clauses(metafunc.function))
    metafunc.parametrize("world", flavours, indirect=True, ids=[f"{label}-{each}" for each in flavours])
    named = metafunc.config.getoption("--backend", default=[]) + metafunc.config.getoption("--harness", default=[])
    if named:
        metafunc.parametrize("new_harness", named, indirect=True, ids=[_shown(each) for each in named])


def _shown(named: str) -> str:
    """Return a URL or class as ids and reports may show it: without credentials."""
    return shown(named) if "://" in named else named


def _make(named: str | NewHarness) -> NewHarness:
    """Return what makes harnesses of a URL, or of a class and its name."""
    if callable(named):
        return named
    if "://" in named:
        return lambda: UrlHarness(named)
    module, _, name = named.partition(":")
    made: NewHarness = getattr(importlib.import_module(module), name)
    return made


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a backend doesn't declare, and say so (`pytest_report_collectionfinish`)."""
    counted = config.stash.setdefault(_left_out, Counter())
    dropped = []
    for item in items:
        reason = _unfit(item)
        if reason:
            counted[reason] += 1
            dropped.append(item)
    if dropped:
        gone = set(dropped)
        items[:] = [item for item in items if item not in gone]
        config.hook.pytest_deselected(items=dropped)


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Say what was left out, and why."""
    return [f"contract: {count} left out: {reason}" for reason, count in sorted(config.stash[_left_out].items())]


_places: dict[object, Harness] = {}


def _unfit(item: pytest.Item) -> str:
    """Return why a test can't run on its backend, or ""; where a fixture chooses it, `world` looks."""
    if not isinstance(item, pytest.Function) or "world" not in item.fixturenames:
        return ""
    chosen: dict[str, Any] = item.callspec.params
    named = chosen.get("new_harness", getattr(item.module, "HARNESS", None))
    if named is None:
        if item.module.__name__.startswith("contract_tests."):
            raise pytest.UsageError("name what to test: pytest --pyargs contract_tests --backend URL")
        lacks: dict[Capability | str, str] = getattr(item.module, "LACKS", {})  # a fixture of the module's chooses
        return next((lacks[part] for part in _needs(item.function) if part in lacks), "")
    if named not in _places:
        try:
            _places[named] = _make(named)()
        except (ailf.AilfError, ImportError, AttributeError) as error:
            raise pytest.UsageError(f"{_shown(named) if isinstance(named, str) else named}: {error}") from error
    return _reason(_places[named], chosen["world"], _needs(item.function))


def _reason(place: Harness, flavour: str, parts: Sequence[Capability | str]) -> str:
    if flavour not in place.flavours:
        return f"the backend has no {flavour} flavour"
    return next(filter(None, (place.lacks(part) for part in parts)), "")


def _needs(test: Any) -> tuple[Capability | str, ...]:
    """Return what a test needs: what all of its file do, and what it says itself."""
    return (*getattr(sys.modules[test.__module__], "NEEDS", ()), *getattr(test, "needs", ()))


@pytest.fixture
def new_harness(request: pytest.FixtureRequest) -> NewHarness:
    """What makes a harness on an empty place: named on the command line, or by the module; modules may override it."""
    named = getattr(request, "param", None) or getattr(request.module, "HARNESS", None)
    if named is None:
        raise pytest.UsageError("name what to test: pytest --pyargs contract_tests --backend URL")
    return _make(named)


@pytest.fixture
def world(request: pytest.FixtureRequest, new_harness: NewHarness) -> World:
    """What the test has: an empty place, and a flavour."""
    place = new_harness()
    reason = _reason(place, request.param, _needs(request.function))
    if reason:
        pytest.fail(f"this test can't run and was not left out: {reason}")
    return World(place, request.param)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the contract's coroutine tests, each on an event loop of its own."""
    if "world" not in pyfuncitem.fixturenames or not inspect.iscoroutinefunction(pyfuncitem.function):
        return None
    arguments: dict[str, Any] = {
        name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.function).parameters
    }
    asyncio.run(live(arguments.pop("world"), pyfuncitem.function, **arguments))
    return True
