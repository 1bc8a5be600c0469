"""URLs of backends: which are parsed and refused, and that no credentials are ever shown."""

import traceback
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import ailf
from ailf.errors import AilfError, InvalidArgumentError
from ailf.registry import plugin_for
from ailf.urls import check_options, shown, split_url
from ailf_memory import MemoryBackend
from ailf_redis import RedisBackend, Settings

LETTERS = "Жψ9"
"""Letters of secrets that no message contains."""

SECRETS = st.text(LETTERS + "/#?[]@:%&=+;\\ \t", min_size=4, max_size=12).filter(lambda text: set(text) & set(LETTERS))

SHAPES = [
    "redis://:{}@127.0.0.1:1/0",
    "redis://{}:x@127.0.0.1:1",
    "redis://{}@127.0.0.1:1",
    "rediss://app:{}@h/0?timeout=1",
    "redis://app:{}@h:99999/0",
    "redis://app:{}@h:port/0",
    "redis://app:{}@h/database",
    "redis://app:{}@h?nope=1",
    "redis://app:{}@h?timeout=nan",
    "redis://app:{}@h?timeout=1&timeout=2",
    "redis://app:{}@h/0#part",
    "redis://app:1234/{}@h/0",
    "redis://app:{}@[::1",
    "redis://:{}@",
    "unix://:{}@/tmp/redis.sock",
    "unix://:{}@relative",
    "memory://app:{}@name",
    "memory://app:{}@name?max_payload=many",
    "nosuch://app:{}@h",
    "http:/app:{}@h",
    "app:{}@h",
    "{}@h:1",
    " redis://:{}@h",
]


def texts_of(error: BaseException | None) -> Iterator[str]:
    """Yield all texts of an error, its causes and contexts."""
    while error is not None:
        yield f"{error} {error!r} {error.args!r} {''.join(traceback.format_exception_only(error))}"
        if error.__cause__ is not None:
            yield from texts_of(error.__cause__)
        error = error.__context__


def outcomes(url: str) -> Iterator[str]:
    """Yield the texts in which each function that takes a URL shows it."""
    yield shown(url)
    for make in (
        lambda: repr(Settings.from_url(url)) + Settings.from_url(url).url,
        lambda: repr(RedisBackend(url)),
        lambda: repr(MemoryBackend(url=url)),
        lambda: repr(plugin_for(url, "ailf_connect", "blocking")(url=url)),
        lambda: repr(ailf.connect_async(url)),
        lambda: repr(split_url(url)),
    ):
        try:
            yield make()
        except AilfError as error:
            yield from texts_of(error)


@given(SECRETS, st.sampled_from(SHAPES))
@example("Ж/ψ9@9Ж", "redis://:{}@127.0.0.1:1/0")
@example("%ЖЖЖ%99%ff", "redis://:{}@127.0.0.1:1/0")
@example("ЖЖЖ[ЖЖ", "redis://:{}@127.0.0.1:1/0")
def test_no_part_of_a_password_is_ever_shown(secret: str, shape: str) -> None:
    """No error, cause, context or repr contains four consecutive characters of a password."""
    parts = {secret[at : at + 4] for at in range(len(secret) - 3)}
    parts = {each for each in parts if set(each) & set(LETTERS)}
    for text in outcomes(shape.format(secret)):
        assert not [each for each in parts if each in text]


@pytest.mark.parametrize(
    ("url", "username", "password"),
    [
        ("redis://:s3cr/et@h", None, "s3cr/et"),
        ("redis://app:s3cr#et@h/0", "app", "s3cr#et"),
        ("redis://app:s3cr?et@h:1/0?timeout=1", "app", "s3cr?et"),
        ("redis://app:s3cr[et@h", "app", "s3cr[et"),
        ("redis://app:s3cr@et@h", "app", "s3cr@et"),
        ("redis://app:a:b@h", "app", "a:b"),
        ("redis://a%2Fb:c%40d@h", "a/b", "c@d"),
        ("redis://app@h", "app", None),
        ("redis://h", None, None),
    ],
)
def test_a_password_is_read_where_nothing_else_can_be_meant(
    url: str, username: str | None, password: str | None
) -> None:
    """Characters that should be percent-encoded are accepted unless the URL is ambiguous."""
    settings = Settings.from_url(url)
    assert (settings.host, settings.username, settings.password) == ("h", username, password)


@pytest.mark.parametrize(
    "url",
    [
        "redis://app:12345#et@h/0",
        "redis://app:12345/s3cr@h/0",
        "redis://s3cr#et@h",
        "redis://h/0?namespace=a@b",
        "unix:///tmp/a@b",
    ],
)
def test_an_at_sign_with_two_readings_is_refused(url: str) -> None:
    """The error says to percent-encode it, which works."""
    with pytest.raises(InvalidArgumentError, match="Percent-encode the password"):
        Settings.from_url(url)
    Settings.from_url("redis://h/0?namespace=a%40b")
    assert Settings.from_url("unix:///tmp/a%40b").path == "/tmp/a@b"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://h:0", "port must be"),
        ("redis://h:65536", "port must be"),
        ("redis://h:1:2", "HOST:PORT"),
        ("redis://[::1", "HOST:PORT"),
        ("redis://h/0#1", "#"),
        ("redis://h /0", "space"),
        ("redis://h/0\n", "control character"),
        ("redis://h?timeout=1&timeout=2", "'timeout' is given more than once"),
        ("redis://h?db=1&db=1", "'db' is given more than once"),
        ("redis://h/1?db=1", "db is given in the path and as an option"),
        ("redis://h?namespace=%ff", "not UTF-8"),
        ("redis://:%ff@h", "not UTF-8"),
        ("redis://h?timeout", "timeout can't be ''"),
        ("redis://h?nope=1", "unknown option"),
        ("unix://relative", "path of the socket"),
        ("unix://", "path of the socket"),
        ("memory://user:pw@x", "no user and no password"),
        ("memory://x?max_payload=-1", "max_payload"),
        ("memory://x?max_payload=0", "max_payload"),
        ("memory://x?namespace=a&namespace=b", "more than once"),
        ("redis:h", "is not the URL of a backend"),
        ("", "an empty text is not the URL"),
    ],
)
def test_wrong_urls(url: str, message: str) -> None:
    """A wrong URL is an error that names the wrong part."""
    with pytest.raises(InvalidArgumentError, match=message):
        ailf.connect(url)


def test_what_is_read_of_a_url() -> None:
    """Options are decoded like forms, with percent-encoding and plus; the scheme is in lower case."""
    url = split_url("X-Y://[fe80::1%25eth0]:7/a%20b?one=1+2%26&two=&three=a=b")
    assert (url.scheme, url.host, url.port, url.path) == ("x-y", "fe80::1%eth0", 7, "/a b")
    assert url.options == {"one": "1 2&", "two": "", "three": "a=b"}
    check_options(url, ("one", "two", "three"))
    with pytest.raises(InvalidArgumentError, match="'three', 'two'; known are one"):
        check_options(url, ["one"])
