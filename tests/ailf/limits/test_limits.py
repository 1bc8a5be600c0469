"""Limits as values and as texts, and the errors that a limiter raises without the backend."""

import asyncio
import gc
import inspect
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ailf
from ailf import Concurrency, FixedWindow, Limit, RateLimitedError, SlidingWindow, TokenBucket, parse_limit
from ailf.checks import MAX_SECONDS
from ailf.testing import ManualClock
from ailf_memory import AsyncMemoryBackend, MemoryBackend, MemoryStore

periods = st.one_of(st.sampled_from([1, 60, 3600, 86_400]), st.integers(1, 10_000_000).map(lambda ms: ms / 1000))
counts = st.integers(1, 10**6)
limits = st.one_of(
    st.builds(TokenBucket, counts, periods, counts),
    st.builds(FixedWindow, counts, periods),
    st.builds(SlidingWindow, counts, periods.filter(lambda per: per >= 0.064), st.integers(1, 64)),
    st.builds(Concurrency, counts, periods),
)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("60/minute", TokenBucket(60, per=60)),
        ("60 / min", TokenBucket(60, per=60)),
        ("10/s", TokenBucket(10)),
        ("5 requests/second", TokenBucket(5)),
        ("100000 tokens/minute burst 20000", TokenBucket(100_000, per=60, burst=20_000)),
        ("100_000 Tokens / Minute Burst 20_000", TokenBucket(100_000, per=60, burst=20_000)),
        ("3/5s", TokenBucket(3, per=5)),
        ("3/2 hours", TokenBucket(3, per=7200)),
        ("20/250ms", TokenBucket(20, per=0.25)),
        ("1000/day fixed", FixedWindow(1000, per=86_400)),
        ("100/hour sliding", SlidingWindow(100, per=3600)),
        ("100/hour sliding in 30", SlidingWindow(100, per=3600, buckets=30)),
        ("8 parallel", Concurrency(8)),
        ("8 parallel ttl 120s", Concurrency(8, ttl=120)),
        ("8 parallel ttl 0.5", Concurrency(8, ttl=0.5)),
    ],
)
def test_texts(text: str, limit: Limit) -> None:
    """A text is parsed as the limit that it describes."""
    assert parse_limit(text) == limit


@given(limits)
def test_every_limit_has_a_text(limit: Limit) -> None:
    """The ``str`` of a limit parses as an equal limit."""
    assert parse_limit(str(limit)) == limit


@pytest.mark.parametrize(
    "text",
    ["", "60", "minute", "60/fortnight", "-1/minute", "0/minute", "1.5/s", "60/minute burst", "60/minute burst 5 fixed",
     "1/s fixed in 3", "8 parallel for ever", "1__/s", "60/0s", "٣/minute extra"],
)  # fmt: skip
def test_bad_texts(text: str) -> None:
    """Any other text raises an error."""
    with pytest.raises(ailf.InvalidArgumentError):
        parse_limit(text)


def test_a_limit_of_nothing() -> None:
    """The error for a text with a 0 says how large the number must be."""
    with pytest.raises(ailf.InvalidArgumentError, match="whole number of at least 1, not 0"):
        parse_limit("0/minute")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TokenBucket(0), "rate"),
        (lambda: TokenBucket(1.5), "rate"),  # type: ignore[arg-type]
        (lambda: TokenBucket(1, per=0), "per"),
        (lambda: TokenBucket(1, per=0.0015), "milliseconds"),
        (lambda: TokenBucket(1, per=float("nan")), "per"),
        (lambda: TokenBucket(1, burst=0), "burst"),
        (lambda: TokenBucket(2**53, per=1), "2\\*\\*53"),
        (lambda: FixedWindow(2**53 + 1, per=1), "2\\*\\*53"),
        (lambda: SlidingWindow(1, per=1, buckets=65), "64 buckets"),
        (lambda: SlidingWindow(1, per=0.005, buckets=6), "5 buckets"),
        (lambda: Concurrency(0), "limit"),
        (lambda: Concurrency(1, ttl=-1), "ttl"),
    ],
)
def test_bad_limits(make: Any, words: str) -> None:
    """A limit that is invalid, or can't be counted exactly, raises an error that names the reason when it is made."""
    with pytest.raises(ailf.InvalidArgumentError, match=words):
        make()


