"""Whatever a handler does concerns its own message only: it takes too long, loses its lease, raises anything."""

import asyncio
import contextlib
import logging
import threading
import time
from typing import Any
from unittest import mock

import pytest

import ailf
from ailf import Backoff, OnLost, Reject, Retry
from ailf.driver import Action
from ailf.stream import worker
from ailf.stream.delivery import choose_action
from ailf.stream.worker import LARGE, Tally
from ailf_memory import AsyncMemoryBackend, MemoryBackend, MemoryStore

AT_ONCE = Backoff(initial=0.0, jitter=0.0)


class PanicException(BaseException):
    """An error that is no `Exception`."""


async def working(group: Any, handler: Any, **options: Any) -> "asyncio.Task[None]":
    """Start a worker; return its task when it has begun to wait or work."""
    task = asyncio.create_task(group.process(handler, **options))
    await asyncio.sleep(0)
    return task


# --- exceptions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ExceptionGroup("g", [Reject("never")]), ("rejected", "never", 1)),
        (ExceptionGroup("g", [ExceptionGroup("h", [Reject("deep")])]), ("rejected", "deep", 1)),
        (ExceptionGroup("g", [Retry("again", delay=0), Reject("never")]), ("rejected", "never", 1)),
        (ExceptionGroup("g", [Retry("again", delay=0)]), ("max_deliveries", "again", 2)),
        (
            ExceptionGroup("g", [Reject("never"), ValueError("x")]),
            ("max_deliveries", "ExceptionGroup: g (2 sub-exceptions): Reject: never; ValueError: x", 2),
        ),
    ],
)
def test_a_group_of_instructions_is_one(raised: Exception, expected: tuple[str, str, int]) -> None:
    """`Reject` and `Retry` mean the same from within a task group; a group with anything else is an error."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            group = stream.group("g", max_deliveries=2, backoff=AT_ONCE)
            await stream.add_many(["bad", "last"])

            def handler(delivery: ailf.AsyncDelivery[str]) -> None:
                if delivery.data == "last":
                    if delivery.attempt == 2:
                        group.stop()
                    raise Retry(delay=0)
                raise raised

            async with asyncio.timeout(5):
                await group.process(handler)
            dead = [(each.reason, each.error, each.attempts) for each in await group.dead_letters.list()]
            assert dead[0] == expected

    asyncio.run(scenario())


def test_a_group_means_the_same_at_the_end_of_a_context() -> None:
    """`with delivery` suppresses a group with `Reject`, as it does a plain `Reject`."""
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        group = stream.group("g")
        stream.add(1)
        with group.consumer() as consumer:
            delivery = consumer.get(0)
            assert delivery is not None
            with delivery:
                raise ExceptionGroup("g", [Reject("never")])
        (letter,) = group.dead_letters.list()
        assert (letter.reason, letter.error) == ("rejected", "never")


def test_a_retry_is_no_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The handler asked for it; when there is no further delivery, the dead letter is logged as an error."""
    caplog.set_level(logging.INFO, "ailf.worker")
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        group = stream.group("g", max_deliveries=2)
        stream.add(1)

        def handler(delivery: ailf.Delivery[int]) -> None:
            if delivery.attempt == 2:
                group.stop()
            raise Retry("the model is overloaded", delay=0)

        group.process(handler)
    logged = [(each.levelname, each.getMessage()) for each in caplog.records if "overloaded" in each.getMessage()]
    assert [level for level, _ in logged] == ["INFO", "ERROR"]
    assert logged[0][1].endswith("the model is overloaded; it will be delivered again")
    assert logged[1][1].endswith("the model is overloaded; it is a dead letter now")
    assert all(each.exc_info is None for each in caplog.records)


def test_any_other_error_is_counted_and_ends_the_worker() -> None:
    """Blocking: a panic in an extension nacks its message, and `process` raises it."""
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        group = stream.group("g", backoff=AT_ONCE)
        stream.add(1)

        def handler(_: Any) -> None:
            raise PanicException("at the disco")

        for _ in range(2):
            with pytest.raises(PanicException):
                group.process(handler)
        with group.consumer() as consumer:
            delivery = consumer.get(0)
            assert delivery is not None
            assert delivery.attempt == 3


@pytest.mark.parametrize("error", [PanicException, GeneratorExit])
def test_any_other_error_is_counted_and_ends_an_asyncio_worker(error: type[BaseException]) -> None:
    """The same on asyncio, also for a coroutine function; the other handlers finish their messages."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            group = stream.group("g", backoff=AT_ONCE)
            await stream.add_many(["slow", "bad"])
            finished = []

            async def handler(delivery: ailf.AsyncDelivery[str]) -> None:
                if delivery.data == "bad":
                    raise error
                await asyncio.sleep(0.05)
                finished.append(delivery.data)

            async with asyncio.timeout(5):
                with pytest.raises(error):
                    await group.process(handler, concurrency=2)
            assert finished == ["slow"]
            async with group.consumer() as consumer:
                delivery = await consumer.get(0)
                assert delivery is not None
                assert (delivery.data, delivery.attempt) == ("bad", 2)

    asyncio.run(scenario())


def test_a_worker_loop_that_other_code_cancels_ends_process() -> None:
    """`process` doesn't continue with fewer worker loops than `concurrency`, or with none."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            group = backend.stream("s").group("g")
            process = await working(group, print)
            await asyncio.sleep(0.01)
            (loop,) = [each for each in asyncio.all_tasks() if each.get_name().startswith("ailf-worker")]
            loop.cancel()
            async with asyncio.timeout(5):
                with pytest.raises(ailf.AilfError, match="other code has cancelled the task of a worker loop"):
                    await process

    asyncio.run(scenario())


def test_a_cancelled_error_of_the_bodys_own_is_a_failed_delivery() -> None:
    """`async with delivery` distinguishes it from a cancellation of its task, which releases the message."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            group = stream.group("g", backoff=AT_ONCE)
            await stream.add(1)

            async def body(*, cancel: bool) -> None:
                async with group.consumer() as consumer:
                    delivery = await consumer.get(0)
                    assert delivery is not None
                    attempts.append(delivery.attempt)
                    async with delivery:
                        inner = asyncio.create_task(asyncio.sleep(60))
                        if cancel:
                            inner.cancel()
                        await inner

            attempts: list[int] = []
            with pytest.raises(asyncio.CancelledError):
                await body(cancel=True)
            task = asyncio.create_task(body(cancel=False))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(asyncio.CancelledError):
                await body(cancel=True)
            assert attempts == [1, 2, 2]

    asyncio.run(scenario())


def test_a_large_group_is_judged_by_all_its_exceptions() -> None:
    """An error after any number of instructions is an error."""
    many: list[Exception] = [Reject("r") for _ in range(100)]
    assert choose_action(None, ExceptionGroup("g", many))[0] is Action.REJECT
    assert choose_action(None, ExceptionGroup("g", [*many, ValueError("real")]))[0] is Action.NACK


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit()])
def test_an_interruption_in_a_group_is_one(error: BaseException) -> None:
    """The message is released, and `process` raises the group."""
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        group = stream.group("g")
        stream.add(1)

        def handler(_: Any) -> None:
            raise BaseExceptionGroup("g", [error])

        with pytest.raises(BaseExceptionGroup):
            group.process(handler)
        with group.consumer() as consumer:
            delivery = consumer.get(0)
            assert delivery is not None
            assert delivery.attempt == 1


class ThrottledError(Retry):
    """A user's instruction, which doesn't call the initializer of `Retry`."""

    def __init__(self, model: str) -> None:
        self.model = model


class OwnBackoff(Backoff):
    """A backoff that fails."""

    def delay(self, attempt: int, chance: Any = None) -> float:
        """Fail."""
        raise ZeroDivisionError


@pytest.mark.parametrize(("error", "backoff"), [(ThrottledError("gpt"), AT_ONCE), (ValueError("x"), OwnBackoff())])
def test_faulty_instructions_and_backoffs_harm_no_other_message(error: Exception, backoff: Backoff) -> None:
    """The worker continues with the next message."""
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        group = stream.group("g", backoff=backoff, lease=30, max_deliveries=2)
        stream.add_many(["bad", "good"])
        done = []

        def handler(delivery: ailf.Delivery[str]) -> None:
            if delivery.data == "bad":
                raise error
            done.append(delivery.data)
            group.stop()

        group.process(handler)
        assert done == ["good"]


def test_a_stop_that_comes_first_counts() -> None:
    """A stop before the worker has made its group ends the worker, too."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            group = backend.stream("s").group("g")
            process = await working(group, print)
            group.stop()
            async with asyncio.timeout(5):
                await process

    asyncio.run(scenario())


