"""An asyncio backend belongs to one event loop at a time, and a reader that ends leaves no call waiting."""

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import pytest
import trio

import ailf
from ailf.driver import Confirmed, Frame, Listener, Refused
from ailf.stream.group import AsyncDeadLetters
from ailf_memory import AsyncMemoryBackend, MemoryBackend
from ailf_memory.pubsub import MemoryListener
from ailf_redis import AsyncRedisBackend
from tests.support.servers import Server

Call = Callable[[], Awaitable[Any]]
T_OUT = 5.0


async def in_another_loop(call: Call) -> None:
    """Make a call in the event loop of another thread."""

    async def main() -> None:
        await asyncio.wait_for(call(), T_OUT)

    await asyncio.to_thread(asyncio.run, main())


# --- a second loop at once ---------------------------------------------------------------------------------------


class Everything:
    """One object of each asyncio class, in use in the running loop."""

    async def make(self, backend: ailf.AsyncBackend) -> None:
        """Make them."""
        self.backend = backend
        self.pubsub = backend.pubsub()
        await self.pubsub.subscribe("handled", print)
        self.subscription = self.pubsub.listen("c")
        await self.subscription.__aenter__()
        self.stream = backend.stream("s")
        await self.stream.create_consumer_group("joined")
        self.group = self.stream.group("g")
        self.consumer = self.group.consumer()
        await self.consumer.__aenter__()
        await self.stream.add(1)
        delivery = await self.consumer.get(T_OUT)
        assert delivery is not None
        self.delivery = delivery
        self.lock = backend.lock("l")
        self.lease = await self.lock.acquire(timeout=0)
        self.limiter = backend.rate_limiter("r", calls="100/second", parallel="5 parallel")
        self.permit = await self.limiter.acquire(timeout=0)

    def calls(self) -> dict[type, dict[str, Call | None]]:
        """Return a call of each public coroutine method; None: it makes no request to the backend of this object."""
        p, s, g, c, d = self.pubsub, self.stream, self.group, self.consumer, self.delivery
        lock, lease, limiter, permit = self.lock, self.lease, self.limiter, self.permit
        dead = g.dead_letters
        return {
            ailf.AsyncListing: {"page": self.backend.streams().page},
            ailf.AsyncBackend: {"ping": self.backend.ping, "aclose": self.backend.aclose},
            ailf.AsyncPubSub: {
                "publish": lambda: p.publish("c", 1), "publish_many": lambda: p.publish_many([("c", 1)]),
                "request": lambda: p.request("c", 1), "request_many": lambda: p.request_many("c", 1),
                "subscribe": lambda: p.subscribe("d", print), "unsubscribe": lambda: p.unsubscribe("handled"),
                "run": p.run, "channels": p.channels, "aclose": p.aclose,
            },
            ailf.AsyncSubscription: {"get": self.subscription.get, "aclose": self.subscription.aclose},
            ailf.AsyncStream: {
                "add": lambda: s.add(1), "add_many": lambda: s.add_many([1]), "add_once": lambda: s.add_once("id", 1),
                "cancel": lambda: s.cancel("1"), "trim": lambda: s.trim(ailf.Retention(max_len=1)), "read": s.read,
                "info": s.info, "delete": s.delete, "create_consumer_group": lambda: s.create_consumer_group("other"),
                "process_messages": lambda: s.process_messages(print), "aclose": None,
            },
            ailf.AsyncGroup: {
                "open": g.open, "delete": g.delete, "seek": lambda: g.seek(ailf.LATEST), "pause": g.pause,
                "resume": g.resume, "info": g.info, "inspect": lambda: g.inspect("1-1"),
                "process": lambda: g.process(print),
            },
            AsyncDeadLetters: {
                "list": dead.list, "redrive": lambda: dead.redrive("1"), "redrive_all": dead.redrive_all,
                "purge": lambda: dead.purge("1"), "purge_all": dead.purge_all,
            },
            ailf.AsyncConsumer: {"get": c.get, "get_many": lambda: c.get_many(2), "take": c.take, "aclose": c.aclose},
            ailf.AsyncDelivery: {
                "ack": d.ack, "nack": d.nack, "reject": lambda: d.reject("no"), "release": d.release,
                "extend": lambda: d.extend(5),
            },
            ailf.AsyncLock: {
                "try_acquire": lock.try_acquire, "acquire": lock.acquire, "inspect": lock.inspect,
                "locked": lock.locked,
                "break_": lambda: lock.break_(1), "aclose": None,
            },
            ailf.AsyncLease: {"extend": lease.extend, "release": lease.release},
            ailf.AsyncRateLimiter: {
                "try_acquire": limiter.try_acquire, "acquire": limiter.acquire,
                "reserve": self.backend.rate_limiter("b", "5/second").reserve, "peek": limiter.peek,
                "observe": lambda: limiter.observe(limit="calls", remaining=1), "reset": limiter.reset, "aclose": None,
            },
            ailf.AsyncPermit: {
                "settle": lambda: permit.settle(calls=5), "cancel": permit.cancel, "release": permit.release,
                "wait": permit.wait,
            },
        }  # fmt: skip

    async def use(self) -> None:
        """Use them, as if no other event loop had tried to."""
        await self.pubsub.publish("c", 7)
        message = await self.subscription.get(T_OUT)
        assert isinstance(message, ailf.AsyncMessage)
        assert message.data == 7
        await self.delivery.ack()
        await self.stream.add(2)
        async with (await self.consumer.get(T_OUT)) or contextlib.nullcontext() as delivery:
            assert delivery is not None
            assert delivery.data == 2
        assert not self.lease.lost
        await self.lease.release()
        await self.permit.settle(calls=2)
        await self.permit.release()


