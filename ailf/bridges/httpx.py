"""Transports for httpx2 and httpx that keep every client of an LLM provider within one quota, over all processes.

Both flavours run `ailf.bridges.quota.QuotaFlow`. They work with whichever of the two libraries a client uses.
"""

import asyncio
import concurrent.futures
import functools
import importlib
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from ailf.bridges.quota import Call, Costs, QuotaFlow
from ailf.errors import InvalidArgumentError
from ailf.providers import AnswerReader, Provider, estimated, model_of
from ailf.providers.estimate import tokens_of
from ailf.ratelimit import AsyncRateLimiter, RateLimiter
from ailf.runtime import run
from ailf.runtime.aio import start_task

if TYPE_CHECKING:
    import httpx
    import httpx2

__all__ = ["AsyncQuotaTransport", "Estimate", "QuotaTransport", "model_key"]

MAX_UNSETTLED: Final = 1_000
"""The number of calls that wait to be settled. While there are more, a response waits for the settling of its call."""
CONNECTIONS: Final = 1_000  # as the clients of OpenAI and Anthropic: the limiter says how many calls there are at once
IDLE_CONNECTIONS: Final = 100


def _installed() -> tuple[ModuleType, ...]:
    """Return the libraries that are installed."""
    found = []
    for name in ("httpx2", "httpx"):
        try:
            found.append(importlib.import_module(name))
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    if not found:
        raise ImportError("ailf.bridges.httpx needs httpx2 or httpx: pip install 'ailf[httpx]'")
    return tuple(found)


LIBRARIES: Final = _installed()

if TYPE_CHECKING:

    class _Transport(httpx2.BaseTransport, httpx.BaseTransport):
        def handle_request(self, request: Any) -> Any: ...

    class _AsyncTransport(httpx2.AsyncBaseTransport, httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: Any) -> Any: ...

    class _Stream(httpx2.SyncByteStream, httpx.SyncByteStream): ...

    class _AsyncStream(httpx2.AsyncByteStream, httpx.AsyncByteStream): ...

else:  # clients check by `isinstance` that a stream is one of their own library

    def _base(name: str) -> type:
        return type(name, tuple(getattr(each, name) for each in LIBRARIES), {})

    _Transport, _AsyncTransport = _base("BaseTransport"), _base("AsyncBaseTransport")
    _Stream, _AsyncStream = _base("SyncByteStream"), _base("AsyncByteStream")


def _library_of(thing: object) -> ModuleType:
    """Return the library of a request or response, by its class."""
    for kind in type(thing).__mro__:
        name = kind.__module__.partition(".")[0]
        for library in LIBRARIES:
            if library.__name__ == name:
                return library
    raise InvalidArgumentError(
        f"a quota transport takes the requests of {' and '.join(each.__name__ for each in LIBRARIES)}, "
        f"not {type(thing).__module__}.{type(thing).__qualname__}"
    )


def _content(request: Any) -> bytes | None:
    """Return the body of a request, if it is in memory; None for one that is streamed, such as an upload."""
    library = _library_of(request)
    if isinstance(request.stream, library.ByteStream):
        request.read()  # no I/O; the request after a redirect has such a body that was not read yet
    try:
        content: bytes = request.content
    except library.RequestNotRead:
        return None
    return content


class Estimate:
    """Estimates the costs of a request by its body; see `ailf.llm.estimated`.

    >>> import httpx2
    >>> from ailf.bridges.httpx import Estimate
    >>> body = {"model": "gpt", "messages": [{"role": "user", "content": "What is a quota?"}], "max_tokens": 100}
    >>> costs = Estimate("openai")(httpx2.Request("POST", "https://api.openai.com/v1/chat/completions", json=body))
    >>> if costs:
    ...     print(costs["requests"], costs["tokens"] > 100)
    1 True

    A request that isn't a POST has no costs and isn't limited. A POST without a JSON body, such as an upload, costs a
    request and no tokens.

    Arguments:
        provider: Whose requests they are.
        count: Returns the number of tokens of a text, such as ``lambda text: len(encoding.encode(text))``.
    """

    def __init__(self, provider: Provider | None = None, count: Callable[[str], int] | None = None) -> None:
        self._provider = provider
        self._count = count or tokens_of

    def __call__(self, request: Any) -> Costs | None:
        """Return the costs, or None."""
        if request.method != "POST":
            return None
        path = request.url.path
        costs = estimated(_json_of(request), path=path, provider=self._provider, count=self._count)
        return {"requests": 1, **costs}


