"""The source distribution and the wheel are complete, and the wheel works in an environment that has nothing else."""

import email
import shutil
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.message import Message
from importlib.metadata import distribution
from pathlib import Path
from textwrap import dedent

import pytest

import ailf
from tests.support.programs import output_of

ROOT = Path(__file__).parents[2]
PACKAGES = ("ailf", "ailf_redis", "ailf_memory", "ailf_pytest", "contract_tests")
DEPENDENCIES = ("attrs", "msgspec", "pluggy")
"""All that ailf needs; none of them needs anything."""

PROGRAM = """
    import asyncio, ailf

    with ailf.connect("memory://", namespace="crew", timeout=5) as backend:
        backend.stream("tasks").add({"a": 1})
        with backend.lock("l") as lease, backend.pubsub().listen("c") as messages:
            backend.pubsub().publish("c", "x")
            print(lease.fence > 0, messages.get(5).data, backend.stream("tasks").read()[0].data)

    async def main():
        async with ailf.connect_async("memory://") as backend:
            print((await backend.rate_limiter("r", "1/hour").try_acquire("k")).allowed)

    asyncio.run(main())
    for url in ("redis+sentinel://h/m", "valkey://h"):
        try:
            ailf.connect(url)
        except ailf.UnsupportedError as error:
            print(error)
    print(ailf.__version__, ailf.__file__)
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and with the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    repository = {"GITHUB_SERVER_URL": "https://github.example", "GITHUB_REPOSITORY": "crew/ailf"}
    output_of(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, cwd=ROOT, **repository)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    """The wheel."""
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """The metadata of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_has_every_file_of_the_packages(wheel: Path) -> None:
    """The wheel has the packages with their scripts and type markers, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = {each for each in archive.namelist() if ".dist-info/" not in each}
    tracked = output_of("git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES, cwd=ROOT).split()
    assert names == set(tracked)
    assert {f"{each}/py.typed" for each in PACKAGES} <= names
    assert any(each.endswith(".lua") for each in names)


def test_the_source_distribution_has_what_the_tests_need(dist: Path) -> None:
    """The source distribution has each file of the repository, so that a packager can run the tests."""
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {each.name.partition("/")[2] for each in archive.getmembers() if each.isfile()}
    assert set(output_of("git", "ls-files", cwd=ROOT).splitlines()) - names <= {".gitignore"}


def test_the_metadata(metadata: Message) -> None:
    """The version is that of the module; classifiers and URLs are there."""
    assert metadata["Version"] == ailf.__version__
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13, 14)} <= set(
        metadata.get_all("Classifier", [])
    )
    urls = dict(each.split(", ", 1) for each in metadata.get_all("Project-URL", []))
    assert urls["Source"] == "https://github.example/crew/ailf"
    assert set(urls) == {"Homepage", "Documentation", "Changelog", "Issues", "Source"}
    needed = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert {each.partition(">")[0] for each in needed} == set(DEPENDENCIES)


def test_it_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """With its dependencies and nothing else, the wheel installs, is consistent, and works in memory."""
    home = tmp_path / "environment"
    venv.create(home, with_pip=True, symlinks=True)
    python = home / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    for name in DEPENDENCIES:  # copied, so that the test needs no package index
        found = distribution(name)
        for file in found.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target = site / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(found.locate_file(file)), target)
    output_of(python, "-m", "pip", "install", "--quiet", "--no-index", wheel, cwd=tmp_path)
    output_of(python, "-m", "pip", "check", cwd=tmp_path)
    used, allowed, sentinel, valkey, version = output_of(python, "-c", dedent(PROGRAM), cwd=tmp_path).splitlines()
    assert (used, allowed) == ("True x {'a': 1}", "True")
    assert sentinel.startswith("redis+sentinel://")
    assert valkey.startswith("valkey://")
    assert all(each.endswith("pip install 'ailf[redis]'") for each in (sentinel, valkey))
    assert version.split()[0] == ailf.__version__
    assert str(home) in version