def test_all_handlers_are_cancelled_at_once() -> None:
    """Handlers that catch it share one second, and a second cancellation reaches each of them, too."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            await stream.add_many(range(8))
            cancelled: list[int] = []

            async def handler(delivery: ailf.AsyncDelivery[int]) -> None:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    cancelled.append(delivery.data)
                    await asyncio.sleep(60)

            process = await working(stream.group("g"), handler, concurrency=8)
            await asyncio.sleep(0.05)
            process.cancel()
            await asyncio.sleep(0.05)
            process.cancel()
            await asyncio.wait([process], timeout=5)
            assert sorted(cancelled) == list(range(8))
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    asyncio.run(scenario())


# --- timeouts --------------------------------------------------------------------------------------------------------


def test_a_handler_that_takes_too_long_is_cancelled() -> None:
    """Its delivery has failed, and the message is delivered again."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            group = stream.group("g", max_deliveries=2, backoff=AT_ONCE)
            await stream.add_many(["slow", "quick"])
            cancelled, done = [], []

            async def handler(delivery: ailf.AsyncDelivery[str]) -> None:
                if delivery.data == "slow":
                    try:
                        await asyncio.sleep(60)
                    except asyncio.CancelledError:
                        cancelled.append(delivery.attempt)
                        if delivery.attempt == 2:
                            group.stop()
                        raise
                done.append(delivery.data)

            async with asyncio.timeout(5):
                await group.process(handler, concurrency=2, timeout=0.05)
            assert (cancelled, done) == ([1, 2], ["quick"])
            (letter,) = await group.dead_letters.list()
            assert letter.error == "TimeoutError: the handler took longer than its timeout of 0.05 s"

    asyncio.run(scenario())


def test_the_result_of_a_handler_that_ends_in_time_or_anyway_counts() -> None:
    """A timer belongs to its message alone, and the result of a handler that catches the cancellation counts."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            group = stream.group("g", backoff=AT_ONCE)
            await stream.add_many(["stubborn", "quick", "quick"])
            done: list[str] = []

            async def handler(delivery: ailf.AsyncDelivery[str]) -> None:
                if delivery.data == "stubborn":
                    try:
                        await asyncio.sleep(60)
                    except asyncio.CancelledError:
                        done.append("finished all the same")
                        return
                await asyncio.sleep(0.03)
                done.append(delivery.data)
                if len(done) == 3:
                    group.stop()

            async with asyncio.timeout(5):
                await group.process(handler, timeout=0.05)
            assert done == ["finished all the same", "quick", "quick"]
            info = await group.info()
            assert (info.lag, info.pending, info.delayed, info.dead) == (0, 0, 0, 0)

    asyncio.run(scenario())


def test_a_timeout_within_a_context_is_a_failed_delivery() -> None:
    """A timeout that leaves `async with delivery` doesn't release the message."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            group = stream.group("g", max_deliveries=2, backoff=AT_ONCE)
            await stream.add(1)
            attempts: list[int] = []

            async def handler(delivery: ailf.AsyncDelivery[int]) -> None:
                attempts.append(delivery.attempt)
                if delivery.attempt == 2:
                    group.stop()
                async with delivery:
                    await asyncio.sleep(60)

            async with asyncio.timeout(5):
                await group.process(handler, timeout=0.05)
            assert attempts == [1, 2]
            (letter,) = await group.dead_letters.list()
            assert letter.error == "TimeoutError: the handler took longer than its timeout of 0.05 s"

    asyncio.run(scenario())


def test_a_context_in_a_child_task_leaves_the_timeout_to_the_handler() -> None:
    """The timeout cancels the handler's task, whichever task has entered the delivery."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            group = stream.group("g", backoff=AT_ONCE)
            await stream.add(1)

            async def child(delivery: ailf.AsyncDelivery[int]) -> None:
                async with delivery:
                    pass

            async def handler(delivery: ailf.AsyncDelivery[int]) -> None:
                await asyncio.create_task(child(delivery))
                try:
                    await asyncio.sleep(60)
                finally:
                    group.stop()

            async with asyncio.timeout(5):
                await group.process(handler, timeout=0.05)

    asyncio.run(scenario())


def test_a_plain_function_that_takes_too_long_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """It blocks its event loop, so it can't be cancelled."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            group = stream.group("g")
            await stream.add(1)

            def handler(_: Any) -> None:
                time.sleep(0.1)
                group.stop()

            await group.process(handler, timeout=0.02)

    asyncio.run(scenario())
    assert "has blocked the event loop, so it was not cancelled" in caplog.text