@pytest.mark.parametrize(
    ("limit", "units"),
    [
        (TokenBucket(60, per=60), (60, 60_000)),
        (TokenBucket(1, per=3600, burst=2**53 // 3_600_000), (1, 3_600_000)),
        (parse_limit("720000000 tokens/day"), (72_000_000, 8_640_000)),
        (parse_limit("300_000_000 tokens/day"), (30_000_000, 8_640_000)),
        (parse_limit("90000000000000/day"), (3_125_000, 3)),
        (TokenBucket(7 * 10**9, per=7_000, burst=7 * 10**9), (700_000_000, 700_000)),
        (TokenBucket(2**53, per=1.024), (2**43, 1)),
    ],
)
def test_large_buckets_are_counted_in_units(limit: TokenBucket, units: tuple[int, int]) -> None:
    """Rate and period are divided by one divisor if the numbers would be too large; the limit means the same."""
    assert (limit.unit_rate, limit.unit_ms) == units
    assert limit.unit_rate * limit.per_ms == limit.rate * limit.unit_ms
    assert limit.burst * limit.unit_ms <= 2**53
    assert parse_limit(str(limit)) == limit
    clock = ManualClock()
    with MemoryBackend(clock=clock) as backend:
        limiter = backend.rate_limiter("r", limit)
        assert limiter.try_acquire(cost=limit.burst)
        wait = limiter.try_acquire(cost=1).retry_after
        assert wait is not None
        clock.advance(wait)
        assert limiter.try_acquire(cost=1)
        full = limiter.peek().reset_after
        if full <= MAX_SECONDS:  # no clock can be moved further
            clock.advance(full)
            assert limiter.peek().remaining == limit.burst


@pytest.mark.parametrize(("rate", "per", "burst"), [(1, 3600.0, 2**53), (999_999_999_989, 86_400.0, None)])
def test_a_bucket_that_cannot_be_counted_says_what_to_do(rate: int, per: float, burst: int | None) -> None:
    """A bucket whose numbers have no common divisor that is large enough raises an error when it is made."""
    with pytest.raises(ailf.InvalidArgumentError, match=r"2\*\*53.* smaller burst or a rounder rate.* FixedWindow"):
        TokenBucket(rate, per, *([] if burst is None else [burst]))


@pytest.mark.parametrize("before", ["100/hour", "100/hour burst 500"])
def test_a_limit_that_was_made_smaller(before: str) -> None:
    """R12: after charges of a larger limit a call waits no longer than the smaller limit needs, also after denials."""
    clock = ManualClock()
    with MemoryBackend(clock=clock) as backend:
        large, small = backend.rate_limiter("r", before), backend.rate_limiter("r", "10/hour")
        assert large.try_acquire(cost=100)
        assert small.peek().reset_after == 3600
        for _ in range(6):
            denied = small.try_acquire()
            assert denied.retry_after is not None
            assert denied.retry_after <= 360
            clock.advance(60)
        assert small.try_acquire()
        assert large.peek().remaining == large.limits[""].capacity - 10, "both limits charge the same state"


def test_a_debt_above_the_capacity_stays() -> None:
    """R7: calls wait for all of a debt that their own limit made above its capacity; a changed limit waits less."""
    clock = ManualClock()
    with MemoryBackend(clock=clock) as backend:
        limiter = backend.rate_limiter("r", "10/hour")
        limiter.acquire(cost=10).settle(cost=25)
        assert limiter.peek().reset_after == 2.5 * 3600
        assert limiter.try_acquire().retry_after == 1.6 * 3600
        assert backend.rate_limiter("r", "20/hour").peek().reset_after == 3600 * 20 / 20
        assert backend.rate_limiter("r", "5/hour burst 10").peek().reset_after == 2 * 3600
        clock.advance(1.6 * 3600)
        assert limiter.try_acquire()
        limiter.observe(retry_after=7200)
        assert limiter.try_acquire().retry_after == 7200


@pytest.mark.parametrize(
    ("args", "options", "words"),
    [
        (("", "1/s"), {}, "empty"),
        (("r",), {"limit": "1/s"}, "'limit'"),
        (("r",), {}, "one limit"),
        (("r", "1/s"), {"a": "1/s"}, "one limit"),
        (("r", 5), {}, "TokenBucket"),
        (("r",), {"key": "1/s"}, "'key'"),
        (("r",), {"a": "nonsense"}, "nonsense"),
        (("r", "1/s"), {"on_backend_error": "ignore"}, "on_backend_error"),
        (("r",), {f"l{n}": "1/s" for n in range(17)}, "16"),
    ],
)
def test_bad_limiters(args: tuple[Any, ...], options: dict[str, Any], words: str) -> None:
    """A limiter with bad options raises an error when it is made."""
    with MemoryBackend() as backend, pytest.raises(ailf.InvalidArgumentError, match=words):
        backend.rate_limiter(*args, **options)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda one, many: one.try_acquire(cost=-1), "cost"),
        (lambda one, many: one.try_acquire(cost=1.5), "cost"),
        (lambda one, many: one.try_acquire(tokens=1), "tokens"),
        (lambda one, many: one.try_acquire(7), "key"),
        (lambda one, many: one.try_acquire("k" * 600), "long"),
        (lambda one, many: one.acquire(timeout=-1), "timeout"),
        (lambda one, many: many.try_acquire(cost=1), "a, b"),
        (lambda one, many: many.observe(limit="c"), "'a', 'b'"),
        (lambda one, many: many.observe(limit="b", remaining=1), "'b' is a Concurrency"),
        (lambda one, many: many.observe(limit="a", retry_after=1e15), "at most 3,155,760,000 seconds"),
        (lambda one, many: many.acquire().settle(b=0), "costs to settle are 'a'"),
        (lambda one, many: many.acquire().settle(a=-1), "'a'"),
        (lambda one, many: one.reserve(within=-1), "within"),
        (lambda one, many: one.limited()(5), "callable"),
    ],
)
def test_bad_calls(call: Any, words: str) -> None:
    """A call with bad arguments raises an error that names the argument, and charges nothing."""
    with MemoryBackend() as backend:
        one, many = backend.rate_limiter("one", "5/hour"), backend.rate_limiter("many", a="5/hour", b="2 parallel")
        with pytest.raises(ailf.InvalidArgumentError, match=words):
            call(one, many)
        assert one.peek().remaining == 5


