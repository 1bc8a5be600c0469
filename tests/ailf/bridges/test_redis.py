"""The bridge over a server: what a call costs there, what a slow or dead server and a killed process do."""

import asyncio
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path
from typing import Any

import httpx2
import pytest

import ailf
from ailf_redis import AsyncRedisBackend, RedisBackend
from tests.ailf.bridges.clients import KINDS, LIMITS, Kind, client
from tests.support.servers import NewServer, Server

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
HEADERS = {"x-ratelimit-remaining-requests": "59", "x-ratelimit-remaining-tokens": "5900"}
SLOW = {**LIMITS, "tokens": "6000/day"}  # no token comes back within a test
httpx2_kinds = pytest.mark.parametrize("kind", [each for each in KINDS if each.library is httpx2], ids=str)


def opened(kind: Kind, url: str, **options: Any) -> Any:
    """Return a backend of a flavour."""
    return (AsyncRedisBackend if kind.asyncio else RedisBackend)(url, **options)


def scripts(server: Server) -> int:
    """Return how many scripts the server has run."""
    with server.client() as redis:
        return int(redis.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])


@httpx2_kinds
def test_one_request_before_sending(kind: Kind, new_server: NewServer) -> None:
    """A call that need not wait asks the backend once before it is sent, and settles with two requests."""
    server = new_server()
    at_provider: list[int] = []

    def provider(request: Any) -> Any:
        at_provider.append(scripts(server))
        return httpx2.Response(200, headers=HEADERS, json={"usage": USAGE})

    async def main() -> None:
        backend = opened(kind, server.url)
        async with client(kind, provider, backend=backend) as c:
            await c.post()  # loads the scripts
            await asyncio.sleep(0.1)
            before = scripts(server)
            await c.post()
            await c.close()
            assert at_provider[1] - before == 1
            assert scripts(server) - at_provider[1] == 2
        await c.result(backend.aclose() if kind.asyncio else backend.close())

    asyncio.run(main())


@httpx2_kinds
def test_settling_delays_nothing(kind: Kind, new_server: NewServer) -> None:
    """A response arrives at once, although the server that its call is settled on hangs."""
    server = new_server()

    def provider(request: Any) -> Any:
        server.pause()
        return httpx2.Response(200, json={"usage": USAGE})

    async def main() -> None:
        backend = opened(kind, server.url)
        async with client(kind, provider, backend=backend, limits=SLOW) as c:
            await c.result(c.limiter.peek("gpt"))
            since = time.monotonic()
            assert (await c.post()).json() == {"usage": USAGE}
            assert time.monotonic() - since < 2
            server.resume()
            await c.close()
            assert (await c.used("tokens"), await c.held()) == (15, 0)
        await c.result(backend.aclose() if kind.asyncio else backend.close())

    asyncio.run(main())


@httpx2_kinds
def test_a_backend_that_is_away(kind: Kind, new_server: NewServer) -> None:
    """While the backend is away a call waits for it, `max_wait` at most; with "allow" it is sent at once."""
    server = new_server()

    def provider(request: Any) -> Any:
        return httpx2.Response(200, json={"usage": USAGE})

    async def main() -> None:
        backend = opened(kind, server.url)
        async with client(kind, provider, backend=backend, max_wait=0.3) as c:
            await c.post()
            await c.close()
        server.stop()
        async with client(kind, provider, backend=backend, max_wait=0.3) as c:
            with pytest.raises(ailf.RateLimitedError, match="unavailable"):
                await c.post()
        allowing: Any = {"requests": "60/minute", "on_backend_error": "allow"}
        async with client(kind, provider, backend=backend, limits=allowing, max_wait=0.3) as c:
            assert (await c.post()).status_code == 200
        await c.result(backend.aclose() if kind.asyncio else backend.close())

    asyncio.run(main())


HOLDING = """
    import sys, httpx2, ailf
    from ailf.bridges.httpx import QuotaTransport

    class Endless(httpx2.SyncByteStream):
        def __iter__(self):
            yield b"data: {}"

    def provider(request):
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Endless())

    backend = ailf.connect(sys.argv[1])
    limiter = backend.rate_limiter(sys.argv[2], parallel=ailf.Concurrency(1, ttl=1))
    client = httpx2.Client(transport=QuotaTransport(limiter, key="gpt", wrapped=httpx2.MockTransport(provider)))
    with client.stream("POST", "https://llm.example/") as response:
        print("streaming", flush=True)
        sys.stdin.read()
"""


def test_a_killed_process(any_server: Server) -> None:
    """The slot of a process that was killed while it streamed is free after its ttl, and not before."""
    name = uuid.uuid4().hex
    command = [sys.executable, "-c", textwrap.dedent(HOLDING), any_server.url, name]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
        RedisBackend(any_server.url) as backend,
    ):
        limiter = backend.rate_limiter(name, parallel=ailf.Concurrency(1, ttl=1))
        assert process.stdout is not None
        assert process.stdout.readline() == "streaming\n"
        time.sleep(1.2)  # the slot is renewed while the process lives
        assert not limiter.try_acquire("gpt")
        process.kill()
        since = time.monotonic()
        limiter.acquire("gpt", timeout=5).release()
        assert time.monotonic() - since < 3


@pytest.mark.parametrize("missing", ["httpx", "httpx2", "both"])
def test_it_imports_with_either_library(missing: str) -> None:
    """The bridge needs one of the two libraries, and says so where there is none."""
    blocked = ["httpx", "httpx2"] if missing == "both" else [missing]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import ailf.bridges.httpx"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    if missing == "both":
        assert "ailf.bridges.httpx needs httpx2 or httpx" in done.stderr
    else:
        assert done.returncode == 0, done.stderr


def test_the_core_loads_no_bridge() -> None:
    """Neither `ailf` nor `ailf.llm` imports the bridge or an HTTP library."""
    code = "import ailf, ailf.llm, sys; print(*{'httpx', 'httpx2', 'ailf.bridges.httpx'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True, cwd=Path(__file__).parent
    )
    assert done.stdout.strip() == ""
