"""``ailf run`` with real processes: restarts, signals, reloads, health, schedules."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

import ailf
from tests.ailf_redis.runner.processes import Runner, lives, running, wait_for
from tests.support.effort import some_of
from tests.support.servers import NewServer, Server

pytestmark = pytest.mark.timeout(180)

ASYNCIO = """
import asyncio, os, ailf

app = ailf.App(metrics=lambda: "# TYPE handled counter\\nhandled_total 1\\n")

def note(name, text):
    with open(name, "a") as file:
        file.write(f"{text}\\n")

@app.on_startup
async def began():
    note("began", os.getpid())

@app.on_shutdown
async def ended():
    note("ended", os.getpid())

@app.handler("tasks", group="workers", concurrency=4, takeover=1.0, type=int)
async def handle(delivery):
    note("begun", delivery.data)
    await asyncio.sleep(delivery.data / 1000)
    note("done", delivery.data)
"""

THREADS = ASYNCIO.replace("async def", "def").replace("await asyncio.sleep", "__import__('time').sleep")

Start = Callable[..., Runner]


@pytest.fixture
def url(any_server: Server, namespace: str) -> str:
    """The URL of this test's backend."""
    return f"{any_server.url}?namespace={namespace}"


@pytest.fixture
def start(tmp_path: Path, url: str) -> Iterator[Start]:
    """Start a runner, which ends with the test."""
    with ExitStack() as stack:

        def begin(*arguments: str, app: str = ASYNCIO, at: str = url) -> Runner:
            return stack.enter_context(running(tmp_path, at, *arguments, app=app))

        yield begin


# --- stopping ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("app", "number"),
    some_of(
        2, [(ASYNCIO, signal.SIGTERM), (THREADS, signal.SIGINT), (ASYNCIO, signal.SIGINT), (THREADS, signal.SIGTERM)]
    ),
)
def test_a_signal_drains(url: str, start: Start, app: str, number: signal.Signals) -> None:
    """A signal in the middle of handlers lets them end, calls the shutdown functions, and ends with status 0."""
    runner = start("--workers", "2", app=app)
    runner.wait_ready()
    with ailf.connect(url) as backend:
        tasks = backend.stream("tasks")
        tasks.add_many([1000] * 20)
        wait_for(lambda: len(runner.lines("begun")) >= 6)
        runner.signal(number)
        wait_for(lambda: runner.why() == "draining" or runner.process.poll() is not None)
        assert runner.ended() == 0, runner.log()
        info = tasks.group("workers").info()
    assert len(runner.lines("done")) == len(runner.lines("begun")), "no handler was cut off"
    assert info.pending == 0, "messages that were not begun are given back at once"
    assert (info.lag or 0) + info.delayed == 20 - len(runner.lines("done")), "none is lost"
    assert sorted(runner.lines("ended")) == sorted(runner.lines("began"))


def test_further_signals_change_nothing(url: str, start: Start) -> None:
    """A service manager may send SIGTERM to every process, and again: the workers still drain."""
    runner = start("--workers", "2")
    runner.wait_ready()
    with ailf.connect(url) as backend:
        backend.stream("tasks").add_many([1500] * 4)
        wait_for(lambda: len(runner.lines("begun")) == 4)
        workers = runner.workers()
        for _ in range(3):
            runner.signal(signal.SIGTERM)
            for each in workers:
                with suppress(ProcessLookupError):  # one that had no message has ended
                    os.kill(each, signal.SIGTERM)
            time.sleep(0.1)
        assert runner.ended() == 0, runner.log()
    assert len(runner.lines("done")) == 4


