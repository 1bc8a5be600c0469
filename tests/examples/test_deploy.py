"""The files in ``examples/deploy`` are valid, name what exists, and agree with each other and with the runner."""

import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

import ailf
from ailf.runner.options import GRACE, WAIT
from ailf.stream.worker import DRAIN
from tests.ailf_redis.runner.processes import running, wait_for
from tests.support.servers import NewServer, Server, free_port

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
KUBERNETES = "1.33"


def load(name: str) -> dict[str, Any]:
    """Return the content of a file."""
    content: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return content


def commands() -> dict[str, list[str]]:
    """Return the arguments of ``ailf run`` in each file."""
    unit = re.search(r"^ExecStart=\S*/(ailf .*)$", (DEPLOY / "ailf-worker.service").read_text(), re.MULTILINE)
    assert unit is not None
    return {
        "compose": shlex.split(load("compose.yaml")["services"]["worker"]["command"]),
        "deployment": _container()["args"],
        "unit": shlex.split(unit[1]),
    }


def _container() -> dict[str, Any]:
    container: dict[str, Any] = load("deployment.yaml")["spec"]["template"]["spec"]["containers"][0]
    return container


def test_compose_file() -> None:
    """The compose file is valid by the schema of the Compose Specification."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"]
    checked = subprocess.run(command, cwd=DEPLOY, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_images_are_pinned() -> None:
    """Each image has a version, so that a new one is chosen by a person."""
    images = [each["image"] for each in load("compose.yaml")["services"].values() if "image" in each]
    assert len(images) == 2
    assert [each for each in images if not re.search(r":v?\d+\.\d", each)] == []


def test_exporter() -> None:
    """The exporter asks the server of the file, and Prometheus finds it and the workers at different local ports."""
    services = load("compose.yaml")["services"]
    command = services["exporter"]["command"]
    options = dict(zip(command[::2], command[1::2], strict=True))
    assert urlsplit(options["-redis.addr"]).hostname in services
    assert options["-redis.addr"] == services["worker"]["environment"]["AILF_URL"].removesuffix("/0")
    host, ours, its = services["exporter"]["ports"][0].split(":")
    assert (host, f":{its}") == ("127.0.0.1", options["-web.listen-address"])
    assert ours not in services["worker"]["ports"][0]


def test_the_exporter_works(any_server: Server) -> None:
    """With the options of the file the exporter serves metrics of the server."""
    if (exporter := shutil.which("redis_exporter") or shutil.which("prometheus-redis-exporter")) is None:
        pytest.skip("redis_exporter is not on this machine")
    port = free_port()
    command = load("compose.yaml")["services"]["exporter"]["command"]
    command[command.index("-redis.addr") + 1] = any_server.url
    command[command.index("-web.listen-address") + 1] = f"127.0.0.1:{port}"
    with subprocess.Popen([exporter, *command], stderr=subprocess.DEVNULL) as process:
        try:
            metrics = wait_for(lambda: _page(f"http://127.0.0.1:{port}/metrics"))
        finally:
            process.kill()
    assert "redis_up 1" in metrics.splitlines()
    assert "redis_aof_enabled 0" in metrics.splitlines()


def _page(url: str) -> str:
    """Return a page; "" while it can't be reached."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return str(response.read().decode())
    except OSError:
        return ""


def test_deployment() -> None:
    """The Deployment is valid by Kubernetes' own schema, which allows no unknown field."""
    kubernetes_validate.validate(load("deployment.yaml"), KUBERNETES, strict=True)


def test_the_schema_finds_a_mistake() -> None:
    """A misspelled field is found."""
    deployment = load("deployment.yaml")
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 60
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)


def test_systemd_unit(tmp_path: Path) -> None:
    """The unit is valid for systemd."""
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd-analyze is not on this machine")
    unit = tmp_path / "ailf-worker.service"
    text = (DEPLOY / "ailf-worker.service").read_text()
    unit.write_text(text.replace("/srv/jobs/.venv/bin/ailf", "/bin/true"))  # it must exist
    checked = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False)
    about_it = [line for line in checked.stderr.splitlines() if unit.name in line]
    assert about_it == [], checked.stderr


@pytest.mark.parametrize("name", ["compose", "deployment", "unit"])
def test_commands(name: str) -> None:
    """Each file calls ``ailf run`` with options that exist."""
    command, *arguments = commands()[name]
    assert command == "ailf"
    parsed = subprocess.run(
        [sys.executable, "-m", "ailf.cli", *arguments, "--help"], capture_output=True, text=True, check=False
    )
    assert parsed.returncode == 0, parsed.stderr


@pytest.mark.parametrize("name", ["compose", "deployment", "unit"])
def test_times_to_end(name: str) -> None:
    """The drain is shorter than the grace, which is shorter than what the manager of processes gives."""
    unit = re.search(r"^TimeoutStopSec=(\d+)$", (DEPLOY / "ailf-worker.service").read_text(), re.MULTILINE)
    assert unit is not None
    given = {
        "compose": load("compose.yaml")["services"]["worker"]["stop_grace_period"].removesuffix("s"),
        "deployment": load("deployment.yaml")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"],
        "unit": unit[1],
    }
    command = commands()[name]
    grace = float(command[command.index("--grace") + 1])
    assert DRAIN < grace < float(given[name])
    assert DRAIN < GRACE


def test_probes() -> None:
    """The probes ask pages that exist, and the start may take as long as the wait for the backend."""
    container = _container()
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {each["path"] for each in probes.values()} == {"/health", "/ready"}
    ports = {each["name"]: str(each["containerPort"]) for each in container["ports"]}
    assert container["args"][container["args"].index("--health-port") + 1] == ports["health"]
    assert container["args"][container["args"].index("--metrics-port") + 1] == ports["metrics"]
    start = container["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] > WAIT


def test_keda_reads_the_backlog(new_server: NewServer) -> None:
    """The ScaledObject's key and group are the real ones: the calls that KEDA makes return the backlog."""
    lag, pending = (each["metadata"] for each in load("scaledobject.yaml")["spec"]["triggers"])
    assert (lag["stream"], lag["consumerGroup"]) == (pending["stream"], pending["consumerGroup"])
    server = new_server()
    with ailf.connect(server.url) as backend, server.client() as redis:
        tasks = backend.stream("tasks")
        group = tasks.group(lag["consumerGroup"])
        group.open()
        tasks.add_many([{"task": str(number)} for number in range(5)])
        with group.consumer() as consumer:
            assert consumer.get(timeout=5) is not None
            (info,) = redis.xinfo_groups(lag["stream"])
            assert info["name"].decode() == lag["consumerGroup"]
            assert info["lag"] == 4
            assert redis.xpending(pending["stream"], pending["consumerGroup"])["pending"] == 1


@pytest.mark.timeout(120)
def test_the_app_works(any_server: Server, namespace: str, tmp_path: Path) -> None:
    """The app that is deployed handles tasks."""
    url = f"{any_server.url}?namespace={namespace}"
    with ailf.connect(url) as backend, running(tmp_path, url, app=(DEPLOY / "jobs.py").read_text()) as runner:
        runner.wait_ready()
        tasks = backend.stream("tasks", retention=ailf.Retention.settled())
        with backend.pubsub().listen("results") as results:
            first = tasks.add({"what": "tea"})
            assert results.get(timeout=20).data == {"task": first}
        wait_for(lambda: tasks.group("workers").info().pending == 0)
