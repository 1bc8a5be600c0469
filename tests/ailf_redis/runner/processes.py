"""The command ``ailf run`` as a process, for tests: start it, wait for its log, ask its health, end it by its id."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tests.support.servers import free_port

T = TypeVar("T")

LIMIT = 30.0
"""Seconds within which everything that a test waits for happens, also on a busy machine."""


def wait_for(condition: Callable[[], T], limit: float = LIMIT) -> T:
    """Wait until a condition is true, and return its value."""
    until = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.02)
    return value


class Runner:
    """A process of ``ailf run``.

    Arguments:
        folder: The folder of the app, which is also where it writes.
        url: The URL of the backend.
        arguments: Further arguments.
        app: The source of the module "jobs", whose app is run.
    """

    def __init__(self, folder: Path, url: str, *arguments: str, app: str) -> None:
        self.folder = folder
        self.port = free_port()
        (folder / "jobs.py").write_text(app)
        self._log = folder / "log"
        command = [sys.executable, "-m", "ailf.cli", "run", "jobs:app", "--health-port", str(self.port), *arguments]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env={**os.environ, "AILF_URL": url}, stdout=log, stderr=log, start_new_session=True
            )

    def log(self) -> str:
        """Return what runner and workers have logged."""
        return self._log.read_text()

    def lines(self, name: str) -> list[str]:
        """Return the whole lines of a file that the app has written."""
        path = self.folder / name
        return path.read_text().rpartition("\n")[0].split("\n") if path.exists() and path.stat().st_size else []

    def workers(self) -> list[int]:
        """Return the process ids of the workers that have said that they are ready, and live."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        with contextlib.suppress(OSError):
            return [int(each) for each in children.read_text().split()]
        return []

    def get(self, path: str, port: int | None = None) -> tuple[int, str]:
        """Return the status and the body of a page; 0 without a server."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port or self.port}{path}", timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def ready(self) -> bool:
        """Return whether ``/ready`` says so."""
        return self.get("/ready")[0] == 200

    def why(self) -> str:
        """Return why ``/ready`` refuses; "" if it doesn't."""
        status, body = self.get("/ready")
        content: dict[str, Any] = json.loads(body) if status == 503 else {}
        return str(content.get("why", ""))

    def wait_ready(self) -> None:
        """Wait until it is ready."""
        wait_for(self.ready)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the runner."""
        self.process.send_signal(number)

    def ended(self, limit: float = LIMIT) -> int:
        """Wait until the runner has ended; return its exit status."""
        return self.process.wait(limit)

    def close(self) -> None:
        """Kill the runner and its workers."""
        workers = self.workers()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for each in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)


def lives(pid: int) -> bool:
    """Return whether a process lives; one that has ended and was not waited for doesn't."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@contextlib.contextmanager
def running(folder: Path, url: str, *arguments: str, app: str) -> Iterator[Runner]:
    """Run ``ailf run`` within a context; its log is printed if the context fails."""
    runner = Runner(folder, url, *arguments, app=app)
    try:
        yield runner
    except BaseException:
        sys.stdout.write(runner.log())
        raise
    finally:
        runner.close()
