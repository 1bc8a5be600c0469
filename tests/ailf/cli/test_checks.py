"""What doctor makes of the values of a backend."""

import pytest

import ailf
from ailf.cli.checks import dead_letter_findings, latency_finding, opening_finding, stream_findings
from ailf.cli.survey import GroupState, StreamState
from ailf.driver import Level
from ailf.runtime import run as drive
from ailf.values import ConsumerInfo, GroupInfo, StreamInfo
from ailf_memory import MemoryBackend
from tests.support.commands import run

ALIVE = ConsumerInfo("a", alive=True)


def levels(*groups: GroupInfo, consumers: tuple[ConsumerInfo, ...] = (), length: int = 0) -> dict[str, Level]:
    """Return the level of each check of a stream with these groups."""
    states = [GroupState(f"g{number}", info, consumers) for number, info in enumerate(groups)]
    return {each.check: each.level for each in stream_findings([StreamState(StreamInfo("s", length), states)])}


def test_nothing_is_wrong_with_nothing() -> None:
    """Without streams each check is ok."""
    assert {each.level for each in stream_findings([])} == {Level.OK}
    assert dead_letter_findings([], {}, 1.0).level is Level.OK


@pytest.mark.parametrize(
    ("length", "info", "level"),
    [
        (100_000, GroupInfo(lag=0), Level.OK),
        (100_001, GroupInfo(lag=0), Level.WARN),
        (200_000, GroupInfo(lag=150_000), Level.OK),
        (200_000, GroupInfo(lag=10, pending=10), Level.WARN),
    ],
)
def test_a_stream_that_keeps_settled_messages(length: int, info: GroupInfo, level: Level) -> None:
    """A long stream is worth a warning if most of its entries are settled."""
    assert levels(info, length=length, consumers=(ALIVE,))["retention"] is level


def test_a_long_stream_without_groups() -> None:
    """A long stream that no group reads is worth a warning."""
    assert levels(length=200_000)["retention"] is Level.WARN


@pytest.mark.parametrize(
    ("info", "consumers", "level"),
    [
        (GroupInfo(lag=0), (), Level.OK),
        (GroupInfo(lag=1), (), Level.WARN),
        (GroupInfo(lag=None), (), Level.WARN),
        (GroupInfo(delayed=1), (ConsumerInfo("d"),), Level.WARN),
        (GroupInfo(lag=1), (ConsumerInfo("d"), ALIVE), Level.OK),
        (GroupInfo(lag=1, paused=True), (), Level.OK),
    ],
)
def test_a_group_without_consumers(info: GroupInfo, consumers: tuple[ConsumerInfo, ...], level: Level) -> None:
    """A group with messages and without a living consumer is worth a warning."""
    assert levels(info, consumers=consumers)["consumers"] is level


def test_consumers_that_died() -> None:
    """A dead consumer with messages in hand is named."""
    dead = ConsumerInfo("web-1", in_hand=3)
    (finding,) = [
        each
        for each in stream_findings(
            [StreamState(StreamInfo("s", 3), [GroupState("g", GroupInfo(pending=3), (dead, ALIVE))])]
        )
        if each.check == "crashes"
    ]
    assert finding.level is Level.WARN
    assert "'web-1' with 3 messages" in finding.message


def test_old_and_paused_groups() -> None:
    """A message that has waited for more than a day, and a paused group, are worth a warning."""
    assert levels(GroupInfo(oldest=86_401.0))["backlog"] is Level.WARN
    assert levels(GroupInfo(oldest=86_399.0))["backlog"] is Level.OK
    assert levels(GroupInfo(paused=True))["paused"] is Level.WARN


def test_many_groups_are_not_all_named() -> None:
    """A finding names three groups, and counts the others."""
    finding = next(
        each
        for each in stream_findings(
            [StreamState(StreamInfo("s", 1), [GroupState(f"g{n}", GroupInfo(lag=1)) for n in range(1003)])]
        )
        if each.check == "consumers"
    )
    assert finding.message.endswith("'g2' of 's' (1 message), and 1,000 more")


@pytest.mark.parametrize(("before", "after", "level"), [(0, 0, Level.OK), (2, 2, Level.WARN), (2, 5, Level.FAIL)])
def test_dead_letters(before: int, after: int, level: Level) -> None:
    """Dead letters are worth a warning, and a failure where their number grows."""
    states = [StreamState(StreamInfo("s", 1), [GroupState("g", GroupInfo(dead=before))])]
    assert dead_letter_findings(states, {("s", "g"): after}, 1.0).level is level


@pytest.mark.parametrize(("seconds", "level"), [(0.001, Level.OK), (0.1, Level.WARN), (2.0, Level.FAIL)])
def test_latency(seconds: float, level: Level) -> None:
    """A slow backend is worth a warning, and a very slow one a failure."""
    assert latency_finding([0.0001, seconds, seconds]).level is level


@pytest.mark.parametrize(
    "error", [ailf.ConnectionLostError, ailf.BackendTimeoutError, ailf.PermissionDeniedError, ailf.BackendFullError]
)
def test_each_failure_to_open_has_a_mend(error: type[ailf.BackendError]) -> None:
    """A backend that can't be opened is a failure, with what to do."""
    finding = opening_finding(error("x"))
    assert finding.level is Level.FAIL
    assert finding.mend


def test_doctor_fails_where_dead_letters_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead letters that are made while doctor looks are a failure: exit code 1."""
    url = "memory://growing"
    with ailf.connect(url) as backend:
        group = backend.stream("s").group("g", max_deliveries=1)
        group.open()

        def bury(seconds: float) -> None:
            del seconds
            backend.stream("s").add(1)
            with group.consumer() as consumer, consumer.get(timeout=5) as delivery:
                delivery.reject("no")

        monkeypatch.setattr("ailf.cli.doctor.time.sleep", bury)
        ended = run("doctor", url=url)
    assert ended.code == 1
    assert "their number grows: 'g' of 's' (+1 in " in ended.out


def test_doctor_is_strict_if_asked() -> None:
    """Warnings are exit code 0, and 1 with --strict; all is well without anything stored."""
    url = "memory://strict"
    with ailf.connect(url) as backend:
        assert run("doctor", "--interval", "0", "--strict", url=url).code == 0
        backend.stream("s").group("g").open()
        backend.stream("s").add(1)
        assert run("doctor", "--interval", "0", url=url).code == 0
        assert run("doctor", "--interval", "0", "--strict", url=url).code == 1
        assert "more than 1 stream" not in run("doctor", "--interval", "0", "--limit", "1", url=url).out
        backend.stream("t").add(1)
        assert "more than 1 stream" in run("doctor", "--interval", "0", "--limit", "1", url=url).out


def test_a_driver_that_says_nothing() -> None:
    """A driver without a diagnosis works, and knows no way to remove namespaces."""
    with MemoryBackend() as backend:
        assert drive(backend.engine.driver.diagnose()) == []
        assert drive(backend.engine.driver.remove_namespaces("x")) is None
