"""Rate limits of web applications: what a response says, how long a slot is held, and who may wait."""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import anyio
import fastapi
import httpx
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.responses import StreamingResponse
from starlette.routing import Route

import ailf
from ailf.bridges.asgi import Gate, RateLimitMiddleware, client_ip, header, rate_limit
from ailf.bridges.ratelimit_fields import policy_of, retry_after_of, states_of
from ailf.testing import ManualClock
from ailf.values import LimitState
from ailf_memory import AsyncMemoryBackend, MemoryBackend
from ailf_redis import AsyncRedisBackend
from tests.support.servers import NewServer, Server

ITEM = r'"(?:[ !#-\[\]-~]|\\["\\])*"(?:;[a-z]+=(?:\d{1,15}|"[ !#-\[\]-~]*"))*'
LIST = re.compile(rf"{ITEM}(?:, {ITEM})*")
"""A list of strings with parameters: the part of RFC 9651 that the draft uses."""


def play(scenario: Callable[[AsyncMemoryBackend], Coroutine[Any, Any, None]]) -> None:
    """Play a scenario with a backend in memory whose clock stands still."""

    async def main() -> None:
        async with AsyncMemoryBackend(ManualClock()) as backend:
            await asyncio.wait_for(scenario(backend), 20)

    asyncio.run(main())