def test_grace(url: str, start: Start) -> None:
    """A worker that has not ended within the grace is killed; the status tells, and its message comes again."""
    runner = start("--grace", "1", app=THREADS)
    runner.wait_ready()
    with ailf.connect(url) as backend:
        backend.stream("tasks").add(60_000)
        wait_for(lambda: runner.lines("begun"))
        (worker,) = runner.workers()
        runner.signal(signal.SIGTERM)
        assert runner.ended() == 1
        assert "has not ended within its grace of 1 s, so it is killed" in runner.log()
        assert not lives(worker)
        with backend.stream("tasks").group("workers", takeover=1.0).consumer() as consumer:
            delivery = consumer.get(timeout=20)
            assert delivery is not None
            assert delivery.attempt == 2
            delivery.ack()


def test_a_second_ctrl_c_kills(url: str, start: Start) -> None:
    """A second Ctrl-C doesn't wait for the drain."""
    runner = start(app=THREADS)
    runner.wait_ready()
    with ailf.connect(url) as backend:
        backend.stream("tasks").add(60_000)
        wait_for(lambda: runner.lines("begun"))
        (worker,) = runner.workers()
        runner.signal(signal.SIGINT)
        wait_for(lambda: runner.why() == "draining")
        runner.signal(signal.SIGINT)
        assert runner.ended(10) == 1
    assert not lives(worker)


def test_a_signal_while_workers_start(start: Start) -> None:
    """A signal before the workers are ready ends all at once."""
    runner = start("--workers", "2", app="import time\nopen('began', 'a').write('x\\n')\ntime.sleep(60)\n")
    wait_for(lambda: runner.lines("began"))
    assert runner.why() == "2 of 2 workers not open"
    runner.signal(signal.SIGTERM)
    assert runner.ended(10) == 0, runner.log()


@pytest.mark.parametrize("app", [ASYNCIO, THREADS], ids=["asyncio", "threads"])
def test_workers_end_with_the_runner(url: str, start: Start, app: str) -> None:
    """If the runner is killed, its workers drain and end."""
    runner = start("--workers", "2", app=app)
    runner.wait_ready()
    with ailf.connect(url) as backend:
        backend.stream("tasks").add_many([500] * 4)
        wait_for(lambda: len(runner.lines("begun")) >= 2)
        workers = runner.workers()
        assert len(workers) == 2
        runner.signal(signal.SIGKILL)
        wait_for(lambda: not any(map(lives, workers)), 15)
    assert len(runner.lines("done")) == len(runner.lines("begun"))
    assert "the runner has died, so the worker drains" in runner.log()


# --- restarts ----------------------------------------------------------------------------------------------------


def test_a_killed_worker_comes_back(start: Start) -> None:
    """A worker that was killed is replaced, and the runner is ready again."""
    runner = start("--workers", "2")
    runner.wait_ready()
    before = runner.workers()
    os.kill(before[0], signal.SIGKILL)
    wait_for(lambda: runner.why() == "1 of 2 workers not open")
    assert runner.get("/health")[0] == 200
    runner.wait_ready()
    assert len(set(runner.workers()) - set(before)) == 1
    assert "worker 1 was killed by SIGKILL; it is started again in 0.2 s" in runner.log()


