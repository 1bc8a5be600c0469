"""Backends are found by entry points, loaded on first use, and break only themselves when they are broken."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from textwrap import dedent
from typing import Any

import pytest

import ailf
from ailf import InvalidArgumentError, UnsupportedError, hookspecs, registry
from ailf.cli import main
from ailf.registry import plugin_for
from ailf.urls import shown

Install = Callable[..., None]

pytestmark = pytest.mark.usefixtures("fresh_registry")

WORKING = """
    import ailf
    from ailf_memory import AsyncMemoryBackend, MemoryBackend

    URLS = []

    @ailf.hookimpl
    def ailf_connect(url):
        URLS.append(url)
        return MemoryBackend(url=url)

    @ailf.hookimpl
    def ailf_connect_async(url):
        return AsyncMemoryBackend(url=url)
"""
BLOCKING_ONLY = WORKING[: WORKING.rindex("@ailf.hookimpl")]
WITH_OPTIONS = """
    import ailf
    from ailf_memory import MemoryBackend

    OPTIONS = []

    @ailf.hookimpl
    def ailf_connect(options, url):
        OPTIONS.append(options)
        return MemoryBackend(url=url)
"""
BROKEN = "raise ValueError('half installed')"
MISSING = "import a_package_that_nobody_has"
REFUSED = """
    import ailf

    @ailf.hookimpl
    def ailf_connect(url, flavour): ...
"""


@pytest.fixture
def install(install_package: Callable[..., None]) -> Install:
    """Install a distribution with one plugin."""

    def installed(scheme: str, source: str, *, package: str | None = None) -> None:
        package = package or f"ailf-{scheme}"
        module = package.replace("ailf-", "ailf_test_").replace("-", "_")
        install_package(hookspecs.PROJECT, scheme, source, package=package, module=module, version="1.5")

    return installed


def test_an_installed_backend_is_opened_by_its_scheme(install: Install) -> None:
    """A third party's package needs an entry point and a hook, nothing else; schemes ignore case."""
    install("zinc", WORKING)
    with ailf.connect("ZINC://somewhere") as backend:
        assert backend.url == "zinc://somewhere"
        backend.stream("tasks").add(1)


def test_an_unknown_scheme_lists_what_is_installed(install: Install) -> None:
    """The error for an unknown scheme lists the installed ones."""
    install("zinc", WORKING)
    with pytest.raises(InvalidArgumentError, match=r"no backend for zink:// .*installed are: memory, .*zinc\b"):
        ailf.connect("zink://host")


@pytest.mark.parametrize("url", ["nats://h", "redi://h", "valkey+sentinel://h/m"])
def test_an_unknown_scheme_names_no_package_that_may_not_exist(url: str) -> None:
    """The error suggests an installed scheme that is spelled like it, and no package: anybody could register that."""
    with pytest.raises(InvalidArgumentError) as caught:
        ailf.connect(url)
    assert "ailf-" not in str(caught.value)
    assert ("Did you mean redis" in str(caught.value)) == (not url.startswith("nats"))


def test_keyword_options_reach_any_plugin(install: Install) -> None:
    """A hook with a parameter `options` gets the values; for one without it they are added to the URL."""
    install("zinc", WORKING)
    url = "zinc://u:p?w@host/a?x=1"
    with ailf.connect(url, namespace="a b&c", timeout=2.5, eager=True) as backend:
        assert backend.url == shown(url)
    assert [f"{url}&namespace=a%20b%26c&timeout=2.5&eager=true"] == sys.modules["ailf_test_zinc"].URLS
    for options, says in (({"x": 2}, "x is given in the URL and as a keyword"), ({"y": []}, "y can't be in one")):
        with pytest.raises(InvalidArgumentError, match=says):
            ailf.connect(url, **options)
    install("iron", WITH_OPTIONS)
    ailf.connect("iron://host", timeout=2.5, key=b"k").close()
    assert sys.modules["ailf_test_iron"].OPTIONS == [{"timeout": 2.5, "key": b"k"}]


@pytest.mark.parametrize("url", ["redis", "localhost:6379", "redis:/host"])
def test_what_is_no_url_is_refused(url: str) -> None:
    """A text without a scheme is another error than a scheme that isn't installed."""
    with pytest.raises(InvalidArgumentError, match="is not the URL of a backend"):
        ailf.connect(url)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (BROKEN, "ValueError: half installed"),
        (MISSING, "ModuleNotFoundError: No module named 'a_package_that_nobody_has'"),
        (REFUSED, "PluginValidationError"),
    ],
    ids=["raises", "misses a package", "has a wrong hook"],
)
def test_a_broken_plugin_breaks_only_itself_and_is_named(install: Install, source: str, says: str) -> None:
    """The error names the scheme and the package, each time; other backends work."""
    install("lead", source)
    install("zinc", WORKING)
    for _ in range(2):
        with pytest.raises(UnsupportedError, match=rf"lead:// \(ailf_test_lead, from ailf-lead\) can't be .*{says}"):
            ailf.connect("lead://")
    ailf.connect("zinc://").close()
    ailf.connect("memory://").close()


