"""The subscription multiplexer: all subscriptions of one backend share one connection, which is reopened if it breaks.

One flow, the reader, reads the connection. It puts each frame into the buffers of the subscriptions to its filter, and
never waits for any of them (P4). After an interruption it subscribes to every filter again, and puts a `Gap` into every
buffer that may have missed messages (P5).
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import attrs

from ailf.driver import BackendDriver, Confirmed, Filter, Frame, Listener, Refused
from ailf.engine.outages import AWAY, OutageLog
from ailf.errors import BackendTimeoutError, ClosedError, PermissionDeniedError
from ailf.instruments import Destination, Instruments, MessagesDropped, MessagesMissed
from ailf.logs import About, Log
from ailf.patterns import matches
from ailf.runtime import Event, Task
from ailf.runtime.clock import SystemClock
from ailf.values import Gap, Overflow

__all__ = ["MessageBuffer", "SubscriptionManager"]

log = Log("ailf.pubsub")

_SLICE = 1.0
"""Seconds that the reader waits for events in one call of `Listener.receive`."""

_BACKOFF = (0.0, 0.05, 0.2, 0.5, 1.0)
"""Seconds before each try to reconnect; the last value repeats."""


@attrs.define
class _Interest:
    """The state of one filter: the buffers that it feeds, and whether the backend has confirmed it."""

    confirmed: Event
    buffers: tuple["MessageBuffer", ...] = ()  # a tuple: the reader iterates over it while others subscribe
    error: Exception | None = None
    established: bool = False


@attrs.define
class _Outage:
    """An interruption under way. It ends when every filter is confirmed again."""

    cause: str
    since: float
    awaiting: set[Filter] = attrs.field(factory=set)


class MessageBuffer:
    """The bounded buffer of one subscription.

    It holds at most `size` frames. Gaps don't count and are never dropped. No two gaps are adjacent: where one follows
    another, or the frame between them is dropped, they are merged.

    Attributes:
        filters: The filters that feed it, in the order of subscription.
        dropped: The number of messages that the overflow policy dropped.
        dropped_bytes: The bytes of their bodies.
        check_home: Raises if the buffer belongs to another process or event loop.
    """

    def __init__(
        self,
        ready: Event,
        *,
        size: int,
        overflow: Overflow,
        now: Callable[[], float] = SystemClock.wait_time,
        instruments: Instruments | None = None,
    ) -> None:
        self._now = now
        self._instruments = instruments or Instruments("")
        self.filters: dict[Filter, object] = {}
        self.dropped = 0
        self.dropped_bytes = 0
        self.check_home: Callable[[], None] = _no_check
        self._items: deque[Frame | Gap] = deque()
        self._gaps = 0  # the number of gaps among the items
        self._guard = threading.Lock()  # for both flavours: it costs less than the runtime's
        self._ready = ready
        self._size = size
        self._overflow = overflow
        self._end: Exception | None = None
        self._ended = False
        self._dropping = False

    def put(self, item: Frame | Gap) -> None:
        """Add an item, or drop one by the overflow policy. This never waits."""
        if self._ended:
            return
        begins, lost = False, None
        with self._guard:
            if isinstance(item, Gap):
                self._put_gap(item)
            elif len(self._items) - self._gaps < self._size:
                self._dropping = False
                self._items.append(item)
            elif self._overflow is Overflow.CLOSE:
                self.end(self._full())
            else:
                begins, self._dropping = not self._dropping, True
                lost = self._drop(item)
        if begins:  # logged once per episode
            about = About(f"subscription to {self._description()}", {"backend": self._instruments.backend})
            log.warning(about, "buffer of %d messages full, dropping (%s)", self._size, self._overflow.value)
        if lost is not None and self._instruments.messages_dropped:
            source = Destination(self._instruments.backend, "channel", lost.channel)
            self._instruments.emit_in_thread(MessagesDropped(source, len(lost.body)))
        if not self._ready.is_set():  # a reader clears the flag first and then checks for items
            self._ready.set()

    def _put_gap(self, gap: Gap) -> None:
        last = self._items[-1] if self._items else None
        if isinstance(last, Gap):
            self._items[-1] = _merged(last, gap)
        else:
            self._items.append(gap)
            self._gaps += 1

    def _full(self) -> ClosedError:
        return ClosedError(
            f"a subscription to {self._description()} was closed: its buffer of {self._size} messages was full; "
            "read faster, or listen with a larger `buffer`"
        )

    def _drop(self, item: Frame) -> Frame:
        """Drop this frame, or replace the oldest one with it; return the one that is dropped."""
        lost = item
        if self._overflow is Overflow.DROP_OLDEST:
            lost = self._take_oldest()
            self._items.append(item)
        self.dropped += 1
        self.dropped_bytes += len(lost.body)
        return lost

    def _take_oldest(self) -> Frame:
        """Remove the oldest frame. A gap before it stays, merged with a gap after it."""
        oldest = self._items.popleft()
        if isinstance(oldest, Frame):
            return oldest
        gap, frame = oldest, self._items.popleft()
        assert isinstance(frame, Frame), "no two gaps are adjacent"  # noqa: S101 - `_put_gap` merges them
        if self._items and isinstance(following := self._items[0], Gap):
            self._items[0] = _merged(gap, following)
            self._gaps -= 1
        else:
            self._items.appendleft(gap)
        return frame

    def end(self, error: Exception | None = None) -> None:
        """Accept no more items. A reader gets those in the buffer, and then the end or this error."""
        if not self._ended:
            self._ended = True
            self._end = error
        self._ready.set()

    def end_in_child(self, error: Exception) -> None:
        """End it in a forked child, where no call waits. It takes no lock: a thread may have held one at the fork."""
        self._ended, self._end = True, error

    def take(self) -> Frame | Gap | None:
        """Return the next item of the buffer without waiting; None if it is empty."""
        if not self._items:
            return None
        with self._guard:
            try:
                item = self._items.popleft()
            except IndexError:  # another thread has taken it
                return None
            if type(item) is Gap:
                self._gaps -= 1
        return item

    def __len__(self) -> int:
        """Return the number of items in the buffer."""
        return len(self._items)

    async def get(self, timeout: float | None = None) -> Frame | Gap | None:
        """Return the next item; None at the end, or after `timeout` seconds."""
        until = None if timeout is None else self._now() + timeout
        while True:
            item = self.take()
            if item is not None:
                return item
            if self._ended:
                if self._end is not None:
                    raise self._end
                return None
            self.check_home()
            if self.ended:  # `check_home` has ended it: its event loop has ended, or it is the parent process's
                continue
            self._ready.clear()
            if self._items or self._ended:  # put between the check and the clear
                continue
            if not await self._ready.wait(None if until is None else max(0.0, until - self._now())):
                return None

    async def wait(self, over: Callable[[], bool]) -> None:
        """Wait until there is an item, or the end, or until `wake` after which `over` is true."""
        self.check_home()
        self._ready.clear()
        if not (self._items or self._ended or over()):  # put, or woken, before the clear
            await self._ready.wait()

    def wake(self) -> None:
        """Wake the readers, which find out themselves what has happened."""
        self._ready.set()

    @property
    def ended(self) -> bool:
        """Whether it accepts no more items."""
        return self._ended

    def wants(self, frame: Frame) -> bool:
        """Return whether this frame is the copy to keep of a message that several filters match (P3)."""
        if not frame.filter.is_pattern:
            return True
        if Filter(frame.channel) in self.filters:
            return False
        filters = tuple(self.filters)  # a copy: another thread may subscribe meanwhile
        patterns = (each for each in filters if each.is_pattern and matches(each.text, frame.channel))
        return next(patterns, frame.filter) == frame.filter  # a match of the backend counts, even where ours differs

    def _description(self) -> str:
        return ", ".join(repr(each.text) for each in self.filters) or "nothing"


def _no_check() -> None:
    """Accept any process and event loop, for a buffer without a subscription."""


def _merged(one: Gap, other: Gap) -> Gap:
    """Return one gap for two that have no message between them."""
    return Gap(other.reason, one.seconds + other.seconds)


class SubscriptionManager:
    """All subscriptions of one backend. The first one opens the connection, which lasts until `close`."""

    def __init__(
        self,
        driver: BackendDriver,
        check_home: Callable[[], None],
        outages: OutageLog | None = None,
        instruments: Instruments | None = None,
    ) -> None:
        self._driver = driver
        self._outages = outages or OutageLog(driver)
        self._instruments = instruments or Instruments(driver.url)
        self._check_home = check_home
        self._runtime = driver.runtime
        self._interests: dict[Filter, _Interest] = {}
        self._buffers: list[MessageBuffer] = []
        self._guard = self._runtime.guard()  # requests are sent in the order of the changes of the table
        self._starting = self._runtime.single_flight()
        self._listener: Listener | None = None
        self._reader: Task | None = None
        self._stopping = self._runtime.event()
        self._closed = False
        self._given_back = False
        self._outage: _Outage | None = None

    # --- subscribing ---------------------------------------------------------------------------------------------

    async def attach(self, buffer: MessageBuffer, filters: Iterable[Filter], until: float | None = None) -> None:
        """Add a new buffer with its first filters; see `add`."""
        buffer.check_home = self._check_home
        await self._check_reader()
        self._buffers.append(buffer)
        try:
            await self.add(buffer, filters, until)
        except BaseException:
            await self.remove(buffer)
            raise

    async def add(self, buffer: MessageBuffer, filters: Iterable[Filter], until: float | None = None) -> None:
        """Subscribe the buffer to these filters; return when the backend has confirmed them all (P2).

        That may take twice the driver's `timeout`, since the connection may have to be reopened first.

        Arguments:
            buffer: The buffer.
            filters: The filters.
            until: An earlier deadline, on the runtime's clock.

        Raises:
            PermissionDeniedError: The backend refuses a filter.
            BackendTimeoutError: A filter was not confirmed in time.
            ClosedError: The buffer or the backend was closed meanwhile.
        """
        wanted = [each for each in dict.fromkeys(filters) if each not in buffer.filters]
        begin = self._runtime.now()
        last = begin + 2 * self._driver.timeout
        until = last if until is None else min(until, last)
        await self._check_reader()
        try:
            await self._connected(begin, until)
            with self._guard:
                await self._change(self._register(buffer, wanted), ())
            await self._confirmed(wanted, begin, until)
        except BaseException:
            await self.drop(buffer, wanted)
            raise

    async def _connected(self, begin: float, until: float) -> None:
        """Return when the connection is open and read: a filter that is registered earlier would not be sent."""
        if self._reader is None:
            await self._starting.run(self._start, max(0.0, until - begin))
        if not (self._reader or self._closed):
            raise BackendTimeoutError(f"could not subscribe: no connection within {max(0.0, until - begin):.3g} s")

    async def _check_reader(self) -> None:
        """End every subscription if the reader was cancelled before its first step, and so has not done it."""
        if self._reader is not None and self._reader.done() and not self._stopping.is_set():
            listener = self._end_all(None)
            if listener is not None:
                await listener.close()

    async def drop(self, buffer: MessageBuffer, filters: Sequence[Filter]) -> None:
        """Unsubscribe the buffer from these filters."""
        with self._guard:
            await self._change((), self._unregister(buffer, filters))

    async def remove(self, buffer: MessageBuffer) -> None:
        """End the buffer and drop its filters."""
        buffer.end()
        await self.drop(buffer, tuple(buffer.filters))
        if buffer in self._buffers:
            self._buffers.remove(buffer)

    def _register(self, buffer: MessageBuffer, filters: Iterable[Filter]) -> list[Filter]:
        """Register the buffer for these filters; return those that are new at the backend."""
        new = []
        for each in filters:
            if each not in self._interests:
                self._interests[each] = _Interest(self._runtime.event())
                new.append(each)
            self._interests[each].buffers += (buffer,)
            buffer.filters[each] = None
        return new

    def _unregister(self, buffer: MessageBuffer, filters: Iterable[Filter]) -> list[Filter]:
        """Unregister the buffer from these filters; return those that no buffer needs any more."""
        unwanted = []
        for each in filters:
            interest = self._interests.get(each)
            if interest is None or each not in buffer.filters:  # a forked child's manager doesn't know it
                continue
            del buffer.filters[each]
            interest.buffers = tuple(other for other in interest.buffers if other is not buffer)
            if not interest.buffers:
                del self._interests[each]
                unwanted.append(each)
                if self._outage is not None:
                    self._outage.awaiting.discard(each)
        return unwanted

    async def _change(self, add: Sequence[Filter], drop: Sequence[Filter]) -> None:
        if self._listener is None or not (add or drop):
            return
        try:
            await self._listener.change(add, drop)
        except AWAY as error:
            about = About("subscriptions", {"backend": self._driver.url})
            log.debug(about, "the reader will subscribe to every filter again on its next connection: %s", error)

    async def _confirmed(self, filters: Sequence[Filter], begin: float, until: float) -> None:
        for each in filters:
            interest = self._interests.get(each)
            if interest is None:
                raise ClosedError(f"the subscription to {each.text!r} was closed while it was being made")
            if not await interest.confirmed.wait(max(0.0, until - self._runtime.now())):
                raise BackendTimeoutError(
                    f"could not subscribe to {each.text!r}: no confirmation in {until - begin:.3g} s"
                )
            if interest.error is not None:
                raise interest.error
            if self._closed:
                raise ClosedError(f"the backend was closed while subscribing to {each.text!r}")

    # --- the reader ----------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        """Connect and start the reader; the first subscriber gets the error if the backend is unavailable."""
        if self._reader is None and not self._closed:
            self._listener = await self._driver.pubsub().listen()
            self._reader = self._runtime.spawn(self._read, name="ailf-subscriptions")

    async def _read(self) -> None:
        """Run the reader. If anything but a stop ends it, end every subscription, so that none waits for ever."""
        cause: BaseException | None = None
        try:
            await self._read_until_stopped()
        except BaseException as error:
            cause = error
            raise
        finally:
            if not self._stopping.is_set():
                listener = self._end_all(cause)
                if listener is not None and not isinstance(cause, GeneratorExit):  # else its event loop has ended
                    await listener.close()

    def _end_all(self, cause: BaseException | None) -> Listener | None:
        """End every subscription, as the reader has ended; return its connection. The next one opens another."""
        why = "the connection was closed" if cause is None else f"its reader was ended by {type(cause).__name__}"
        error = ClosedError(f"the subscription ended, because {why}; listen again")
        with self._guard:
            listener, self._listener, self._reader, self._outage = self._listener, None, None, None
            buffers, self._buffers = self._buffers, []
            interests, self._interests = self._interests, {}
        if listener is not None:
            listener.interrupt()
        _end(buffers, interests.values(), error)
        return listener

    async def _read_until_stopped(self) -> None:
        """Read until stopped; after an error, reconnect and report a gap."""
        while not self._stopping.is_set() and self._listener is not None:
            try:
                for event in await self._listener.receive(_SLICE):
                    self._dispatch(event)
            except ClosedError:
                break
            except Exception as error:  # noqa: BLE001 - the reader of all subscriptions outlives every error
                if not self._stopping.is_set() and not await self._recover(error):
                    break
        if self._given_back and self._listener is not None:
            await self._listener.close()

    async def _recover(self, cause: Exception) -> bool:
        """Reconnect, with backoff, and subscribe to every filter again; return False if the backend was closed."""
        self._outages.failed("receive messages", cause)
        if self._outage is None:
            self._outage = _Outage(str(cause), self._runtime.now())
        tries = 0
        while not await self._stopping.wait(_BACKOFF[min(tries, len(_BACKOFF) - 1)]):
            tries += 1
            try:
                await self._reconnect(self._outage)
            except ClosedError:
                return False
            except Exception as error:  # noqa: BLE001 - see _read
                self._outages.failed("subscribe again", error)
                if isinstance(error, PermissionDeniedError):
                    self._refuse_all(error)
            else:
                return True
        return True

    async def _reconnect(self, outage: _Outage) -> None:
        if self._listener is not None:
            await self._listener.close()
        listener = await self._driver.pubsub().listen()
        with self._guard:
            self._listener = listener
            outage.awaiting = set(self._interests)
            for interest in self._interests.values():
                interest.confirmed.clear()
            await listener.change(tuple(self._interests), ())

    def _announce(self, outage: _Outage) -> None:
        """End an outage: put a gap into every buffer that may have missed messages."""
        self._outage = None
        gap = Gap(outage.cause, self._runtime.now() - outage.since)
        self._outages.worked()
        missed = [
            buffer
            for buffer in tuple(self._buffers)
            if any(self._interests[each].established for each in tuple(buffer.filters) if each in self._interests)
        ]
        for buffer in missed:
            buffer.put(gap)
        if missed and self._instruments.messages_missed:
            event = MessagesMissed(self._driver.url, gap.reason, gap.seconds, len(missed))
            self._instruments.emit_in_thread(event)

    def abandon(self, error: Exception) -> None:
        """End every subscription, as its event loop has ended; calls that still wait get this error."""
        self._closed = True
        self._stopping.set()
        if self._listener is not None:
            self._listener.interrupt()
        _end(tuple(self._buffers), tuple(self._interests.values()), error)

    def end_in_child(self, error: Exception) -> None:
        """End every subscription in a forked child with this error. The connection is the parent's."""
        for buffer in tuple(self._buffers):
            buffer.end_in_child(error)

    def _refuse_all(self, error: Exception) -> None:
        for interest in tuple(self._interests.values()):
            interest.error = error
            interest.confirmed.set()

    def _dispatch(self, event: Frame | Confirmed | Refused) -> None:
        outage = self._outage
        if outage is not None:
            outage.awaiting.discard(event.filter)
            if isinstance(event, Frame) or not outage.awaiting:  # the gap comes before the first message after it
                self._announce(outage)
        interest = self._interests.get(event.filter)
        if interest is None:
            return
        if isinstance(event, Frame):
            is_literal = not event.filter.is_pattern  # the copy of a literal channel is always kept
            for buffer in interest.buffers:
                if is_literal or buffer.wants(event):
                    buffer.put(event)
        elif isinstance(event, Confirmed):
            interest.error, interest.established = None, True
            interest.confirmed.set()
        else:
            self._refuse(interest, event.error)

    def _refuse(self, interest: _Interest, error: Exception) -> None:
        """Fail the calls that subscribe now, and end the buffers that the filter has fed before."""
        interest.error = error
        for buffer in interest.buffers:
            if interest.established:
                buffer.end(error)
        interest.confirmed.set()

    def give_back(self) -> None:
        """Let the reader end by itself, as the backend is not in use any more; `wake` it afterwards."""
        self._given_back = True
        self._stopping.set()

    def wake(self) -> None:
        """Wake a reader that blocks, so that it ends."""
        if self._listener is not None and self._runtime.flavour == "blocking":
            self._listener.interrupt()

    def stop(self) -> None:
        """End every buffer with `ClosedError`, and wake the reader (B3)."""
        self._closed = True
        for buffer in tuple(self._buffers):
            buffer.end(ClosedError("the backend was closed"))
        for interest in tuple(self._interests.values()):
            interest.confirmed.set()
        self._stopping.set()
        if self._listener is not None:
            self._listener.interrupt()

    async def close(self, until: float) -> None:
        """End the reader and the connection (B3); a reader that still runs at `until` is cancelled."""
        self.stop()
        if self._reader is not None and not await self._reader.join(max(0.0, until - self._runtime.now())):
            self._reader.cancel()
            await self._reader.join(_SLICE)
        if self._listener is not None:
            await self._listener.close()


def _end(buffers: Iterable[MessageBuffer], interests: Iterable[_Interest], error: Exception) -> None:
    """End these buffers, and the calls that wait for the confirmation of these filters."""
    for interest in interests:
        interest.error = error
        interest.confirmed.set()
    for buffer in buffers:
        buffer.end(error)