@pytest.mark.parametrize(
    ("app", "why"),
    [
        ("import nowhere\n", "ModuleNotFoundError: No module named 'nowhere'"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("x = 1\n", "the module 'jobs' has no 'app'"),
        ("app = 1\n", "is not an ailf.App but a int"),
        ("import ailf\napp = ailf.App()\n", "has nothing to run"),
        ("import os\nos._exit(7)\n", "ended with status 7 before it was ready"),
        (f"{ASYNCIO}\n@app.on_startup\ndef fails():\n    raise ValueError('no')\n", "ValueError: no"),
    ],
)
def test_no_worker_can_start(start: Start, app: str, why: str) -> None:
    """If every worker fails before it is ready, the runner ends with status 1 and says why."""
    runner = start("--workers", "2", app=app)
    assert runner.ended() == 1
    assert "no worker could start, so the runner ends" in runner.log()
    assert why in runner.log()


def test_no_backend(start: Start) -> None:
    """If no worker can open the backend in time, the runner ends with status 1."""
    runner = start("--wait", "0.2", at="redis://localhost:1/0")
    assert runner.ended() == 1
    assert "can't reach redis://localhost:1/0" in runner.log()


def test_a_crash_loop_is_logged(start: Start) -> None:
    """A worker that dies again and again is restarted ever later, and the log calls that a crash loop."""
    dies = "\n@app.on_startup\nasync def dies():\n    asyncio.get_running_loop().call_later(0.5, os._exit, 1)\n"
    runner = start(app=ASYNCIO + dies)
    wait_for(lambda: "crash loop: worker 1 ended with status 1; it is started again in 3.2 s" in runner.log())
    runner.signal(signal.SIGTERM)
    assert runner.ended() == 0


# --- reloads -----------------------------------------------------------------------------------------------------


def test_sighup(url: str, start: Start) -> None:
    """SIGHUP replaces the workers: new ones are ready before the others drain, and nothing is lost."""
    runner = start("--workers", "2")
    runner.wait_ready()
    before = set(runner.workers())
    with ailf.connect(url) as backend:
        backend.stream("tasks").add_many([300] * 40)
        wait_for(lambda: runner.lines("begun"))
        runner.signal(signal.SIGHUP)
        while before & set(runner.workers()):
            assert runner.ready(), "it stays ready"
            time.sleep(0.05)
        wait_for(lambda: len(runner.lines("done")) == 40)
    assert len(runner.lines("begun")) == 40, "no handler was cut off"
    assert len(runner.workers()) == 2


def test_a_reload_that_fails(start: Start) -> None:
    """If the new code can't start, the workers with the present code go on."""
    runner = start("--workers", "2")
    runner.wait_ready()
    before = runner.workers()
    (runner.folder / "jobs.py").write_text("1 / 0\n")
    runner.signal(signal.SIGHUP)
    wait_for(lambda: "the reload is given up" in runner.log())
    wait_for(lambda: sorted(runner.workers()) == sorted(before))
    assert runner.ready()


def test_reload_on_changes(start: Start) -> None:
    """With --reload a changed file replaces the workers, also after one with an error, and before any could start."""
    runner = start("--reload", app="1 / 0\n")
    wait_for(lambda: "it starts when a file changes" in runner.log())
    (runner.folder / "jobs.py").write_text(ASYNCIO)
    runner.wait_ready()
    (first,) = runner.workers()
    (runner.folder / "jobs.py").write_text(f"{ASYNCIO}\n1 / 0\n")
    wait_for(lambda: "the reload is given up" in runner.log())
    assert runner.workers() == [first]
    (runner.folder / "jobs.py").write_text(f"{ASYNCIO}\nnote('second', 'x')\n")
    wait_for(lambda: runner.lines("second") and first not in runner.workers() and runner.ready())


# --- health and metrics ------------------------------------------------------------------------------------------


def test_ready_follows_the_backend(start: Start, new_server: NewServer) -> None:
    """While the backend is away, /ready is 503 and /health 200; when it is back, the workers work again."""
    server = new_server()
    runner = start("--workers", "2", at=f"{server.url}?timeout=1")
    runner.wait_ready()
    server.kill()
    wait_for(lambda: runner.why() == "the backend doesn't answer 2 of 2 workers")
    assert runner.get("/health")[0] == 200
    before = runner.workers()
    server.restart()
    runner.wait_ready()
    assert runner.workers() == before, "no worker died of it"
    with ailf.connect(server.url) as backend:
        backend.stream("tasks").add(1)
        wait_for(lambda: runner.lines("done"))


def test_workers_wait_for_the_backend(start: Start, new_server: NewServer) -> None:
    """Workers that start before their backend wait for it, and /ready is 503 until they have opened."""
    server = new_server()
    server.stop()
    runner = start("--workers", "2", at=server.url)
    wait_for(lambda: "doesn't answer yet" in runner.log())
    assert runner.why() == "2 of 2 workers not open"
    server.restart()
    runner.wait_ready()


def test_metrics(start: Start) -> None:
    """The metrics of each worker have its number as a label, and the runner adds its own."""
    runner = start("--workers", "2", "--metrics-port", "0")
    runner.wait_ready()
    port = int(next(line for line in runner.log().splitlines() if "/metrics" in line).split(":")[-1].split()[0])
    status, text = runner.get("/metrics", port)
    assert status == 200
    assert text.count("# TYPE handled counter") == 1
    assert 'handled_total{worker="1"} 1\nhandled_total{worker="2"} 1\n' in text
    assert 'ailf_runner_workers{phase="ready"} 2' in text
    os.kill(runner.workers()[0], signal.SIGSTOP)
    started = time.monotonic()
    status, text = runner.get("/metrics", port)
    assert (status, text.count("handled_total{")) == (200, 1), "a worker that hangs is left out"
    assert time.monotonic() - started < 5


def test_metrics_of_ailf_itself(url: str, start: Start) -> None:
    """An app without a function for metrics exports those of the instrument for Prometheus."""
    runner = start("--metrics-port", "0", app=re.sub(r"App\(.*\)", "App()", ASYNCIO))
    runner.wait_ready()
    with ailf.connect(url) as backend:
        backend.stream("tasks").add(1)
    wait_for(lambda: runner.lines("done"))
    port = int(next(line for line in runner.log().splitlines() if "/metrics" in line).split(":")[-1].split()[0])
    wait_for(lambda: "ailf_settled_messages_total{" in runner.get("/metrics", port)[1])


def test_metrics_need_something_that_renders_them(start: Start) -> None:
    """Without the extra and without a function of the app, --metrics-port is an error that says what to do."""
    without = "import sys\nsys.modules['ailf.prometheus'] = None\n"  # an import of it fails, as without the extra
    runner = start("--metrics-port", "0", app=without + re.sub(r"App\(.*\)", "App()", ASYNCIO))
    assert runner.ended() == 1
    assert "pip install 'ailf[prometheus]'" in runner.log()


def test_a_taken_port(start: Start, any_server: Server) -> None:
    """A port that is taken ends the runner with status 1, before any worker starts."""
    runner = start("--metrics-port", str(any_server.port))
    assert runner.ended() == 1
    assert "health and metrics can't be served at 127.0.0.1" in runner.log()
    assert not runner.lines("began")


# --- schedules ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", some_of(1, ["async def", "def"]))
def test_every_once_over_all_processes(start: Start, flavour: str) -> None:
    """Over three processes each period has one run, also across a reload."""
    tick = f"""
import time

@app.every(0.25)
{flavour} tick():
    note("ticks", time.time())
"""
    runner = start("--workers", "3", app=(ASYNCIO if "async" in flavour else THREADS) + tick)
    runner.wait_ready()
    wait_for(lambda: len(runner.lines("ticks")) >= 12)
    runner.signal(signal.SIGHUP)
    wait_for(lambda: len(runner.lines("ticks")) >= 24)
    runner.signal(signal.SIGTERM)
    assert runner.ended() == 0
    times = [float(line) for line in runner.lines("ticks")]
    periods = [int(each / 0.25) for each in times]
    assert len(periods) - len(set(periods)) <= 2, "one that is late shares the period of the next"
    assert len(times) <= (times[-1] - times[0]) / 0.25 + 2, "no period has two runs"


def test_a_url_twice(start: Start) -> None:
    """--url is refused for an app that names its own."""
    runner = start("--url", "memory://", app=ASYNCIO.replace("ailf.App(", "ailf.App('memory://', "))
    assert runner.ended() == 1
    assert "--url was given, but the app names a URL itself" in runner.log()


def test_arguments(tmp_path: Path) -> None:
    """Wrong options end with status 2 and one line."""
    for arguments in (["--workers", "0"], ["--grace", "0"], ["--health-port", "70000"], ["--log-level", "loud"]):
        ended = subprocess.run(
            [sys.executable, "-m", "ailf", "run", "jobs:app", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 2, ended.stderr
        assert ended.stderr.count("\n") == 1