async def ok(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the request's body."""
    body = b""
    while scope["type"] == "http":
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def client_of(app: Any, address: str = "192.0.2.1") -> AsyncIterator[httpx.AsyncClient]:
    """Open a client of an application in this process."""
    transport = httpx.ASGITransport(app, client=(address, 1234))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        yield client


class Connection:
    """A connection to an application, driven message by message."""

    def __init__(self, app: Any, *requests: dict[str, Any], **scope: Any) -> None:
        self.requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for each in requests or ({"type": "http.request", "body": b""},):
            self.requests.put_nowait(each)
        self.sent: list[Any] = []
        full = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": ("192.0.2.1", 1), **scope}
        full = {"query_string": b"", "http_version": "1.1", "scheme": "http", "root_path": "", "server": None, **full}
        self.task = asyncio.create_task(app(full, self.requests.get, self._send))

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    async def status(self) -> int:
        """Return the status when it was sent."""
        while not self.sent:
            await asyncio.sleep(0)
            if self.task.done() and not self.sent:
                self.task.result()
                return 0
        return int(self.sent[0]["status"])

    def leave(self) -> None:
        """Let the client go."""
        self.requests.put_nowait({"type": "http.disconnect"})


async def until(condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + 5
    while not await condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


# --- what a response says -----------------------------------------------------------------------------------------


def test_an_allowed_and_a_denied_request() -> None:
    """The fields tell the quota and what is left; a denied request gets 429, the time to wait, and a problem."""

    async def scenario(backend: AsyncMemoryBackend) -> None:
        app = RateLimitMiddleware(ok, backend.rate_limiter("web", "2/minute"))
        async with client_of(app) as client:
            response = await client.post("/", content=b"body")
            assert (response.status_code, response.content, response.headers["x-own"]) == (200, b"body", "1")
            assert response.headers["ratelimit-policy"] == '"default";q=2;w=60'
            assert response.headers["ratelimit"] == '"default";r=1;t=30'
            assert "retry-after" not in response.headers
            assert (await client.get("/")).headers["ratelimit"] == '"default";r=0;t=60'
            denied = await client.get("/")
            assert denied.status_code == 429
            assert denied.headers["retry-after"] == "30"
            assert denied.headers["ratelimit-policy"] == '"default";q=2;w=60'
            assert denied.headers["ratelimit"] == '"default";r=0;t=30'
            assert denied.headers["content-type"] == "application/problem+json"
            assert "x-own" not in denied.headers
            assert denied.json() == {
                "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
                "title": "Too many requests",
                "status": 429,
                "detail": "Try again in 30 s.",
                "violated-policies": ["default"],
            }
            backend.engine.runtime.clock.advance(30)  # type: ignore[attr-defined]  # a ManualClock
            assert (await client.get("/")).status_code == 200

    play(scenario)


def test_several_limits() -> None:
    """An allowed request's fields tell of each limit, a denied one's of those that deny it."""

    async def scenario(backend: AsyncMemoryBackend) -> None:
        limits = {"minute": "60/minute burst 1", "day": "100/day fixed", "parallel": "8 parallel"}
        app = RateLimitMiddleware(ok, backend.rate_limiter("web", **limits))
        async with client_of(app) as client:
            allowed = (await client.get("/")).headers
            policy = '"minute";q=1;w=1, "day";q=100;w=86400, "parallel";q=8;qu="concurrent-requests"'
            assert allowed["ratelimit-policy"] == policy
            assert re.fullmatch(r'"minute";r=0;t=1, "day";r=99;t=\d+, "parallel";r=7', allowed["ratelimit"])
            denied = await client.get("/")
            assert denied.headers["ratelimit"] == '"minute";r=0;t=1'
            assert denied.json()["violated-policies"] == ["minute"]

    play(scenario)


def test_costs() -> None:
    """A function gives the costs of a request; None: it isn't limited. One that can never pass has no Retry-After."""

    def costs(scope: Any) -> dict[str, int] | None:
        return {"/health": None, "/big": {"cost": 11}}.get(scope["path"], {"cost": 5})

    async def scenario(backend: AsyncMemoryBackend) -> None:
        app = RateLimitMiddleware(ok, backend.rate_limiter("web", "10/minute"), costs=costs)
        async with client_of(app) as client:
            assert (await client.get("/")).headers["ratelimit"] == '"default";r=5;t=30'
            big = await client.get("/big")
            assert (big.status_code, "retry-after" in big.headers) == (429, False)
            assert "never" not in big.json()["detail"]
            health = await client.get("/health")
            assert (health.status_code, "ratelimit" in health.headers) == (200, False)

    play(scenario)


@pytest.mark.parametrize(
    ("limit", "policy"),
    [
        (ailf.TokenBucket(100, per=60, burst=250), '"l";q=250;w=150'),
        (ailf.TokenBucket(10, per=0.5), '"l";q=10'),
        (ailf.SlidingWindow(7, per=1.5), '"l";q=7;w=2'),
        (ailf.FixedWindow(2**53, per=1), '"l";q=999999999999999;w=1'),
    ],
    ids=str,
)
def test_policies(limit: ailf.Limit, policy: str) -> None:
    """Numbers are integers of at most 15 digits; a window under a second, which can't be told, is left out."""
    assert policy_of({"l": limit}) == policy
    assert LIST.fullmatch(policy)


@pytest.mark.parametrize("name", ["", "plain", 'quote"', "back\\slash", "Zürich", "日本", "\x00\n\x7f", "a;b=1, c"])
def test_names_of_limits(name: str) -> None:
    """Each name is a valid string of a structured field."""
    limits = {name: ailf.TokenBucket(1)}
    assert LIST.fullmatch(policy_of(limits))
    assert LIST.fullmatch(states_of(limits, {name: LimitState(0, 2.5, 3.0)}, denied=True))


def test_retry_after() -> None:
    """It is rounded up to whole seconds, and left out where a wait never ends."""
    assert retry_after_of([0.2, 1.4]) == "2"
    assert retry_after_of([0.0]) == "1"
    assert retry_after_of([3.0, None]) is None
    assert retry_after_of([]) is None


# --- keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "key"),
    [
        (("192.0.2.1", 1), "ip:192.0.2.1"),
        (("::ffff:192.0.2.1", 1), "ip:192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 1), "ip:2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1), "ip:fe80::/64"),
        (("testclient", 1), "ip:testclient"),
        (None, "ip:"),
    ],
)
def test_the_address_of_a_client(client: Any, key: str) -> None:
    """IPv4 addresses count each by itself, IPv6 addresses by their network, and a unix socket as one client."""
    assert client_ip({"client": client}) == key


