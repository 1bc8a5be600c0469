"""Programs that the tests run in other processes."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["running"]


@contextlib.contextmanager
def running(*arguments: str, **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """Run Python with these arguments; at the end of the context, kill it if it still runs, so that no test hangs."""
    with subprocess.Popen([sys.executable, *arguments], text=True, **options) as child:
        try:
            yield child
        finally:
            child.kill()