def test_cancellations_that_a_handler_keeps_do_not_count_again() -> None:
    """A timeout also cancels a task that has caught an earlier cancellation."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            group = stream.group("g", backoff=AT_ONCE, max_deliveries=1)
            await stream.add_many([1, 2])
            seen: list[int] = []

            async def handler(delivery: ailf.AsyncDelivery[int]) -> None:
                seen.append(delivery.data)
                if delivery.data == 1:
                    task = asyncio.current_task()
                    assert task is not None
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.sleep(60)
                    return
                group.stop()
                await asyncio.sleep(60)

            async with asyncio.timeout(5):
                await group.process(handler, timeout=0.05)
            assert seen == [1, 2]
            assert [each.body for each in await group.dead_letters.list()] == [b"2"]

    asyncio.run(scenario())


def test_cancelling_process_wins_over_a_timeout() -> None:
    """When both happen, the worker is cancelled and its message is released."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            group = stream.group("g")
            await stream.add(1)
            process: asyncio.Task[None] | None = None

            async def handler(_: Any) -> None:
                try:
                    await asyncio.sleep(60)
                finally:
                    assert process is not None
                    process.cancel()
                    await asyncio.sleep(60)

            process = await working(group, handler, timeout=0.02)
            async with asyncio.timeout(5):
                with pytest.raises(asyncio.CancelledError):
                    await process
            async with group.consumer() as consumer:
                delivery = await consumer.get(0)
                assert delivery is not None
                assert delivery.attempt == 1

    asyncio.run(scenario())


def test_a_thread_that_takes_too_long_loses_its_lease(caplog: pytest.LogCaptureFixture) -> None:
    """It can't be interrupted: its message is redelivered, to other processes at once, and here when it has ended."""
    store, lease = MemoryStore(), 0.3
    with MemoryBackend(store=store) as backend, MemoryBackend(store=store) as elsewhere:
        stream = backend.stream("s")
        group = stream.group("g", lease=lease, takeover=0.2, backoff=AT_ONCE)
        stream.add(1)
        begun, finish = threading.Event(), threading.Event()
        attempts: list[int] = []
        lost: list[bool] = []

        def handler(delivery: ailf.Delivery[int]) -> None:
            attempts.append(delivery.attempt)
            begun.set()
            finish.wait(10)
            lost.append(delivery.lost)

        worker = threading.Thread(target=group.process, args=(handler,), kwargs={"concurrency": 2, "timeout": 0.1})
        worker.start()
        assert begun.wait(5)
        with elsewhere.stream("s").group("g", lease=60, takeover=0.2).consumer() as other:
            delivery = other.get(timeout=10)
            assert delivery is not None
            assert delivery.attempt == 2
            delivery.ack()
        group.stop()
        finish.set()
        worker.join(10)
        assert not worker.is_alive()
    assert (attempts, lost) == ([1], [True])
    assert "its handler's timeout is over" in caplog.text


def test_a_message_whose_earlier_attempt_still_runs_is_released(caplog: pytest.LogCaptureFixture) -> None:
    """Without other consumers it waits, without a lease and uncounted, until that attempt has ended."""
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        group = stream.group("g", lease=0.2, takeover=0.3, max_deliveries=3, backoff=AT_ONCE)
        stream.add(1)
        begun, finish = threading.Event(), threading.Event()
        attempts: list[int] = []

        def handler(delivery: ailf.Delivery[int]) -> None:
            attempts.append(delivery.attempt)
            if delivery.attempt == 1:
                begun.set()
                finish.wait(10)
            else:
                group.stop()

        worker = threading.Thread(target=group.process, args=(handler,), kwargs={"concurrency": 3, "timeout": 0.05})
        worker.start()
        assert begun.wait(5)
        waited = threading.Event()
        for _ in range(500):
            if caplog.text.count("an earlier attempt still runs here") >= 2:
                break
            waited.wait(0.01)
        else:
            pytest.fail("the message was not released twice")
        assert attempts == [1]
        finish.set()
        worker.join(10)
        assert not worker.is_alive()
        assert attempts == [1, 2]


