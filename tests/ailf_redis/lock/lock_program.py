"""A lock holder process that counts up in a fenced store: python lock_program.py URL NAME REPORT.

Each locked section reads the counter, waits a little, and writes it back with its fence; the store lists the accepted
fences. Each section appends a JSON line to the report: its fence, whether the store took the write, whether the lease
was marked as lost.
"""

import json
import os
import sys
import time
from pathlib import Path

import redis

import ailf

WRITE = """
local highest = tonumber(redis.call('HGET', KEYS[1], 'fence') or 0)
if tonumber(ARGV[1]) < highest then return 0 end
redis.call('HSET', KEYS[1], 'fence', ARGV[1], 'value', ARGV[2])
redis.call('RPUSH', KEYS[1] .. ':taken', ARGV[1])
return 1
"""
"""The store refuses a fence below the highest that it has seen; a read raises that too."""

READ = """
local highest = tonumber(redis.call('HGET', KEYS[1], 'fence') or 0)
if tonumber(ARGV[1]) < highest then return -1 end
redis.call('HSET', KEYS[1], 'fence', ARGV[1])
return tonumber(redis.call('HGET', KEYS[1], 'value') or 0)
"""


def section(raw: redis.Redis, store: str, lease: ailf.Lease) -> dict[str, object]:
    """Count up once; return the line for the report."""
    fence = lease.fence
    value = raw.eval(READ, 1, store, fence)
    time.sleep(0.005)
    taken = value >= 0 and bool(raw.eval(WRITE, 1, store, fence, value + 1))
    return {"fence": fence, "taken": taken, "lost": lease.lost, "at": time.monotonic()}


def main(url: str, name: str, report: str) -> None:
    """Work until the process is killed."""
    with ailf.connect(url) as backend, Path(report).open("ab", buffering=0) as file:
        raw = backend.unwrap(redis.Redis)
        lock = backend.lock("counter", ttl=0.4)
        while True:
            try:
                with lock.hold(timeout=30) as lease:
                    line = section(raw, f"{name}:store", lease)
                    os.write(file.fileno(), json.dumps(line).encode() + b"\n")
            except ailf.LeaseLostError:
                os.write(file.fileno(), b'{"raised": true}\n')


if __name__ == "__main__":
    main(*sys.argv[1:])