class Away(MemoryBackend):
    """A backend one of whose limiter methods fails while it is ``away``; ``calls`` counts the calls of the method."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.away = True
        self.calls = 0
        make_driver = self.engine.driver.rate_limiter

        def rate_limiter() -> Any:
            driver = make_driver()
            original = getattr(driver, method)

            async def replacement(*args: Any) -> Any:
                self.calls += 1
                if self.away:
                    raise ailf.ConnectionLostError("can't reach it")
                return await original(*args)

            setattr(driver, method, replacement)
            return driver

        self.engine.driver.rate_limiter = rate_limiter  # type: ignore[method-assign]


def test_without_the_backend(caplog: pytest.LogCaptureFixture) -> None:
    """``on_backend_error`` decides on calls while the backend is unavailable, at once, and the log says so."""
    with Away("decide") as backend:
        allowing = backend.rate_limiter("r", "5/hour", on_backend_error="allow")
        decision = allowing.try_acquire()
        assert decision.allowed
        assert isinstance(decision.error, ailf.ConnectionLostError)
        assert decision.permit is not None
        with allowing.hold() as permit:
            permit.settle(cost=3)  # it was not charged, so there is nothing to settle
        denying = backend.rate_limiter("r", "5/hour", on_backend_error="deny")
        assert not denying.try_acquire()
        assert denying.try_acquire().retry_after == 1.0
        with pytest.raises(ailf.RateLimitedError, match="can't reach it"):
            denying.acquire(timeout=0)
        assert backend.calls == 5
        backend.engine.retry_for = 0.0
        with pytest.raises(ailf.ConnectionLostError):
            backend.rate_limiter("r", "5/hour").try_acquire()
    assert "which allows every call meanwhile: can't reach it" in caplog.text


def test_decorated() -> None:
    """Each call of a decorated function waits for a permit of the key for its arguments, and releases its slot."""
    clock = ManualClock()
    with MemoryBackend(clock=clock) as backend:
        limiter = backend.rate_limiter("r", calls="2/hour", parallel="1 parallel")

        @limiter.limited(lambda user, **_: user, timeout=0)
        def greet(user: str, *, word: str = "hello") -> str:
            """Greet."""
            assert limiter.peek(user).limits["parallel"].remaining == 0
            return f"{word} {user}"

        assert greet.__doc__ == "Greet."
        assert greet("ann") == "hello ann"
        assert greet("ann", word="bye") == "bye ann"
        assert greet("bob") == "hello bob"
        with pytest.raises(ailf.RateLimitedError, match="'calls'") as raised:
            greet("ann")
        assert raised.value.bound == "calls"
        assert limiter.peek("ann").limits["parallel"].remaining == 1

    async def main() -> None:
        async with AsyncMemoryBackend() as backend:
            limiter = backend.rate_limiter("r", "2/hour")

            @limiter.limited("k", timeout=0)
            async def double(number: int) -> int:
                return 2 * number

            assert await double(2) == 4
            await double(1)
            with pytest.raises(ailf.RateLimitedError):
                await double(3)

    asyncio.run(main())


class Streams:
    """A callable object whose ``__call__`` is a generator function."""

    def __call__(self, count: int) -> Iterator[int]:
        """Stream."""
        yield from range(count)


class AsyncStreams:
    """The same on asyncio."""

    async def __call__(self, count: int) -> AsyncIterator[int]:
        """Stream."""
        for number in range(count):
            yield number


def stream(count: int) -> Iterator[int]:
    """Stream."""
    yield from range(count)


async def stream_async(count: int) -> AsyncIterator[int]:
    """Stream."""
    for number in range(count):
        yield number


@pytest.mark.parametrize("function", [stream, partial(stream), Streams(), partial(Streams())])
def test_a_generator_keeps_its_slot_while_it_is_iterated(function: Callable[[int], Iterator[int]]) -> None:
    """A decorated generator function has its permit from the first item to the end of the iteration, in any way."""
    with MemoryBackend() as backend:
        limiter = backend.rate_limiter("r", par="1 parallel")
        limited = limiter.limited("k", timeout=0)(function)
        assert inspect.isgeneratorfunction(limited), "it can be decorated again"
        first = limited(3)
        assert limiter.peek("k").remaining == 1, "the iteration has not begun"
        assert next(first) == 0
        with pytest.raises(ailf.RateLimitedError):
            next(limited(3))
        assert list(first) == [1, 2]
        closed, dropped = limited(3), limited(3)
        assert next(closed) == 0
        closed.close()  # type: ignore[attr-defined]
        assert next(dropped) == 0
        del dropped
        gc.collect()
        assert limiter.peek("k").remaining == 1


def test_a_limited_generator_gets_what_is_sent() -> None:
    """Values, errors and the return value pass through; an error ends the permit."""
    with MemoryBackend() as backend:
        limiter = backend.rate_limiter("r", par="1 parallel")

        @limiter.limited("k", timeout=0)
        def echo() -> Generator[object, object, str]:
            got: object = "begin"
            while got != "end":
                try:
                    got = yield got
                except KeyError as error:
                    got = error.args
            return "returned"

        talk = echo()
        assert next(talk) == "begin"
        assert talk.send(1) == 1
        assert talk.throw(KeyError("x")) == ("x",)
        with pytest.raises(StopIteration, match="returned"):
            talk.send("end")
        failing = echo()
        next(failing)
        with pytest.raises(ValueError, match="no"):
            failing.throw(ValueError("no"))
        assert limiter.peek("k").remaining == 1


@pytest.mark.parametrize("function", [stream_async, partial(stream_async), AsyncStreams(), partial(AsyncStreams())])
def test_an_async_generator_keeps_its_slot_while_it_is_iterated(
    function: Callable[[int], AsyncIterator[int]],
) -> None:
    """The same on asyncio, also if the loop is left early or its task is cancelled."""

    async def main() -> None:
        async with AsyncMemoryBackend() as backend:
            limiter = backend.rate_limiter("r", par="1 parallel")
            limited = limiter.limited("k", timeout=0)(function)
            assert inspect.isasyncgenfunction(limited)
            first = limited(3)
            assert await anext(first) == 0
            with pytest.raises(ailf.RateLimitedError):
                await anext(limited(3))
            assert [each async for each in first] == [1, 2]
            async for number in limited(3):
                if number == 1:
                    break
            gc.collect()
            await asyncio.sleep(0.01)  # the loop closes it
            assert (await limiter.peek("k")).remaining == 1

            async def read() -> None:
                async for _ in limited(3):
                    await asyncio.sleep(5)

            task = asyncio.create_task(read())
            await asyncio.sleep(0.01)
            assert (await limiter.peek("k")).remaining == 0
            task.cancel()
            await asyncio.wait([task])
            gc.collect()
            await asyncio.sleep(0.01)
            assert (await limiter.peek("k")).remaining == 1

    asyncio.run(main())


def test_a_limited_async_generator_gets_what_is_sent() -> None:
    """Values, errors and closing pass through."""
    seen: list[object] = []

    async def main() -> None:
        async with AsyncMemoryBackend() as backend:
            limiter = backend.rate_limiter("r", par="1 parallel")

            @limiter.limited("k", timeout=0)
            async def echo() -> AsyncGenerator[object, object]:
                got: object = "begin"
                try:
                    while got != "end":
                        try:
                            got = yield got
                        except KeyError as error:
                            got = error.args
                finally:
                    seen.append((await limiter.peek("k")).remaining)

            talk = echo()
            assert await anext(talk) == "begin"
            assert await talk.asend(1) == 1
            assert await talk.athrow(KeyError("x")) == ("x",)
            with pytest.raises(StopAsyncIteration):
                await talk.asend("end")
            closed = echo()
            await anext(closed)
            await closed.aclose()
            failing = echo()
            await anext(failing)
            with pytest.raises(ValueError, match="no"):
                await failing.athrow(ValueError("no"))
            assert (await limiter.peek("k")).remaining == 1

    asyncio.run(main())
    assert seen == [0, 0, 0], "the permit outlives the generator's own clean-up"


def test_a_generator_of_the_other_flavour_is_refused() -> None:
    """A generator function of the other flavour raises an error when it is decorated."""
    with MemoryBackend() as backend:
        for function in (stream_async, partial(stream_async), AsyncStreams()):
            with pytest.raises(ailf.InvalidArgumentError, match="async generator function"):
                backend.rate_limiter("r", "5/hour").limited()(function)
    limiter = AsyncMemoryBackend().rate_limiter("r", "5/hour")
    for plain in (stream, partial(stream), Streams()):
        with pytest.raises(ailf.InvalidArgumentError, match="generator function"):
            limiter.limited()(plain)


def test_waiting_for_a_reservation() -> None:
    """A permit's `wait` returns when the reserved call may begin, and closing the backend ends it."""
    with MemoryBackend() as backend:
        limiter = backend.rate_limiter("r", TokenBucket(20, per=1.0, burst=1))
        limiter.reserve().wait()
        later = limiter.reserve()
        later.wait()
        assert limiter.peek().at * 1000 > 0
        longest = limiter.reserve()
        for _ in range(200):
            longest = limiter.reserve()
        ended: list[Exception] = []

        def wait() -> None:
            try:
                longest.wait()
            except ailf.ClosedError as error:
                ended.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
    thread.join(5)
    assert len(ended) == 1


