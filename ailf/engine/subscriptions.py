"""The subscriptions of one backend: any number of them over one connection, which comes back by itself.

One flow reads the connection while there is a subscription. It hands each frame to the subscriptions that asked for
its filter, never waits for any of them (P4), and after an interruption asks for every filter again and tells every
subscription that it may have missed something (P5).
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import attrs

from ailf.driver import BackendDriver, Confirmed, Filter, Frame, Listener, Refused
from ailf.engine.outages import OutageLog
from ailf.errors import BackendTimeoutError, ClosedError, ConnectionLostError, PermissionDeniedError
from ailf.patterns import matches
from ailf.runtime import Event, Task
from ailf.runtime.clock import SystemClock
from ailf.values import Gap, Overflow

__all__ = ["MessageBuffer", "SubscriptionManager"]

log = logging.getLogger("ailf.pubsub")

_SLICE = 1.0
_BACKOFF = (0.0, 0.05, 0.2, 0.5, 1.0)


@attrs.define
class _Interest:
    """What is known of one filter: who wants it, and whether the backend has confirmed it."""

    confirmed: Event
    inboxes: tuple[
        "MessageBuffer", ...
    ] = ()  # replaced and never changed: the reader goes through it while others subscribe
    error: Exception | None = None
    established: bool = False


@attrs.define
class _Outage:
    """An interruption that is not over: it is when every filter is confirmed again."""

    cause: str
    since: float
    awaiting: set[Filter] = attrs.field(factory=set)


class MessageBuffer:
    """The bounded buffer of one subscription.

    It holds at most `size` frames. Gaps are never dropped and don't count, as no two of them are ever adjacent: where
    they would be, because one follows another or the frame between them was dropped, they become one.

    Attributes:
        filters: What it asked for, in that order.
        dropped: How many messages the overflow policy dropped.
        dropped_bytes: Their size.
        check_home: Raises where it can't be waited for here, because it is of another process or event loop.
    """

    def __init__(
        self, ready: Event, *, size: int, overflow: Overflow, now: Callable[[], float] = SystemClock.wait_time
    ) -> None:
        self._now = now
        self.filters: dict[Filter, object] = {}
        self.dropped = 0
        self.dropped_bytes = 0
        self.check_home: Callable[[], None] = _anywhere
        self._items: deque[Frame | Gap] = deque()
        self._gaps = 0  # how many of the items are gaps
        self._guard = threading.Lock()  # for items and gaps; of both flavours, as it costs less than the runtime's
        self._ready = ready
        self._size = size
        self._overflow = overflow
        self._end: Exception | None = None
        self._ended = False
        self._dropping = False

    def put(self, item: Frame | Gap) -> None:
        """Take it, or drop by the policy; never wait."""
        if self._ended:
            return
        begins = False
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
                self._drop(item)
        if begins:  # said once per episode
            log.warning(
                "subscription to %s: buffer of %d messages full, dropping (%s)",
                self._label(),
                self._size,
                self._overflow.value,
            )
        if not self._ready.is_set():  # who lowers the flag looks for items after that
            self._ready.set()

    def _put_gap(self, gap: Gap) -> None:
        last = self._items[-1] if self._items else None
        if isinstance(last, Gap):
            self._items[-1] = _joined(last, gap)
        else:
            self._items.append(gap)
            self._gaps += 1

    def _full(self) -> ClosedError:
        return ClosedError(
            f"a subscription to {self._label()} was closed: its buffer of {self._size} messages was full"
        )

    def _drop(self, item: Frame) -> None:
        """Drop this frame, or the oldest one in favour of it."""
        lost = item
        if self._overflow is Overflow.DROP_OLDEST:
            lost = self._take_oldest()
            self._items.append(item)
        self.dropped += 1
        self.dropped_bytes += len(lost.body)

    def _take_oldest(self) -> Frame:
        """Take out the oldest frame; a gap before it stays, joined with one that follows."""
        oldest = self._items.popleft()
        if isinstance(oldest, Frame):
            return oldest
        gap, frame = oldest, self._items.popleft()
        assert isinstance(frame, Frame), "no two gaps are adjacent"  # noqa: S101 - `_put_gap` says so
        if self._items and isinstance(following := self._items[0], Gap):
            self._items[0] = _joined(gap, following)
            self._gaps -= 1
        else:
            self._items.appendleft(gap)
        return frame

    def end(self, error: Exception | None = None) -> None:
        """Take nothing more: who waits gets what is there, then the end, or this error."""
        if not self._ended:
            self._ended = True
            self._end = error
        self._ready.set()

    def disown(self, error: Exception) -> None:
        """End it with this error in a forked child, where nobody waits and another thread may have held a lock."""
        self._ended, self._end = True, error

    def take(self) -> Frame | Gap | None:
        """Return the next item that is there; None where there is none."""
        if not self._items:
            return None
        with self._guard:
            try:
                item = self._items.popleft()
            except IndexError:  # another thread was quicker
                return None
            if type(item) is Gap:
                self._gaps -= 1
        return item

    def __len__(self) -> int:
        """Return how many items are there."""
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
            if self.ended:  # it was of an event loop that has ended, or of the parent process
                continue
            self._ready.clear()
            if self._items or self._ended:  # put between the look and the clear
                continue
            if not await self._ready.wait(None if until is None else max(0.0, until - self._now())):
                return None

    @property
    def ended(self) -> bool:
        """Whether it takes nothing more."""
        return self._ended

    def wants(self, frame: Frame) -> bool:
        """Tell whether this frame is the one copy to keep of a message that several filters match (P3)."""
        if not frame.filter.is_pattern:
            return True
        if Filter(frame.channel) in self.filters:
            return False
        asked = tuple(self.filters)  # a copy: another thread may subscribe meanwhile
        patterns = (each for each in asked if each.is_pattern and matches(each.text, frame.channel))
        return next(patterns, frame.filter) == frame.filter  # the backend says that it matches, so it does

    def _label(self) -> str:
        return ", ".join(repr(each.text) for each in self.filters) or "nothing"


def _anywhere() -> None:
    """Let it be waited for anywhere: nothing feeds it that belongs to a process or event loop."""


def _joined(one: Gap, other: Gap) -> Gap:
    """Return one gap for two without a message between them."""
    return Gap(other.reason, one.seconds + other.seconds)


class SubscriptionManager:
    """All subscriptions of one backend. The connection is made for the first of them and lasts until `close`."""

    def __init__(self, driver: BackendDriver, check_home: Callable[[], None], outages: OutageLog | None = None) -> None:
        self._driver = driver
        self._outages = outages or OutageLog(driver)
        self._check_home = check_home
        self._runtime = driver.runtime
        self._interests: dict[Filter, _Interest] = {}
        self._inboxes: list[MessageBuffer] = []
        self._guard = self._runtime.guard()  # what is asked for is sent in the order in which the table changes
        self._starting = self._runtime.single_flight()
        self._listener: Listener | None = None
        self._reader: Task | None = None
        self._stopping = self._runtime.event()
        self._closed = False
        self._given_back = False
        self._outage: _Outage | None = None

    # --- asked by subscriptions ----------------------------------------------------------------------------------

    async def attach(self, inbox: MessageBuffer, filters: Iterable[Filter], until: float | None = None) -> None:
        """Take in a new inbox with what it asks for first; see `add`."""
        inbox.check_home = self._check_home
        self._inboxes.append(inbox)
        try:
            await self.add(inbox, filters, until)
        except BaseException:
            await self.remove(inbox)
            raise

    async def add(self, inbox: MessageBuffer, filters: Iterable[Filter], until: float | None = None) -> None:
        """Let these filters feed the inbox; return when the backend has confirmed them all (P2).

        It has twice the driver's `timeout` for that, since an interruption may have to be mended first.

        Arguments:
            inbox: The inbox.
            filters: The filters.
            until: When the time is over, on the runtime's clock, where that is earlier.

        Raises:
            PermissionDeniedError: The backend refuses one.
            BackendTimeoutError: It doesn't answer.
        """
        wanted = [each for each in dict.fromkeys(filters) if each not in inbox.filters]
        begin = self._runtime.now()
        last = begin + 2 * self._driver.timeout
        until = last if until is None else min(until, last)
        try:
            if self._reader is None:
                await self._starting.run(self._start)
            with self._guard:
                await self._change(self._enter(inbox, wanted), ())
            await self._confirmed(wanted, begin, until)
        except BaseException:
            await self.drop(inbox, wanted)
            raise

    async def drop(self, inbox: MessageBuffer, filters: Sequence[Filter]) -> None:
        """Let these filters feed the inbox no more."""
        with self._guard:
            await self._change((), self._withdraw(inbox, filters))

    async def remove(self, inbox: MessageBuffer) -> None:
        """End the inbox."""
        inbox.end()
        await self.drop(inbox, tuple(inbox.filters))
        if inbox in self._inboxes:
            self._inboxes.remove(inbox)

    def _enter(self, inbox: MessageBuffer, filters: Iterable[Filter]) -> list[Filter]:
        """Note the inbox's interest; return the filters that nobody had asked for."""
        new = []
        for each in filters:
            if each not in self._interests:
                self._interests[each] = _Interest(self._runtime.event())
                new.append(each)
            self._interests[each].inboxes += (inbox,)
            inbox.filters[each] = None
        return new

    def _withdraw(self, inbox: MessageBuffer, filters: Iterable[Filter]) -> list[Filter]:
        """Forget the inbox's interest; return the filters that nobody asks for any more."""
        unwanted = []
        for each in filters:
            interest = self._interests.get(each)
            if interest is None or each not in inbox.filters:  # after a fork the child's hub doesn't know it
                continue
            del inbox.filters[each]
            interest.inboxes = tuple(other for other in interest.inboxes if other is not inbox)
            if not interest.inboxes:
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
        except (ConnectionLostError, BackendTimeoutError) as error:
            log.debug("the reader will ask for every filter again on its next connection: %s", error)

    async def _confirmed(self, filters: Sequence[Filter], begin: float, until: float) -> None:
        for each in filters:
            interest = self._interests.get(each)
            if interest is None:
                raise ClosedError(f"the subscription to {each.text!r} was closed while it was being made")
            if not await interest.confirmed.wait(max(0.0, until - self._runtime.now())):
                raise BackendTimeoutError(f"subscribing to {each.text!r}: no confirmation within {until - begin:g} s")
            if interest.error is not None:
                raise interest.error
            if self._closed:
                raise ClosedError(f"the backend was closed while subscribing to {each.text!r}")

    # --- the reader ----------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        """Connect and read from now on; the first subscriber meets the error where the backend is away."""
        if self._reader is None and not self._closed:
            self._listener = await self._driver.pubsub().listen()
            self._reader = self._runtime.spawn(self._read, name="ailf-subscriptions")

    async def _read(self) -> None:
        """Read until told to stop; whatever else ends it, nobody waits on in vain."""
        cause: BaseException | None = None
        try:
            await self._read_on()
        except BaseException as error:
            cause = error
            raise
        finally:
            if not self._stopping.is_set():
                listener = self._cut_off(cause)
                if listener is not None and not isinstance(cause, GeneratorExit):  # else its loop has ended, too
                    await listener.close()

    def _cut_off(self, cause: BaseException | None) -> Listener | None:
        """End every subscription, as nobody reads any more, and return the connection; the next one begins anew."""
        why = "the connection was closed" if cause is None else f"its reader was ended by {type(cause).__name__}"
        error = ClosedError(f"the subscription ended, because {why}; listen again")
        with self._guard:
            listener, self._listener, self._reader, self._outage = self._listener, None, None, None
            inboxes, self._inboxes = self._inboxes, []
            interests, self._interests = self._interests, {}
        if listener is not None:
            listener.interrupt()
        _end(inboxes, interests.values(), error)
        return listener

    async def _read_on(self) -> None:
        """Read until told to stop; whatever breaks is mended and reported as a gap."""
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
        """Come back on a new connection and ask for everything again; return False where that was closed for good."""
        self._outages.failed("receive what is subscribed to", cause)
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
        """Tell every subscription that it may have missed something."""
        self._outage = None
        gap = Gap(outage.cause, self._runtime.now() - outage.since)
        self._outages.worked()
        for inbox in tuple(self._inboxes):
            if any(self._interests[each].established for each in tuple(inbox.filters) if each in self._interests):
                inbox.put(gap)

    def abandon(self, error: Exception) -> None:
        """Give up everything from the next event loop, as this one's has ended; who still waits gets this error."""
        self._closed = True
        self._stopping.set()
        if self._listener is not None:
            self._listener.interrupt()
        _end(tuple(self._inboxes), tuple(self._interests.values()), error)

    def disown(self, error: Exception) -> None:
        """Give up everything in a forked child: who still reads gets this error; the connection is the parent's."""
        for inbox in tuple(self._inboxes):
            inbox.disown(error)

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
            alone = not event.filter.is_pattern  # a channel's copy is always the one to keep
            for inbox in interest.inboxes:
                if alone or inbox.wants(event):
                    inbox.put(event)
        elif isinstance(event, Confirmed):
            interest.error, interest.established = None, True
            interest.confirmed.set()
        else:
            self._refuse(interest, event.error)

    def _refuse(self, interest: _Interest, error: Exception) -> None:
        """Who asks for it now gets the error; who had it before comes to an end with it."""
        interest.error = error
        for inbox in interest.inboxes:
            if interest.established:
                inbox.end(error)
        interest.confirmed.set()

    def give_back(self) -> None:
        """Let the reader end by itself, as nobody has a subscription any more; `wake` it then."""
        self._given_back = True
        self._stopping.set()

    def wake(self) -> None:
        """Let a reader that blocks see that its end has come."""
        if self._listener is not None and self._runtime.flavour == "blocking":
            self._listener.interrupt()

    async def close(self) -> None:
        """End every inbox with `ClosedError`, the reader, and the connection (B3)."""
        self._closed = True
        for inbox in tuple(self._inboxes):
            inbox.end(ClosedError("the backend was closed"))
        for interest in tuple(self._interests.values()):
            interest.confirmed.set()
        self._stopping.set()
        if self._listener is not None:
            self._listener.interrupt()
        if self._reader is not None and not await self._reader.join(2 * _SLICE):
            self._reader.cancel()
            await self._reader.join(2 * _SLICE)
        if self._listener is not None:
            await self._listener.close()


def _end(inboxes: Iterable[MessageBuffer], interests: Iterable[_Interest], error: Exception) -> None:
    """End these inboxes, and who waits for these filters to be confirmed."""
    for interest in interests:
        interest.error = error
        interest.confirmed.set()
    for inbox in inboxes:
        inbox.end(error)
