"""Transports for httpx2 and httpx: what a call is charged, how long it holds its slot, and how it may fail."""

import asyncio
import gzip
import json
import threading
import types
from collections.abc import Callable, Coroutine
from typing import Any

import httpx2
import pytest

import ailf
from ailf.bridges.httpx import AsyncQuotaTransport, Estimate, QuotaTransport
from ailf.llm import quota
from ailf.testing import ManualClock
from ailf_memory import AsyncMemoryBackend, MemoryBackend, MemoryStore
from tests.ailf.bridges.clients import BODY, ESTIMATE, KINDS, LIMITS, URL, Client, Kind, body_of, client

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
EVENTS = [
    b'data: {"choices": [{"delta": {"content": "Hi"}, "finish_reason": null}]}\n\n',
    b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\nda',
    b'ta: {"choices": [], "usage": ' + json.dumps(USAGE).encode() + b"}\n\ndata: [DONE]\n\n",
]
SSE = {"content-type": "text/event-stream"}

Scenario = Callable[[Client], Coroutine[Any, Any, None]]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def play(kind: Kind, provider: Callable[[Any], Any], scenario: Scenario, **options: Any) -> None:
    """Play a scenario with a client."""

    async def main() -> None:
        async with client(kind, provider, **options) as made:
            await scenario(made)

    asyncio.run(main())


def answering(kind: Kind, *answers: dict[str, Any]) -> tuple[Callable[[Any], Any], list[Any]]:
    """Return a provider that gives these answers in turn, the last one again and again; and the requests it got."""
    requests: list[Any] = []

    def provider(request: Any) -> Any:
        requests.append(request)
        answer = dict(answers[min(len(requests), len(answers)) - 1])
        status = answer.pop("status", 200)
        if "error" in answer:
            raise answer["error"]
        return kind.library.Response(status, **answer)  # type: ignore[attr-defined]

    return provider, requests


# --- what a call is charged --------------------------------------------------------------------------------------


@every_kind
def test_usage_is_settled(kind: Kind) -> None:
    """A call is charged its estimate before it is sent, and what the response reports afterwards."""
    charged: list[int] = []
    store = MemoryStore(clock=ManualClock())

    def provider(request: Any) -> Any:
        with MemoryBackend(store=store) as other:
            charged.append(6000 - other.rate_limiter("llm", None, **LIMITS).peek("gpt").limits["tokens"].remaining)
        return kind.library.Response(200, json={"usage": USAGE})  # type: ignore[attr-defined]

    async def main() -> None:
        async with client(
            kind, provider, backend=(AsyncMemoryBackend if kind.asyncio else MemoryBackend)(store=store)
        ) as c:
            assert (await c.post()).json() == {"usage": USAGE}
            await c.close()
            assert charged == [ESTIMATE]
            assert await c.used("tokens") == 15
            assert await c.used("requests") == 1
            assert await c.held() == 0

    asyncio.run(main())


@every_kind
def test_a_compressed_body_is_read(kind: Kind) -> None:
    """The usage of a compressed response is settled, and the client gets the body as it was sent."""
    packed = gzip.compress(json.dumps({"usage": USAGE}).encode())
    headers = {"content-encoding": "gzip", "content-type": "application/json"}

    def provider(request: Any) -> Any:
        return kind.library.Response(200, headers=headers, stream=body_of(kind, [packed[:9], packed[9:]]))  # type: ignore[attr-defined]

    async def scenario(c: Client) -> None:
        assert (await c.post()).json() == {"usage": USAGE}
        await c.close()
        assert await c.used("tokens") == 15

    play(kind, provider, scenario)


@every_kind
@pytest.mark.parametrize(
    "answer",
    [
        {"content": b"{not JSON"},
        {"content": b""},
        {"json": {"usage": {"seconds": 3}}},
        {"json": {"usage": None}},
        {"json": [1, None]},
        {"content": b"x", "headers": {"content-type": "audio/mpeg"}},
    ],
    ids=lambda answer: str(answer)[:30],
)
def test_an_answer_without_usage(kind: Kind, answer: dict[str, Any]) -> None:
    """Where nothing is reported, the estimate stays."""
    provider, _ = answering(kind, answer)

    async def scenario(c: Client) -> None:
        await c.post()
        await c.close()
        assert await c.used("tokens") == ESTIMATE
        assert await c.held() == 0

    play(kind, provider, scenario)