# --- leases that are lost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_lost", OnLost)
def test_a_lost_lease_cancels_its_handler(on_lost: OnLost, caplog: pytest.LogCaptureFixture) -> None:
    """Another worker may have the message; with SIGNAL the handler checks `delivery.lost` itself."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            group = stream.group("g", lease=0.3, takeover=1000, on_event=events.append)
            await stream.add(1)
            ended: list[str] = []

            async def handler(delivery: ailf.AsyncDelivery[int]) -> None:
                if delivery.attempt == 2:
                    group.stop()
                    return
                state = backend.store.streams["s"].groups["g"]
                with backend.store.lock:  # another consumer has it
                    state.pending[delivery.id].grant = 0
                try:
                    await asyncio.sleep(1)
                    ended.append("in time")
                except asyncio.CancelledError:
                    ended.append("cancelled")
                    raise
                finally:
                    assert delivery.lost

            async with asyncio.timeout(10):
                await group.process(handler, on_lost=on_lost)
            assert ended == ["cancelled" if on_lost is OnLost.CANCEL else "in time"]

    events: list[ailf.GroupEvent] = []
    asyncio.run(scenario())
    assert [type(each) for each in events] == [ailf.LeaseLost]
    assert "LeaseLostError" not in caplog.text or on_lost is OnLost.CANCEL


def test_a_handler_that_settles_its_message_is_not_cancelled_for_that() -> None:
    """The renewal thread finds that the lease is settled before the event loop has the reply."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            stream = backend.stream("s")
            group = stream.group("g", lease=0.2)
            await stream.add(1)
            ended: list[str] = []

            async def handler(delivery: ailf.AsyncDelivery[int]) -> None:
                asyncio.get_running_loop().call_soon(time.sleep, 0.4)  # another handler blocks the loop meanwhile
                settling = asyncio.ensure_future(delivery.ack())
                await asyncio.sleep(0)
                hold = delivery._state.lease
                if hold.on_lost is not None:  # as the renewal thread does
                    hold.on_lost()
                await settling
                ended.append("acked")
                group.stop()

            async with asyncio.timeout(5):
                await group.process(handler)
            assert ended == ["acked"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": "5"},
        {"timeout": True},
        {"on_lost": "cancel"},
        {"on_lost": None},
        {"concurrency": 0},
        {"prefetch": 0},
        {"drain": -1},
        {"consumer": ""},
        {"consumer": 3},
    ],
)
def test_options_are_checked_where_they_are_given(options: dict[str, Any]) -> None:
    """`process` refuses a wrong option before it opens the group."""
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        with pytest.raises(ailf.InvalidArgumentError):
            stream.group("g").process(print, **options)
        assert "g" not in (backend.store.streams["s"].groups if "s" in backend.store.streams else {})


@pytest.mark.parametrize("reason", [None, 3, b"x"])
def test_a_reason_is_text(reason: Any) -> None:
    """`nack` and `reject` refuse anything but text, and the delivery can still be settled."""
    with MemoryBackend() as backend:
        stream = backend.stream("s")
        stream.add(1)
        with stream.group("g").consumer() as consumer:
            delivery = consumer.get(0)
            assert delivery is not None
            if reason is not None:
                with pytest.raises(ailf.InvalidArgumentError, match="reason must be text"):
                    delivery.nack(reason=reason)
            with pytest.raises(ailf.InvalidArgumentError, match="reason must be text"):
                delivery.reject(reason)
            delivery.ack()


# --- growing streams -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "retention", "warns"),
    [(99, None, 0), (100, None, 1), (100, ailf.Retention.settled(), 0)],
)
def test_a_worker_warns_of_a_stream_that_keeps_everything(
    length: int, retention: ailf.Retention | None, warns: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It warns once, where its stream has no retention and has grown large."""
    assert LARGE == 100_000
    with MemoryBackend() as backend:
        backend.stream("s").add_many(range(length))
        group = backend.stream("s", retention=retention).group("g")

        def handler(delivery: ailf.Delivery[int]) -> None:
            if delivery.data == 2:
                group.stop()

        with mock.patch.object(Tally, "EVERY", 0.0), mock.patch.object(worker, "LARGE", 100):
            group.process(handler, prefetch=3)
    assert caplog.text.count("give them retention=Retention.settled()") == warns