def model_key(request: Any) -> str:
    """Return the model that a request names, as providers have a quota for each; or the host, if it names none."""
    return model_of(_json_of(request), request.url.path) or str(request.url.host)


def _json_of(request: Any) -> bytes:
    kind = request.headers.get("content-type", "application/json")
    return (_content(request) or b"") if "json" in kind else b""


def _repeatable(request: Any) -> bool:
    return _content(request) is not None


def _reader(response: Any) -> AnswerReader:
    def decode(body: bytes) -> bytes:
        headers = {"content-encoding": response.headers["content-encoding"]}
        try:
            decoded: bytes = _library_of(response).Response(200, headers=headers, content=body).content
        except Exception:  # noqa: BLE001 - whatever a decoder raises: the body can't be read
            return b""
        return decoded

    return AnswerReader(response.headers, decode)


def _prepared(flow: QuotaFlow, response: Any, call: Call, stream_class: Callable[..., Any]) -> Any:
    """Return the response with a body that settles the call at its end, or at once if there is no body to come."""
    if response.status_code < 300:  # noqa: PLR2004 - a success
        call.reader = _reader(response)
    if response.is_closed:  # read already, as those of a MockTransport
        if call.reader is not None:
            call.reader = AnswerReader({"content-type": response.headers.get("content-type", "")})
            call.reader.feed(response.content)
        call.ended = True
        flow.settle(call)
    else:
        response.stream = stream_class(response.stream, flow, call)
    return response


class _Wrapped:
    """The transport that sends the requests: the given one, or one of the library of the first request.

    Arguments:
        name: The name of the class of those that are made here.
        given: The given one, or None.
    """

    def __init__(self, name: str, given: Any) -> None:
        self._name = name
        self._given = given
        self._made: dict[str, Any] = {}
        self._guard = threading.Lock()

    def of(self, request: Any) -> Any:
        """Return the transport for a request."""
        if self._given is not None:
            return self._given
        library = _library_of(request)
        with self._guard:
            if library.__name__ not in self._made:
                limits = library.Limits(max_connections=CONNECTIONS, max_keepalive_connections=IDLE_CONNECTIONS)
                self._made[library.__name__] = getattr(library, self._name)(limits=limits)
            return self._made[library.__name__]

    @property
    def opened(self) -> list[Any]:
        """The transports to close."""
        return [*self._made.values()] if self._given is None else [self._given]


class _Settler:
    """Runs what settles calls on a thread of its own, which ends when the transport is closed or collected."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._executor: concurrent.futures.ThreadPoolExecutor | None = None
        self._process = 0
        self._unsettled = 0

    def later(self, flow: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a flow on the thread; here, if too many wait for it, or after `close`."""
        with self._guard:
            if self._executor is None or self._process != os.getpid():
                self._executor = concurrent.futures.ThreadPoolExecutor(1, "ailf-settle")
                self._process, self._unsettled = os.getpid(), 0
            here = self._unsettled >= MAX_UNSETTLED
            if not here:
                try:
                    self._executor.submit(self._run, flow)
                    self._unsettled += 1
                except RuntimeError:  # Python is ending
                    here = True
        if here:
            run(flow())

    def _run(self, flow: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            run(flow())
        finally:
            with self._guard:
                self._unsettled -= 1

    def close(self) -> None:
        """Return when everything is settled and the thread has ended."""
        with self._guard:
            executor, self._executor = self._executor, None
        if executor is not None and self._process == os.getpid():
            executor.shutdown()


class _SettlingStream(_Stream):
    """The body of a response, which settles its call at its end, when it breaks, or when it is closed."""

    def __init__(self, stream: Any, flow: QuotaFlow, call: Call) -> None:
        self._stream = stream
        self._flow = flow
        self._call = call

    def __iter__(self) -> Iterator[bytes]:
        reader = self._call.reader
        try:
            for chunk in self._stream:
                if reader is not None:
                    reader.feed(chunk)
                yield chunk
        except GeneratorExit:  # `close` follows
            raise
        except BaseException:
            self._flow.settle(self._call)
            raise
        self._call.ended = True
        self._flow.settle(self._call)

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            self._flow.settle(self._call)


class _AsyncSettlingStream(_AsyncStream):
    """The body of a response, which settles its call at its end, when it breaks, or when it is closed."""

    def __init__(self, stream: Any, flow: QuotaFlow, call: Call) -> None:
        self._stream = stream
        self._flow = flow
        self._call = call

    async def __aiter__(self) -> AsyncIterator[bytes]:
        reader = self._call.reader
        try:
            async for chunk in self._stream:
                if reader is not None:
                    reader.feed(chunk)
                yield chunk
        except GeneratorExit:  # `aclose` follows
            raise
        except BaseException:
            self._flow.settle(self._call)
            raise
        self._call.ended = True
        self._flow.settle(self._call)

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._flow.settle(self._call)


async def _at_once(result: Any) -> Any:
    return result


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


class QuotaTransport(_Transport):
    """A transport for ``httpx2.Client`` or ``httpx.Client`` that keeps its requests within a quota.

    Each POST waits in turn for requests, tokens and parallel calls, is sent, and is settled by the usage that the
    response reports. A streamed response holds its slot until the stream ends, breaks or is closed. Connection errors
    and redirects give everything back, error statuses give the tokens back. Settling never delays the response: it
    happens on a thread of the transport's own after the body was handed over, and `close` waits for it.

    A status 429 or 529 with the time to wait closes the key for all processes, and the request is sent again when it
    opens, if its body is in memory. The wait in line isn't part of the client's timeouts.

    Arguments:
        limiter: The limiter. Costs are charged to its limits of the names ``requests``, ``tokens``, ``input_tokens``
            and ``output_tokens``; a call costs 1 of every other limit.
        key: The key of all requests, or a function from a request to its key; None: the model that the request names.
        estimate: A function from a request to its costs by limit, or to None if it isn't limited; by default `Estimate`
            without a provider. A cost above a limit's capacity is cut to it.
        max_wait: Seconds that one request waits in line at most, with all its repetitions.
        refunds: Whether an estimate is lowered to the reported usage; False where the provider doesn't do so, as Azure.
        wrapped: The transport that sends the requests; None: a new ``HTTPTransport`` of the client's library. It
            belongs to this one, which closes it.

    Example:
        >>> import ailf, httpx2
        >>> from ailf.bridges.httpx import QuotaTransport
        >>> provider = httpx2.MockTransport(lambda request: httpx2.Response(200, json={"usage": {"total_tokens": 7}}))
        >>> with ailf.connect("memory://") as backend:
        ...     limiter = backend.rate_limiter("llm", requests="60/minute", tokens="1000/day")
        ...     with httpx2.Client(transport=QuotaTransport(limiter, wrapped=provider)) as client:
        ...         answer = client.post("https://llm.example/v1/chat/completions", json={"model": "gpt"})
        ...     limiter.peek("gpt").limits["tokens"].remaining
        993
    """

    def __init__(
        self,
        limiter: RateLimiter,
        *,
        key: str | Callable[[Any], str] | None = None,
        estimate: Callable[[Any], Costs | None] | None = None,
        max_wait: float = 600.0,
        refunds: bool = True,
        wrapped: Any = None,
    ) -> None:
        if not isinstance(limiter, RateLimiter):
            raise InvalidArgumentError(f"QuotaTransport needs a RateLimiter, not {type(limiter).__name__}")
        self._wrapped = _Wrapped("HTTPTransport", wrapped)
        self._settler = _Settler()
        self._flow = QuotaFlow(
            limiter,
            _key(key),
            _estimate(estimate),
            max_wait,
            result=_at_once,
            later=self._settler.later,
            refunds=refunds,
        )

    def handle_request(self, request: Any) -> Any:
        """Send a request in its turn, and return the response.

        Raises:
            RateLimitedError: The wait in line is longer than ``max_wait``.
            BackendError: As for `RateLimiter.acquire`.
        """
        transport = self._wrapped.of(request)

        async def forward(request: Any) -> Any:
            return transport.handle_request(request)

        async def read(response: Any) -> bytes:
            body: bytes = response.read()
            return body

        hand_over = functools.partial(_prepared, self._flow, stream_class=_SettlingStream)
        return run(self._flow.send(request, forward, hand_over, read, repeatable=_repeatable))

    def close(self) -> None:
        """Wait until all calls are settled, and close the wrapped transport."""
        try:
            self._settler.close()
        finally:
            for each in self._wrapped.opened:
                each.close()


class AsyncQuotaTransport(_AsyncTransport):
    """A transport for ``httpx2.AsyncClient`` or ``httpx.AsyncClient`` that keeps its requests within a quota.

    Each POST waits in turn for requests, tokens and parallel calls, is sent, and is settled by the usage that the
    response reports. A streamed response holds its slot until the stream ends, breaks or is closed. Connection errors
    and redirects give everything back, error statuses give the tokens back. Settling never delays the response: it
    happens in a task of its own after the body was handed over, and `aclose` waits for it.

    A status 429 or 529 with the time to wait closes the key for all processes, and the request is sent again when it
    opens, if its body is in memory. The wait in line isn't part of the client's timeouts.

    Arguments:
        limiter: The limiter. Costs are charged to its limits of the names ``requests``, ``tokens``, ``input_tokens``
            and ``output_tokens``; a call costs 1 of every other limit.
        key: The key of all requests, or a function from a request to its key; None: the model that the request names.
        estimate: A function from a request to its costs by limit, or to None if it isn't limited; by default `Estimate`
            without a provider. A cost above a limit's capacity is cut to it.
        max_wait: Seconds that one request waits in line at most, with all its repetitions.
        refunds: Whether an estimate is lowered to the reported usage; False where the provider doesn't do so, as Azure.
        wrapped: The transport that sends the requests; None: a new ``AsyncHTTPTransport`` of the client's library. It
            belongs to this one, which closes it.

    Example:
        >>> import ailf, asyncio, httpx2
        >>> from ailf.bridges.httpx import AsyncQuotaTransport
        >>> provider = httpx2.MockTransport(lambda request: httpx2.Response(200, json={"usage": {"total_tokens": 7}}))
        >>> async def main() -> None:
        ...     async with ailf.connect_async("memory://") as backend:
        ...         limiter = backend.rate_limiter("llm", requests="60/minute", tokens="1000/day")
        ...         async with httpx2.AsyncClient(transport=AsyncQuotaTransport(limiter, wrapped=provider)) as client:
        ...             answer = await client.post("https://llm.example/v1/chat/completions", json={"model": "gpt"})
        ...         print((await limiter.peek("gpt")).limits["tokens"].remaining)
        >>> asyncio.run(main())
        993
    """

    def __init__(
        self,
        limiter: AsyncRateLimiter,
        *,
        key: str | Callable[[Any], str] | None = None,
        estimate: Callable[[Any], Costs | None] | None = None,
        max_wait: float = 600.0,
        refunds: bool = True,
        wrapped: Any = None,
    ) -> None:
        if not isinstance(limiter, AsyncRateLimiter):
            raise InvalidArgumentError(f"AsyncQuotaTransport needs an AsyncRateLimiter, not {type(limiter).__name__}")
        self._wrapped = _Wrapped("AsyncHTTPTransport", wrapped)
        self._settling: set[asyncio.Task[None]] = set()
        self._flow = QuotaFlow(
            limiter, _key(key), _estimate(estimate), max_wait, result=_awaited, later=self._later, refunds=refunds
        )

    def _later(self, flow: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task: asyncio.Task[None] = start_task(flow())
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request in its turn, and return the response.

        Raises:
            RateLimitedError: The wait in line is longer than ``max_wait``.
            BackendError: As for `RateLimiter.acquire`.
        """
        while len(self._settling) >= MAX_UNSETTLED:
            await asyncio.wait(self._settling, return_when=asyncio.FIRST_COMPLETED)

        async def read(response: Any) -> bytes:
            body: bytes = await response.aread()
            return body

        forward = self._wrapped.of(request).handle_async_request
        hand_over = functools.partial(_prepared, self._flow, stream_class=_AsyncSettlingStream)
        return await self._flow.send(request, forward, hand_over, read, repeatable=_repeatable)

    async def aclose(self) -> None:
        """Wait until all calls are settled, and close the wrapped transport."""
        try:
            while self._settling:
                await asyncio.wait(self._settling)
        finally:
            for each in self._wrapped.opened:
                await each.aclose()


def _key(key: object) -> str | Callable[[Any], str]:
    if key is None:
        return model_key
    if not isinstance(key, str) and not callable(key):
        raise InvalidArgumentError(f"key must be text, or a function of a request, not {key!r}")
    return key


def _estimate(estimate: object) -> Callable[[Any], Costs | None]:
    if estimate is None:
        return Estimate()
    if not callable(estimate):
        raise InvalidArgumentError(f"estimate must be a function of a request, not {estimate!r}")
    return estimate
