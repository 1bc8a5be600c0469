"""Parts of the contract over TCP, unix sockets and TLS, on threads, asyncio and uvloop; and what TLS refuses."""

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
import uvloop

import ailf
from ailf.runtime import run
from ailf_redis.connection.blocking import BlockingExecutor
from ailf_redis.settings import Settings
from contract_tests.backend import test_backend as b
from contract_tests.backend import test_cancel as cancel
from contract_tests.backend import test_close as close
from contract_tests.lock import test_lock_hold as lh
from contract_tests.pubsub import test_pubsub as p
from contract_tests.pubsub import test_request as req
from contract_tests.ratelimit import test_ratelimit as rl
from contract_tests.stream import test_delivery as d
from contract_tests.stream import test_stream as s
from contract_tests.stream import test_worker as w
from contract_tests.world import World, run_test
from tests.contract.harnesses import RedisHarness
from tests.support.binaries import found
from tests.support.effort import THOROUGH
from tests.support.servers import NewServer, Server, ServerStartError, free_port
from tests.support.tls import HOST, Certificates, Terminator

SENDERS, SENT = 4, 500

LOOPS: Final[dict[str, Callable[[], asyncio.AbstractEventLoop]]] = {
    "blocking": asyncio.new_event_loop,
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
"""The event loop that a test of the suite runs in, by the way in which the backend is used."""

OF_ALL = [
    b.test_one_backend_for_many_callers,
    b.test_one_consumer_for_many_callers,
    b.test_largest,
    close.test_close_wakes_every_call,
    close.test_close_leaves_nothing,
    close.test_ends_promptly,
    d.test_fenced_settles,
    lh.test_holding,
    p.test_confirmed_on_entry,
    p.test_order_of_each_publisher,
    req.test_each_request_gets_its_own_reply,
    rl.test_concurrency_slots,
    s.test_many_producers,
    w.test_outcomes_of_handlers,
]
OF_TASKS = [
    cancel.test_cancelled_adds,
    cancel.test_cancelled_publishes,
    cancel.test_cancelled_subscribing,
    cancel.test_cancelled_waits_lose_nothing,
    cancel.test_cancelled_settles,
    cancel.test_cancelled_opening,
    cancel.test_cancelled_process,
    req.test_cancelled_requests,
]

WAYS = [("tcp", "uvloop"), *itertools.product(("unix", "tls"), LOOPS)]
"""The transports and loops; the suite itself runs the others over TCP."""

CASES = [
    pytest.param(transport, loop, test, id=f"{transport}-{loop}-{test.__name__}")
    for way, (transport, loop) in enumerate(WAYS)
    for number, test in enumerate(OF_ALL + (OF_TASKS if loop != "blocking" else []))
    if THOROUGH or (way + number) % 2 == 0  # half of the tests over each, by turns
]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """The certificates of this module's servers."""
    return Certificates.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def urls(certificates: Certificates) -> Iterator[dict[str, str]]:
    """The URLs of one server, by transport."""
    version, binary = next(reversed(found().items()))
    with (
        Server.start(binary, version=version, unixsocket=True) as server,
        Terminator(certificates, server.port) as tls,
    ):
        yield {
            "tcp": server.url,
            "unix": server.unix_url,
            "tls": f"rediss://{HOST}:{tls.port}/0?tls_ca={certificates.ca}",
        }


@pytest.mark.parametrize(("transport", "loop", "test"), CASES)
def test_everything_goes(urls: dict[str, str], transport: str, loop: str, test: Callable[..., Any]) -> None:
    """The suite's tests pass over each transport, on threads, asyncio and uvloop; `make test-all` runs all of them."""
    world = World(RedisHarness(urls[transport]), "blocking" if loop == "blocking" else "asyncio")
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(run_test(world, test))


# --- what TLS refuses --------------------------------------------------------------------------------------------


@pytest.fixture(params=["terminated", "native"])
def tls_port(
    request: pytest.FixtureRequest, certificates: Certificates, any_server: Server, new_server: NewServer
) -> Iterator[int]:
    """A port with TLS: that of a terminator before a server, or the server's own."""
    if request.param == "native":
        yield _native(new_server, certificates)
        return
    with Terminator(certificates, any_server.port) as terminator:
        yield terminator.port


def _native(new_server: NewServer, certificates: Certificates) -> int:
    port = free_port()
    options = ("--tls-port", str(port), "--tls-auth-clients", "no", *certificates.options())
    for version in found():
        with contextlib.suppress(ServerStartError):
            new_server(*options, version=version)
            return port
    pytest.skip("no server here was built with TLS")


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_tls(tls_port: int, certificates: Certificates, namespace: str, flavour: str) -> None:
    """A connection is made if a trusted authority certifies the server's name."""
    url = f"rediss://{HOST}:{tls_port}/0?tls_ca={certificates.ca}&namespace={namespace}"
    assert talk(url, flavour) == "hello"


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
@pytest.mark.parametrize(
    ("host", "options"), [(HOST, ""), ("127.0.0.1", "?tls_ca={ca}")], ids=["unknown authority", "another name"]
)
def test_tls_trusts_nothing_else(
    tls_port: int, certificates: Certificates, host: str, options: str, flavour: str
) -> None:
    """An unknown authority and a certificate for another name are refused, and the error says so."""
    url = f"rediss://{host}:{tls_port}/0{options.format(ca=certificates.ca)}"
    with pytest.raises(ailf.BackendError, match=r"(?i)certificate") as raised:
        talk(f"{url}{'&' if options else '?'}retry_for=0", flavour)
    assert f"rediss://{host}:{tls_port}" in str(raised.value)


def test_tls_with_many_threads(tls_port: int, certificates: Certificates) -> None:
    """Several threads send over one link while another reads: every command and every reply is complete."""
    executor = BlockingExecutor(Settings.from_url(f"rediss://{HOST}:{tls_port}/0?tls_ca={certificates.ca}"))
    link = run(executor.link())

    def send(sender: int) -> None:
        for number in range(SENT):
            run(link.send([("ECHO", f"{sender} {number} {'x' * number}")]))

    threads = [threading.Thread(target=send, args=(sender,)) for sender in range(SENDERS)]
    for each in threads:
        each.start()
    replies: list[bytes] = []
    until = time.monotonic() + 20
    while len(replies) < SENDERS * SENT and time.monotonic() < until:
        replies += run(link.receive(1.0))
    for each in threads:
        each.join(5)
    run(link.close())
    run(executor.close())
    assert len(replies) == SENDERS * SENT
    for sender in range(SENDERS):
        own = [each.split(b" ") for each in replies if each.startswith(b"%d " % sender)]
        assert [(int(number), len(rest)) for _, number, rest in own] == [(each, each) for each in range(SENT)]


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_tls_against_a_server_without(any_server: Server, flavour: str) -> None:
    """A server without TLS is an error within `connect_timeout`; the call doesn't wait for ever."""
    with pytest.raises(ailf.BackendError, match=r"rediss://"):
        talk(f"rediss://{HOST}:{any_server.port}/0?retry_for=0&connect_timeout=2&timeout=2", flavour)


def talk(url: str, flavour: str) -> Any:
    """Publish a message, and return the one that a subscription receives."""

    async def on_asyncio() -> Any:
        async with ailf.connect_async(url) as backend, backend.pubsub().listen("c") as messages:
            await backend.pubsub().publish("c", "hello")
            return (await messages.get(5)).data

    if flavour == "asyncio":
        return asyncio.run(on_asyncio())
    with ailf.connect(url) as backend, backend.pubsub().listen("c") as messages:
        backend.pubsub().publish("c", "hello")
        return messages.get(5).data