def test_headers_as_keys() -> None:
    """A header's value chooses the key and isn't stored; without it the address does."""
    key = header("X-Api-Key")
    scope = {"client": ("192.0.2.1", 1), "headers": [(b"x-api-key", b"sk-secret" * 1000), (b"x", b"y")]}
    assert re.fullmatch(r"x-api-key:[0-9a-f]{32}", key(scope))
    assert "secret" not in key(scope)
    assert key(scope) != key({**scope, "headers": [(b"x-api-key", b"\xff")]})
    assert key({**scope, "headers": [(b"X-API-KEY", b"\xff")]}) == key({**scope, "headers": [(b"x-api-key", b"\xff")]})
    assert key({**scope, "headers": []}) == "ip:192.0.2.1"
    repeated = [(b"x-api-key", b"valid"), (b"x-api-key", b"random")]
    assert key({**scope, "headers": repeated}) == "ip:192.0.2.1", "a second value makes no key of its own"


def test_keys_have_quotas_of_their_own() -> None:
    """Each key has a quota, whichever function chooses it; a text is one key for all."""

    async def scenario(backend: AsyncMemoryBackend) -> None:
        cases: list[tuple[Any, list[int]]] = [
            (client_ip, [200, 429, 200, 429]),
            ("all", [200, 429, 429, 429]),
            (header("x-key"), [200, 200, 429, 429]),
            (lambda scope: scope["path"], [200, 200, 429, 429]),
        ]
        for number, (key, statuses) in enumerate(cases):
            app = RateLimitMiddleware(ok, backend.rate_limiter(f"web-{number}", "1/day"), key=key)
            got = []
            for address in ("192.0.2.1", "192.0.2.2"):
                async with client_of(app, address) as client:
                    got += [
                        (await client.get(f"/{name}", headers={"x-key": name})).status_code for name in ("ann", "bob")
                    ]
            assert got == statuses

    play(scenario)


@pytest.mark.parametrize("key", ["/" + "x" * 600, "/\ud800"])
def test_keys_that_no_limiter_takes(key: str) -> None:
    """A client's key that is too long, or no valid text, has a quota like any other."""

    async def scenario(backend: AsyncMemoryBackend) -> None:
        limiter = backend.rate_limiter("web", "2/day")
        tree = backend.rate_limiter("tree", root="all", user="2/day")
        for gate in (Gate(limiter, lambda _: key, None, 0), Gate(tree, lambda _: {"user": key}, None, 0)):
            admitted = [await gate.admit({}, lambda permit: permit) for _ in range(3)]
            assert [each and each.status for each in admitted] == [0, 0, 429]

    play(scenario)


def test_a_taken_slot_asks_for_a_second() -> None:
    """Nobody knows when a slot is freed, so a client isn't told to stay away for the slot's lease."""

    async def scenario(backend: AsyncMemoryBackend) -> None:
        limiter = backend.rate_limiter("slots", ailf.Concurrency(1, ttl=90))
        async with limiter.hold("all"), client_of(RateLimitMiddleware(ok, limiter, key="all")) as client:
            denied = await client.get("/")
        assert (denied.status_code, denied.headers["retry-after"]) == (429, "1")

    play(scenario)


def test_a_budget_tree() -> None:
    """A function may return a key for each limit of a budget tree: the users of a team share the team's quota."""

    def keys(scope: Any) -> dict[str, str]:
        return {"user": scope["path"], "team": "crew"}

    async def scenario(backend: AsyncMemoryBackend) -> None:
        limiter = backend.rate_limiter("budget", root="all", user="2/day", team="3/day")
        async with client_of(RateLimitMiddleware(ok, limiter, key=keys)) as client:
            statuses = [(await client.get(path)).status_code for path in ("/ann", "/ann", "/ann", "/bob", "/bob")]
            assert statuses == [200, 200, 429, 200, 429]
            denied = await client.get("/bob")
            assert denied.json()["violated-policies"] == ["team"]

    play(scenario)


