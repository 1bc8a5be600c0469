"""The registry of planted bugs, and the memory backend into which each of them is planted.

`caught_by` stands beside each bug and names the contract tests that must fail because of it.
"""

import contextlib
import importlib
import inspect
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import attrs

import ailf
from ailf.driver import BackendDriver
from ailf.runtime import AsyncioRuntime, Runtime, ThreadRuntime
from ailf_memory.driver import MemoryDriver
from ailf_memory.lock import MemoryLockDriver
from ailf_memory.pubsub import MemoryListener, MemoryPubSubDriver
from ailf_memory.ratelimit import MemoryRateLimiterDriver
from ailf_memory.state.group import GroupState
from ailf_memory.stream import MemoryStreamDriver
from contract_tests.harness import Harness
from tests.contract.harnesses import MemoryHarness

__all__ = ["BrokenHarness", "ContractTest", "Planted", "caught_by", "modules_of_bugs", "planted_bugs"]

ContractTest = Callable[..., Coroutine[Any, Any, None]]
Bug = TypeVar("Bug", bound=type)


# --- the backend -------------------------------------------------------------------------------------------------


class BrokenHarness(MemoryHarness):
    """Opens memory backends of which a subclass replaces one part.

    Attributes:
        driver_class: The backend driver.
        pubsub_driver: The driver of pub/sub.
        stream_driver: The driver of streams.
        lock_driver: The driver of locks.
        limiter_driver: The driver of rate limiters.
        blocking: The class of blocking backends.
        on_asyncio: The class of asyncio backends.
        keeps_time: Whether a frozen driver gives up a request after `request_time`.
        request_time: Seconds that a request may take; 0 for drivers that can't be frozen.
        frozen: Whether the drivers leave all requests without a reply now.
    """

    driver_class: ClassVar[type[MemoryDriver]] = MemoryDriver
    pubsub_driver: ClassVar[type[MemoryPubSubDriver]] = MemoryPubSubDriver
    stream_driver: ClassVar[type[MemoryStreamDriver]] = MemoryStreamDriver
    lock_driver: ClassVar[type[MemoryLockDriver]] = MemoryLockDriver
    limiter_driver: ClassVar[type[MemoryRateLimiterDriver]] = MemoryRateLimiterDriver
    blocking: type[ailf.Backend] = ailf.Backend
    on_asyncio: type[ailf.AsyncBackend] = ailf.AsyncBackend
    keeps_time: ClassVar[bool] = True
    request_time = 0.0
    frozen = False

    @contextlib.contextmanager
    def freezable(self, timeout: float) -> Iterator[Harness]:
        """Open backends whose drivers can be frozen."""
        harness = type(self)()
        harness.request_time = timeout
        yield harness

    def freeze(self, *, frozen: bool) -> None:
        """Leave requests without a reply, or reply again."""
        self.frozen = frozen

    def connect(self) -> ailf.Backend:
        """Open a blocking backend over the broken drivers."""
        return self.blocking(self.driver(ThreadRuntime(self.clock)))

    def connect_async(self) -> ailf.AsyncBackend:
        """Open an asyncio backend over the broken drivers."""
        return self.on_asyncio(self.driver(AsyncioRuntime(self.clock)))

    def driver(self, runtime: Runtime) -> BackendDriver:
        """Return the backend driver, made of the parts that the class attributes name."""
        harness = self

        class Driver(self.driver_class):  # type: ignore[name-defined, misc]  # the harness chooses
            def pubsub(self) -> Any:
                return freezable(harness.pubsub_driver(self.handle), harness, self.runtime)

            def stream(self) -> Any:
                return freezable(harness.stream_driver(self.handle), harness, self.runtime)

            def lock(self) -> Any:
                return freezable(harness.lock_driver(self.handle), harness, self.runtime)

            def rate_limiter(self) -> Any:
                return freezable(harness.limiter_driver(self.handle), harness, self.runtime)

            def with_runtime(self, runtime: Runtime) -> Any:
                return harness.driver(runtime)

        driver = Driver(self.store, runtime)
        if self.request_time:
            driver.timeout = self.request_time
        return driver


