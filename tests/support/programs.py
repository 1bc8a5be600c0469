"""Run another program as a user of the installed package does."""

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["environment", "output_of", "run_pytest"]


def environment(**variables: str) -> dict[str, str]:
    """Return the environment without the settings of Python, pytest and ailf that this process has."""
    ours = ("PYTEST", "PYTHON", "AILF", "GITHUB")
    return {key: value for key, value in os.environ.items() if not key.startswith(ours)} | variables


def output_of(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command without the settings of this process, and return its output; a failure shows it."""
    done = subprocess.run(command, cwd=cwd, env=environment(**variables), capture_output=True, text=True, check=False)
    assert done.returncode == 0, (
        f"{command[1:]} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout


def run_pytest(
    *arguments: str, cwd: Path, python: str | Path = sys.executable, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run pytest as a user of ailf does.

    Plugins of other packages, which are here for other tests, aren't loaded: importing them takes a second.
    """
    command = (python, "-m", "pytest", "-p", "ailf_contract", "-p", "no:cacheprovider", *arguments)
    settings = environment(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", **variables)
    return subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, check=False)
