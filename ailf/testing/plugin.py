"""The pytest plugin: fixtures with a backend for each test. It is off unless a project asks for it.

Write ``pytest_plugins = ["ailf.testing.plugin"]`` into the ``conftest.py`` of the project's root folder, or run
``pytest -p ailf.testing.plugin``. Nothing else loads this module.

The tests run in memory, and on each backend that ``--ailf-url`` (several times) or the ini option ``ailf_urls`` names.
Each test has a namespace of its own, which is removed at its end. A test that asks for `ailf_clock` moves the time, so
it runs in memory only.
"""

import asyncio
import uuid
from collections.abc import Iterator
from typing import Final

import attrs
import pytest

import ailf
from ailf.runtime import run
from ailf.testing.clock import ManualClock
from ailf.testing.faults import Faults
from ailf.testing.recorder import Recorder
from ailf.urls import scheme_of, shown
from ailf_memory import AsyncMemoryBackend, MemoryBackend, MemoryStore

__all__ = [
    "ailf_async_backend",
    "ailf_backend",
    "ailf_clock",
    "ailf_faults",
    "ailf_recorder",
    "ailf_url",
    "pytest_addoption",
    "pytest_generate_tests",
]

IN_MEMORY: Final = "memory://"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that name the backends."""
    group = parser.getgroup("ailf", "ailf: backends for tests")
    group.addoption("--ailf-url", action="append", default=[], metavar="URL", help="a backend to run the tests on")
    parser.addini("ailf_urls", "the URLs of the backends to run the tests on", type="linelist", default=[])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that uses a backend once on each of them."""
    if "ailf_url" not in metafunc.fixturenames:
        return
    urls: list[str] = metafunc.config.getoption("--ailf-url") or metafunc.config.getini("ailf_urls") or [IN_MEMORY]
    if "ailf_clock" in metafunc.fixturenames:  # no other backend's time can be moved
        urls = [IN_MEMORY]
    metafunc.parametrize("ailf_url", urls, ids=[shown(url) for url in urls], indirect=True)


@pytest.fixture
def ailf_url(request: pytest.FixtureRequest) -> str:
    """The URL of the test's backend, with a namespace of the test's own."""
    base, _, query = request.param.partition("?")
    options = [each for each in query.split("&") if each and not each.startswith("namespace=")]
    return f"{base}?{'&'.join([*options, f'namespace=ailf-test-{uuid.uuid4().hex[:16]}'])}"


@pytest.fixture
def ailf_clock() -> ManualClock:
    """The clock of the test's backends, which stands still until the test moves it."""
    return ManualClock()


@pytest.fixture
def ailf_recorder() -> Recorder:
    """The recorder of what the test's backends do."""
    return Recorder()


@pytest.fixture
def ailf_faults() -> Iterator[Faults]:
    """The fault script of the test's backends; at the end of the test all of its faults must have happened."""
    faults = Faults()
    yield faults
    if faults.pending:
        pytest.fail(f"faults that never happened: {', '.join(faults.pending)}")


@attrs.frozen
class _Opening:
    """How the backends of one test are opened.

    Attributes:
        url: Their URL.
        store: Their store, in memory; else None.
        recorder: Their recorder, if the test asks for it.
        faults: Their fault script, if the test asks for it.
    """

    url: str
    store: MemoryStore | None
    recorder: Recorder | None
    faults: Faults | None

    def prepare(self, backend: "ailf.Backend | ailf.AsyncBackend") -> None:
        """Give a backend its recorder and its faults."""
        if self.recorder is not None:
            backend.instrument(self.recorder)
        if self.faults is not None:
            self.faults.install(backend)


@pytest.fixture
def _ailf_opening(request: pytest.FixtureRequest, ailf_url: str) -> Iterator[_Opening]:
    """How the backends of the test are opened; at the end its namespace is removed."""
    asked = request.fixturenames
    clock = request.getfixturevalue("ailf_clock") if "ailf_clock" in asked else None
    in_memory = scheme_of(ailf_url) == "memory"
    yield _Opening(
        ailf_url,
        MemoryStore(clock) if in_memory else None,
        request.getfixturevalue("ailf_recorder") if "ailf_recorder" in asked else None,
        request.getfixturevalue("ailf_faults") if "ailf_faults" in asked else None,
    )
    if not in_memory:
        with ailf.connect(ailf_url) as backend:
            namespace = ailf_url.rpartition("namespace=")[2]
            run(backend.engine.driver.remove_namespaces(namespace))


@pytest.fixture
def ailf_backend(_ailf_opening: _Opening) -> "Iterator[ailf.Backend]":
    """A blocking backend; it shares its state with `ailf_async_backend`."""
    opening = _ailf_opening
    opened = ailf.connect(opening.url) if opening.store is None else MemoryBackend(store=opening.store)
    with opened as backend:
        opening.prepare(backend)
        yield backend


@pytest.fixture
def ailf_async_backend(_ailf_opening: _Opening) -> "Iterator[ailf.AsyncBackend]":
    """An asyncio backend, for the event loop of the test; it needs no plugin for asyncio, and works with each."""
    opening = _ailf_opening
    store = opening.store
    backend = ailf.connect_async(opening.url) if store is None else AsyncMemoryBackend(store=store)
    opening.prepare(backend)
    yield backend
    loop = asyncio.new_event_loop()  # the test's own may be closed, and asyncio.run would unset it
    try:
        loop.run_until_complete(backend.aclose())
    finally:
        loop.close()
