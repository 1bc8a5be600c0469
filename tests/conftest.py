"""Fixtures for all tests: real servers, a name nobody else uses, and a report of what this machine cannot run."""

import gc
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import binaries
from tests.support.clusters import Cluster
from tests.support.effort import CAMPAIGN, NEWEST, THOROUGH
from tests.support.servers import NewServer, Server, SharedServers


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a selection of servers that cannot be had, before anything runs; let the programs of tests get Ctrl-C.

    A shell starts what runs in the background with SIGINT ignored, and whatever that starts inherits it.
    Examples of hypothesis are always the same, so an ordinary run fails only because of a change; a campaign chooses
    them at random, and finds new faults.
    """
    config.addinivalue_line("markers", f"{NEWEST.name}: runs on the newest server only, unless AILF_TEST_ALL=1")
    settings.register_profile("ailf", derandomize=not CAMPAIGN, deadline=None)
    settings.load_profile("ailf")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        binaries.found()
    except LookupError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_collection_finish() -> None:
    """Exempt what was imported and collected from garbage collection.

    It is some hundred megabytes in each of the processes, and no garbage: a full collection looked at all of it.
    """
    gc.collect()
    gc.freeze()


def pytest_report_header() -> list[str]:
    """Say which servers the tests run on."""
    lines = [f"server {binaries.locate(version).note}" for version in binaries.found()] + _missing()
    if not THOROUGH and not binaries.selection():
        lines.append("a part of the contract on each server, slow tests on the newest one: `make test-all` runs all")
    return lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say again at the end what was not tested: the header is far up, and -q hides it."""
    for line in _missing():
        terminalreporter.write_line(line, yellow=True)


def _missing() -> list[str]:
    here = binaries.found()
    absent = [version for version in binaries.VERSIONS if version not in here]
    chosen = binaries.selection()
    return [
        f"server not tested: {version} (not in {binaries.SELECTION})" if chosen else f"server not tested: {note}"
        for version, note in ((version, binaries.locate(version).note) for version in absent)
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for a server of each version once per version; without any server it fails, rather than vanish."""
    versions = list(binaries.found()) or ["none"]
    if metafunc.definition.get_closest_marker(NEWEST.name) and not (THOROUGH or binaries.selection()):
        versions = versions[-1:]
    for name in ("server", "own_server"):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, versions, indirect=True)


@pytest.fixture(scope="session")
def redis_versions() -> list[str]:
    """The server versions under test, from old to new."""
    return list(binaries.found())


@pytest.fixture(scope="session")
def shared_servers() -> Iterator[SharedServers]:
    """The servers behind `server` and `any_server`."""
    servers = SharedServers()
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, shared_servers: SharedServers) -> Server:
    """A shared server, once per version; keep to your `namespace` and leave the process alone."""
    return _shared(shared_servers, request.param)


@pytest.fixture(scope="module")
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of one test file, once per version: it may be configured, emptied, and made to hang."""
    with Server.start(_binary(request.param), version=request.param) as server:
        yield server


@pytest.fixture(scope="session")
def any_server(shared_servers: SharedServers) -> Server:
    """The newest shared server, for what does not depend on the version."""
    return _shared(shared_servers, next(reversed(binaries.found()), "none"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A shared cluster of the newest server; keep to your `namespace` and leave its processes alone."""
    version, binary = next(reversed(binaries.found().items()))
    shared = Cluster(binary, version)
    yield shared
    shared.close()


@pytest.fixture
def new_server() -> Iterator[NewServer]:
    """Start private servers, to be stopped, paused, killed and configured at will."""
    servers: list[Server] = []

    def start(
        *options: str,
        version: str | None = None,
        password: str | None = None,
        appendonly: bool = False,
        unixsocket: bool = False,
        port: int | None = None,
    ) -> Server:
        version = version or next(reversed(binaries.found()), "none")
        started = Server.start(
            _binary(version),
            *options,
            version=version,
            password=password,
            appendonly=appendonly,
            unixsocket=unixsocket,
            port=port,
        )
        servers.append(started)
        return started

    yield start
    for each in servers:
        each.close()


@pytest.fixture
def private(new_server: NewServer) -> Server:
    """A server of this test alone: all that it counts, keeps and is connected to is this test's."""
    return new_server()


@pytest.fixture
def namespace() -> str:
    """A namespace of the test's own, so that tests can share a server."""
    return f"test-{uuid.uuid4().hex[:12]}"


def _shared(servers: SharedServers, version: str) -> Server:
    return servers.get(version, _binary(version))


def _binary(version: str) -> Path:
    binary = binaries.found().get(version)
    if binary is None:
        pytest.fail(f"no server on this machine: {'; '.join(binaries.locate(each).note for each in binaries.VERSIONS)}")
    return binary