@every_kind
def test_an_error_gives_the_tokens_back(kind: Kind) -> None:
    """A call that the provider refuses used no tokens; the request counts, as it does for providers."""
    provider, _ = answering(kind, {"status": 400, "json": {"error": {"message": "no such model"}}})

    async def scenario(c: Client) -> None:
        assert (await c.post()).status_code == 400
        await c.close()
        assert (await c.used("requests"), await c.used("tokens"), await c.held()) == (1, 0, 0)

    play(kind, provider, scenario)


@every_kind
@pytest.mark.parametrize(
    ("name", "used"),
    [("ConnectError", (0, 0)), ("PoolTimeout", (0, 0)), ("ReadTimeout", (1, ESTIMATE))],
)
def test_a_broken_connection(kind: Kind, name: str, used: tuple[int, int]) -> None:
    """A request that was certainly not sent is given back; one that may have arrived stays charged."""
    provider, _ = answering(kind, {"error": getattr(kind.library, name)("broken")})

    async def scenario(c: Client) -> None:
        with pytest.raises(getattr(kind.library, name)):
            await c.post()
        await c.close()
        assert (await c.used("requests"), await c.used("tokens")) == used
        assert await c.held() == 0

    play(kind, provider, scenario)


@every_kind
def test_a_redirect_is_charged_once(kind: Kind) -> None:
    """A redirect gives back its charge: the call counts where it goes."""
    provider, requests = answering(
        kind, {"status": 307, "headers": {"location": "https://other.example/"}}, {"json": {"usage": USAGE}}
    )

    async def scenario(c: Client) -> None:
        assert (await c.post()).status_code == 200
        await c.close()
        assert len(requests) == 2
        assert (await c.used("requests"), await c.used("tokens")) == (1, 15)

    play(kind, provider, scenario, client={"follow_redirects": True})


@every_kind
def test_what_is_not_limited(kind: Kind) -> None:
    """A GET isn't limited. An upload and a body that isn't JSON cost a request of the host, and no tokens."""
    provider, _ = answering(kind, {"json": {}})

    async def scenario(c: Client) -> None:
        await c.result(c.http.get(URL))
        await c.post(files={"file": ("a.wav", b"RIFF" * 1000)})
        await c.post(content=b"\x00\xff", headers={"content-type": "application/octet-stream"})
        await c.close()
        assert (await c.used("requests", "llm.example"), await c.used("tokens", "llm.example")) == (2, 0)
        assert await c.used("requests") == 0

    play(kind, provider, scenario)


@every_kind
def test_an_estimate_above_the_capacity(kind: Kind) -> None:
    """A call with a limit of output above the quota is sent when the whole quota is free, and settled."""
    provider, _ = answering(kind, {"json": {"usage": USAGE}})

    async def scenario(c: Client) -> None:
        await c.post(json={**BODY, "max_tokens": 64_000})
        await c.close()
        assert await c.used("tokens") == 15

    play(kind, provider, scenario)


@every_kind
def test_without_refunds(kind: Kind) -> None:
    """With `refunds=False` the estimate stays, unless more was used."""
    provider, _ = answering(kind, {"json": {"usage": USAGE}}, {"json": {"usage": {"total_tokens": 1_000}}})

    async def scenario(c: Client) -> None:
        await c.post()
        await c.post()
        await c.close()
        assert await c.used("tokens") == ESTIMATE + 1_000

    play(kind, provider, scenario, refunds=False)


@every_kind
def test_hooks(kind: Kind) -> None:
    """The key and the estimate can be functions of the request, the estimate with a tokenizer of one's own."""
    provider, _ = answering(kind, {"content": b"{}"})

    async def scenario(c: Client) -> None:
        await c.post()
        await c.close()
        assert await c.used("tokens", "llm.example/gpt") == 1_000 + 4 + 100

    play(
        kind,
        provider,
        scenario,
        key=lambda request: f"{request.url.host}/gpt",
        estimate=Estimate("openai", count=lambda text: 1_000),
    )


@every_kind
def test_a_limiter_with_one_limit(kind: Kind) -> None:
    """A limiter with one unnamed limit counts calls, and an estimate of None sends a request past it."""
    provider, _ = answering(kind, {"json": {"usage": USAGE}})

    async def scenario(c: Client) -> None:
        await c.post()
        await c.close()
        assert await c.used("") == 1

    async def main() -> None:
        backend = (AsyncMemoryBackend if kind.asyncio else MemoryBackend)()
        limiter = backend.rate_limiter("one", "60/minute")
        library: Any = kind.library
        transport: Any = (AsyncQuotaTransport if kind.asyncio else QuotaTransport)(
            limiter, wrapped=library.MockTransport(provider)
        )
        http = (library.AsyncClient if kind.asyncio else library.Client)(mounts={"https://": transport})
        await scenario(Client(kind, limiter, http, None))
        if kind.asyncio:
            await backend.aclose()
        else:
            backend.close()

    asyncio.run(main())


