"""SIGTERM and Ctrl-C stop workers, once, and the program's own handlers are neither lost nor skipped."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import ailf
import ailf_memory
from ailf import InvalidArgumentError
from ailf.runtime.signals import stopped_by_signals
from ailf_memory import MemoryBackend
from contract_tests.helpers.processes import running

STANDARD = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Install the handlers of a plain program, and restore the earlier ones after the test."""
    before = {number: signal.signal(number, handler) for number, handler in STANDARD.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def current() -> dict[signal.Signals, Any]:
    """Return the handlers that are installed."""
    return {number: signal.getsignal(number) for number in STANDARD}


def send(number: signal.Signals) -> None:
    """Send this process a signal."""
    os.kill(os.getpid(), number)


class Calls(list[str]):
    """The names of the callbacks that were called, in order."""

    def by(self, name: str) -> Callable[..., None]:
        """Return a callback, or a handler, that records its name."""
        return lambda *_: self.append(name)


# --- which signals are handled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", STANDARD)
def test_default_handlers_are_replaced(number: signal.Signals) -> None:
    """The first signal calls the worker's callback and has no other effect; then the default handlers are back."""
    calls = Calls()
    with stopped_by_signals(calls.by("worker"), None):
        assert current() != STANDARD
        send(number)
        assert calls == ["worker"]
        assert current() == STANDARD
    assert current() == STANDARD


def test_a_handler_of_the_programs_own_stays() -> None:
    """Each signal counts by itself: the program's handler is called for one, the worker's callback for the other."""
    calls = Calls()
    own = calls.by("own")
    signal.signal(signal.SIGTERM, own)
    with stopped_by_signals(calls.by("worker"), None):
        send(signal.SIGTERM)
        assert calls == ["own"]
        send(signal.SIGINT)
        assert calls == ["own", "worker"]
    assert signal.getsignal(signal.SIGTERM) is own


def test_an_ignored_signal_stays_ignored() -> None:
    """`nohup` ignores signals in this way."""
    calls = Calls()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stopped_by_signals(calls.by("worker"), None):
        send(signal.SIGINT)
    assert calls == []


def test_with_true_both_are_handled_and_the_programs_handler_is_called_too() -> None:
    """The program's handler runs after the callback; a second signal calls it alone."""
    calls = Calls()
    own = calls.by("own")
    signal.signal(signal.SIGTERM, own)
    with stopped_by_signals(calls.by("worker"), True):
        send(signal.SIGTERM)
        assert calls == ["worker", "own"]
        send(signal.SIGTERM)
        assert calls == ["worker", "own", "own"]
    assert signal.getsignal(signal.SIGTERM) is own


def test_with_false_none_is_handled() -> None:
    """Ctrl-C raises KeyboardInterrupt, as in any program."""
    with pytest.raises(KeyboardInterrupt), stopped_by_signals(Calls().by("worker"), False):
        assert current() == STANDARD
        send(signal.SIGINT)


def test_a_second_signal_acts_as_it_did_before() -> None:
    """A worker that takes too long to drain can be interrupted."""
    calls = Calls()
    with pytest.raises(KeyboardInterrupt), stopped_by_signals(calls.by("worker"), None):
        send(signal.SIGTERM)
        send(signal.SIGINT)
    assert calls == ["worker"]


# --- several workers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_every_worker_is_called_and_the_last_one_restores_the_handlers(order: tuple[int, ...]) -> None:
    """The order in which workers end doesn't matter."""
    calls = Calls()
    workers = [stopped_by_signals(calls.by(f"worker {number}"), None) for number in range(3)]
    for each in workers:
        each.__enter__()
    for number in order[:-1]:
        workers[number].__exit__(None, None, None)
        assert current() != STANDARD
    send(signal.SIGTERM)
    assert calls == [f"worker {order[-1]}"]
    workers[order[-1]].__exit__(None, None, None)
    assert current() == STANDARD
    with stopped_by_signals(calls.by("one"), None), stopped_by_signals(calls.by("two"), None):
        send(signal.SIGINT)
    assert calls[1:] == ["one", "two"]


def test_a_handler_that_was_installed_meanwhile_is_left_alone() -> None:
    """Code that replaced ours wanted its own handler there."""
    calls = Calls()
    later = calls.by("later")
    with stopped_by_signals(calls.by("worker"), None):
        signal.signal(signal.SIGTERM, later)
    assert signal.getsignal(signal.SIGTERM) is later
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_worker_that_begins_after_a_signal_is_stopped_by_the_next_one() -> None:
    """The handlers are installed anew, although others still drain."""
    calls = Calls()
    with stopped_by_signals(calls.by("first"), None):
        send(signal.SIGTERM)
        with stopped_by_signals(calls.by("second"), None):
            send(signal.SIGTERM)
            assert calls[0] == "first"
            assert calls[-1] == "second"
    assert current() == STANDARD


def test_a_handler_of_ours_that_is_reinstalled_later_swallows_nothing() -> None:
    """Without a worker the signal has Python's default effect."""
    calls = Calls()
    with stopped_by_signals(calls.by("worker"), None):
        ours = signal.signal(signal.SIGINT, calls.by("meanwhile"))
    signal.signal(signal.SIGINT, ours)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    assert calls == []


def test_a_signal_leaves_the_other_to_workers_that_were_not_called() -> None:
    """The handler of a signal is restored when all of its workers have been called."""
    calls = Calls()
    signal.signal(signal.SIGTERM, calls.by("own"))
    with stopped_by_signals(calls.by("Ctrl-C only"), None), stopped_by_signals(calls.by("both"), True):
        send(signal.SIGTERM)
        assert calls == ["both", "own"]
        send(signal.SIGINT)
        assert calls == ["both", "own", "Ctrl-C only"]
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_handler_of_an_ended_asyncio_run_is_not_restored() -> None:
    """A worker that outlives its main function ends while the runner closes the loop."""
    calls = Calls()

    async def work() -> None:
        with stopped_by_signals(calls.by("worker"), None):
            await asyncio.sleep(60)

    async def main() -> None:
        tasks.append(asyncio.create_task(work()))
        await asyncio.sleep(0.01)

    tasks: list[asyncio.Task[None]] = []
    asyncio.run(main())
    assert current() == STANDARD


def in_thread(function: Callable[[], None]) -> None:
    """Run a function in a thread, and raise its exception."""
    failed: list[BaseException] = []

    def target() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - it is raised below
            failed.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join(10)
    if failed:
        raise failed[0]


def test_outside_the_main_thread_handlers_cannot_be_installed() -> None:
    """The default installs none; True raises, because it can't be kept."""

    def default() -> None:
        with stopped_by_signals(Calls().by("worker"), None):
            assert current() == STANDARD

    def with_true() -> None:
        with stopped_by_signals(Calls().by("worker"), True):
            pass

    in_thread(default)
    with pytest.raises(InvalidArgumentError, match="main thread only"):
        in_thread(with_true)


@pytest.mark.parametrize("before", [True, False])
def test_a_worker_of_another_thread_is_called_where_the_main_thread_has_one(*, before: bool) -> None:
    """The process has one registry, whichever worker begins first."""
    calls = Calls()
    begun, end = threading.Event(), threading.Event()

    def work() -> None:
        with stopped_by_signals(calls.by("other thread"), None):
            begun.set()
            end.wait(5)

    thread = threading.Thread(target=work)
    if before:
        thread.start()
        begun.wait(5)
    with stopped_by_signals(calls.by("main thread"), None):
        if not before:
            thread.start()
            begun.wait(5)
        send(signal.SIGTERM)
        end.set()
        thread.join(5)
    assert sorted(calls) == ["main thread", "other thread"]
    assert current() == STANDARD


@pytest.mark.parametrize("signals", ["yes", 1, 0, []])
def test_the_option_is_checked(signals: Any) -> None:
    """`signals` is True, False or None."""
    with MemoryBackend() as backend:
        group = backend.stream("s").group("g")
        with pytest.raises(InvalidArgumentError, match="signals must be True, False, or None"):
            group.process(print, signals=signals)
        with pytest.raises(InvalidArgumentError, match="signals must be True, False, or None"):
            backend.pubsub().run(signals=signals)


# --- whole programs ------------------------------------------------------------------------------------------------

PROGRAMS = {
    "process_messages": """
with ailf.connect("memory://") as backend:
    tasks = backend.stream("tasks")
    tasks.create_consumer_group("workers", "worker-1")
    tasks.add("a task")
    tasks.process_messages(lambda task: print("begun", flush=True))
print("ended")
""",
    "process": """
with ailf.connect("memory://") as backend:
    backend.stream("tasks").add("a task")
    backend.stream("tasks").group("g").process(lambda task: print("begun", flush=True), concurrency=3)
print("ended")
""",
    "run": """
with ailf.connect("memory://") as backend:
    pubsub = backend.pubsub()
    pubsub.subscribe("c", lambda message: print("begun", flush=True))
    pubsub.publish("c", 1)
    pubsub.run()
print("ended")
""",
    "run with a concurrency": """
with ailf.connect("memory://") as backend:
    pubsub = backend.pubsub()
    pubsub.subscribe("c", lambda message: print("begun", flush=True))
    pubsub.publish("c", 1)
    pubsub.run(concurrency=3)
print("ended")
""",
    "asyncio run with a concurrency": """
async def main():
    async with ailf.connect_async("memory://") as backend:
        pubsub = backend.pubsub()
        await pubsub.subscribe("c", lambda message: print("begun", flush=True))
        await pubsub.publish("c", 1)
        await pubsub.run(concurrency=3)
asyncio.run(main())
print("ended")
""",
    "two asyncio workers": """
async def main():
    async with ailf.connect_async("memory://") as backend:
        tasks, pubsub = backend.stream("tasks"), backend.pubsub()
        await tasks.add("a task")
        await pubsub.subscribe("c", lambda message: None)
        await asyncio.gather(tasks.group("g").process(lambda task: print("begun", flush=True)), pubsub.run())
asyncio.run(main())
print("ended")
""",
    "asyncio on uvloop": """
import uvloop
async def main():
    async with ailf.connect_async("memory://") as backend:
        tasks = backend.stream("tasks")
        await tasks.add("a task")
        await tasks.group("g").process(lambda task: print("begun", flush=True))
uvloop.run(main())
print("ended")
""",
    "a worker in a thread of a forked child": """
import os, signal, threading
with ailf.connect("memory://") as backend:
    backend.stream("tasks").add("a task")
    def handler(task):
        child = os.fork()
        if child == 0:
            with ailf.connect("memory://child") as other:
                group = other.stream("s").group("g")
                other.stream("s").add(1)
                thread = threading.Thread(target=group.process, args=(lambda task: group.stop(),))
                thread.start()
                thread.join(20)
                os._exit(thread.is_alive())
        assert os.waitpid(child, 0)[1] == 0
        print("begun", flush=True)
    backend.stream("tasks").group("g").process(handler)
print("ended")
""",
    "a forked child": """
import os, signal, time
with ailf.connect("memory://") as backend:
    group = backend.stream("tasks").group("g")
    backend.stream("tasks").add("a task")
    def handler(task):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, b"1")
            time.sleep(30)
            os._exit(7)
        os.read(reading, 1)  # before that, a new child loses signals
        os.kill(child, signal.SIGTERM)
        assert os.waitpid(child, 0)[1] == signal.SIGTERM
        print("begun", flush=True)
    group.process(handler)
print("ended")
""",
}


def ends_well(source: str, number: signal.Signals, *, idle: float = 0.0) -> None:
    """Check that after one signal a program continues behind its worker, and ends with status 0 and no traceback.

    Arguments:
        source: The program.
        number: The signal.
        idle: Seconds from the first message to the signal.
    """
    ignoring = ("-W", "ignore:This process:DeprecationWarning")  # of forks, since Python 3.12
    with running(*ignoring, "-c", source, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        time.sleep(idle)
        child.send_signal(number)
        out, errors = child.communicate(timeout=20)
    assert (out, errors, child.returncode) == ("ended\n", "", 0)


@pytest.mark.parametrize("number", STANDARD)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_ends_well(program: str, number: signal.Signals) -> None:
    """A program whose main thread receives the signal."""
    ends_well(f"import asyncio, ailf\n{PROGRAMS[program]}", number)


@pytest.mark.parametrize("program", [each for each in PROGRAMS if "fork" not in each])
def test_another_thread_receives_the_signal(program: str) -> None:
    """It doesn't interrupt what the main thread waits for, just like a signal that comes as it begins to wait."""
    other_thread = """if True:
        import asyncio, signal, threading, time, ailf
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    """
    ends_well(f"{other_thread}\n{PROGRAMS[program]}", signal.SIGTERM, idle=0.3)


# --- Ctrl-C without our handlers ------------------------------------------------------------------------------------


OURS = tuple(str(Path(each.__file__ or "").parent) for each in (ailf, ailf_memory))


def interrupted_at(call: int) -> bool:
    """Interrupt a busy worker at its call number `call` of our functions; return whether `process` raised that.

    Python's own locks, threads and finalizers can't be interrupted at any point, so their calls don't count.
    """
    calls, after = 0, 0

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(OURS)
        if calls == call:
            sys.setprofile(None)
            raise KeyboardInterrupt

    with MemoryBackend() as backend:
        stream = backend.stream("tasks")
        group = stream.group("g")
        stream.add_many(range(5))

        def handler(_: Any) -> None:
            nonlocal after
            after += calls >= call
            if after == 20:  # it was swallowed
                group.stop()
            stream.add(0)

        sys.setprofile(profile)
        try:
            group.process(handler, signals=False)
        except KeyboardInterrupt:
            return True
        finally:
            sys.setprofile(None)
    return False


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("part", range(4))
def test_one_ctrl_c_ends_a_busy_worker(part: int) -> None:
    """Ctrl-C ends `process` at any point of its work."""
    gc.collect()
    gc.disable()
    try:
        assert [call for call in range(1 + part, 400, 4) if not interrupted_at(call)] == []
    finally:
        gc.enable()