def test_a_second_loop_gets_an_error_and_does_no_harm() -> None:
    """B4: while the first loop runs, every public method raises in a second one, and the first is not affected."""

    async def main() -> None:
        async with AsyncMemoryBackend() as backend:
            everything = Everything()
            await everything.make(backend)
            for kind, calls in everything.calls().items():
                for name, call in calls.items():
                    if call is not None:
                        with pytest.raises(ailf.InvalidArgumentError, match="event loop of thread 'MainThread'"):
                            await in_another_loop(call)
                            pytest.fail(f"{kind.__name__}.{name} did not raise")
            await everything.use()

    asyncio.run(main())


def test_the_table_above_is_complete() -> None:
    """Every public coroutine method of every asyncio class is tried in a second loop."""

    async def main() -> None:
        async with AsyncMemoryBackend() as backend:
            everything = Everything()
            await everything.make(backend)
            table = everything.calls()
        public = [getattr(ailf, name) for name in ailf.__all__ if name.startswith("Async")]
        kinds = {kind for kind in public if isinstance(kind, type)} - {ailf.AsyncMessage}  # its `reply` publishes
        assert set(table) == kinds | {AsyncDeadLetters}
        for kind, calls in table.items():
            methods = inspect.getmembers(kind, inspect.iscoroutinefunction)
            assert set(calls) == {name for name, _ in methods if not name.startswith("_")}, kind

    asyncio.run(main())


# --- where asyncio doesn't run -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*was never awaited:RuntimeWarning")
def test_asyncio_classes_say_so_on_trio() -> None:
    """On trio every public method raises, and says that it is for asyncio only, and what to do."""
    everything, backend = Everything(), AsyncMemoryBackend()

    async def make() -> dict[type, dict[str, Call | None]]:
        await everything.make(backend)
        calls = everything.calls()
        del calls[ailf.AsyncSubscription]["get"]  # it has ended with this loop, and says that
        return calls

    async def on_trio() -> None:
        for kind, calls in table.items():
            for name, call in calls.items():
                if call is not None:
                    with pytest.raises(ailf.UnsupportedError, match=r"asyncio only, and trio runs here\. Run asyncio"):
                        await call()
                        pytest.fail(f"{kind.__name__}.{name} did not raise")

    table = asyncio.run(make())
    trio.run(on_trio)
    asyncio.run(backend.aclose())


@pytest.mark.parametrize("way", ["entered", "awaited", "made before", "through anyio"])
def test_opening_on_trio(any_server: Server, way: str) -> None:
    """A backend that is opened on trio, or made before and first used there, raises at once."""
    backend = AsyncRedisBackend(any_server.url)

    async def main() -> None:
        if way == "awaited":
            await ailf.connect_async(any_server.url)
        elif way == "made before":
            await backend.ping()
        else:
            async with ailf.connect_async(any_server.url):
                pytest.fail("it was opened")

    with pytest.raises(ailf.UnsupportedError, match="asyncio only, and trio runs here"):
        if way == "through anyio":
            anyio.run(main, backend="trio")
        else:
            trio.run(main)
    asyncio.run(backend.aclose())


def test_the_blocking_classes_work_in_threads_of_trio() -> None:
    """What the error recommends works."""

    def use() -> Any:
        with MemoryBackend() as backend, backend.lock("l").hold(timeout=1):
            return backend.stream("s").add(1)

    async def main() -> Any:
        return await trio.to_thread.run_sync(use)

    assert trio.run(main)


def test_a_coroutine_that_nothing_knows_drives() -> None:
    """A call that is driven without any event loop says that it is for asyncio only, too."""
    adding = AsyncMemoryBackend().stream("s").add(1)
    with pytest.raises(ailf.UnsupportedError, match="asyncio only, and no event loop of asyncio runs here"):
        adding.send(None)


# --- one loop after another --------------------------------------------------------------------------------------


def test_a_backend_belongs_to_the_loop_that_uses_it_first() -> None:
    """A backend may be made in one loop and used in another, while the first still runs."""

    async def main() -> None:
        backend = AsyncMemoryBackend()

        async def use() -> None:
            await backend.ping()
            await backend.aclose()

        await in_another_loop(use)
        assert backend.closed

    asyncio.run(main())