# --- streams -----------------------------------------------------------------------------------------------------


@every_kind
def test_a_stream_holds_its_slot(kind: Kind) -> None:
    """A streamed call holds its slot until the stream ends, and is settled by its final event."""

    def provider(request: Any) -> Any:
        return kind.library.Response(200, headers=SSE, stream=body_of(kind, EVENTS))  # type: ignore[attr-defined]

    async def scenario(c: Client) -> None:
        async with c.stream() as response:
            received = [chunk async for chunk in c.chunks(response) if await c.held() == 1]
        await c.close()
        assert received == EVENTS
        assert (await c.used("tokens"), await c.held()) == (15, 0)

    play(kind, provider, scenario)


@every_kind
def test_a_stream_that_is_closed_early(kind: Kind) -> None:
    """A stream that is closed before its usage came keeps its estimate, and gives its slot back."""

    def provider(request: Any) -> Any:
        return kind.library.Response(200, headers=SSE, stream=body_of(kind, EVENTS))  # type: ignore[attr-defined]

    async def scenario(c: Client) -> None:
        async with c.stream() as response:
            async for _ in c.chunks(response):
                break
            assert await c.held() == 1
        await c.close()
        assert (await c.used("tokens"), await c.held()) == (ESTIMATE, 0)

    play(kind, provider, scenario)


@every_kind
def test_a_stream_that_breaks(kind: Kind) -> None:
    """A stream that breaks raises the client's own error, keeps its estimate, and gives its slot back."""
    start = b'data: {"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}}\n\n'
    error = kind.library.ReadError("gone")  # type: ignore[attr-defined]

    def provider(request: Any) -> Any:
        return kind.library.Response(200, headers=SSE, stream=body_of(kind, [start], error=error))  # type: ignore[attr-defined]

    async def scenario(c: Client) -> None:
        with pytest.raises(kind.library.ReadError):  # type: ignore[attr-defined]
            async with c.stream() as response:
                async for _ in c.chunks(response):
                    pass
        await c.close()
        assert (await c.used("tokens"), await c.held()) == (ESTIMATE, 0)

    play(kind, provider, scenario)


# --- what responses teach ------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize(("remaining", "left"), [("5", 5), ("1000", 59)])
def test_headers_teach_the_limiter(kind: Kind, remaining: str, left: int) -> None:
    """A provider that has less left than the limiter lowers it for all processes; one that has more changes nothing."""
    provider, _ = answering(kind, {"json": {}, "headers": {"x-ratelimit-remaining-requests": remaining}})

    async def scenario(c: Client) -> None:
        await c.post()
        await c.close()
        assert await c.left("requests") == left

    play(kind, provider, scenario, limits={"requests": "60/day"})


# --- rejections --------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize(
    "rejection",
    [
        {"status": 429, "headers": {"retry-after": "20"}},
        {"status": 529, "headers": {"retry-after-ms": "20000"}},
        {"status": 429, "json": {"error": {"code": 429, "details": [{"retryDelay": "20s"}]}}},
    ],
    ids=["429", "529", "gemini"],
)
def test_a_rejection_closes_the_key(kind: Kind, rejection: dict[str, Any]) -> None:
    """After a rejection no process sends, and the request is sent again when the key opens."""
    provider, requests = answering(kind, rejection, {"json": {"usage": USAGE}})

    async def scenario(c: Client) -> None:
        call = asyncio.create_task(c.post_aside())
        while await c.left("requests"):  # noqa: ASYNC110 - a clock that stands still has no event
            await asyncio.sleep(0.01)
        denied = await c.result(c.limiter.try_acquire("gpt"))
        assert 19 < (denied.retry_after or 0) <= 20 or denied.bound is None
        assert len(requests) == 1
        assert c.clock is not None
        while not call.done():
            await asyncio.sleep(0.01)
            c.clock.advance(1)
        assert (await call).status_code == 200
        await c.close()
        assert len(requests) == 2
        assert await c.used("tokens") in range(16)

    play(kind, provider, scenario)