def test_shown() -> None:
    """A limiter's ``repr`` names it and its limits; that of a permit names its charges."""
    with MemoryBackend() as backend:
        limiter = backend.rate_limiter("openai", requests="60/minute", parallel="8 parallel")
        assert repr(limiter) == "<MemoryRateLimiter 'openai': requests 60/minute, parallel 8 parallel ttl 60s>"
        with limiter.hold("gpt", requests=2) as permit:
            assert repr(permit) == "<Permit 'gpt' requests=2, parallel=1>"


def test_settling_may_be_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """A settlement that certainly failed can be repeated; an error of the release doesn't hide a block's own error."""
    with Away("settle") as backend:
        backend.away, backend.engine.retry_for = False, 0.0
        limiter = backend.rate_limiter("r", calls="10/hour", parallel="2 parallel")
        permit = limiter.acquire(calls=5)
        backend.away = True
        for attempt in (lambda: permit.settle(calls=2), permit.cancel):
            with pytest.raises(ailf.ConnectionLostError):
                attempt()
        backend.away = False
        permit.settle(calls=2)
        permit.release()
        assert {name: each.remaining for name, each in limiter.peek().limits.items()} == {"calls": 8, "parallel": 2}
        with pytest.raises(KeyError), limiter.hold():
            backend.away = True
            raise KeyError
        backend.away = False
        with limiter.hold(timeout=1):
            backend.away = True
        assert caplog.text.count("its concurrency slots are free again after their ttl") == 2


