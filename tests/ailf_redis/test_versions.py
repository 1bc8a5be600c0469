"""Releases of redis-py: the supported ones work, and an unsupported one is a clear error."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from ailf_redis import versions

PROGRAM = """
import redis
redis.__version__ = {version!r}
import ailf
try:
    ailf.connect("redis://127.0.0.1:1")
except ailf.UnsupportedError as error:
    print(error)
"""


@pytest.mark.parametrize("version", ["4.6.0", "5.0.8", "9.0.0", "10.1"])
def test_an_unsupported_release_is_named(version: str) -> None:
    """Opening Redis with a release of redis-py that is too old or too new is an error that names the release."""
    program = PROGRAM.format(version=version)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert f"redis-py {version} is installed; ailf_redis works with 5.1 to 8: pip install" in done.stdout


@pytest.mark.parametrize("version", ["5.1.0", "5.1.0b7", "6.0", "7.4.1", "8.99.9"])
def test_supported_releases(version: str) -> None:
    """Every release from 5.1 to 8 is accepted, also one that doesn't exist yet."""
    versions.check_version(version)


ASYNCIO = {"_ssl_protocol", "_transport", "_call_connection_lost"}
"""Private names of asyncio: once a loop has ended there is no other way to close its transports."""


def test_private_parts_are_taken_in_one_file() -> None:
    """Only ``versions.py`` reads private names of redis-py by getattr; ruff finds plain accesses."""
    package = Path(versions.__file__).parent
    accesses = {
        (path.name, argument.value)
        for path in package.rglob("*.py")
        if path.name != "versions.py"
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in {"getattr", "hasattr", "setattr"}
        for argument in call.args
        if isinstance(argument, ast.Constant) and str(argument.value).startswith("_") and argument.value != "__await__"
    }
    assert {name for _, name in accesses} == ASYNCIO
