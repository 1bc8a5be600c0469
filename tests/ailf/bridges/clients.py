"""One interface over both flavours and both HTTP libraries, for the tests of the bridge."""

import asyncio
import contextlib
import types
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import httpx
import httpx2

from ailf.bridges.httpx import AsyncQuotaTransport, QuotaTransport
from ailf.limits import Limit
from ailf.testing import ManualClock
from ailf_memory import AsyncMemoryBackend, MemoryBackend

URL = "https://llm.example/v1/chat/completions"
BODY = {"model": "gpt", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 100}
ESTIMATE = 107
LIMITS: dict[str, Limit | str] = {"requests": "60/minute", "tokens": "6000/minute", "parallel": "4 parallel ttl 60s"}


@attrs.frozen
class Kind:
    """A flavour and a library.

    Attributes:
        asyncio: Whether the client is asynchronous.
        library: httpx or httpx2.
    """

    asyncio: bool
    library: types.ModuleType

    def __str__(self) -> str:
        return f"{'asyncio' if self.asyncio else 'blocking'}-{self.library.__name__}"


KINDS = [Kind(asyncio, library) for asyncio in (False, True) for library in (httpx, httpx2)]


class Client:
    """A client with a quota transport over a provider that is a function; its methods are awaited in both flavours."""

    def __init__(self, kind: Kind, limiter: Any, client: Any, clock: ManualClock | None) -> None:
        self.kind = kind
        self.library: Any = kind.library
        self.limiter = limiter
        self.http = client
        self.clock = clock

    async def result(self, value: Any) -> Any:
        """Return the result of a call of either flavour."""
        return await value if asyncio.iscoroutine(value) else value

    async def post(self, url: str = URL, **options: Any) -> Any:
        """Send a POST, by default of a chat, and return the response."""
        if not {"content", "files", "json"} & set(options):
            options["json"] = BODY
        return await self.result(self.http.post(url, **options))

    async def post_aside(self) -> Any:
        """Send a POST without blocking the test, and return the response."""
        return await (
            self.http.post(URL, json=BODY) if self.kind.asyncio else asyncio.to_thread(self.http.post, URL, json=BODY)
        )

    @contextlib.asynccontextmanager
    async def stream(self) -> AsyncIterator[Any]:
        """Open a streamed response."""
        context = self.http.stream("POST", URL, json={**BODY, "stream": True})
        if self.kind.asyncio:
            async with context as response:
                yield response
        else:
            with context as response:
                yield response

    async def chunks(self, response: Any) -> AsyncIterator[bytes]:
        """Yield the chunks of a streamed response."""
        if self.kind.asyncio:
            async for chunk in response.aiter_raw():
                yield chunk
        else:
            for chunk in response.iter_raw():
                yield chunk

    async def close(self) -> None:
        """Close the client: everything is settled then."""
        await self.result(self.http.aclose() if self.kind.asyncio else self.http.close())

    async def left(self, name: str, key: str = "gpt") -> int:
        """Return what remains of a limit."""
        decision = await self.result(self.limiter.peek(key))
        remaining: int = decision.limits[name].remaining
        return remaining

    async def used(self, name: str, key: str = "gpt") -> int:
        """Return what was used of a limit."""
        return int(self.limiter.limits[name].capacity) - await self.left(name, key)

    async def held(self, key: str = "gpt") -> int:
        """Return how many slots are held."""
        return await self.used("parallel", key)


def body_of(kind: Kind, chunks: list[bytes], *, error: Exception | None = None) -> Any:
    """Return a streamed body of a library and flavour; it breaks at its end with the error."""
    library: Any = kind.library

    class Body(library.AsyncByteStream if kind.asyncio else library.SyncByteStream):  # type: ignore[misc]
        closed = False

        def __iter__(self) -> Any:
            yield from chunks
            if error is not None:
                raise error

        async def __aiter__(self) -> Any:
            for chunk in chunks:
                yield chunk
            if error is not None:
                raise error

        def close(self) -> None:
            self.closed = True

        async def aclose(self) -> None:
            self.closed = True

    return Body()


@contextlib.asynccontextmanager
async def client(
    kind: Kind,
    provider: Callable[[Any], Any],
    *,
    limits: dict[str, Limit | str] | None = None,
    backend: Any = None,
    moved: bool = True,
    name: str = "llm",
    **options: Any,
) -> AsyncIterator[Client]:
    """Open a client over a provider, by default with a backend in memory whose clock stands still."""
    clock = ManualClock() if backend is None and moved else None
    opened = backend if backend is not None else (AsyncMemoryBackend if kind.asyncio else MemoryBackend)(clock=clock)
    limiter = opened.rate_limiter(name, **(limits or LIMITS))
    library: Any = kind.library
    transport_class: Any = AsyncQuotaTransport if kind.asyncio else QuotaTransport
    client_options = options.pop("client", {})
    transport = transport_class(limiter, wrapped=library.MockTransport(provider), **options)
    client_class = library.AsyncClient if kind.asyncio else library.Client
    made = Client(kind, limiter, client_class(transport=transport, **client_options), clock)
    try:
        yield made
    finally:
        await made.close()
        if backend is None:
            await made.result(opened.aclose() if kind.asyncio else opened.close())
