"""A backend of somebody else's: a package of its own, built and installed, works and passes the contract.

This is the whole way that a third party goes, with nothing of this repository but what is installed.
"""

import os
import subprocess
import sys
import sysconfig
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest

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
    """A backend of a third party's: the memory backend under another name."""

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
    """``toy://NAME[?namespace=…]``: whoever opens the same URL shares a store."""

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


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command to its end; what it says is in the failure."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PYTHON", "AILF"))}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (
        f"{command[1:]} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's distribution, built as its author would."""
    project = tmp_path_factory.mktemp("ailf-toy")
    package = project / "ailf_toy"
    package.mkdir()
    (project / "pyproject.toml").write_text(dedent(PYPROJECT))
    (package / "__init__.py").write_text('"""A toy."""\n')
    (package / "backend.py").write_text(dedent(BACKEND))
    (package / "plugin.py").write_text(dedent(PLUGIN))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", cwd=project)
    (built,) = (project / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The interpreter of a fresh environment that has the wheel, and sees what is installed here."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    installed = sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)})
    # A plain path would not follow the .pth files there, of which an editable install is one.
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})"
    Path(installed, "running-environment.pth").write_text(f"{line}\n")
    interpreter = home / "bin" / "python"
    run(interpreter, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=home)
    return interpreter


def test_the_command_lists_it(python: Path, tmp_path: Path) -> None:
    """`ailf backends` shows the toy beside the backends that come with ailf."""
    out = run(python, "-m", "ailf.cli", "backends", cwd=tmp_path)
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows["toy://"] == ["ailf-toy", "0.3", "ailf_toy.plugin"]
    assert {"memory://", "redis://"} <= set(rows)


def test_it_is_opened_by_url(python: Path, tmp_path: Path) -> None:
    """Both flavours open by URL and work, from the environment that has the wheel."""
    module, data, entries, place = run(python, "-c", dedent(PROGRAM), cwd=tmp_path).splitlines()
    assert module == "ailf_toy.backend toy://here"
    assert data == "{'a': 1}"
    assert entries == "1"
    assert Path(place).is_relative_to(python.parents[1])


@pytest.mark.timeout(240)
def test_it_passes_the_contract(python: Path, tmp_path: Path) -> None:
    """The suite that ailf ships for backends finds nothing wrong with it."""
    suite = ("-m", "pytest", "--pyargs", "contract_tests", "--backend", "toy://", "-q", "-p", "no:cacheprovider")
    # Side by side, because most of its time is waiting for leases to end.
    parts = [f"{one} and {other}" for one in ("asyncio", "not asyncio") for other in ("test_stream", "not test_stream")]
    with ThreadPoolExecutor() as pool:
        outs = list(pool.map(lambda part: run(python, *suite, "-k", part, cwd=tmp_path), parts))
    assert all(" passed" in each for each in outs)
    assert not any("skipped" in each for each in outs)
