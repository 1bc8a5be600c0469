"""Memory backends with planted bugs: closing, deadlines, namespaces, payloads."""

import functools
import threading
import time
from typing import Any

import ailf
from ailf.driver import BackendDriver
from ailf.runtime import Runtime
from ailf_memory import AsyncMemoryStream, MemoryStore, MemoryStream
from ailf_memory.driver import MemoryDriver
from tests.contract.planted.base import BrokenHarness, caught_by


@caught_by("backend.test_close.test_close_leaves_nothing")
class LeavesThreads(MemoryDriver):
    """One of its threads goes on after `close`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        threading.Thread(target=time.sleep, args=(2.0,), name="left behind", daemon=True).start()


@caught_by("backend.test_close.test_dropped")
class DropsWithoutWarning(MemoryDriver):
    """When it is dropped, it reports that it had nothing to give back."""

    def abandon(self) -> bool:
        super().abandon()
        return False


@caught_by("backend.test_close.test_dropped")
class DropsWithoutCleanup(MemoryDriver):
    """One of its threads goes on after it was dropped."""

    def abandon(self) -> bool:
        threading.Thread(target=time.sleep, args=(2.0,), name="left behind", daemon=True).start()
        return super().abandon()


@caught_by("backend.test_backend.test_a_silent_backend")
class IgnoresTimeouts(BrokenHarness):
    """Its drivers wait for a reply without a deadline."""

    keeps_time = False


@caught_by("backend.test_backend.test_same_url_same_state")
class SharesNamespaces(BrokenHarness):
    """Two namespaces share everything."""

    def other_namespace(self) -> "SharesNamespaces":
        """Return this harness itself."""
        return self


@caught_by("backend.test_flavours.test_each_flavour_is_closed_by_itself")
class ClosesBothFlavours(BrokenHarness):
    """Closing what `with_runtime` returned closes the driver that made it."""

    def driver(self, runtime: Runtime) -> BackendDriver:
        """Return a driver whose other flavour closes it."""
        driver = super().driver(runtime)
        with_runtime = driver.with_runtime

        def made(other: Runtime) -> BackendDriver:
            twin = with_runtime(other)
            close = twin.close

            async def close_both() -> None:
                await close()
                await driver.close()

            twin.close = close_both  # type: ignore[method-assign]  # the bug
            return twin

        driver.with_runtime = made  # type: ignore[method-assign]  # as above
        return driver


@caught_by("backend.test_flavours.test_the_other_flavour_has_the_same_state")
@caught_by("backend.test_backend.test_same_url_same_state")
class SharesNothing(BrokenHarness):
    """Each backend that opens the URL has a store of its own."""

    def driver(self, runtime: Runtime) -> BackendDriver:
        """Return a driver on a new store."""
        self.store = MemoryStore(self.clock)
        return super().driver(runtime)


class _Unpacked:
    """A codec whose payloads never become bytes."""

    kinds = ()
    validate = False

    def pack(self, data: Any, headers: Any) -> Any:
        return data, headers or {}

    def unpack(self, body: Any, headers: Any, **_: Any) -> Any:
        return body, headers


def _unpacked(stream: Any) -> Any:
    flow = type(stream).__mro__[1]._flow.func(stream)
    flow.payloads = _Unpacked()
    return flow


class _SharingStream(MemoryStream[Any]):
    _flow = functools.cached_property(_unpacked)


class _AsyncSharingStream(AsyncMemoryStream[Any]):
    _flow = functools.cached_property(_unpacked)


class _SharingBackend(ailf.Backend):
    stream_class = _SharingStream


class _AsyncSharingBackend(ailf.AsyncBackend):
    stream_class = _AsyncSharingStream


@caught_by("backend.test_backend.test_payloads_are_copies")
class SharesObjects(BrokenHarness):
    """A consumer receives the same object that was added."""

    blocking = _SharingBackend
    on_asyncio = _AsyncSharingBackend
