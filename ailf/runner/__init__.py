"""The runner: `ailf run` starts worker processes of an app, restarts those that die, and stops them all in order."""

from ailf.runner.options import RunnerOptions
from ailf.runner.runner import run

__all__ = ["RunnerOptions", "run"]
