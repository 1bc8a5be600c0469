"""What an app refuses, at the decorator."""

import contextlib
import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import ailf


def plain(*_: Any) -> None:
    """Do nothing."""


async def coroutine(*_: Any) -> None:
    """Do nothing."""


def yielding(*_: Any) -> Iterator[int]:
    """Run nothing when it is called."""
    yield 1


class Callable:
    """An object with a coroutine function."""

    async def __call__(self, *_: Any) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"stream": ""}, "name of a stream must not be empty"),
        ({"stream": 3}, "name of a stream must be text"),
        ({"group": "x" * 513}, "name of a group is 513 bytes"),
        ({"type": "x"}, "type='x' can't be decoded"),
        ({"retention": 5}, "retention must be a Retention"),
        ({"partitions": 257}, "partitions must be at most 256"),
        ({"start": 3}, "start must be a datetime"),
        ({"lease": 0}, "lease must be at least"),
        ({"max_deliveries": 0}, "max_deliveries must be a whole number"),
        ({"backoff": 3}, "backoff must be a Backoff"),
        ({"key_concurrency": 101}, "key_concurrency must be at most 100"),
        ({"concurrency": 0}, "concurrency must be a whole number"),
        ({"batch": 0}, "batch must be a whole number"),
        ({"linger": 1.0}, "linger is for batches"),
        ({"drain": -1}, "drain must be at least"),
        ({"timeout": 0}, "timeout must be at least"),
        ({"on_lost": "cancel"}, "on_lost must be one of"),
        ({"consumer": ""}, "name of a consumer must not be empty"),
    ],
    ids=str,
)
def test_options_of_handlers(options: dict[str, Any], why: str) -> None:
    """An invalid option is refused where it stands, before the function is known."""
    given = {"stream": "tasks", "group": "workers", **options}
    with pytest.raises(ailf.InvalidArgumentError, match=why):
        ailf.App().handler(given.pop("stream"), **given)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"channel": ""}, "name of a channel must not be empty"),
        ({"pattern": "yes"}, "pattern must be True or False"),
        ({"type": 3}, "type=3 can't be decoded"),
        ({"on_error": 3}, "on_error must be callable"),
        ({"pattern": True, "sharded": True}, "sharded channels have no patterns"),
    ],
    ids=str,
)
def test_options_of_subscribers(options: dict[str, Any], why: str) -> None:
    """An invalid option is refused where it stands."""
    given = {"channel": "news", **options}
    with pytest.raises(ailf.InvalidArgumentError, match=why):
        ailf.App().subscriber(given.pop("channel"), **given)


@pytest.mark.parametrize("options", [{"name": ""}, {"name": 3}, {"name": "x" * 512}, {"timeout": -1}], ids=str)
def test_options_of_schedules(options: dict[str, Any]) -> None:
    """An invalid option is refused where it stands."""
    with pytest.raises(ailf.InvalidArgumentError):
        ailf.App().every(60, **options)


@pytest.mark.parametrize("decorator", ["handler", "subscriber", "every", "on_startup", "on_shutdown"])
@pytest.mark.parametrize(("function", "why"), [(3, "must be callable"), (yielding, "yields")])
def test_functions(decorator: str, function: Any, why: str) -> None:
    """What can't be called, or yields, is refused."""
    app = ailf.App()
    decorate = {
        "handler": app.handler("tasks", group="workers"),
        "subscriber": app.subscriber("news"),
        "every": app.every(60),
        "on_startup": app.on_startup,
        "on_shutdown": app.on_shutdown,
    }[decorator]
    with pytest.raises(ailf.InvalidArgumentError, match=why):
        decorate(function)


@pytest.mark.parametrize(
    ("first", "second"),
    [(plain, coroutine), (coroutine, plain), (Callable(), plain), (functools.partial(coroutine, 1), plain)],
)
def test_one_flavour(first: Any, second: Any) -> None:
    """The second function of another flavour is refused, and the error names both."""
    app = ailf.App()
    app.handler("tasks", group="workers")(first)
    with pytest.raises(ailf.InvalidArgumentError, match="in one app either all") as refused:
        app.subscriber("news")(second)
    assert "the handler" in str(refused.value)
    assert "the subscriber" in str(refused.value)


def test_hooks_of_a_blocking_app() -> None:
    """A coroutine function can't be a hook of an app of plain functions; a plain one can be a hook of either."""
    app = ailf.App()
    app.on_startup(plain)
    app.every(60)(plain)
    with pytest.raises(ailf.InvalidArgumentError, match="the startup function coroutine is a coroutine function"):
        app.on_startup(coroutine)


def test_a_group_has_one_handler() -> None:
    """A second handler of a group is refused: the two would share its messages."""
    app = ailf.App()
    app.handler("tasks", group="workers")(plain)
    app.handler("tasks", group="others")(plain)
    with pytest.raises(ailf.InvalidArgumentError, match="group 'workers' of stream 'tasks' has a handler"):
        app.handler("tasks", group="workers")


def test_names_of_scheduled_functions() -> None:
    """Two scheduled functions of one name are refused: replicas would take them for one."""
    app = ailf.App()
    app.every(60)(plain)
    with pytest.raises(ailf.InvalidArgumentError, match=r"test_declarations\.plain' is declared already"):
        app.every(30)(plain)
    app.every(30, name="other")(plain)


def test_decorators_return_the_function() -> None:
    """A decorated function stays what it was."""
    app = ailf.App()
    assert app.handler("tasks", group="workers")(app.subscriber("news")(app.every(60)(app.on_startup(plain)))) is plain


def test_lifespans() -> None:
    """A lifespan is a function that returns a context manager, of the app's flavour."""

    async def generates(_: ailf.App) -> AsyncIterator[None]:
        yield

    with pytest.raises(ailf.InvalidArgumentError, match=r"decorate it with @contextlib\.asynccontextmanager"):
        ailf.App(lifespan=generates)  # type: ignore[arg-type]
    with pytest.raises(ailf.InvalidArgumentError, match="lifespan must be callable"):
        ailf.App(lifespan=3)  # type: ignore[arg-type]
    app = ailf.App(lifespan=contextlib.asynccontextmanager(generates))
    with pytest.raises(ailf.InvalidArgumentError, match=r"lifespan .*generates is a coroutine function"):
        app.every(60)(plain)


def test_urls() -> None:
    """The URL is text; the error doesn't quote it."""
    for url in ("", 3, "redis://:secret\0@localhost"):
        with pytest.raises(ailf.InvalidArgumentError) as refused:
            ailf.App(url)  # type: ignore[arg-type]
        assert "secret" not in str(refused.value)