def test_a_cost_that_is_unknown_beforehand() -> None:
    """R7: a call with the estimate 0 is charged when it is settled, and later calls wait for that."""
    with MemoryBackend() as backend:
        limiter = backend.rate_limiter("r", calls="10/hour", tokens="100/hour")
        with limiter.hold(tokens=0) as permit:
            permit.settle(tokens=70)
        assert limiter.peek().limits["tokens"].remaining == 30


def test_a_waiting_call_is_not_charged_for_denials() -> None:
    """``count_denied`` charges denied calls, and ``retry_after`` includes that; a waiting call is not charged."""
    clock = ManualClock()
    with MemoryBackend(clock=clock) as backend:
        limiter = backend.rate_limiter("r", TokenBucket(10), count_denied=True)
        limiter.try_acquire(cost=7)
        denied = limiter.try_acquire(cost=5)
        assert (denied.remaining, denied.retry_after) == (0, 0.5)
        clock.advance(0.5)
        assert limiter.try_acquire(cost=5)
        with pytest.raises(ailf.RateLimitedError):
            limiter.acquire(cost=5, timeout=0.05)
        clock.advance(0.5)
        assert limiter.try_acquire(cost=5)


# --- generators that wait for themselves ---------------------------------------------------------------------------


def test_a_thread_does_not_wait_for_its_own_generators() -> None:
    """A call that would wait for its own thread's generators for ever raises; a finished one frees its slot."""
    with MemoryBackend() as backend:
        limiter = backend.rate_limiter("llm", parallel=Concurrency(2))

        @limiter.limited("gpt")
        def stream() -> Iterator[int]:
            yield from range(3)

        @limiter.limited("gpt", timeout=0)
        def hasty() -> Iterator[int]:
            yield 7

        first, second, third = stream(), stream(), stream()
        assert (next(first), next(second)) == (0, 0)
        with pytest.raises(RateLimitedError, match="generators that this thread or task has not finished hold 2 of"):
            next(third)
        with pytest.raises(RateLimitedError, match="not allowed"):
            next(hasty())
        assert list(first) == [1, 2]
        assert list(stream()) == [0, 1, 2]
        assert list(second) == [1, 2]


