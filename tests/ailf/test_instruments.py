"""Instruments in the core: which hooks are called, what an instrument may raise, and where instruments come from."""

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ailf
from ailf import InvalidArgumentError, hookspecs
from ailf.instruments import Destination, Instrument, Instruments, MessageSent

EVENT = MessageSent(Destination("memory://", "stream", "s"), {}, 1, ("1",), 0.0)


@pytest.fixture
def url(namespace: str) -> str:
    """Return the URL of a store of the test's own."""
    return f"memory://{namespace}"


class Sent(Instrument):
    """Records what is sent."""

    def __init__(self) -> None:
        self.events: list[MessageSent] = []

    def message_sent(self, event: MessageSent) -> None:
        """Record the event."""
        self.events.append(event)


class Raising(Instrument):
    """Raises in each hook that sending calls."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def message_sent(self, event: MessageSent) -> None:
        """Raise."""
        raise self._error


def made(**hooks: Callable[..., Any]) -> Instrument:
    """Return an instrument with these hooks."""
    instrument: Instrument = type("Made", (Instrument,), hooks)()
    return instrument


# --- which hooks are called --------------------------------------------------------------------------------------


def test_only_overridden_hooks_are_called() -> None:
    """A hook that no instrument overrides has nothing to call, so that no event is made for it."""
    instruments = Instruments("memory://")
    instruments.add([Sent(), Instrument()])
    called = [hook for hook in dir(Instruments) if isinstance(getattr(instruments, hook), tuple) and hook[0] != "_"]
    assert [hook for hook in called if getattr(instruments, hook)] == ["message_sent"]
    assert "handling" in called


def test_an_instrument_is_called_once() -> None:
    """An instrument that is added again is called once for each event."""
    sent = Sent()
    instruments = Instruments("memory://")
    instruments.add([sent, sent])
    instruments.add([sent])
    instruments.emit(EVENT)
    assert sent.events == [EVENT]


@pytest.mark.parametrize("wrong", [Sent, "otel", None, 1])
def test_what_is_no_instrument_is_refused(url: str, wrong: Any) -> None:
    """`instruments=` takes a list of instruments; nothing is opened or added otherwise."""
    for value in (wrong, [wrong], [Sent(), wrong]):
        with pytest.raises(InvalidArgumentError, match="instrument"):
            ailf.connect(url, instruments=value)
        with pytest.raises(InvalidArgumentError, match="instrument"):
            ailf.connect_async(url, instruments=value)
    sent = Sent()
    with ailf.connect(url) as backend:
        with pytest.raises(InvalidArgumentError, match="must be an Instrument"):
            backend.instrument(sent, wrong)
        backend.stream("s").add(1)
    assert sent.events == []
    with pytest.raises(InvalidArgumentError, match="list of Instrument objects, not Sent"):
        ailf.connect(url, instruments=sent)  # type: ignore[arg-type]  # the mistake under test


# --- what an instrument may do -----------------------------------------------------------------------------------


class UnshownError(Exception):
    """An error whose `str()` fails."""

    def __str__(self) -> str:
        raise TypeError


@pytest.mark.parametrize(
    "error", [ValueError("x"), UnshownError(), UnicodeError("\ud800"), ExceptionGroup("g", [OSError()])]
)
def test_an_instrument_that_raises_is_removed(url: str, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once, and other instruments are called."""
    sent = Sent()
    with ailf.connect(url, instruments=[Raising(error), sent]) as backend:
        for _ in range(2):
            backend.stream("s").add(1)
    assert len(sent.events) == 2
    (record,) = [each for each in caplog.records if each.name == "ailf.instruments"]
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith(f"instrument {__name__}.Raising: message_sent failed, so it is removed")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), asyncio.CancelledError(), GeneratorExit()])
def test_other_exceptions_pass(url: str, error: BaseException) -> None:
    """Ctrl-C in an instrument is the caller's; the instrument stays."""
    with ailf.connect(url, instruments=[Raising(error)]) as backend:
        for _ in range(2):
            with pytest.raises(type(error)):
                backend.stream("s").add(1)
        assert len(list(backend.stream("s").read())) == 2


