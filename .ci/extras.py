"""Show that an extra is complete: use what needs it, in an environment that has nothing else.

    python .ci/extras.py EXTRA

`make extras` makes the environments.
"""

import asyncio
import importlib
import sys
from typing import Any

import ailf

MODULES = {
    "httpx": ("ailf.bridges.httpx", "ailf.llm"),
    "langchain": ("ailf.bridges.langchain",),
    "asgi": ("ailf.bridges.asgi",),
    "otel": ("ailf.otel",),
    "prometheus": ("ailf.prometheus",),
    "cron": ("ailf.app.schedule",),
    "cli": ("ailf.cli.app",),
    "redis": ("ailf_redis",),
}
"""The modules of each extra."""

TOKENS, USED = 100, 7


def main(extra: str) -> None:
    """Import the modules of an extra; use the bridges."""
    loaded = {each.partition(".")[0] for each in sys.modules}
    assert not loaded & {"httpx", "httpx2", "langchain_core", "fastapi", "starlette"}, "ailf imports a bridge's library"
    for each in MODULES[extra]:
        importlib.import_module(each)
    asyncio.run(USES.get(extra, _nothing)())
    print(f"ailf[{extra}] works alone")


async def _nothing() -> None: ...


async def _httpx() -> None:
    import httpx2  # noqa: PLC0415 - it comes with the extra

    from ailf.llm import quota  # noqa: PLC0415 - as above

    async with ailf.connect_async("memory://") as backend:
        provider = httpx2.MockTransport(lambda _: httpx2.Response(200, json={"usage": {"total_tokens": USED}}))
        account = quota("openai", backend, tokens=TOKENS, wrapped=provider)
        async with httpx2.AsyncClient(transport=account.transport) as client:
            await client.post("https://llm.example/v1/chat/completions", json={"model": "gpt", "max_tokens": 9})
        assert (await account.limiter.peek("gpt")).remaining == TOKENS - USED


async def _langchain() -> None:
    from langchain_core.language_models import GenericFakeChatModel  # noqa: PLC0415 - it comes with the extra

    from ailf.bridges.langchain import SharedRateLimiter  # noqa: PLC0415 - as above

    async with ailf.connect_async("memory://") as backend, SharedRateLimiter(backend, "llm", "2/day") as limiter:
        model = GenericFakeChatModel(messages=iter(["Hello", "Hello"]), rate_limiter=limiter)
        await model.ainvoke("Hi")
        await asyncio.to_thread(model.invoke, "Hi")
        assert not await limiter.aacquire(blocking=False)


async def _asgi() -> None:
    from ailf.bridges.asgi import RateLimitMiddleware, rate_limit  # noqa: PLC0415 - loaded when asked for

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    statuses: list[Any] = []
    async with ailf.connect_async("memory://") as backend:
        limited = RateLimitMiddleware(app, backend.rate_limiter("web", "1/day"))
        for _ in range(2):
            await limited({"type": "http", "headers": [], "client": None}, receive, send)
        assert statuses == [204, None, 429, None]
        try:
            rate_limit(backend.rate_limiter("web", "1/day"))
        except ImportError as error:
            assert "pip install fastapi" in str(error)  # noqa: PT017 - this is no test of pytest
        else:
            raise AssertionError("FastAPI is installed")


USES = {"httpx": _httpx, "langchain": _langchain, "asgi": _asgi}


if __name__ == "__main__":
    main(*sys.argv[1:])
