"""Two processes share one LLM account through the real openai and anthropic clients: no call is rejected.

    python examples/quota_two_processes.py [--url redis://localhost:6379/0] [--calls 400]

The provider is simulated, in a process of its own, and strict: token buckets for requests and tokens, and a number of
parallel calls; it answers 429 to every call above them. Half of the calls are streamed. First both processes call it
without a limiter, then with one: a transport below the clients waits in turn, and settles each call by its usage.

A URL of Redis shares the quota between both processes. In memory (`memory://`) only one process is started.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import sys
import time
import uuid
from typing import Any

import anthropic
import attrs
import httpx2
import openai
from rich.console import Console
from rich.live import Live
from rich.table import Table

import ailf
from ailf.llm import Quota, quota

REQUESTS = 20  # per second
TOKENS = 40_000  # per minute
PARALLEL = 8
BURST = 8  # of ours; the provider's is 2 larger, as calls may arrive closer together than they were allowed
PROVIDER_BURST = BURST + 2
TOKEN_BURST = 4_000
INPUT, OUTPUT = 12, 18  # tokens of a call: 30 x 20 requests x 60 s are 36,000 of the 40,000 tokens of a minute
LATENCY = 0.15
PAUSE = 1.0  # after a rejected call
AGENTS = 30  # of each process


class Bucket:
    """A token bucket, full at first."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at = burst, time.monotonic()

    def left(self) -> float:
        """Return the amount that may be taken now."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + self._rate * (now - self._at))
        self._at = now
        return self._left

    def take(self, amount: float) -> None:
        """Take an amount."""
        self._left -= amount


class Provider:
    """The simulated provider: an HTTP server that speaks the formats of OpenAI and Anthropic."""

    def __init__(self, counts: Any) -> None:
        self._requests = Bucket(REQUESTS, PROVIDER_BURST)
        self._tokens = Bucket(TOKENS / 60, TOKEN_BURST + 2 * (INPUT + OUTPUT))
        self._parallel = 0
        self._counts = counts

    async def serve(self, listening: socket.socket) -> None:
        """Serve until it is cancelled."""
        async with await asyncio.start_server(self._connection, sock=listening) as server:
            await server.serve_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                await self._respond(lines[0].split()[1], body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _respond(self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if self._parallel >= PARALLEL or self._requests.left() < 1 or self._tokens.left() < INPUT + OUTPUT:
            self._counts["rejected"].value += 1
            error = {"error": {"message": "slow down", "type": "rate_limit_error"}}
            await self._send(writer, "429 Too Many Requests", json.dumps(error).encode())
            return
        self._requests.take(1)
        self._tokens.take(INPUT + OUTPUT)
        self._counts["served"].value += 1
        self._counts["last"].value = time.time()
        if not self._counts["first"].value:
            self._counts["first"].value = time.time()
        self._parallel += 1
        try:
            events = anthropic_events() if "messages" in path else openai_events()
            if body.get("stream"):
                await self._stream(writer, events)
            else:
                await asyncio.sleep(LATENCY)
        finally:
            self._parallel -= 1
        if body.get("stream"):  # the end is sent after the slot is free, so that the next call finds it free
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        else:
            answer = anthropic_answer() if "messages" in path else openai_answer()
            await self._send(writer, "200 OK", json.dumps(answer).encode())

    @staticmethod
    async def _stream(writer: asyncio.StreamWriter, events: list[bytes]) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for event in events:
            await asyncio.sleep(LATENCY / len(events))
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()

    @staticmethod
    async def _send(writer: asyncio.StreamWriter, status: str, body: bytes) -> None:
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()


def openai_answer() -> dict[str, Any]:
    """Return an answer in OpenAI's format."""
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": INPUT, "completion_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT},
    }


def openai_events() -> list[bytes]:
    """Return the events of a streamed answer in OpenAI's format."""
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt"}
    choice = {"index": 0, "delta": {"content": "hi"}, "finish_reason": None}
    said = [{**chunk, "choices": [choice]}, {**chunk, "choices": [{**choice, "delta": {}, "finish_reason": "stop"}]}]
    events = [*said, {**chunk, "choices": [], "usage": openai_answer()["usage"]}]
    return [b"data: %s\n\n" % json.dumps(each).encode() for each in events] + [b"data: [DONE]\n\n"]


def anthropic_answer() -> dict[str, Any]:
    """Return an answer in Anthropic's format."""
    return {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "hi"}],
        "usage": {"input_tokens": INPUT, "output_tokens": OUTPUT},
    }


def anthropic_events() -> list[bytes]:
    """Return the events of a streamed answer in Anthropic's format."""
    start = {
        **anthropic_answer(),
        "content": [],
        "stop_reason": None,
        "usage": {"input_tokens": INPUT, "output_tokens": 1},
    }
    events = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": OUTPUT}},
        {"type": "message_stop"},
    ]
    return [b"event: %s\ndata: %s\n\n" % (str(each["type"]).encode(), json.dumps(each).encode()) for each in events]


# --- one process -------------------------------------------------------------------------------------------------


@attrs.frozen
class Plan:
    """The work of a run.

    Attributes:
        base_url: The provider's URL.
        backend_url: The backend's URL; "" for a run without a limiter.
        account: The name of the limiter.
        calls: The number of calls of one process.
    """

    base_url: str
    backend_url: str
    account: str
    calls: int