@pytest.mark.parametrize(
    "headers", [None, 1, {"a": 1}, {"": "x"}, {"a": ""}, {"a": "\ud800"}, {str(n): "x" for n in range(100)}]
)
def test_headers_that_cannot_be_sent(url: str, headers: Any, caplog: pytest.LogCaptureFixture) -> None:
    """An instrument whose headers can't be sent is removed; the message is sent with those of the caller."""
    instrument = made(sending=lambda *_: headers)
    with ailf.connect(url, instruments=[instrument]) as backend:
        backend.stream("s").add(1, headers={"own": "header"})
        (entry,) = backend.stream("s").read()
    assert entry.headers == {"own": "header"}
    assert "sending failed, so it is removed" in caplog.text


def test_headers_of_the_caller_are_checked_as_ever(url: str) -> None:
    """An instrument doesn't change which headers are refused, and sees a call that is refused as failed."""
    sent = Sent()
    with ailf.connect(url, instruments=[sent, made(sending=lambda _, __, headers: headers)]) as backend:
        with pytest.raises(InvalidArgumentError, match="header 'a'"):
            backend.stream("s").add(1, headers={"a": ""})
        with pytest.raises(InvalidArgumentError, match="headers must be a mapping"):
            backend.pubsub().publish("c", 1, headers="x")  # type: ignore[arg-type]  # the mistake under test
    assert [type(each.error) for each in sent.events] == [InvalidArgumentError] * 2


def test_an_instrument_can_not_change_the_headers_it_is_given(url: str) -> None:
    """`sending` gets a copy: the caller's mapping stays as it is."""

    def sending(_: object, __: object, headers: dict[str, str]) -> dict[str, str]:
        headers["more"] = "x"
        return headers

    own = {"own": "header"}
    with ailf.connect(url, instruments=[made(sending=sending)]) as backend:
        backend.stream("s").add(1, headers=own)
        assert [each.headers for each in backend.stream("s").read()] == [{"own": "header", "more": "x"}]
    assert own == {"own": "header"}


@pytest.mark.parametrize("at", ["call", "enter", "exit"])
def test_a_context_manager_that_fails(url: str, at: str, caplog: pytest.LogCaptureFixture) -> None:
    """The handler runs as without the instrument, and others' context managers are left in reverse order."""
    left: list[str] = []

    def around(name: str) -> Callable[..., Any]:
        @contextlib.contextmanager
        def handling(_: object, __: object) -> Iterator[None]:
            yield
            left.append(name)

        return handling

    class Failing:
        def __init__(self, *_: object) -> None:
            self.fail("call")

        def fail(self, where: str) -> None:
            if where == at:
                raise ValueError(where)

        def __enter__(self) -> None:
            self.fail("enter")

        def __exit__(self, *_: object) -> bool:
            self.fail("exit")
            return True

    instruments = [made(handling=around("one")), made(handling=lambda *_: Failing()), made(handling=around("two"))]
    with ailf.connect(url, instruments=instruments) as backend:
        stream = backend.stream("s")
        stream.add(1)
        group = stream.group("g")
        group.process(lambda _: group.stop())
        assert group.info().pending == group.info().lag == 0
    assert left == ["two", "one"]
    assert "handling failed, so it is removed" in caplog.text


@pytest.mark.parametrize("at", ["enter", "exit"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), asyncio.CancelledError()])
def test_other_exceptions_pass_when_all_are_left(url: str, at: str, error: BaseException) -> None:
    """Ctrl-C in a context manager leaves those of other instruments, which may have set context variables."""
    steps: list[str] = []

    @contextlib.contextmanager
    def around(_: object, __: object) -> Iterator[None]:
        steps.append("entered")
        try:
            yield
        finally:
            steps.append("left")

    @contextlib.contextmanager
    def interrupted(_: object, __: object) -> Iterator[None]:
        if at == "enter":
            raise error
        yield
        raise error

    instruments = [made(handling=around), made(handling=around), made(handling=interrupted)]
    with ailf.connect(url, instruments=instruments) as backend:
        stream = backend.stream("s")
        stream.add(1)
        group = stream.group("g")
        with pytest.raises(type(error)):
            group.process(lambda _: group.stop())
    assert steps == ["entered", "entered", "left", "left"]


