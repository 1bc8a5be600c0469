"""Show that ailf works beside packages that pin redis-py: import each, and use both flavours of ailf.

    python .ci/neighbours.py REDIS_PY PACKAGE…

The environment has the packages and ailf already; `make neighbours` makes it.
"""

import asyncio
import importlib
import sys

import redis

import ailf
from ailf_redis import RedisBackend, Settings


def main(redis_py: str, *packages: str) -> None:
    """Import the packages; open backends beside them."""
    assert redis.__version__.startswith(f"{redis_py}."), redis.__version__
    for each in packages:
        importlib.import_module(each)
    with ailf.connect("memory://") as backend:
        backend.stream("tasks").add({"a": 1})
        assert backend.stream("tasks").read()[0].data == {"a": 1}
    RedisBackend(Settings.from_url("redis+sentinel://a,b/crew")).close()  # connects to nothing
    asyncio.run(on_asyncio())
    print(f"ailf {ailf.__version__} works beside {', '.join(packages)} on redis-py {redis.__version__}")


async def on_asyncio() -> None:
    """Use an asyncio backend."""
    async with ailf.connect_async("memory://") as backend, backend.lock("l") as lease:
        assert lease.fence


if __name__ == "__main__":
    main(*sys.argv[1:])
