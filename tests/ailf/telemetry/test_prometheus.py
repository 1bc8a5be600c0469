"""Counters, histograms and gauges for Prometheus are right, bounded, and valid by its own parser."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

import ailf
from ailf.instruments import (
    ConnectionLost,
    ConnectionRestored,
    Destination,
    Instrument,
    LeaseExpired,
    MessagesDropped,
    MessageSent,
    MessagesMissed,
)
from ailf.prometheus import BUCKETS, Prometheus
from tests.support.flavours import Flavour
from tests.support.servers import NewServer

URL = "redis://example.org:6380/2"


def made(**options: Any) -> Prometheus:
    """Return an instrument with a registry of its own."""
    return Prometheus(prometheus_client.CollectorRegistry(), **options)


def samples(prometheus: Prometheus) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return the samples by name, without buckets, times of creation and the backend's URL."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(prometheus.render()):
        for sample in family.samples:
            if not sample.name.endswith(("_bucket", "_created", "_sum")):
                labels = {name: value for name, value in sample.labels.items() if name != "backend"}
                found.setdefault(sample.name.removeprefix("ailf_"), []).append((labels, sample.value))
    return found


def test_messages(flavour: Flavour) -> None:
    """Sends, receipts, handlers, settlements and dead letters are counted."""

    async def scenario(backend: Any) -> None:
        stream = backend.stream("tasks")
        group = stream.group("g", max_deliveries=1)
        left = [1, 2]

        def handle(_: Any) -> None:
            left.pop()
            if not left:
                group.stop()
                raise ValueError("no")

        await flavour.wait(stream.add_many([1, 2]))
        with pytest.raises(ailf.EncodeError):
            await flavour.wait(stream.add(object()))
        await flavour.wait(group.process(flavour.handler(handle)))

    prometheus = made()
    flavour.run(scenario, prometheus)
    found = samples(prometheus)
    stream = {"kind": "stream", "name": "tasks"}
    group = {**stream, "group": "g"}
    assert found["sent_messages_total"] == [
        ({**stream, "error": ""}, 2),
        ({**stream, "error": "EncodeError"}, 1),
    ]
    assert found["send_seconds_count"] == [(stream, 2)]
    assert found["received_messages_total"] == found["queue_seconds_count"] == [(group, 2)]
    assert found["handler_seconds_count"] == [({**group, "error": ""}, 1), ({**group, "error": "ValueError"}, 1)]
    assert found["settled_messages_total"] == [({**group, "outcome": "ack"}, 1), ({**group, "outcome": "nack"}, 1)]
    assert found["dead_letters_total"] == [({**group, "reason": "max_deliveries"}, 1)]


def test_batches_bodies_and_channels(flavour: Flavour) -> None:
    """The handler of a batch, the body of `with delivery`, and the handler of a channel each count as one call."""

    async def scenario(backend: Any) -> None:
        stream, pubsub = backend.stream("tasks"), backend.pubsub()
        group = stream.group("g")
        await flavour.wait(stream.add_many([1, 2, 3]))
        await flavour.wait(group.process(flavour.handler(lambda _: group.stop()), batch=3))
        await flavour.wait(stream.add(4))
        async with flavour.entered(group.consumer()) as consumer, flavour.entered(await flavour.wait(consumer.get())):
            pass
        await flavour.wait(pubsub.subscribe("user:17", flavour.handler(lambda _: pubsub.stop())))
        await flavour.wait(pubsub.publish("user:17", "x"))
        await flavour.wait(pubsub.run())
        await flavour.wait(pubsub.aclose() if flavour.is_async else pubsub.close())

    prometheus = made()
    flavour.run(scenario, prometheus)
    assert samples(prometheus)["handler_seconds_count"] == [
        ({"kind": "stream", "name": "tasks", "group": "g", "error": ""}, 2),
        ({"kind": "channel", "name": "", "group": "", "error": ""}, 1),
    ]
    assert "user:17" not in prometheus.render()


def test_waits(flavour: Flavour) -> None:
    """Waits for locks and limiters are recorded without keys, and names of locks only where they are asked for."""

    async def scenario(backend: Any) -> None:
        lock, other = backend.lock("user:17"), backend.lock("user:17")
        lease = (await flavour.wait(lock.acquire(timeout=1))).hand_over()
        with pytest.raises(ailf.LockTimeoutError):
            await flavour.wait(other.acquire(timeout=0.01))
        await flavour.wait(lease.release())
        await flavour.wait(backend.rate_limiter("calls", "10/s").acquire("secret"))

    some, every = made(), made(names=["lock", "rate_limiter"])
    flavour.run(scenario, some, every)
    assert samples(some)["wait_seconds_count"] == [
        ({"kind": "lock", "name": "", "error": ""}, 1),
        ({"kind": "lock", "name": "", "error": "LockTimeoutError"}, 1),
        ({"kind": "rate_limiter", "name": "calls", "error": ""}, 1),
    ]
    assert samples(every)["wait_seconds_count"][0] == ({"kind": "lock", "name": "user:17", "error": ""}, 1)
    assert "secret" not in every.render()


def test_other_events() -> None:
    """Gaps, drops, lost leases and outages are counted."""
    prometheus = made(names=["channel"])
    prometheus.lease_expired(LeaseExpired(URL, "the lease on lock 'x'", "gone"))
    prometheus.messages_missed(MessagesMissed(URL, "cut", 2.0, 3))
    prometheus.messages_dropped(MessagesDropped(Destination(URL, "channel", "news"), 10))
    prometheus.connection_lost(ConnectionLost(URL, ailf.BackendTimeoutError("late")))
    prometheus.connection_restored(ConnectionRestored(URL, 4.0))
    assert samples(prometheus) == {
        "lost_leases_total": [({}, 1)],
        "gap_seconds_count": [({}, 1)],
        "dropped_messages_total": [({"kind": "channel", "name": "news"}, 1)],
        "outages_total": [({"error": "BackendTimeoutError"}, 1)],
        "outage_seconds_count": [({}, 1)],
    }
    assert f'backend="{URL}"' in prometheus.render()


def test_every_hook_is_used() -> None:
    """The instrument overrides every hook but `sending`, which changes headers."""
    own = [name for name in vars(Instrument) if not name.startswith("_")]
    assert [name for name in own if getattr(Prometheus, name) is getattr(Instrument, name)] == ["sending"]


# --- bounds and exposition ---------------------------------------------------------------------------------------


def test_names_are_bounded() -> None:
    """More names than a metric should have are one label."""
    prometheus = made()
    for each in range(1000):
        prometheus.message_sent(MessageSent(Destination(URL, "stream", str(each)), {}, 1, (), 0.0))
    found = {labels["name"]: value for labels, value in samples(prometheus)["sent_messages_total"]}
    assert len(found) == 501
    assert found["_other"] == 500


@pytest.mark.parametrize("name", ['"', "\\", "a\nb", "é", "\ud800", "x" * 10_000, "{}"])
def test_awkward_names(name: str) -> None:
    """Any name is exported in a form that Prometheus reads."""
    prometheus = made()
    prometheus.message_sent(MessageSent(Destination(URL, "stream", name), {}, 1, (), 0.0, ValueError(name)))
    ((labels, value),) = samples(prometheus)["sent_messages_total"]
    assert value == 1
    assert labels["name"] == (name[:200] if name != "\ud800" else "\\ud800")


def everything() -> str:
    """Return an exposition with every metric."""
    prometheus = made()
    with ailf.connect("memory://", instruments=[prometheus]) as backend:
        stream = backend.stream("tasks")
        group = stream.group("g")
        prometheus.watch_groups(group)
        stream.add_many([1, 2])
        with group.consumer() as consumer:
            first, second = consumer.get(timeout=1), consumer.get(timeout=1)
            assert first is not None
            assert second is not None
            with first:
                pass
            second.reject("bad")
        with backend.lock("l"):
            pass
        prometheus.lease_expired(LeaseExpired(URL, "the lease on lock 'x'", "gone"))
        prometheus.messages_missed(MessagesMissed(URL, "cut", 2.0, 3))
        prometheus.messages_dropped(MessagesDropped(Destination(URL, "channel", "news"), 10))
        prometheus.connection_lost(ConnectionLost(URL, ailf.BackendTimeoutError("late")))
        prometheus.connection_restored(ConnectionRestored(URL, 4.0))
        return prometheus.render()


def test_promtool() -> None:
    """Prometheus' own linter has nothing to say about the exposition."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed, so its linter was not run; the parser of prometheus-client was")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=everything(), capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