# --- how long a slot is held --------------------------------------------------------------------------------------


def test_a_slot_is_held_for_the_whole_response() -> None:
    """A streamed response holds its slot to its last byte, and not for what the application does afterwards."""

    async def scenario(backend: AsyncMemoryBackend) -> None:
        more, background = asyncio.Event(), asyncio.Event()

        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            await more.wait()
            yield b"last"

        def answer(request: Any) -> Any:
            return StreamingResponse(chunks(), background=BackgroundTask(background.wait))

        limiter = backend.rate_limiter("web", parallel="1 parallel")
        app = Starlette(routes=[Route("/", answer)], middleware=[Middleware(RateLimitMiddleware, limiter=limiter)])
        streaming = Connection(app)
        assert await streaming.status() == 200
        other = Connection(app)
        assert await other.status() == 429
        assert json.loads(other.sent[1]["body"])["violated-policies"] == ["parallel"]
        more.set()
        await until(lambda: _is_free(limiter))
        assert [each.get("body") for each in streaming.sent[1:]] == [b"first", b"last", b""]
        assert not streaming.task.done()
        background.set()
        await streaming.task

    play(scenario)


async def _is_free(limiter: ailf.AsyncRateLimiter, key: str = "ip:192.0.2.1") -> bool:
    return (await limiter.peek(key)).limits["parallel"].remaining == limiter.limits["parallel"].capacity


@pytest.mark.parametrize("way", ["raises", "answers nothing", "is cancelled", "loses its client"])
def test_a_slot_is_released(way: str) -> None:
    """However a request ends, its slot is free: an error, a cancellation, a client that went away."""

    async def scenario(backend: AsyncMemoryBackend) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if way == "raises":
                raise LookupError("the application's")
            if way == "answers nothing":
                return
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await receive()
            await receive()  # the disconnection

        limiter = backend.rate_limiter("web", parallel="1 parallel")
        connection = Connection(RateLimitMiddleware(app, limiter))
        await asyncio.sleep(0.02)
        if way == "is cancelled":
            assert not await _is_free(limiter)
            connection.task.cancel()
        elif way == "loses its client":
            assert not await _is_free(limiter)
            connection.leave()
        await asyncio.wait([connection.task])
        await until(lambda: _is_free(limiter))
        if way == "raises":
            assert isinstance(connection.task.exception(), LookupError)

    play(scenario)


def test_a_slot_is_released_within_a_cancel_scope(any_server: Server, namespace: str) -> None:
    """A scope of anyio cancels the application again at each await, and its slot is released nevertheless."""

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(60)

    async def main() -> None:
        async with AsyncRedisBackend(f"{any_server.url}?namespace={namespace}") as backend:
            limiter = backend.rate_limiter("web", parallel="1 parallel ttl 60s")
            app = RateLimitMiddleware(endless, limiter)

            async def cancelling(*args: Any) -> None:
                with anyio.move_on_after(0.2):
                    await app(*args)

            connection = Connection(cancelling)
            assert await connection.status() == 200
            assert not await _is_free(limiter)
            await connection.task
            await until(lambda: _is_free(limiter))

    asyncio.run(main())


# --- waiting in line ----------------------------------------------------------------------------------------------