def test_handlers_end_with_the_loop() -> None:
    """A handler that is subscribed again in the next loop is called once per message."""
    backend = AsyncMemoryBackend()
    pubsub, heard = backend.pubsub(), []

    async def main(number: int) -> None:
        if number:
            with pytest.raises(ailf.ClosedError, match="listen again"):
                await pubsub.run()
        done = asyncio.Event()

        def handler(message: ailf.AsyncMessage[int]) -> None:
            heard.append(message.data)
            if message.data < 0:
                done.set()

        await pubsub.subscribe("c", handler)
        running = asyncio.create_task(pubsub.run())
        await pubsub.publish_many([("c", number), ("c", -1)])
        await asyncio.wait_for(done.wait(), T_OUT)
        assert not running.done()

    for number in range(3):
        asyncio.run(main(number))
    assert heard == [0, -1, 1, -1, 2, -1]
    asyncio.run(backend.aclose())


def test_subscriptions_of_an_ended_loop_are_dropped() -> None:
    """The first call in the next loop drops the subscriptions of the ended one."""
    backend = AsyncMemoryBackend()

    async def main() -> None:
        await backend.pubsub().listen("c").__aenter__()
        assert len(backend.store.listeners) == 1

    for _ in range(3):
        asyncio.run(main())
    asyncio.run(backend.aclose())
    assert backend.store.listeners == []


# --- readers that end --------------------------------------------------------------------------------------------


def test_cancelling_every_task_ends_subscriptions_only() -> None:
    """Code that cancels all tasks of a loop cancels the reader of subscriptions: they end, and the next one works."""

    async def main() -> None:
        async with AsyncMemoryBackend() as backend:
            pubsub = backend.pubsub()
            async with pubsub.listen("c") as subscription:
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    task.cancel()
                with pytest.raises(ailf.ClosedError, match="listen again"):
                    await asyncio.wait_for(subscription.get(), T_OUT)
            async with pubsub.listen("c") as subscription:
                await pubsub.publish("c", 1)
                message = await subscription.get(T_OUT)
                assert isinstance(message, ailf.AsyncMessage)
            await pubsub.subscribe("double", lambda message: 2 * message.data)
            running = asyncio.create_task(pubsub.run())
            assert (await pubsub.request("double", 2, timeout=T_OUT)).data == 4
            pubsub.stop()
            await running
            assert len(backend.store.listeners) == 1

    asyncio.run(main())


def test_subscribing_after_a_reader_that_never_began() -> None:
    """If the reader is cancelled before its first step, the next subscription works too."""

    async def cancelled_after(steps: int) -> None:
        async with AsyncMemoryBackend() as backend:
            pubsub = backend.pubsub()

            async def listen() -> None:
                async with pubsub.listen("c") as subscription:
                    await subscription.get()

            listening = asyncio.create_task(listen())
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.wait([listening])
            await asyncio.sleep(0)  # the callbacks of the cancelled tasks
            async with pubsub.listen("c") as subscription:
                await pubsub.publish("c", 1)
                message = await subscription.get(T_OUT)
                assert isinstance(message, ailf.AsyncMessage), steps
            assert len(backend.store.listeners) == 1

    for steps in range(6):
        asyncio.run(cancelled_after(steps))


class Ends(MemoryListener):
    """A listener that ends its reader with an error that no reader survives."""

    error: BaseException | None = None

    async def receive(self, timeout: float) -> Sequence[Frame | Confirmed | Refused]:
        """Return what has arrived, or raise the error."""
        if self.error is not None:
            raise self.error
        return await super().receive(timeout)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ailf.ClosedError("gone")])
def test_subscriptions_end_with_their_reader(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the reader's thread ends, calls that wait for a message or reply raise, and the next ones work."""

    async def listen(driver: Any) -> Listener:
        listener = Ends(driver._handle)
        driver._handle.store.listeners.append(listener)
        return listener

    monkeypatch.setattr("ailf_memory.pubsub.MemoryPubSubDriver.listen", listen)
    monkeypatch.setattr(Ends, "error", None)
    with MemoryBackend() as backend:
        pubsub = backend.pubsub()
        with pubsub.listen("c") as subscription, backend.lock("l").hold():
            raised: list[BaseException] = []

            def wait_for(call: Callable[[], Any]) -> None:
                try:
                    call()
                except ailf.AilfError as caught:
                    raised.append(caught)

            calls = [lambda: [subscription.get() for _ in range(3)], backend.lock("l").acquire]
            threads = [threading.Thread(target=wait_for, args=(call,), daemon=True) for call in calls]
            for thread in threads:
                thread.start()
            while not backend.engine.reply_inbox.ready:
                threading.Event().wait(0.001)
            monkeypatch.setattr(Ends, "error", error)
            pubsub.publish("c", 1)
            for thread in threads:
                thread.join(T_OUT)
            assert [type(each) for each in raised] == [ailf.ClosedError] * 2
        monkeypatch.setattr(Ends, "error", None)
        with pubsub.listen("c") as subscription:
            pubsub.publish("c", 3)
            message = subscription.get(T_OUT)
            assert isinstance(message, ailf.Message)
            assert message.data == 3
        assert len(backend.store.listeners) == 1