DASHBOARD = Path(__file__).parents[3] / "examples" / "deploy" / "grafana-dashboard.json"
METRIC = re.compile(r"\bailf_\w+")
SUFFIX = r"_(bucket|sum|count|created|total)$"


def test_the_dashboard_shows_what_is_exported() -> None:
    """Every metric and label of the dashboard is exported, and every metric is on the dashboard."""
    exported: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(everything()):
        for sample in family.samples:
            exported.setdefault(sample.name, set()).update(sample.labels)
    text = DASHBOARD.read_text()
    expressions = [target["expr"] for panel in panels(json.loads(text)) for target in panel["targets"]]
    for expression in expressions:
        named = set(METRIC.findall(expression))
        assert named, expression
        assert named <= exported.keys(), expression
        labels = set(re.findall(r"(\w+)(?:=~|=)\"", expression))
        labels |= {each.strip() for by in re.findall(r"by \(([^)]*)\)", expression) for each in by.split(",")}
        assert all(labels - {"instance"} <= exported[name] for name in named), expression
    shown = {re.sub(SUFFIX, "", name) for name in METRIC.findall(text)}
    assert {re.sub(SUFFIX, "", name) for name in exported} - shown == set()


def test_the_dashboard_can_be_imported() -> None:
    """The dashboard has the keys that Grafana needs; ids are unique, and no data source of ours is in it."""
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["id"] is None, "Grafana chooses it"
    assert {"title", "uid", "schemaVersion", "time", "templating", "panels", "tags", "version"} <= dashboard.keys()
    assert [each["name"] for each in dashboard["templating"]["list"]] == ["datasource", "backend", "stream"]
    shown = dashboard["panels"]
    assert len({panel["id"] for panel in shown}) == len(shown)
    for panel in shown:
        assert {"id", "type", "title", "gridPos"} <= panel.keys()
        assert {"h", "w", "x", "y"} == panel["gridPos"].keys()
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for panel in panels(dashboard):
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        assert all(target["legendFormat"] for target in panel["targets"])


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panels of a dashboard, without rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_buckets() -> None:
    """Durations have the documented buckets."""
    bounds = [
        float(sample.labels["le"])
        for family in text_string_to_metric_families(everything())
        for sample in family.samples
        if sample.name == "ailf_send_seconds_bucket"
    ]
    assert bounds == [*BUCKETS, float("inf")]