async def call(oa: openai.AsyncOpenAI, an: anthropic.AsyncAnthropic, number: int) -> None:
    """Make a call: by either client, streamed or not."""
    messages: Any = [{"role": "user", "content": "What is a quota?"}]
    if number % 4 == 0:
        await oa.chat.completions.create(model="gpt", messages=messages, max_tokens=OUTPUT)
    elif number % 4 == 1:
        await an.messages.create(model="claude", messages=messages, max_tokens=OUTPUT)
    elif number % 4 == 2:  # noqa: PLR2004 - of four kinds
        options: Any = {"stream": True, "stream_options": {"include_usage": True}}
        async for _ in await oa.chat.completions.create(model="gpt", messages=messages, max_tokens=OUTPUT, **options):
            pass
    else:
        async with an.messages.stream(model="claude", messages=messages, max_tokens=OUTPUT) as stream:
            async for _ in stream.text_stream:
                pass


async def agents(plan: Plan, counts: Any) -> None:
    """Make the calls of one process, some of them at once, as the agents of a crew do."""
    numbers = iter(range(plan.calls))

    async def agent(oa: openai.AsyncOpenAI, an: anthropic.AsyncAnthropic) -> None:
        for number in numbers:
            counts["waiting"].value += 1
            try:
                await call(oa, an, number)
            except (openai.APIStatusError, anthropic.APIStatusError):
                await asyncio.sleep(PAUSE)  # the call is given up
            finally:
                counts["waiting"].value -= 1

    async def work(http_client: httpx2.AsyncClient) -> None:
        oa = openai.AsyncOpenAI(api_key="x", base_url=plan.base_url, http_client=http_client, max_retries=0)
        an = anthropic.AsyncAnthropic(api_key="x", base_url=plan.base_url, http_client=http_client, max_retries=0)
        async with http_client:
            await asyncio.gather(*(agent(oa, an) for _ in range(AGENTS)))

    if plan.backend_url:
        async with ailf.connect_async(plan.backend_url) as backend:
            await work(httpx2.AsyncClient(transport=account(backend, plan.account).transport))
    else:
        await work(httpx2.AsyncClient())


def account(backend: ailf.AsyncBackend, name: str) -> Quota[Any, Any]:
    """Return the quota: this is all that a program adds."""
    return quota(
        "litellm",
        backend,
        name=name,
        key="account",  # here all models share one quota
        requests=f"{REQUESTS}/second burst {BURST}",
        tokens=f"{TOKENS}/minute burst {TOKEN_BURST}",
        parallel=ailf.Concurrency(PARALLEL, ttl=10),
    )


def run_agents(plan: Plan, counts: Any) -> None:
    """Be one of the processes."""
    asyncio.run(agents(plan, counts))


def run_provider(listening: socket.socket, counts: Any) -> None:
    """Be the provider's process."""
    asyncio.run(Provider(counts).serve(listening))


# --- the show ----------------------------------------------------------------------------------------------------


@attrs.frozen
class Result:
    """The result of a run.

    Attributes:
        served: The calls that the provider served.
        rejected: The calls that it answered with 429.
        waiting: The calls under way.
        used: The share of the request quota that was used, from the first served call to the last.
    """

    served: int
    rejected: int
    waiting: int
    used: float

    @classmethod
    def of(cls, counts: Any) -> "Result":
        """Return the result up to now."""
        served, seconds = counts["served"].value, counts["last"].value - counts["first"].value
        possible = BURST + REQUESTS * max(0.0, seconds)
        return cls(served, counts["rejected"].value, counts["waiting"].value, served / possible if served else 0.0)


def shown(rows: dict[str, Result]) -> Table:
    """Return the rows as a table."""
    table = Table("", "served", "rejected (429)", "waiting", "quota used", title="One LLM account, two processes")
    for name, row in rows.items():
        table.add_row(name, str(row.served), str(row.rejected), str(row.waiting), f"{row.used:.0%}")
    return table


def run(url: str, calls: int, processes: int, rows: dict[str, Result], live: Live) -> Result:
    """Run the provider and the processes once; return the result."""
    context = multiprocessing.get_context("forkserver")  # imports this file, and the clients, once for all
    counts = {
        name: context.Value("d" if name in {"first", "last"} else "i", 0)
        for name in ("served", "rejected", "waiting", "first", "last")
    }
    name = "with ailf" if url else "without"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        base_url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        plan = Plan(base_url, url, f"account-{uuid.uuid4().hex[:8]}", calls // processes)
        provider = context.Process(target=run_provider, args=(listening, counts), daemon=True)
        crew = [context.Process(target=run_agents, args=(plan, counts), daemon=True) for _ in range(processes)]
        for each in (provider, *crew):
            each.start()
        try:
            while any(each.is_alive() for each in crew):
                rows[name] = Result.of(counts)
                live.update(shown(rows))
                time.sleep(0.1)
        finally:
            for each in (*crew, provider):
                each.kill()
                each.join()
    rows[name] = Result.of(counts)
    live.update(shown(rows), refresh=True)
    return rows[name]


def main() -> int:
    """Parse the arguments and run the example; return 0 if no call was rejected and the quota was used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=os.environ.get("AILF_URL", "memory://"))
    parser.add_argument("--calls", type=int, default=400)
    arguments = parser.parse_args()
    processes = 1 if arguments.url.startswith("memory:") else 2
    rows: dict[str, Result] = {}
    with Live(shown(rows), console=Console(width=80), refresh_per_second=10) as live:
        run("", arguments.calls, processes, rows, live)
        limited = run(arguments.url, arguments.calls, processes, rows, live)
    served = limited.served == arguments.calls // processes * processes
    print(f"{limited.served} calls served, {limited.rejected} rejected, {limited.used:.1%} of the quota used")
    return 0 if served and limited.rejected == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