class _Freezable:
    """A driver that doesn't reply while its harness is frozen, and gives up each request after `request_time`."""

    def __init__(self, inner: Any, harness: BrokenHarness, runtime: Runtime) -> None:
        self._inner = inner
        self._harness = harness
        self._runtime = runtime

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def request(*args: Any, **options: Any) -> Any:
            until = time.monotonic() + (self._harness.request_time if self._harness.keeps_time else 60)
            while self._harness.frozen:
                if time.monotonic() > until:
                    raise ailf.BackendTimeoutError("no answer", maybe_applied=True)
                await self._runtime.event().wait(0.02)
            return await method(*args, **options)

        return request


def freezable(driver: Any, harness: BrokenHarness, runtime: Runtime) -> Any:
    """Return the driver, wrapped so that it can be frozen if the harness has a `request_time`."""
    return _Freezable(driver, harness, runtime) if harness.request_time else driver


# --- the registry ------------------------------------------------------------------------------------------------


@attrs.frozen
class Planted:
    """One bug and one contract test that must fail because of it.

    Attributes:
        harness: Opens backends that have the bug.
        test: The contract test.
        arguments: The arguments of the test, beside its `world`.
        asyncio_only: Whether the bug shows on asyncio only.
    """

    harness: type[BrokenHarness]
    test: ContractTest
    arguments: dict[str, Any]
    asyncio_only: bool


_registry: list[Planted] = []


def caught_by(*tests: str, asyncio_only: bool = False, **arguments: Any) -> Callable[[Bug], Bug]:
    """Register a planted bug: each of the tests must fail because of it.

    Arguments:
        tests: Contract tests, such as `"stream.test_delivery.test_attempts"`: a module of `contract_tests`, and a test.
        asyncio_only: Whether the bug shows on asyncio only, so that it is not planted into a blocking backend.
        arguments: The arguments of one of the tests' parametrized cases.

    Raises:
        LookupError: There is no such test.
        TypeError: A test doesn't take these arguments.
    """

    def register(bug: Bug) -> Bug:
        harness = _harness_with(bug)
        for name in tests:
            test = _contract_test(name)
            inspect.signature(test).bind(world=None, **arguments)
            _registry.append(Planted(harness, test, arguments, asyncio_only))
        return bug

    return register


def _contract_test(name: str) -> ContractTest:
    """Return the contract test of this name."""
    module, _, function = name.rpartition(".")
    try:
        test: ContractTest = getattr(importlib.import_module(f"contract_tests.{module}"), function)
    except (ImportError, AttributeError) as error:
        raise LookupError(f"caught_by names the contract test {name}, and contract_tests has none") from error
    return test


PARTS = {
    MemoryDriver: "driver_class",
    MemoryPubSubDriver: "pubsub_driver",
    MemoryStreamDriver: "stream_driver",
    MemoryLockDriver: "lock_driver",
    MemoryRateLimiterDriver: "limiter_driver",
}
"""For each base class of a bug: the attribute of `BrokenHarness` that the bug replaces."""


def _harness_with(bug: type) -> type[BrokenHarness]:
    """Return a harness class whose backends have this bug."""
    if issubclass(bug, BrokenHarness):
        return bug
    part: type = bug
    if issubclass(bug, GroupState):
        part = type(bug.__name__, (MemoryStreamDriver,), {"group_class": bug})
    elif issubclass(bug, MemoryListener):
        part = _subscribing_by(bug)
    attribute = next(attribute for base, attribute in PARTS.items() if issubclass(part, base))
    return type(bug.__name__, (BrokenHarness,), {attribute: part})


def _subscribing_by(listener: type[MemoryListener]) -> type[MemoryPubSubDriver]:
    """Return a pub/sub driver class whose subscriptions use this listener."""

    class Driver(MemoryPubSubDriver):
        async def listen(self) -> MemoryListener:
            made = listener(self._handle)
            self._handle.store.listeners.append(made)
            return made

    return Driver


def modules_of_bugs() -> list[ModuleType]:
    """Return the modules beside this one that contain planted bugs."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    return [
        importlib.import_module(f"tests.contract.planted.{name}")
        for name in names
        if name != "base" and not name.startswith("test_")
    ]


def planted_bugs() -> list[Planted]:
    """Return the planted bugs of all modules."""
    modules_of_bugs()  # importing them registers the bugs
    return list(_registry)