@pytest.mark.parametrize("error", [ValueError("x"), ailf.Reject("x"), SystemExit(2)])
def test_a_context_manager_can_not_suppress(url: str, error: BaseException) -> None:
    """The exception of a handler settles its message, whatever `__exit__` returns; a generator may raise it again."""
    seen: list[BaseException | None] = []

    class Suppressing(contextlib.AbstractContextManager[None]):
        def __exit__(self, kind: object, error: BaseException | None, at: object) -> bool:
            seen.append(error)
            return True

    @contextlib.contextmanager
    def passing(_: object, __: object) -> Iterator[None]:
        yield

    instruments = [made(handling=lambda *_: Suppressing()), made(handling=passing)]
    with ailf.connect(url, instruments=instruments) as backend:
        stream = backend.stream("s")
        stream.add(1)
        group = stream.group("g", max_deliveries=1)

        def handler(_: object) -> None:
            group.stop()
            raise error

        with contextlib.suppress(SystemExit):
            group.process(handler)
        with (
            contextlib.suppress(ValueError, SystemExit),
            stream.group("h").consumer() as consumer,
            consumer.get(0),  # type: ignore[union-attr]  # there is one
        ):
            raise error
    assert seen == [error, error]


def test_context_variables_reach_the_handler(url: str) -> None:
    """Variables that `handling` sets are seen by the handler of the same message, and by no other code."""
    variable = contextvars.ContextVar("variable", default=0)
    seen: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def handling(_: object, delivery: ailf.AsyncDelivery[int]) -> Iterator[None]:
        token = variable.set(delivery.data)
        yield
        variable.reset(token)

    async def handled() -> None:
        async with ailf.connect_async(url, instruments=[made(handling=handling)]) as backend:
            stream = backend.stream("s", type=int)
            await stream.add_many(range(1, 6))
            group = stream.group("g")

            async def handler(delivery: ailf.AsyncDelivery[int]) -> None:
                await asyncio.sleep(0)
                seen.append((delivery.data, variable.get()))
                if len(seen) == 5:
                    group.stop()

            await group.process(handler, concurrency=3)
            assert variable.get() == 0

    asyncio.run(handled())
    assert sorted(seen) == [(number, number) for number in range(1, 6)]


# --- where instruments come from ---------------------------------------------------------------------------------


@pytest.fixture
def install(install_package: Callable[..., None], fresh_registry: None) -> Callable[[str, str], None]:
    """Install a distribution with one instrument."""

    def installed(name: str, source: str) -> None:
        module = f"ailf_test_instrument_{name}"
        install_package(hookspecs.INSTRUMENTS, name, source, package=module, module=module)

    return installed


WORKING = """
    import ailf
    from ailf.instruments import Instrument

    URLS = []

    class Audit(Instrument):
        def message_sent(self, event):
            URLS.append(event.destination.backend)

    @ailf.hookimpl
    def ailf_instrument(url):
        URLS.append(url)
        return Audit()
"""


@pytest.mark.parametrize("broken", ["raise ValueError('half installed')", WORKING.replace("Audit()", "1")])
def test_installed_instruments(
    url: str, install: Callable[[str, str], None], broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`connect` adds the instruments of installed packages; a broken package is logged once and breaks only itself."""
    install("audit", WORKING)
    install("broken", broken)
    install("nothing", "import ailf\n@ailf.hookimpl\ndef ailf_instrument(url): return None")
    for _ in range(2):
        with ailf.connect(url) as backend:
            backend.stream("s").add(1)
    import ailf_test_instrument_audit as audit  # type: ignore[import-not-found]  # noqa: PLC0415 - made by this test

    assert [url] * 4 == audit.URLS
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == [
        "instrument broken (ailf_test_instrument_broken, from ailf_test_instrument_broken): it can't be used"
    ]