# --- groups ------------------------------------------------------------------------------------------------------


def test_the_state_of_groups(flavour: Flavour) -> None:
    """A scrape shows the state of watched groups, and drops those whose backend is closed."""
    prometheus = made()

    async def scenario(backend: Any) -> None:
        stream = backend.stream("tasks")
        group = stream.group("g")
        prometheus.watch_groups(group, stream.group("g"))
        await flavour.wait(stream.add_many([1, 2, 3]))
        async with flavour.entered(group.consumer()) as consumer:
            await flavour.wait(consumer.get())
            await prometheus.refresh()
            found = {name: values for name, values in samples(prometheus).items() if name.startswith("group")}
        labels = {"stream": "tasks", "group": "g"}
        assert found.pop("group_oldest_seconds")[0][1] >= 0
        assert found == {
            "group_up": [(labels, 1)],
            "group_stream_length": [(labels, 3)],
            "group_lag": [(labels, 2)],
            "group_pending": [(labels, 1)],
            "group_delayed": [(labels, 0)],
            "group_dead_letters": [(labels, 0)],
            "group_consumers": [(labels, 1)],
            "group_evicted": [(labels, 0)],
            "group_paused": [(labels, 0)],
        }

    flavour.run(scenario, prometheus)
    asyncio.run(prometheus.refresh())
    prometheus.render()
    assert "group_up" not in samples(prometheus), "its backend is closed"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_scrape_has_a_deadline(new_server: NewServer, is_async: bool) -> None:
    """A server that answers nothing holds up a scrape for `timeout` seconds; its groups are down, and no others."""
    server, prometheus = new_server(), made(timeout=0.3)
    with ailf.connect("memory://well") as well, ailf.connect(f"{server.url}?timeout=20") as stuck:
        prometheus.watch_groups(well.stream("a").group("g"))

        async def asyncio_part() -> None:
            async with ailf.connect_async(f"{server.url}?timeout=20") as other:
                prometheus.watch_groups(other.stream("b").group("g"))
                await prometheus.refresh()
                assert {value for _, value in samples(prometheus)["group_up"]} == {1}
                server.pause()
                await measured(prometheus)
                server.resume()

        if is_async:
            asyncio.run(asyncio_part())
            return
        prometheus.watch_groups(stuck.stream("b").group("g"))
        assert {value for _, value in samples(prometheus)["group_up"]} == {1}
        server.pause()
        threads = threading.active_count()
        asyncio.run(measured(prometheus))
        asyncio.run(measured(prometheus))
        assert threading.active_count() <= threads + 1
        server.resume()


