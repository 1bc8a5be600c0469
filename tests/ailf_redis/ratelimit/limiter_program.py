"""A caller process: python limiter_program.py URL LIMIT REPORT WHAT.

WHAT is one of:

- ``demand``: as many calls as it is allowed, for the number of seconds that it reads from standard input;
- ``wait``: one call, which waits without a timeout;
- ``hold``: one call, whose slot it keeps until the process is killed.

It appends JSON lines to the report: when it is ready, the cost of each call and when the backend allowed it, in ms, and
whether a slot that it keeps was lost.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ailf

Say = Callable[..., None]

COSTS = (1, 3, 1, 2)


def demand(limiter: ailf.RateLimiter, say: Say) -> None:
    """Call as often as the limit allows."""
    until = time.monotonic() + float(sys.stdin.readline())
    for cost in itertools.cycle(COSTS):
        if time.monotonic() >= until:
            return
        permit = limiter.acquire("k", timeout=20, cost=cost)
        say(at=round(permit.at * 1000), cost=cost, pid=os.getpid())


def wait(limiter: ailf.RateLimiter, say: Say) -> None:
    """Call once, and wait for that."""
    limiter.acquire("k")
    say(passed=os.getpid())


def hold(limiter: ailf.RateLimiter, say: Say) -> None:
    """Keep a slot."""
    with limiter.hold("k", timeout=20) as permit:
        while True:
            say(held=os.getpid(), lost=permit.lost)
            time.sleep(0.1)


def main(url: str, limit: str, report: str, what: str) -> None:
    """Run one of the three functions."""
    with ailf.connect(url) as backend, Path(report).open("ab", buffering=0) as file:

        def say(**fields: Any) -> None:
            os.write(file.fileno(), json.dumps(fields).encode() + b"\n")

        limiter = backend.rate_limiter("r", limit)
        say(ready=os.getpid())
        {"demand": demand, "wait": wait, "hold": hold}[what](limiter, say)


if __name__ == "__main__":
    main(*sys.argv[1:])