def test_plugins_are_loaded_when_they_are_needed(install: Install) -> None:
    """Opening one backend doesn't import the package of another."""
    install("zinc", WORKING)
    ailf.connect("memory://").close()
    assert "ailf_test_zinc" not in sys.modules


def test_a_plugin_with_one_flavour_says_so(install: Install) -> None:
    """The error for a missing flavour names the backend."""
    install("tin", BLOCKING_ONLY)
    ailf.connect("tin://").close()
    with pytest.raises(UnsupportedError, match=r"the backend for tin:// \(ailf_test_tin\) has no asyncio flavour"):
        ailf.connect_async("tin://")


def test_the_missing_redis_extra_names_the_command() -> None:
    """Without redis-py the error has the command that installs it, and the memory backend works."""
    program = """
        import sys
        sys.modules["redis"] = None  # as if it were not installed
        import ailf
        ailf.connect("memory://").close()
        for scheme in ("redis", "rediss", "valkey", "redis+sentinel", "rediss+cluster", "unix"):
            try:
                ailf.connect(f"{scheme}://localhost")
            except ailf.UnsupportedError as error:
                print(error)
    """
    done = subprocess.run([sys.executable, "-c", dedent(program)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [each.partition(":")[0] for each in lines] == [
        "redis",
        "rediss",
        "valkey",
        "redis+sentinel",
        "rediss+cluster",
        "unix",
    ]
    assert all(each.endswith("pip install 'ailf[redis]'") for each in lines)


@pytest.mark.parametrize("scheme", ["memory", "redis", "valkeys", "redis+sentinel", "rediss+cluster", "unix"])
def test_a_scheme_of_ours_cannot_be_taken_over(
    install: Install, capsys: pytest.CaptureFixture[str], scheme: str
) -> None:
    """Another package with that scheme is ignored, even first on the path, and the list of backends says so."""
    install(scheme, BROKEN, package="ailf-intruder")
    assert main(["backends"]) == 1
    out = capsys.readouterr().out
    assert f"{scheme}:// belongs to ailf; this entry point is ignored" in out
    assert out.count("can't be used") == 1
    plugin_for(f"{scheme}:///name", "ailf_connect", "blocking")
    assert "ailf_test_intruder" not in sys.modules


def test_two_packages_with_one_scheme_are_named(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither package is used: the choice must not depend on the order of the path."""
    install("zinc", WORKING, package="ailf-zinc")
    install("zinc", WORKING, package="ailf-other-zinc")
    says = (
        r"several packages have a backend for zinc://: ailf-other-zinc \(ailf_test_other_zinc\) and "
        r"ailf-zinc \(ailf_test_zinc\); uninstall"
    )
    for connect in (ailf.connect, ailf.connect_async):
        with pytest.raises(UnsupportedError, match=says):
            connect("zinc://host")
    assert main(["backends"]) == 1
    assert capsys.readouterr().out.count("uninstall all but one") == 2
    ailf.connect("memory://").close()


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command_lists_backends(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    """`ailf backends` shows scheme, package, version and plugin, sorted by scheme."""
    install("zinc", WORKING)
    assert main(["backends"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    schemes = [row[0].removesuffix("://") for row in rows]
    assert schemes == sorted(schemes)
    assert ["zinc://", "ailf-zinc", "1.5", "ailf_test_zinc"] in rows
    assert "memory://" in [row[0] for row in rows]


def test_the_command_tells_a_broken_backend(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    """A backend that can't be used is listed with the reason, and the exit status is 1."""
    install("lead", BROKEN)
    install("zinc", WORKING)
    assert main(["backends"]) == 1
    out = capsys.readouterr().out
    assert out.count("can't be used: ") == 1
    assert "half installed" in out
    assert "zinc://" in out


def test_the_command_wants_a_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a subcommand the command prints its usage."""
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("flavour", ["blocking", "asyncio"])
def test_opening_reads_once_what_is_installed(install: Install, monkeypatch: pytest.MonkeyPatch, flavour: str) -> None:
    """The backend and the instruments of packages are found in one reading of all distributions."""
    install("nats", WORKING)
    readings: list[dict[str, str]] = []

    def counted(**selected: str) -> Any:
        readings.append(selected)
        return entry_points(**selected)

    monkeypatch.setattr(registry, "entry_points", counted)
    if flavour == "blocking":
        ailf.connect("nats://here").close()
    else:
        ailf.connect_async("nats://here")
    assert len(readings) == 1
