"""Settings: how a URL is read, and what is shown of it."""

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
    ],
)
def test_urls(url: str, shown: str) -> None:
    """A URL is read whole, and shown without credentials."""
    assert Settings.from_url(url).url == shown


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
