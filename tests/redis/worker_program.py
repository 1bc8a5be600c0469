"""A worker as a process of its own: python worker_program.py URL NAME. It reports what it did to the stream "done"."""

import sys
import time

import ailf


def main(url: str, name: str) -> None:
    """Work until the process is ended."""
    with ailf.connect(url) as backend:
        done = backend.stream("done")
        group = backend.stream("tasks").group("workers", lease=1.0)

        def handle(delivery: ailf.Delivery[int]) -> None:
            time.sleep(0.001)
            done.add([delivery.data, delivery.attempt, name])

        group.process(handler=handle, prefetch=20, consumer=name, signals=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