def test_a_request_waits_in_line() -> None:
    """With `max_wait` a request waits for its turn, and its body reaches the application whole."""

    async def scenario(backend: AsyncMemoryBackend) -> None:
        limiter = backend.rate_limiter("web", "1/minute")
        app = RateLimitMiddleware(ok, limiter, max_wait=600)
        assert await Connection(app).status() == 200
        parts: list[dict[str, Any]] = [
            {"type": "http.request", "body": b"a", "more_body": True},
            {"type": "http.request", "body": b"b"},
        ]
        waiting = Connection(app, *parts)
        await asyncio.sleep(0.05)
        short = Connection(app, {"type": "http.request", "body": b"c"})
        await asyncio.sleep(0.05)
        assert waiting.sent == []
        assert short.sent == []
        backend.engine.runtime.clock.advance(60)  # type: ignore[attr-defined]  # a ManualClock
        assert await waiting.status() == 200
        assert waiting.sent[1]["body"] == b"ab"
        assert short.sent == []
        backend.engine.runtime.clock.advance(60)  # type: ignore[attr-defined]  # as above
        assert await short.status() == 200
        assert short.sent[1]["body"] == b"c"
        await asyncio.wait([waiting.task, short.task])
        await asyncio.sleep(0)
        assert [each for each in asyncio.all_tasks() if each.get_coro().__name__ == "_message"] == []  # type: ignore[union-attr]

    play(scenario)


def test_a_wait_that_is_too_long() -> None:
    """A request that can't pass in time is denied at once; one that might is denied when its time has passed."""

    async def scenario(backend: AsyncMemoryBackend) -> None:
        app = RateLimitMiddleware(ok, backend.rate_limiter("web", "1/minute"), max_wait=30)
        assert await Connection(app).status() == 200
        since = time.monotonic()
        assert await Connection(app).status() == 429
        assert time.monotonic() - since < 1
        limiter = backend.rate_limiter("slots", parallel="1 parallel")
        async with limiter.hold("ip:192.0.2.1"):
            denied = Connection(RateLimitMiddleware(ok, limiter, max_wait=0.1))
            assert await denied.status() == 429
            assert (b"ratelimit", b'"parallel";r=0') in denied.sent[0]["headers"]

    play(scenario)


@pytest.mark.parametrize("ending", ["the client goes", "it is cancelled"])
def test_nobody_waits_for_a_client_that_has_gone(ending: str) -> None:
    """A waiting request whose client goes leaves the line: its slot is the next one's, and nothing is called."""

    async def scenario(backend: AsyncMemoryBackend) -> None:
        called: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            called.append(scope["path"])
            await ok(scope, receive, send)

        limiter = backend.rate_limiter("web", parallel="1 parallel")
        middleware = RateLimitMiddleware(app, limiter, max_wait=20)
        async with limiter.hold("ip:192.0.2.1"):
            gone, patient = Connection(middleware, path="/gone"), Connection(middleware, path="/patient")
            await asyncio.sleep(0.05)
            if ending == "the client goes":
                gone.leave()
                await gone.task
            else:
                gone.task.cancel()
                await asyncio.wait([gone.task])
        assert await patient.status() == 200
        assert called == ["/patient"]
        assert gone.sent == []
        await patient.task
        await until(lambda: _is_free(limiter))

    play(scenario)


def test_an_application_may_stop_receiving() -> None:
    """An application that cancels its own `receive` loses no message that was read ahead."""

    async def scenario(backend: AsyncMemoryBackend) -> None:
        seen: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append((await receive())["type"])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(receive(), 0.02)
            seen.append((await receive())["type"])

        limiter = backend.rate_limiter("web", parallel="1 parallel")
        async with limiter.hold("ip:192.0.2.1"):
            connection = Connection(RateLimitMiddleware(app, limiter, max_wait=20))
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.1)
        connection.leave()
        await connection.task
        assert seen == ["http.request", "http.disconnect"]

    play(scenario)