def test_a_task_does_not_wait_for_its_own_generators() -> None:
    """Other tasks do wait, and are woken when the generator has finished."""

    async def scenario() -> None:
        async with AsyncMemoryBackend() as backend:
            limiter = backend.rate_limiter("llm", parallel=Concurrency(1))

            @limiter.limited("gpt")
            async def stream() -> AsyncIterator[int]:
                yield 1
                yield 2

            first = stream()
            assert await anext(first) == 1
            with pytest.raises(RateLimitedError, match="wait for itself for ever"):
                await anext(stream())

            async def other() -> list[int]:
                return [each async for each in stream()]

            waiting = asyncio.create_task(other())
            await asyncio.sleep(0.01)
            assert not waiting.done()
            assert [each async for each in first] == [2]
            assert await asyncio.wait_for(waiting, 5) == [1, 2]

    asyncio.run(scenario())


def test_closing_a_backend_releases_the_slots_of_its_generators() -> None:
    """Other calls don't wait until the slot expires."""
    store = MemoryStore()
    with MemoryBackend(store=store) as backend:

        @backend.rate_limiter("llm", parallel=Concurrency(1)).limited("gpt")
        def stream() -> Iterator[int]:
            yield from range(3)

        unfinished = stream()
        next(unfinished)
    with MemoryBackend(store=store) as backend:
        assert backend.rate_limiter("llm", parallel=Concurrency(1)).try_acquire("gpt")
    assert list(unfinished) == [1, 2]


def test_a_sliding_window_waits_no_longer_than_its_time() -> None:
    """The time of the last call in the newest bucket is exact."""
    clock = ManualClock(start=1_700_000_000.1)
    with MemoryBackend(clock=clock) as backend:
        limiter = backend.rate_limiter("r", "10/hour sliding")
        for _ in range(10):
            assert limiter.try_acquire()
        assert limiter.try_acquire().retry_after == 3600
        assert limiter.peek().reset_after == 3600
        clock.advance(3599.999)
        assert not limiter.try_acquire()
        clock.advance(0.001)
        assert limiter.try_acquire()
