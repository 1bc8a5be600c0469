"""Run another program as a user of the installed package does."""

import os
import subprocess
from pathlib import Path

__all__ = ["output_of"]


def output_of(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command without the settings of this process, and return its output; a failure shows it."""
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PYTHON", "AILF", "GITHUB"))
    }
    done = subprocess.run(command, cwd=cwd, env={**clean, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (
        f"{command[1:]} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout
