"""The supervisor decides by events and the time alone; here both are made up."""

import itertools

import pytest

from ailf.runner.supervisor import LONGEST_BACKOFF, LOOP, STABLE, Action, Do, Supervisor

GRACE = 10.0


def done(actions: list[Action], do: Do) -> list[int]:
    """Return the workers with which something is done."""
    return [each.worker for each in actions if each.do is do]


def texts(actions: list[Action]) -> str:
    """Return the lines for the log."""
    return "\n".join(each.text for each in actions if each.text)


def started(count: int = 2, *, ready: bool = True, keeps_failed: bool = False) -> Supervisor:
    """Return a supervisor whose workers, 1 to `count`, have started at 0."""
    supervisor = Supervisor(count, grace=GRACE, keeps_failed=keeps_failed)
    assert done(supervisor.start(0.0), Do.START) == list(range(1, count + 1))
    for number in range(1, count + 1) if ready else ():
        assert supervisor.ready(number, 0.0) == []
    return supervisor


def test_a_worker_is_restarted_after_the_backoff() -> None:
    """A worker that has died is replaced after the backoff, not before, and the other one is left alone."""
    supervisor = started()
    actions = supervisor.exited(1, "was killed by SIGKILL", 5.0)
    assert "worker 1 was killed by SIGKILL; it is started again in 0.2 s" in texts(actions)
    assert supervisor.next_time == 5.2
    assert supervisor.tick(5.19) == []
    assert done(supervisor.tick(5.2), Do.START) == [3]
    assert supervisor.workers[3].slot == 0
    assert supervisor.restarts == 1


def test_the_backoff_doubles_up_to_its_bound() -> None:
    """Each failure in a row doubles the backoff, up to a bound; the fifth is called a crash loop."""
    supervisor, now, delays = started(1), 0.0, []
    for failures in itertools.count(1):
        actions = supervisor.exited(max(supervisor.workers), "ended with status 1", now)
        delays.append(supervisor.next_time - now)
        assert (done(actions, Do.ERROR) == [0]) is (failures >= LOOP)
        assert ("crash loop" in texts(actions)) is (failures >= LOOP)
        now = supervisor.next_time
        (number,) = done(supervisor.tick(now), Do.START)
        supervisor.ready(number, now)
        if failures == 50:
            break
    assert delays[:7] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0])
    assert max(delays) == pytest.approx(LONGEST_BACKOFF)


@pytest.mark.parametrize(("lived", "delay"), [(STABLE, 0.2), (STABLE - 1, 0.4)])
def test_a_sound_worker_begins_anew(lived: float, delay: float) -> None:
    """After a worker that was ready for some time the backoff begins anew."""
    supervisor = started(1)
    supervisor.exited(1, "died", 0.0)
    supervisor.tick(0.2)
    supervisor.ready(2, 1.0)
    supervisor.exited(2, "died", 1.0 + lived)
    assert supervisor.next_time == pytest.approx(1.0 + lived + delay)


def test_no_worker_can_start() -> None:
    """If the first worker of every slot fails before it is ready, the runner ends with status 1."""
    supervisor = started(2, ready=False)
    assert supervisor.exited(1, "could not start: no", 1.0)[0].do is Do.WARN
    assert not supervisor.stopping
    actions = supervisor.exited(2, "could not start: no", 1.0)
    assert "no worker could start, so the runner ends: worker 2 could not start: no" in texts(actions)
    assert supervisor.finished
    assert supervisor.status == 1


def test_one_slot_that_fails_twice_is_not_all() -> None:
    """While another worker may still get ready, the runner goes on."""
    supervisor = started(2, ready=False)
    supervisor.exited(1, "died", 1.0)
    (again,) = done(supervisor.tick(1.2), Do.START)
    supervisor.exited(again, "died", 2.0)
    assert not supervisor.stopping
    supervisor.ready(2, 3.0)
    assert done(supervisor.tick(3.0), Do.START) == [4]


def test_a_worker_that_never_gets_ready_is_killed() -> None:
    """A worker that takes too long to start is killed, and counts as failed."""
    supervisor = started(2)
    supervisor.exited(1, "died", 0.0)
    supervisor.tick(0.2)
    assert done(supervisor.tick(60.1), Do.KILL) == []
    actions = supervisor.tick(60.2)
    assert done(actions, Do.KILL) == [3]
    assert "worker 1 was not ready within 60 s, so it is killed" in texts(actions)
    assert done(supervisor.tick(61.0), Do.KILL) == [], "once"


def test_stop() -> None:
    """A stop terminates each worker once, waits for all, and restarts none."""
    supervisor = started()
    supervisor.exited(1, "died", 0.0)
    assert done(supervisor.stop(0.1), Do.TERMINATE) == [2]
    assert supervisor.not_ready == "draining"
    assert supervisor.stop(0.2) == []
    assert supervisor.tick(5.0) == []
    assert not supervisor.finished
    assert supervisor.exited(2, "ended with status 0", 6.0) == []
    assert supervisor.finished
    assert supervisor.status == 0


def test_grace() -> None:
    """A worker that has not ended within the grace is killed, and the status tells."""
    supervisor = started(1)
    supervisor.stop(1.0)
    assert supervisor.next_time == 1.0 + GRACE
    assert done(supervisor.tick(1.0 + GRACE), Do.KILL) == [1]
    supervisor.exited(1, "was killed by SIGKILL", 12.0)
    assert (supervisor.finished, supervisor.status) == (True, 1)


def test_reload() -> None:
    """New workers start; when all are ready, those before are terminated; the runner is ready all the time."""
    supervisor = started()
    assert done(supervisor.reload(1.0), Do.START) == [3, 4]
    assert supervisor.ready(3, 2.0) == []
    assert supervisor.not_ready == ""
    assert done(supervisor.ready(4, 3.0), Do.TERMINATE) == [1, 2]
    assert supervisor.not_ready == ""
    assert supervisor.exited(1, "ended with status 0", 4.0) == []
    assert done(supervisor.tick(3.0 + GRACE), Do.KILL) == [2], "one that doesn't end is killed"


def test_a_reload_that_fails() -> None:
    """If a new worker fails, the new ones are terminated, and those before stay."""
    supervisor = started()
    supervisor.reload(1.0)
    supervisor.ready(3, 2.0)
    actions = supervisor.exited(4, "could not start: no", 2.5)
    assert "the reload is given up: the new worker 2 could not start: no" in texts(actions)
    assert done(actions, Do.TERMINATE) == [3]
    assert supervisor.exited(3, "ended with status 0", 3.0) == []
    assert supervisor.not_ready == ""
    assert done(supervisor.reload(4.0), Do.START) == [5, 6]


def test_a_worker_dies_during_a_reload() -> None:
    """A worker of before that dies meanwhile comes back, unless the new ones take over."""
    supervisor = started()
    supervisor.reload(1.0)
    supervisor.exited(1, "died", 1.1)
    assert done(supervisor.tick(1.3), Do.START) == [5]
    supervisor.ready(3, 2.0)
    assert sorted(done(supervisor.ready(4, 2.0), Do.TERMINATE)) == [2, 5]


def test_a_second_reload_waits_for_the_first() -> None:
    """A reload that is asked for during another one takes place after it."""
    supervisor = started(1)
    supervisor.reload(1.0)
    assert supervisor.reload(1.5) == []
    actions = supervisor.ready(2, 2.0)
    assert done(actions, Do.TERMINATE) == [1]
    assert done(actions, Do.START) == [3]


def test_stop_during_a_reload() -> None:
    """A stop ends both generations."""
    supervisor = started(1)
    supervisor.reload(1.0)
    assert sorted(done(supervisor.stop(1.5), Do.TERMINATE)) == [1, 2]
    assert supervisor.ready(2, 1.6) == []
    assert supervisor.reload(1.7) == []


def test_files_that_change_start_what_had_failed() -> None:
    """With --reload a runner whose workers can't start waits for a reload."""
    supervisor = started(2, ready=False, keeps_failed=True)
    for number in (1, 2):
        assert "it starts when a file changes" in texts(supervisor.exited(number, "could not start", 1.0))
    assert supervisor.next_time == float("inf")
    assert done(supervisor.reload(5.0), Do.START) == [3, 4]
    supervisor.ready(3, 6.0)
    assert supervisor.ready(4, 6.0) == []
    assert supervisor.not_ready == ""


def test_ready() -> None:
    """The runner is ready when every worker has opened and the backend answers each."""
    supervisor = started(2, ready=False)
    assert supervisor.not_ready == "2 of 2 workers not open"
    supervisor.ready(1, 1.0)
    assert supervisor.not_ready == "1 of 2 workers not open"
    supervisor.ready(2, 1.0)
    assert supervisor.not_ready == ""
    supervisor.backend(2, up=False)
    assert supervisor.not_ready == "the backend doesn't answer 1 of 2 workers"
    supervisor.backend(2, up=True)
    assert supervisor.not_ready == ""
    supervisor.exited(2, "died", 2.0)
    assert supervisor.not_ready == "1 of 2 workers not open"


def test_kill() -> None:
    """A kill waits for nothing."""
    supervisor = started()
    supervisor.stop(1.0)
    assert done(supervisor.kill(), Do.KILL) == [1, 2]
    assert supervisor.status == 1