# --- everything else ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_what_passes_through(kind: str) -> None:
    """Websockets and lifespan reach the application as they are."""

    async def scenario(backend: AsyncMemoryBackend) -> None:
        calls: list[Any] = []

        async def app(*args: Any) -> None:
            calls.append(args)

        async def nothing(*_: Any) -> Any: ...

        middleware = RateLimitMiddleware(app, backend.rate_limiter("web", "1/day"))
        scope = {"type": kind}
        for _ in range(3):
            await middleware(scope, nothing, nothing)
        assert calls == [(scope, nothing, nothing)] * 3

    play(scenario)


@pytest.mark.parametrize(("option", "status"), [("raise", 503), ("deny", 503), ("allow", 200)])
def test_a_backend_that_is_away(
    new_server: NewServer, caplog: pytest.LogCaptureFixture, option: Any, status: int
) -> None:
    """While the backend is away requests are refused with 503, or pass if the limiter allows that."""
    server = new_server()

    async def main() -> None:
        async with AsyncRedisBackend(f"{server.url}?retry_for=0.2") as backend:
            app = RateLimitMiddleware(ok, backend.rate_limiter("web", "100/day", on_backend_error=option))
            async with client_of(app) as client:
                assert (await client.get("/")).headers["ratelimit"]
                server.stop()
                for _ in range(2):
                    response = await client.get("/")
                    assert response.status_code == status
                    assert "ratelimit" not in response.headers
                if status == 503:
                    assert response.headers["retry-after"] == "1"
                    assert response.json()["type"].endswith("#temporary-reduced-capacity")
                    assert server.url not in response.text
        async with client_of(app) as client:
            assert (await client.get("/")).status_code == 503  # the backend is closed

    asyncio.run(main())
    refusals = [each for each in caplog.records if "requests are refused" in each.message]
    assert len(refusals) == 1  # with "allow" and "deny" the limiter itself logs the outage, and here the closing


@pytest.mark.parametrize(
    ("options", "words"),
    [({"key": 5}, "key must be"), ({"costs": {"a": 1}}, "costs must be"), ({"max_wait": -1}, "max_wait")],
)
def test_wrong_arguments(options: Any, words: str) -> None:
    """A wrong argument is named when the middleware or the dependency is made."""
    backend = ailf.connect_async("memory://")
    limiter = backend.rate_limiter("web", "1/day")
    with pytest.raises(ailf.InvalidArgumentError, match=words):
        RateLimitMiddleware(ok, limiter, **options)
    with pytest.raises(ailf.InvalidArgumentError, match=words):
        rate_limit(limiter, **options)
    with pytest.raises(ailf.InvalidArgumentError, match=r"not MemoryRateLimiter: .*backend.to_async"):
        RateLimitMiddleware(ok, MemoryBackend().rate_limiter("web", "1/day"))  # type: ignore[arg-type]  # the mistake


# --- FastAPI ------------------------------------------------------------------------------------------------------


def fastapi_app(*limits: Any) -> fastapi.FastAPI:
    """Return an application with a limited router."""
    app = fastapi.FastAPI(dependencies=[fastapi.Depends(each) for each in limits])

    @app.get("/")
    async def answer() -> dict[str, int]:
        return {"answer": 42}

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            await app.state.more.wait()
            yield b"last"

        return StreamingResponse(chunks())

    @app.get("/error")
    async def fail() -> None:
        raise LookupError("the application's")

    return app


def test_the_dependency() -> None:
    """A dependency of FastAPI limits its routes, and its responses have the same fields."""

    async def scenario(backend: AsyncMemoryBackend) -> None:
        limited = rate_limit(backend.rate_limiter("web", "2/minute"), key=header("x-key"))
        daily = rate_limit(backend.rate_limiter("day", day="100/day"))
        async with client_of(fastapi_app(limited, daily)) as client:
            response = await client.get("/")
            assert (response.status_code, response.json()) == (200, {"answer": 42})
            fields = response.headers.get_list("ratelimit", split_commas=True)
            assert fields[0] == '"default";r=1;t=30'
            assert fields[1].startswith('"day";r=99')
            assert (await client.get("/")).status_code == 200
            denied = await client.get("/")
            assert (denied.status_code, denied.json()) == (429, {"detail": "Try again in 30 s."})
            assert denied.headers["retry-after"] == "30"
            assert denied.headers["ratelimit"] == '"default";r=0;t=30'
            assert (await client.get("/", headers={"x-key": "other"})).status_code == 200

    play(scenario)


