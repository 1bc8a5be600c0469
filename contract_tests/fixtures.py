"""How pytest runs the contract: each test on each backend and flavour, with a deadline."""

import asyncio
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from contract_tests.flavours import live
from contract_tests.harness import Harness, UrlHarness

__all__ = ["flavour", "new_harness", "pytest_generate_tests", "pytest_pyfunc_call", "world"]

FLAVOURS = ("blocking", "asyncio")
NewHarness = Callable[[], Harness]


def asyncio_only(reason: str) -> Callable[[Any], Any]:
    """Mark a test that has no meaning on threads; the reason is there for readers."""

    def mark(test: Any) -> Any:
        test.flavours = ("asyncio",)
        test.why = reason
        return test

    return mark


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each flavour that it is for, and each backend that the command line names."""
    if "world" not in metafunc.fixturenames:
        return
    if "flavour" in metafunc.fixturenames:
        metafunc.parametrize("flavour", getattr(metafunc.function, "flavours", FLAVOURS))
    named = metafunc.config.getoption("--backend") + metafunc.config.getoption("--harness")
    if "new_harness" in metafunc.fixturenames and named:
        metafunc.parametrize("new_harness", named, indirect=True)


@pytest.fixture
def new_harness(request: pytest.FixtureRequest) -> NewHarness:
    """What makes a harness on an empty place; tests of a backend's own override this fixture."""
    named = getattr(request, "param", None)
    if named is None:
        raise pytest.UsageError("name what to test: pytest --pyargs contract_tests --backend URL")
    if "://" in named:
        return lambda: UrlHarness(named)
    module, _, name = named.partition(":")
    made: NewHarness = getattr(importlib.import_module(module), name)
    return made


@pytest.fixture
def world(new_harness: NewHarness) -> Harness:
    """The harness of one test; the world around it is made on the test's own event loop."""
    return new_harness()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the contract's coroutine tests."""
    if "world" not in pyfuncitem.fixturenames or not inspect.iscoroutinefunction(pyfuncitem.function):
        return None
    arguments: dict[str, Any] = {
        name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.function).parameters
    }
    harness, chosen = arguments.pop("world"), arguments.pop("flavour")
    asyncio.run(live(harness, chosen, pyfuncitem.function, **arguments))
    return True


@pytest.fixture
def flavour(request: pytest.FixtureRequest) -> str:
    """Which flavour the test runs on."""
    chosen: str = request.param
    return chosen