@every_kind
@pytest.mark.parametrize(
    "headers",
    [{}, {"retry-after": "20"}, {"retry-after": "1", "x-should-retry": "false"}, {"retry-after": "soon"}],
    ids=["without", "longer", "refused", "malformed"],
)
def test_a_rejection_is_returned(kind: Kind, headers: dict[str, str]) -> None:
    """Without a time to wait, or with one above `max_wait`, the response is returned as it is."""
    provider, requests = answering(kind, {"status": 429, "headers": headers, "json": {"error": {"message": "no"}}})

    async def scenario(c: Client) -> None:
        response = await c.post()
        assert (response.status_code, response.json()) == (429, {"error": {"message": "no"}})
        await c.close()
        assert len(requests) == 1
        assert (await c.used("tokens"), await c.held()) == (0, 0)

    play(kind, provider, scenario, max_wait=5.0)


@pytest.mark.parametrize("kind", [each for each in KINDS if each.library is httpx2], ids=str)
def test_a_line_that_is_too_long_after_a_rejection(kind: Kind) -> None:
    """A call whose turn doesn't come again within `max_wait` gets the rejection, with its body, and no other error."""
    rejection = {"status": 429, "headers": {"retry-after-ms": "100"}, "json": {"error": {"message": "no"}}}
    provider, requests = answering(kind, rejection)

    async def scenario(c: Client) -> None:  # the clock stands still, so that the key never opens
        response = await c.post()
        assert (response.status_code, response.json()) == (429, {"error": {"message": "no"}})
        assert len(requests) == 1
        await c.close()
        assert await c.held() == 0

    play(kind, provider, scenario, max_wait=0.3)


@every_kind
def test_an_upload_is_not_repeated(kind: Kind) -> None:
    """A body that isn't in memory can't be sent again, so its rejection is returned."""
    provider, requests = answering(kind, {"status": 429, "headers": {"retry-after": "1"}})

    def parts() -> Any:
        yield b"{}"

    async def async_parts() -> Any:
        yield b"{}"

    async def scenario(c: Client) -> None:
        # MockTransport reads the body into memory, as others don't: so the request is one that was never read
        made = c.http.build_request("POST", URL, content=async_parts() if kind.asyncio else parts())
        forward = c.http._transport._wrapped
        forward._given = _Unread(forward._given)
        assert (await c.result(c.http.send(made))).status_code == 429
        assert len(requests) == 1

    play(kind, provider, scenario)


class _Unread:
    """A transport that doesn't read the request's body into memory."""

    def __init__(self, mock: Any) -> None:
        self._mock = mock

    def handle_request(self, request: Any) -> Any:
        b"".join(request.stream)
        return self._mock.handler(request)

    async def handle_async_request(self, request: Any) -> Any:
        _ = [chunk async for chunk in request.stream]
        return self._mock.handler(request)

    def close(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


# --- waiting -----------------------------------------------------------------------------------------------------


@every_kind
def test_a_wait_that_is_too_long(kind: Kind) -> None:
    """A call that doesn't pass within `max_wait` raises the limiter's error, and is charged nothing."""
    provider, requests = answering(kind, {"json": {}})

    async def scenario(c: Client) -> None:
        await c.post()
        with pytest.raises(ailf.RateLimitedError, match="'requests'"):
            await c.post()
        assert len(requests) == 1

    play(kind, provider, scenario, limits={"requests": "1/minute"}, max_wait=0.05, moved=False)


def test_cancelled_in_line() -> None:
    """A call that is cancelled while it waits in line gives everything back."""
    kind = KINDS[-1]
    provider, requests = answering(kind, {"json": {}})

    async def scenario(c: Client) -> None:
        slot = await c.limiter.acquire("gpt", tokens=0, requests=0)
        call = asyncio.create_task(c.post())
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await slot.release()
        await c.post()
        await c.close()
        assert len(requests) == 1
        assert await c.used("requests") == 1

    play(kind, provider, scenario, limits={"requests": "60/minute", "tokens": "6000/minute", "parallel": "1 parallel"})


def test_cancelled_after_it_was_sent() -> None:
    """A call that is cancelled while the provider answers keeps its charge, as it may have arrived, and no slot."""
    kind = KINDS[-1]

    async def provider(request: Any) -> Any:
        await asyncio.sleep(60)

    async def scenario(c: Client) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await c.post()
        await c.close()
        assert (await c.used("tokens"), await c.held()) == (ESTIMATE, 0)

    play(kind, provider, scenario)


def test_no_thread_is_left() -> None:
    """A closed blocking client leaves no thread behind."""
    kind = KINDS[0]
    provider, _ = answering(kind, {"json": {"usage": USAGE}})

    async def scenario(c: Client) -> None:
        await c.post()
        await c.close()
        assert [each.name for each in threading.enumerate() if each.name.startswith("ailf-settle")] == []

    play(kind, provider, scenario)


# --- the real clients --------------------------------------------------------------------------------------------

CHAT = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt",
    "usage": USAGE,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
}
ASK: Any = {"model": "gpt", "messages": [{"role": "user", "content": "x"}], "max_tokens": 100}


