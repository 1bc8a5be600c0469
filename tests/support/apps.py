"""An app for sessions of ``ailf run``: its worker lets the runner stop as soon as it is ready."""

import os
import signal
import sys
import threading
import time

import ailf

app = ailf.App()
nothing = "no app"


@app.handler("greetings", group="greeters")
def greet(delivery: ailf.Delivery[str]) -> None:
    """Write a greeting."""
    sys.stdout.write(f"hello {delivery.data!a}\n")
    sys.stdout.flush()


@app.on_startup
def begin() -> None:
    """Add a message, and stop the runner when it has been handled."""
    app.backend.stream("greetings").add("[/]\x1b[31m")
    threading.Thread(target=_stop_when_idle, args=[os.getppid()], daemon=True).start()


def _stop_when_idle(runner: int) -> None:
    group = app.backend.stream("greetings").group("greeters")
    while not (info := group.info()).exists or info.lag or info.pending:
        time.sleep(0.01)
    time.sleep(0.5)  # meanwhile the runner hears that the worker is ready
    os.kill(runner, signal.SIGTERM)