def test_the_dependency_holds_its_slot() -> None:
    """A streamed response of FastAPI holds the slot to its end; an error releases it."""

    async def scenario(backend: AsyncMemoryBackend) -> None:
        limiter = backend.rate_limiter("web", parallel="1 parallel")
        app = fastapi_app(rate_limit(limiter))
        app.state.more = asyncio.Event()
        streaming = Connection(app, path="/stream")
        assert await streaming.status() == 200
        assert await Connection(app).status() == 429
        app.state.more.set()
        await streaming.task
        await until(lambda: _is_free(limiter))
        failing = Connection(app, path="/error")
        await asyncio.wait([failing.task])
        assert isinstance(failing.task.exception(), LookupError)
        await until(lambda: _is_free(limiter))

    play(scenario)


def test_an_older_fastapi(monkeypatch: pytest.MonkeyPatch) -> None:
    """A FastAPI that would release slots before the response is refused for them, and for them only."""
    backend = ailf.connect_async("memory://")
    monkeypatch.setattr(fastapi, "__version__", "0.117.1")
    with pytest.raises(ailf.UnsupportedError, match="use RateLimitMiddleware"):
        rate_limit(backend.rate_limiter("web", "1 parallel"))
    rate_limit(backend.rate_limiter("web", "1/day"))


# --- a real server ------------------------------------------------------------------------------------------------

SERVING = """
    import asyncio, contextlib, sys
    import ailf, uvicorn
    from ailf.bridges.asgi import RateLimitMiddleware, header
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse, StreamingResponse
    from starlette.routing import Route

    backend = ailf.connect_async(sys.argv[1])
    limiter = backend.rate_limiter(sys.argv[2], calls="10/day", parallel="2 parallel")

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with backend:
            yield

    async def endless():
        while True:
            yield b"more"
            await asyncio.sleep(0.01)

    app = Starlette(
        routes=[Route("/", lambda _: PlainTextResponse("ok")), Route("/s", lambda _: StreamingResponse(endless()))],
        middleware=[Middleware(RateLimitMiddleware, limiter=limiter, key=header("x-key"))],
        lifespan=lifespan,
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            print(self.servers[0].sockets[0].getsockname()[1], flush=True)

    Server(uvicorn.Config(app, port=0, log_level="warning")).run()
"""


def test_two_processes_of_uvicorn(any_server: Server) -> None:
    """Two server processes admit together what one limit allows, and a client that goes frees its slot."""
    name = uuid.uuid4().hex
    command = [sys.executable, "-c", textwrap.dedent(SERVING), any_server.url, name]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        urls = [f"http://127.0.0.1:{(each.stdout.readline().strip())}" for each in started if each.stdout]
        with httpx.Client(headers={"x-key": "ann"}) as client, httpx.Client(headers={"x-key": "bob"}) as other:
            statuses = [client.get(urls[number % 2]).status_code for number in range(14)]
            assert statuses == [200] * 10 + [429] * 4
            with other.stream("GET", f"{urls[0]}/s") as one, other.stream("GET", f"{urls[1]}/s") as two:
                first, second = one.iter_raw(), two.iter_raw()
                assert (next(first), next(second)) == (b"more", b"more")
                assert other.get(urls[0]).status_code == 429
            end = time.monotonic() + 5
            while other.get(urls[0]).status_code != 200:
                assert time.monotonic() < end
                time.sleep(0.05)
    finally:
        for each in started:
            each.terminate()
    for each in started:
        each.communicate(timeout=10)
    assert [each.returncode for each in started] == [-15, -15]
