"""A crew of workers: tasks over Stream, reports over PubSub, and one worker that dies in the middle of a task.

    python examples/crew.py [--url memory://]

On a backend that processes share (Redis), the workers are processes, and one of them kills itself with SIGKILL. In
memory they are threads of this program, and one of them stops without settling its task. In both cases another worker
finishes that task.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
import uuid

import ailf
from ailf.driver import Capability

TASKS = [f"chapter {number}" for number in range(1, 13)]
CREW = ("ann", "bob", "cleo")
MORTAL = "bob"  # the worker that dies
WORK = 0.9
LEASE = 2.0
STARTED = time.monotonic()


def say(who: str, what: str) -> None:
    """Print a line of the log."""
    sys.stdout.write(f"{time.monotonic() - STARTED:5.2f} s  {who:<11} {what}\n")
    sys.stdout.flush()


class Worker:
    """Takes tasks and reports on them. A mortal worker dies in its second task."""

    def __init__(self, backend: ailf.Backend, name: str, run: str, *, mortal: bool) -> None:
        self._name = name
        self._pubsub = backend.pubsub()
        self._group = backend.stream(f"tasks-{run}").group("crew", lease=LEASE, max_processing=LEASE)
        self._mortal = mortal
        self._channel = f"reports-{run}"

    def report(self, event: str, task: str = "", attempt: int = 0) -> None:
        """Broadcast an event."""
        self._pubsub.publish(self._channel, {"who": self._name, "event": event, "task": task, "attempt": attempt})

    def work(self) -> None:
        """Work until the backend is closed or the process ends."""
        self.report("ready")
        consumer = self._group.consumer(self._name)
        for number, delivery in enumerate(consumer, start=1):
            self.report("begins", delivery.data, delivery.attempt)
            if self._mortal and number == 2:  # noqa: PLR2004 - the first task succeeds
                self.report("dies", delivery.data, delivery.attempt)
                self.die()
                return
            time.sleep(WORK)
            delivery.ack()
            self.report("finished", delivery.data, delivery.attempt)

    def die(self) -> None:
        """Die without any cleanup: the message stays leased until its lease ends."""
        if threading.current_thread() is threading.main_thread():
            os.kill(os.getpid(), signal.SIGKILL)


class Crew:
    """The workers, as threads or as processes."""

    def __init__(self, url: str, run: str) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._backends: list[ailf.Backend] = []
        self._threads: list[threading.Thread] = []
        with ailf.connect(url) as backend:
            shared = Capability.PROCESSES in backend.capabilities
        for name in CREW:
            if shared:
                arguments = [sys.executable, __file__, "--url", url, "--worker", name, "--run", run]
                self._processes.append(subprocess.Popen(arguments))
            else:
                self._hire(url, name, run)

    def _hire(self, url: str, name: str, run: str) -> None:
        backend = ailf.connect(url)
        worker = Worker(backend, name, run, mortal=name == MORTAL)
        thread = threading.Thread(target=work_until_closed, args=(worker,), name=name)
        self._backends.append(backend)
        self._threads.append(thread)
        thread.start()

    def dismiss(self) -> None:
        """End all workers that are left."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(10)
        for backend in self._backends:
            backend.close()
        for thread in self._threads:
            thread.join(10)


def work_until_closed(worker: Worker) -> None:
    """Work until the backend is closed."""
    try:
        worker.work()
    except ailf.ClosedError:
        return


def lead(url: str) -> int:
    """Hire the crew, add the tasks, and listen until all are finished; return the exit status."""
    run = uuid.uuid4().hex[:8]
    with ailf.connect(url) as backend, backend.pubsub().listen(f"reports-{run}") as reports:
        say("lead", f"hires a crew on {backend.url}")
        crew = Crew(url, run)
        tasks = backend.stream(f"tasks-{run}")
        try:
            finished, orphan = supervise(reports, tasks)
        finally:
            crew.dismiss()
        tasks.delete()
    who, attempt = finished.get(orphan, ("nobody", 0))
    say("lead", f"{len(finished)} of {len(TASKS)} tasks are finished")
    say("lead", f"{orphan}, in which {MORTAL} died, was finished by {who} at attempt {attempt}")
    return 0 if len(finished) == len(TASKS) and attempt > 1 else 1


def supervise(
    reports: ailf.Subscription[dict[str, str]], tasks: ailf.Stream[str]
) -> tuple[dict[str, tuple[str, int]], str]:
    """Return the worker and attempt that finished each task, and the task in which a worker died."""
    orphan = ""
    ready: set[str] = set()
    finished: dict[str, tuple[str, int]] = {}
    until = time.monotonic() + 30
    while len(finished) < len(TASKS) and time.monotonic() < until:
        message = reports.get(timeout=1.0)
        if not isinstance(message, ailf.Message):
            continue
        report = message.data
        say(report["who"], sentence(report))
        if report["event"] == "ready":
            ready.add(report["who"])
            if len(ready) == len(CREW):
                say("lead", f"adds {len(TASKS)} tasks")
                tasks.add_many(TASKS)
        elif report["event"] == "dies":
            orphan = report["task"]
        elif report["event"] == "finished":
            finished[report["task"]] = (report["who"], int(report["attempt"]))
    return finished, orphan


def sentence(report: dict[str, str]) -> str:
    """Return a report as a sentence."""
    if report["event"] == "dies":
        return f"dies in the middle of {report['task']!r}"
    again = f" (attempt {report['attempt']})" if int(report["attempt"]) > 1 else ""
    return f"{report['event']} {report['task']}{again}".rstrip()


def main() -> int:
    """Lead the crew, or run one worker of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="memory://crew")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is None:
        return lead("memory://crew" if arguments.url == "memory://" else arguments.url)
    with ailf.connect(arguments.url) as backend:
        worker = Worker(backend, arguments.worker, arguments.run, mortal=arguments.worker == MORTAL)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        worker.work()
    return 0


if __name__ == "__main__":
    sys.exit(main())
