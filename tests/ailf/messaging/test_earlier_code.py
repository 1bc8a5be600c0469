"""Programs for earlier AILF run unchanged, as separate processes against a Redis on its default port."""

import fcntl
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

import ailf
from ailf.messaging.redis import RedisPubSub, RedisStream
from tests.support.servers import NewServer, Server

PUBLISHER = """
from ailf.messaging.redis import RedisPubSub
pubsub = RedisPubSub()
pubsub.publish("agent-commands", {"command": "analyze", "data": "content to analyze"})
"""

SUBSCRIBER = """
from analysis import analyze_content
from ailf.messaging.redis import RedisPubSub

def handle_command(message):
    if message["command"] == "analyze":
        pubsub.publish("agent-results", {"result": analyze_content(message["data"])})
pubsub = RedisPubSub()
pubsub.subscribe("agent-commands", handle_command)
pubsub.run()
"""

PRODUCER = """
from ailf.messaging.redis import RedisStream
task_stream = RedisStream("tasks")
task_stream.add({"task_id": "123", "type": "document_processing", "content": "Document content"})
"""

WORKER = """
from analysis import process_document
from ailf.messaging.redis import RedisStream
worker_stream = RedisStream("tasks")
worker_stream.create_consumer_group("workers", "worker-1")
def process_task(task):
    if task["type"] == "document_processing":
        process_document(task["content"])
    return True
worker_stream.process_messages(process_task)
"""

ANALYSIS = """
from pathlib import Path

def analyze_content(content):
    return f"{len(content)} characters"

def process_document(content):
    with Path(__file__).with_name("processed").open("a") as report:
        report.write(content + "\\n")
"""


@pytest.fixture
def default_server(new_server: NewServer) -> Iterator[Server]:
    """A server on Redis' default port, which the programs use. A file lock makes tests use it one at a time."""
    with Path(tempfile.gettempdir(), "ailf-tests-6379").open("wb") as lock_file:
        wait_until(lambda: _locked(lock_file), 30)
        wait_until(lambda: not in_use(6379), 5, "port 6379 is in use, and these programs can use no other")
        with new_server(port=6379) as server:
            yield server


def _locked(lock_file: IO[bytes]) -> bool:
    """Lock the file if it is free. Closing it unlocks it, however this process ends."""
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def in_use(port: int) -> bool:
    """Tell whether a program listens on a port, by binding it as a server would, which can't hang."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore connections in TIME_WAIT
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


@pytest.fixture
def programs(tmp_path: Path) -> Iterator["Programs"]:
    """Starts programs, and ends them with the test."""
    (tmp_path / "analysis.py").write_text(ANALYSIS)
    with ExitStack() as stack:
        yield Programs(tmp_path, stack)


class Programs:
    """Programs in files of their own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack

    def start(self, name: str, text: str) -> subprocess.Popen[bytes]:
        """Start a program, unchanged."""
        path = self.folder / f"{name}.py"
        path.write_text(text)
        process = subprocess.Popen([sys.executable, str(path)], cwd=self.folder)
        self._stack.callback(process.wait, 10)
        self._stack.callback(process.kill)
        return process


def wait_until(condition: Callable[[], object], timeout: float = 15, why: str = "") -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, why or f"not within {timeout:g} s"
        time.sleep(0.05)


def test_the_command_arrives_and_is_answered(default_server: Server, programs: Programs) -> None:
    """Publisher and subscriber exchange messages; a redis-py client receives the result on the plain channel."""
    with default_server.client() as raw, raw.pubsub() as listener:
        listener.subscribe("agent-results")
        assert listener.get_message(timeout=5)["type"] == "subscribe"
        programs.start("subscriber", SUBSCRIBER)
        wait_until(lambda: raw.pubsub_numsub("agent-commands")[0][1] == 1)
        assert programs.start("publisher", PUBLISHER).wait(15) == 0
        answer = listener.get_message(timeout=10)
    assert answer["data"] == b'{"result":"18 characters"}'


def test_the_task_is_processed_once_and_acknowledged(default_server: Server, programs: Programs) -> None:
    """A task that was added before the group existed is processed, once, and acknowledged."""
    assert programs.start("producer", PRODUCER).wait(15) == 0
    programs.start("worker", WORKER)
    processed = programs.folder / "processed"
    with default_server.client() as raw:
        wait_until(processed.exists)
        wait_until(lambda: raw.xpending("tasks", "workers")["pending"] == 0)
        assert raw.xinfo_groups("tasks")[0]["name"] == b"workers"
        raw.xadd("tasks", {"type": "document_processing", "content": "by redis-cli"})
        wait_until(lambda: processed.read_text() == "Document content\nby redis-cli\n")
        time.sleep(0.2)
        assert processed.read_text() == "Document content\nby redis-cli\n"
        wait_until(lambda: raw.xpending("tasks", "workers")["pending"] == 0)


def test_they_are_the_interfaces() -> None:
    """The objects of the compatibility layer are the interfaces, and making one needs no server."""
    assert isinstance(RedisStream("x"), ailf.Stream)
    assert isinstance(RedisPubSub(), ailf.PubSub)