async def measured(prometheus: Prometheus) -> None:
    """Scrape while one of two servers is stuck."""
    began = time.monotonic()
    await prometheus.refresh()
    found = samples(prometheus)
    assert time.monotonic() - began < 3
    up = {labels["stream"]: value for labels, value in found["group_up"]}
    assert up == {"a": 1, "b": 0}
    assert [labels["stream"] for labels, _ in found["group_lag"]] == ["a"]


def test_a_state_that_cannot_be_read_is_logged_once(flavour: Flavour, caplog: pytest.LogCaptureFixture) -> None:
    """A group whose state can't be read is down, and a warning says why, once."""
    prometheus = made()

    async def scenario(backend: Any) -> None:
        await flavour.wait(backend.stream("parts", partitions=4).add(1))
        prometheus.watch_groups(backend.stream("parts", partitions=2).group("g"))
        for _ in range(2):
            await prometheus.refresh()
            assert [value for _, value in samples(prometheus)["group_up"]] == [0]

    flavour.run(scenario)
    (warning,) = caplog.records
    assert warning.getMessage().startswith("group 'g' of stream 'parts': its state is unknown: InvalidArgumentError: ")


def test_old_states_are_not_shown(namespace: str) -> None:
    """The state of an asyncio group is shown for `max_age` seconds after `refresh`."""

    async def main() -> None:
        async with ailf.connect_async(f"memory://{namespace}") as backend:
            for age, up in ((60.0, 1), (0.001, 0)):
                prometheus = made(max_age=age)
                prometheus.watch_groups(backend.stream("s").group("g"))
                await prometheus.refresh()
                await asyncio.sleep(0.01)
                assert [value for _, value in samples(prometheus)["group_up"]] == [up]

    asyncio.run(main())


# --- arguments and the package -----------------------------------------------------------------------------------


def test_the_default_registry_takes_one() -> None:
    """A second object on one registry is refused, and leaves the registry as it was; another namespace is not."""
    registry = prometheus_client.CollectorRegistry()
    first = Prometheus(registry)
    before = first.render()
    with pytest.raises(ailf.InvalidArgumentError, match="share one Prometheus object"):
        Prometheus(registry)
    assert first.render() == before
    Prometheus(registry, namespace="other")
    taken = prometheus_client.CollectorRegistry()
    prometheus_client.Counter("ailf_outages", "Not ours.", registry=taken)
    with pytest.raises(ailf.InvalidArgumentError, match="can't take ailf's metrics"):
        Prometheus(taken)
    assert prometheus_client.generate_latest(taken).count(b"# TYPE") == 2


def test_the_default_registry() -> None:
    """Without a registry it is that of prometheus-client, which `start_http_server` serves."""
    code = (
        "import ailf.prometheus, prometheus_client\n"
        "ailf.prometheus.Prometheus()\n"
        "print('ailf_outages' in prometheus_client.generate_latest().decode())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize(
    "options",
    [{"names": ["key"]}, {"namespace": "a-b"}, {"namespace": ""}, {"namespace": 1}, {"timeout": 0}, {"max_age": -1}],
)
def test_arguments(options: dict[str, Any]) -> None:
    """Invalid arguments are refused."""
    with pytest.raises(ailf.InvalidArgumentError):
        made(**options)


def test_what_is_no_group_or_registry() -> None:
    """A stream isn't a group, and a backend isn't a registry."""
    with ailf.connect("memory://") as backend:
        stream: Any = backend.stream("s")
        with pytest.raises(ailf.InvalidArgumentError, match="groups of streams, not MemoryStream"):
            made().watch_groups(stream)
        registry: Any = backend
        with pytest.raises(ailf.InvalidArgumentError, match="registry"):
            Prometheus(registry)


def test_an_import_without_the_extra() -> None:
    """The error says how to install what is missing; OpenTelemetry is not needed."""
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "try:\n    import ailf.prometheus\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout == 'ailf.prometheus needs prometheus-client: pip install "ailf[prometheus]"\n', done.stderr
    code = "import sys; sys.modules['opentelemetry'] = None; import ailf.prometheus"
    subprocess.run([sys.executable, "-W", "error", "-c", code], timeout=50, check=True)