def test_the_retries_of_a_client() -> None:
    """Retries of the openai client charge each request, and the tokens of one answer once."""
    import openai  # noqa: PLC0415 - each process of the tests would import it, and that takes a second

    provider, requests = answering(KINDS[1], {"status": 500}, {"status": 500}, {"json": CHAT})
    with MemoryBackend(clock=ManualClock()) as backend:
        llm = quota("openai", backend, requests=60, tokens=6_000, parallel=2, wrapped=httpx2.MockTransport(provider))
        with openai.OpenAI(api_key="x", http_client=httpx2.Client(transport=llm.transport)) as made:
            made.chat.completions.create(**ASK)
        assert len(requests) == 3
        state = llm.limiter.peek("gpt").limits
        assert (state["requests"].remaining, state["tokens"].remaining, state["parallel"].remaining) == (57, 5985, 2)


def test_anthropic_on_asyncio() -> None:
    """Input and output of the anthropic client are charged separately."""
    import anthropic  # noqa: PLC0415 - as above

    answer = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "c",
        "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "hi"}],
        "usage": {"input_tokens": 12, "output_tokens": 7},
    }
    provider, _ = answering(KINDS[-1], {"json": answer})

    async def main() -> None:
        async with AsyncMemoryBackend(clock=ManualClock()) as backend:
            llm = quota(
                *("anthropic", backend),
                requests=60,
                input_tokens=1_000,
                output_tokens=500,
                wrapped=httpx2.MockTransport(provider),
            )
            async with anthropic.AsyncAnthropic(
                api_key="x", http_client=httpx2.AsyncClient(transport=llm.transport)
            ) as made:
                await made.messages.create(**ASK)
            state = (await llm.limiter.peek("gpt")).limits
            assert (state["input_tokens"].remaining, state["output_tokens"].remaining) == (988, 493)

    asyncio.run(main())


def test_the_error_of_a_full_line() -> None:
    """The error of a wait that is too long passes through a client, which doesn't try again."""
    import openai  # noqa: PLC0415 - as above

    provider, _ = answering(KINDS[1], {"json": CHAT})
    with MemoryBackend() as backend:
        llm = quota("openai", backend, requests=1, max_wait=0.2, wrapped=httpx2.MockTransport(provider))
        with openai.OpenAI(api_key="x", http_client=httpx2.Client(transport=llm.transport)) as made:
            made.chat.completions.create(**ASK)
            with pytest.raises(ailf.RateLimitedError, match="'requests'"):
                made.chat.completions.create(**ASK)


# --- wrong arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key": 3}, "key"),
        ({"estimate": 3}, "estimate"),
        ({"max_wait": -1}, "max_wait"),
        ({"max_wait": "x"}, "max_wait"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], words: str) -> None:
    """A wrong argument is refused when the transport is made."""
    with MemoryBackend() as backend, pytest.raises(ailf.InvalidArgumentError, match=words):
        QuotaTransport(backend.rate_limiter("llm", requests="1/minute"), **options)


def test_wrong_flavours() -> None:
    """A limiter of the other flavour, an unknown provider and a foreign request are refused."""
    with MemoryBackend() as backend:
        limiter = backend.rate_limiter("llm", requests="1/minute")
        with pytest.raises(ailf.InvalidArgumentError, match="AsyncRateLimiter, not MemoryRateLimiter"):
            AsyncQuotaTransport(limiter)  # type: ignore[arg-type]
        with pytest.raises(ailf.InvalidArgumentError, match="openai"):
            quota("open-ai", backend, requests=1)  # type: ignore[call-overload]
        with pytest.raises(ailf.InvalidArgumentError, match="opened backend"):
            quota("openai", limiter, requests=1)  # type: ignore[call-overload]
        with pytest.raises(ailf.InvalidArgumentError, match="SimpleNamespace"), QuotaTransport(limiter) as transport:
            transport.handle_request(types.SimpleNamespace(method="GET"))
