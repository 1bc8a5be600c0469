"""The bridge over HTTP/2, with a real connection to a small server."""

import asyncio
import json

import h2.config
import h2.connection
import h2.events
import httpx2

from ailf.llm import quota
from ailf_memory import AsyncMemoryBackend

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request of a connection with a streamed body."""
    config = h2.config.H2Configuration(client_side=False)
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    writer.write(connection.data_to_send())
    while data := await reader.read(65_536):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.StreamEnded):
                head = [(":status", "200"), ("content-type", "text/event-stream")]
                connection.send_headers(event.stream_id, head)
                body = b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n"
                connection.send_data(event.stream_id, body, end_stream=True)
        writer.write(connection.data_to_send())
    writer.close()


def test_http2() -> None:
    """Parallel streams of one HTTP/2 connection are settled, each by its own usage."""

    async def main() -> None:
        async with (
            await asyncio.start_server(answer, "127.0.0.1", 0) as server,
            AsyncMemoryBackend() as backend,
        ):
            port = server.sockets[0].getsockname()[1]
            wrapped = httpx2.AsyncHTTPTransport(http1=False, http2=True)
            account = quota("vllm", backend, requests=600, tokens="6000/hour", parallel=4, wrapped=wrapped)
            async with httpx2.AsyncClient(transport=account.transport) as client:
                url = f"http://127.0.0.1:{port}/v1/chat/completions"
                calls = [client.post(url, json={"model": "gpt", "max_tokens": 9}) for _ in range(8)]
                responses = await asyncio.gather(*calls)
            assert {each.http_version for each in responses} == {"HTTP/2"}
            limits = (await account.limiter.peek("gpt")).limits
            assert limits["tokens"].remaining in range(6000 - 8 * 15, 6000 - 8 * 15 + 3)
            assert limits["parallel"].remaining == 4

    asyncio.run(main())
