"""A rate limiter for the chat models of LangChain, which all processes share.

LangChain asks it before each call of a model, and tells nothing of the call: neither its size nor its end. So it limits
how often models are called; `ailf.bridges.httpx` also limits tokens and parallel calls.
"""

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

try:
    from langchain_core.rate_limiters import BaseRateLimiter
except ModuleNotFoundError as error:
    raise ImportError(
        'ailf.bridges.langchain needs langchain-core: pip install "ailf[langchain]"', name="langchain_core"
    ) from error

from ailf.backend import AsyncBackend, Backend
from ailf.checks import check_seconds
from ailf.errors import ClosedError, InvalidArgumentError
from ailf.limits import Limit
from ailf.logs import About, Log
from ailf.ratelimit import AsyncRateLimiter, OnBackendError, RateLimiter
from ailf.ratelimit.options import OPTIONS

__all__ = ["SharedRateLimiter"]

log = Log("ailf.rate_limiter")

CLOSING: Final = 10.0
"""Seconds that closing waits for another event loop, which may end meanwhile."""


class SharedRateLimiter(BaseRateLimiter):
    """A rate limiter for LangChain's chat models that all processes share, blocking and on asyncio.

    Give it to any chat model: ``ChatOpenAI(rate_limiter=limiter)``, ``init_chat_model(…, rate_limiter=limiter)``. Calls
    wait in turn, over all processes that use the same backend, name and key, and both flavours count together. Threads
    and event loops may share it.

    It uses the backend for calls of the backend's own flavour, and opens another one for each further event loop, or
    for threads, as it needs them. `close` or `aclose` closes those, and leaves the given one open.

    Arguments:
        backend: An opened backend of either flavour.
        name: The limiter's name. Limiters of one name and key share their quota.
        limit: The limit, such as ``"60/minute"``: each call costs 1.
        limits: Several limits by name, instead of ``limit``: ``minute="60/minute", day="1000/day"``.
        key: The key whose quota counts, such as the model's name; or a function that returns it, called for each call.
        max_wait: Seconds that a call waits before it raises `RateLimitedError`.
        on_backend_error: As for `Backend.rate_limiter`.

    Raises:
        InvalidArgumentError: An argument can't be used, or a limit is a `Concurrency`, whose slots are held until the
            end of a call.
        UnsupportedError: The backend has no rate limiters.

    Example:
        >>> import ailf
        >>> from ailf.bridges.langchain import SharedRateLimiter
        >>> from langchain_core.language_models import GenericFakeChatModel
        >>> with ailf.connect("memory://") as backend, SharedRateLimiter(backend, "llm", "60/minute") as limiter:
        ...     model = GenericFakeChatModel(messages=iter(["Hello"]), rate_limiter=limiter)
        ...     model.invoke("Hi").content
        'Hello'
    """

    def __init__(
        self,
        backend: Backend | AsyncBackend,
        name: str,
        limit: Limit | str | None = None,
        /,
        *,
        key: str | Callable[[], str] = "",
        max_wait: float = 600.0,
        on_backend_error: OnBackendError = "raise",
        **limits: Limit | str,
    ) -> None:
        if not isinstance(backend, Backend | AsyncBackend):
            raise InvalidArgumentError(f"SharedRateLimiter needs an opened backend, not {type(backend).__name__}")
        if not isinstance(key, str) and not callable(key):
            raise InvalidArgumentError(f"key must be text, or a function without arguments, not {key!r}")
        self._max_wait = check_seconds("max_wait", max_wait)
        self._key = key
        self._backend = backend
        if wrong := sorted(OPTIONS & limits.keys()):
            raise InvalidArgumentError(f"SharedRateLimiter has no option {wrong[0]!r}, which can't be a limit's name")
        options: dict[str, Any] = {"on_backend_error": on_backend_error, **limits}
        self._limiter_of: Callable[[Any], Any] = lambda opened: opened.rate_limiter(name, limit, **options)
        limiter = self._limiter_of(backend)
        self._name, self._limits = name, limiter.limits
        if leased := [str(each) for each in limiter.limits.values() if each.leased]:
            raise InvalidArgumentError(
                f"{self!r} can't hold the slots of the limit {leased[0]!r}: LangChain doesn't tell when a call ends. "
                "Limit parallel calls with ailf.llm.quota and the client's http_client"
            )
        self._guard = threading.Lock()
        self._closed = False
        self._of_threads: tuple[Backend, RateLimiter] | None = None
        self._of_loops: list[tuple[AsyncBackend, AsyncRateLimiter]] = []
        if isinstance(backend, Backend):
            self._of_threads = backend, limiter
        else:
            self._of_loops.append((backend, limiter))

    def acquire(self, *, blocking: bool = True) -> bool:
        """Wait until a call passes, or try once; return whether it passes.

        Arguments:
            blocking: Whether to wait, for ``max_wait`` seconds at most.

        Raises:
            RateLimitedError: The call did not pass within ``max_wait``. LangChain would make it if this were False.
            ClosedError: The limiter or its backend is closed.
            BackendError: The backend couldn't answer.
        """
        limiter, key = self._on_threads(), self._next_key()
        if not blocking:
            return limiter.try_acquire(key).allowed
        limiter.acquire(key, timeout=self._max_wait)
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        """Wait until a call passes, or try once; return whether it passes.

        Arguments:
            blocking: Whether to wait, for ``max_wait`` seconds at most.

        Raises:
            RateLimitedError: The call did not pass within ``max_wait``. LangChain would make it if this were False.
            ClosedError: The limiter or its backend is closed.
            BackendError: The backend couldn't answer.
        """
        limiter, key = self._in_loop(), self._next_key()
        if not blocking:
            return (await limiter.try_acquire(key)).allowed
        await limiter.acquire(key, timeout=self._max_wait)
        return True

    def _next_key(self) -> str:
        return self._key if isinstance(self._key, str) else self._key()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self!r} is closed; make another one")

    # --- one backend for threads, and one for each event loop ---------------------------------------------------------

    def _on_threads(self) -> RateLimiter:
        """Return the limiter for threads."""
        with self._guard:
            self._check_open()
            return self._for_threads()[1]

    def _for_threads(self) -> tuple[Backend, RateLimiter]:
        if self._of_threads is None:
            assert isinstance(self._backend, AsyncBackend)  # noqa: S101 - for mypy: __init__ has set it otherwise
            made = self._backend.to_blocking()
            self._of_threads = made, self._limiter_of(made)
        return self._of_threads

    def _in_loop(self) -> AsyncRateLimiter:
        """Return the limiter of the running loop: the one used in it before, one of a closed loop, or a new one."""
        loop = asyncio.get_running_loop()
        with self._guard:
            self._check_open()
            for backend, limiter in self._of_loops:
                if backend.engine.home is loop:
                    return limiter
            for backend, limiter in self._of_loops:
                home = backend.engine.home
                if not isinstance(home, asyncio.AbstractEventLoop) or home.is_closed():  # unused, or free again
                    backend.engine.check_open()  # from now on it belongs to this loop
                    return limiter
            made = self._for_threads()[0].to_async()
            made.engine.check_open()
            self._of_loops.append((made, self._limiter_of(made)))
            return self._of_loops[-1][1]

    # --- closing ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the backends that this limiter has opened; calls under way in them end with `ClosedError`.

        Raises:
            InvalidArgumentError: It was called in an event loop, which it would block: await `aclose` there.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise InvalidArgumentError(f"close() of {self!r} would block the event loop: await aclose()")
        on_threads, in_loops = self._take_own()
        if in_loops:
            asyncio.run(self._close_in_loops(in_loops))
        for each in on_threads:
            each.close()

    async def aclose(self) -> None:
        """Close the backends that this limiter has opened; calls under way in them end with `ClosedError`."""
        on_threads, in_loops = self._take_own()
        await self._close_in_loops(in_loops)
        for each in on_threads:
            await asyncio.to_thread(each.close)

    def _take_own(self) -> tuple[list[Backend], list[AsyncBackend]]:
        """Mark it as closed; return the backends that it has opened and not closed."""
        with self._guard:
            self._closed = True
            on_threads = [] if self._of_threads is None else [self._of_threads[0]]
            in_loops = [backend for backend, _ in self._of_loops]
            self._of_threads, self._of_loops = None, []
        return (
            [each for each in on_threads if each is not self._backend],
            [each for each in in_loops if each is not self._backend],
        )

    async def _close_in_loops(self, backends: list[AsyncBackend]) -> None:
        """Close backends, those of other loops that run in these."""
        loop = asyncio.get_running_loop()
        for each in backends:
            home = each.engine.home
            if not isinstance(home, asyncio.AbstractEventLoop) or home is loop or not home.is_running():
                await each.aclose()
                continue
            closing = asyncio.run_coroutine_threadsafe(each.aclose(), home)
            try:
                async with asyncio.timeout(CLOSING):
                    await asyncio.wrap_future(closing)
            except TimeoutError:
                log.warning(About(each.url, {"backend": each.url}), "not closed: its event loop didn't do so in time")

    def __enter__(self) -> Self:
        """Return the limiter itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()

    async def __aenter__(self) -> Self:
        """Return the limiter itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()

    def __repr__(self) -> str:
        limits = ", ".join(f"{name or 'limit'} {limit}" for name, limit in self._limits.items())
        return f"<{type(self).__name__} {self._name!r}: {limits}>"
