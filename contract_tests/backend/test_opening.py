"""B: opening a backend, and its declared capabilities."""

import time

import pytest

import ailf
from ailf.driver import Capability
from contract_tests.fixtures import needs
from contract_tests.helpers.threads import in_thread
from contract_tests.world import World


async def test_unknown_urls(world: World) -> None:
    """B1: an unknown scheme is refused at once, and the error lists the installed ones."""
    for connect in (ailf.connect, ailf.connect_async):
        with pytest.raises(ailf.InvalidArgumentError, match="installed are") as caught:
            connect("nosuchscheme://someone:secret@x")
        assert "secret" not in str(caught.value)


@needs("url")
async def test_unknown_options(world: World) -> None:
    """B1: an unknown option in a URL is refused at once, and the error names it."""
    url = str(world.harness.url)
    wrong = f"{url}{'&' if '?' in url else '?'}nosuchoption=1"
    for connect in (ailf.connect, ailf.connect_async):
        with pytest.raises(ailf.InvalidArgumentError, match="nosuchoption"):
            connect(wrong)


@needs("unreachable_url")
async def test_unreachable(world: World) -> None:
    """B1: an unreachable server raises at once, with an error that names the URL without its credentials."""
    url = str(world.harness.unreachable_url)
    begin = time.monotonic()
    opening = ailf.connect_async(url).__aenter__() if world.flavour == "asyncio" else in_thread(ailf.connect, url)
    with pytest.raises(ailf.ConnectionLostError, match=r"127\.0\.0\.1:1\b") as caught:
        await world.within_patience(opening)
    assert time.monotonic() - begin < world.patience
    assert "secret" not in f"{caught.value}{caught.value!r}{caught.value.__cause__}"


async def test_undeclared_is_unsupported(world: World) -> None:
    """B2: an object of a declared capability can be made; one of an undeclared capability raises when it is made."""
    backend = await world.connect()
    for capability, make in (
        (Capability.PUBSUB, backend.pubsub),
        (Capability.STREAM, lambda: backend.stream("s")),
        (Capability.PATTERNS, lambda: backend.pubsub().listen(pattern="*")),
    ):
        if capability in backend.capabilities:
            make()
        else:
            with pytest.raises(ailf.UnsupportedError):
                make()
