"""A third party's backend, built and installed as a package, works and passes the contract.

The test does all that a third party does, and uses only the installed packages of this repository.
"""

import sys
import sysconfig
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest

from tests.support.programs import output_of, run_pytest

PYPROJECT = """
    [build-system]
    requires = ["hatchling"]
    build-backend = "hatchling.build"

    [project]
    name = "ailf-toy"
    version = "0.3"
    dependencies = ["ailf"]

    [project.entry-points.ailf]
    toy = "ailf_toy.plugin"
"""

BACKEND = '''
    """A third party's backend: the memory backend under another name."""

    import ailf
    from ailf.runtime import AsyncioRuntime
    from ailf.runtime import ThreadRuntime
    from ailf_memory import MemoryStore
    from ailf_memory.driver import MemoryDriver


    class ToyBackend(ailf.Backend):
        def __init__(self, url, store):
            super().__init__(MemoryDriver(store, ThreadRuntime(), url=url))


    class AsyncToyBackend(ailf.AsyncBackend):
        def __init__(self, url, store):
            super().__init__(MemoryDriver(store, AsyncioRuntime(), url=url))
'''

PLUGIN = '''
    """``toy://NAME[?namespace=…]``: backends with the same URL share a store."""

    import collections
    from urllib.parse import parse_qs, urlsplit

    import ailf
    from ailf_memory import MemoryStore
    from ailf_toy.backend import AsyncToyBackend, ToyBackend

    stores = collections.defaultdict(MemoryStore)


    def store_of(url):
        unknown = parse_qs(urlsplit(url).query, keep_blank_values=True).keys() - {"namespace"}
        if unknown:
            raise ailf.InvalidArgumentError(f"{url}: unknown option(s) {', '.join(unknown)}")
        return stores[url]


    @ailf.hookimpl
    def ailf_connect(url):
        return ToyBackend(url, store_of(url))


    @ailf.hookimpl
    def ailf_connect_async(url):
        return AsyncToyBackend(url, store_of(url))
'''

PROGRAM = """
    import asyncio, ailf, ailf_toy

    with ailf.connect("toy://here") as backend:
        print(type(backend).__module__, backend.url)
        backend.stream("tasks").add({"a": 1})
        with backend.stream("tasks").group("g").consumer() as consumer, consumer.get(0) as delivery:
            print(delivery.data)

    async def main():
        async with ailf.connect_async("toy://here") as backend:
            print(len(await backend.stream("tasks").read()))

    asyncio.run(main())
    print(ailf_toy.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's wheel, built as by its author."""
    project = tmp_path_factory.mktemp("ailf-toy")
    package = project / "ailf_toy"
    package.mkdir()
    (project / "pyproject.toml").write_text(dedent(PYPROJECT))
    (package / "__init__.py").write_text('"""A toy."""\n')
    (package / "backend.py").write_text(dedent(BACKEND))
    (package / "plugin.py").write_text(dedent(PLUGIN))
    output_of(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", cwd=project)
    (built,) = (project / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The interpreter of a new environment with the wheel, and with the packages that are installed here."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    installed = sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)})
    # A plain path would not follow the .pth files there, of which an editable install is one.
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})"
    Path(installed, "running-environment.pth").write_text(f"{line}\n")
    interpreter = home / "bin" / "python"
    output_of(interpreter, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=home)
    return interpreter


def test_the_command_lists_it(python: Path, tmp_path: Path) -> None:
    """`ailf backends` shows the toy beside the backends that come with ailf."""
    out = output_of(python, "-m", "ailf.cli", "backends", cwd=tmp_path)
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows["toy://"] == ["ailf-toy", "0.3", "ailf_toy.plugin"]
    assert {"memory://", "redis://"} <= set(rows)


def test_it_is_opened_by_url(python: Path, tmp_path: Path) -> None:
    """Both flavours open by URL and work, in the environment with the wheel."""
    module, data, entries, path = output_of(python, "-c", dedent(PROGRAM), cwd=tmp_path).splitlines()
    assert module == "ailf_toy.backend toy://here"
    assert data == "{'a': 1}"
    assert entries == "1"
    assert Path(path).is_relative_to(python.parents[1])


@pytest.mark.timeout(240)
def test_it_passes_the_contract(python: Path, tmp_path: Path) -> None:
    """The toy passes files of the contract suite that ailf ships, one of each interface, in both flavours.

    It is the memory backend, which passes all of the suite in `tests/contract`.
    """
    # In parallel, because most of the time is waiting for leases to end.
    files = ("test_stream.py", "test_pubsub.py", "test_lock.py", "test_ratelimit.py")
    suite = ("--pyargs", "contract_tests", "--backend", "toy://", "-q")
    parts = [f"{flavour} and ({' or '.join(files)})" for flavour in ("asyncio", "not asyncio")]
    with ThreadPoolExecutor() as pool:
        ended = list(pool.map(lambda part: run_pytest(*suite, "-k", part, cwd=tmp_path, python=python), parts))
    for each in ended:
        assert each.returncode == 0, each.stdout + each.stderr
        assert " passed" in each.stdout
        assert "skipped" not in each.stdout
