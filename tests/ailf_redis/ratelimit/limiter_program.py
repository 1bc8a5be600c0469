"""A caller as a process of its own: python limiter_program.py URL LIMIT REPORT WHAT, with what it is to do.

- ``request``: as many calls as it gets, for the seconds that come with a line on its standard input;
- ``wait``: one call, and it waits in line for it for as long as that takes;
- ``hold``: one call, whose place it keeps until the process is ended.

What happened is appended to the report as JSON: when the process is ready, what each call cost and when the backend
allowed it, in ms, and whether a place that is kept was lost.
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


def request(limiter: ailf.RateLimiter, say: Say) -> None:
    """Call, and call again."""
    until = time.monotonic() + float(sys.stdin.readline())
    for cost in itertools.cycle(COSTS):
        if time.monotonic() >= until:
            return
        permit = limiter.acquire("k", timeout=20, cost=cost)
        say(at=round(permit.at * 1000), cost=cost, pid=os.getpid())


def wait(limiter: ailf.RateLimiter, say: Say) -> None:
    """Call once."""
    limiter.acquire("k")
    say(passed=os.getpid())


def hold(limiter: ailf.RateLimiter, say: Say) -> None:
    """Keep a place."""
    with limiter.hold("k", timeout=20) as permit:
        while True:
            say(held=os.getpid(), lost=permit.lost)
            time.sleep(0.1)


def main(url: str, limit: str, report: str, what: str) -> None:
    """Do it."""
    with ailf.connect(url) as backend, Path(report).open("ab", buffering=0) as file:

        def say(**fields: Any) -> None:
            os.write(file.fileno(), json.dumps(fields).encode() + b"\n")

        limiter = backend.rate_limiter("r", limit)
        say(ready=os.getpid())
        {"demand": request, "wait": wait, "hold": hold}[what](limiter, say)


if __name__ == "__main__":
    main(*sys.argv[1:])
