"""Settings: how a URL is read, and what is shown of it."""

from typing import Any

import pytest

from ailf.errors import InvalidArgumentError
from ailf_redis.settings import Settings


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://", "redis://localhost:6379/0"),
        ("redis://u:p%40ss@h:1/2", "redis://h:1/2"),
        ("rediss://h", "rediss://h:6379/0"),
        ("redis://[::1]:7/3", "redis://[::1]:7/3"),
        ("unix:///tmp/r.sock?db=4", "unix:///tmp/r.sock"),
        ("valkey://u:p@h/2", "redis://h:6379/2"),
        ("valkeys://h:1", "rediss://h:1/0"),
        ("redis+sentinel://s/crew", "redis+sentinel://s:26379/crew"),
        ("redis+sentinel://u:p@a,b:2,[::1]/crew/3", "redis+sentinel://a:26379,b:2,[::1]:26379/crew"),
        ("rediss+sentinel:///crew", "rediss+sentinel://localhost:26379/crew"),
        ("redis+cluster://u:p@a,b:2", "redis+cluster://a:6379,b:2"),
        ("rediss+cluster://[::1]:7/0", "rediss+cluster://[::1]:7"),
    ],
)
def test_urls(url: str, shown: str) -> None:
    """A URL is read whole, and shown without credentials."""
    assert Settings.from_url(url).url == shown


def test_sentinels_have_credentials_of_their_own() -> None:
    """The user and password of the URL are for the server; those for the Sentinels are options, and hidden as well."""
    url = "redis+sentinel://app:p1@a,b/crew/3?sentinel_username=watch&sentinel_password=p2&timeout=2"
    settings = Settings.from_url(url)
    assert (settings.username, settings.password, settings.db, settings.timeout) == ("app", "p1", 3, 2)
    assert (settings.sentinel_username, settings.sentinel_password) == ("watch", "p2")
    assert settings.sentinels == (("a", 26379), ("b", 26379))
    assert not {"p1", "p2"} & set(repr(settings).replace("'", " ").split())
    with pytest.raises(InvalidArgumentError, match=r"unknown option.* 'sentinel_password'"):
        Settings.from_url("redis://h?sentinel_password=p2")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+sentinel://a,b", "name of the master is missing"),
        ("redis+sentinel://a,,b/crew", "a host is missing"),
        ("redis+sentinel://a,b:c/crew", "HOST:PORT, or several"),
        ("redis+sentinel://a,b:99999/crew", "port must be"),
        ("redis+sentinel://a/crew/many", "db can't be"),
        ("redis+cluster://a/3", "only database 0"),
        ("redis+cluster://a?db=3", "only database 0"),
        ("redis://a,b", "names one host; write redis[+]sentinel"),
        ("redis://h?tls_ca=f", "tls_ca is for TLS, which is off"),
        ("redis+sentinel://h/crew?tls_cert=f", "tls_cert is for TLS, which is off"),
        ("rediss://h?tls_key=f", "give tls_cert"),
        ("rediss://h?tls_verify=false", "can pass the keyword tls_verify=False"),
        ("rediss://h?tls_verify=true", "can pass the keyword tls_verify=False"),
        ("rediss://h?ssl_cert_reqs=none", "can pass the keyword tls_verify=False"),
    ],
)
def test_wrong_places(url: str, says: str) -> None:
    """A URL that contradicts itself, or asks for less TLS, is refused, and the message says what to write."""
    with pytest.raises(InvalidArgumentError, match=says):
        Settings.from_url(url)


def test_options_as_keywords() -> None:
    """Each option of a URL may be a keyword; some are keywords only. They are checked alike, and given once."""
    settings = Settings.from_url("rediss://h?timeout=2", namespace="crew", password="s3cret", tls_verify=False)
    assert (settings.timeout, settings.namespace, settings.password) == (2, "crew", "s3cret")
    assert settings.tls_verify is False
    assert Settings.from_url("redis://h", db=3).db == 3
    for url, options, says in (
        ("redis://u:s3cret@h", {"password": "s3cret2"}, "password is given in the URL and as a keyword"),
        ("redis://h?timeout=2", {"timeout": 3}, "timeout is given in the URL and as a keyword"),
        ("redis://h/1", {"db": 2}, "db is given in the URL and as a keyword"),
        ("redis://h", {"timeout": "3"}, "timeout must be"),
        ("redis://h", {"time_out": 3}, "unknown option 'time_out'; known are .*tls_verify"),
        ("redis://h", {"host": "g"}, "unknown option 'host'"),
        ("redis://h", {"tls_verify": "no"}, "tls_verify must be"),
    ):
        with pytest.raises(InvalidArgumentError, match=says) as caught:
            Settings.from_url(url, **options)
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sentinels": [("a", 1)]}, "belong together"),
        ({"master": "m"}, "belong together"),
        ({"sentinels": [("a", 1)], "master": "m", "nodes": [("a", 1)]}, "exclude each other"),
        ({"nodes": [("a", 1)], "path": "/tmp/s"}, "exclude each other"),
        ({"sentinel_password": "p"}, "for sentinels"),
        ({"nodes": "a:1"}, "list of pairs"),
        ({"nodes": ["a:1"]}, "pair"),
        ({"nodes": [("a", 0)]}, "port of nodes"),
        ({"nodes": [("a", 65536)]}, "port of nodes"),
        ({"nodes": [("", 1)]}, "host of nodes"),
    ],
)
def test_settings_that_contradict_each_other(fields: dict[str, Any], says: str) -> None:
    """Fields that exclude or need each other are refused when the settings are made."""
    with pytest.raises(InvalidArgumentError, match=says):
        Settings(**fields)


def test_credentials_are_unquoted_and_hidden() -> None:
    """Credentials are percent-decoded once, and no repr shows them."""
    settings = Settings.from_url("redis://us%2Fer:p%2525@h")
    assert (settings.username, settings.password) == ("us/er", "p%25")
    assert "p%25" not in repr(settings)


@pytest.mark.parametrize(
    "url",
    [
        "http://h", "redis://h:notaport", "redis://h/notanumber", "redis://h?timeout=soon", "redis://h?ssl_cert_reqs=none",
        "redis://h?unknown=1", "redis://h?keepalive=maybe", "redis://:secret@h?nope=1",
    ],
)  # fmt: skip
def test_bad_urls(url: str) -> None:
    """A URL that isn't understood is refused, never partly ignored, and the message hides credentials."""
    with pytest.raises(InvalidArgumentError) as caught:
        Settings.from_url(url)
    assert "secret" not in str(caught.value)
