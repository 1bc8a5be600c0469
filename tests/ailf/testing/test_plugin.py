"""The pytest plugin gives each test a backend of its own, on each URL, and only where a project asks for it."""

import subprocess
from pathlib import Path
from textwrap import dedent

import pytest
import redis

from tests.support.programs import run_pytest
from tests.support.servers import Server

CREW = """
    import asyncio
    import ailf

    def test_a_crew(ailf_backend, ailf_recorder):
        tasks = ailf_backend.stream("tasks")
        tasks.add({"page": 1})
        tasks.group("readers").process(lambda delivery: None, until_idle=True)
        assert ailf_recorder.consumed("tasks") == [{"page": 1}]

    def test_the_same_names_again(ailf_backend):
        assert ailf_backend.stream("tasks").read() == []

    def test_both_flavours_share_their_state(ailf_backend, ailf_async_backend):
        async def main():
            await ailf_async_backend.stream("tasks").add(1)
            async with ailf_async_backend.pubsub().listen("c") as subscription:
                await ailf_async_backend.pubsub().publish("c", 2)
                return (await subscription.get(timeout=5)).data
        assert asyncio.run(main()) == 2
        assert [each.data for each in ailf_backend.stream("tasks").read()] == [1]

    def test_faults(ailf_backend, ailf_async_backend, ailf_faults):
        import pytest
        ailf_faults.next("add", ailf.BackendFullError, times=2)
        with pytest.raises(ailf.BackendFullError):
            ailf_backend.stream("s").add(1)
        with pytest.raises(ailf.BackendFullError):
            asyncio.run(ailf_async_backend.stream("s").add(1))
"""

CLOCK = """
    def test_a_moved_clock(ailf_backend, ailf_clock):
        lease = ailf_backend.lock("l", ttl=30).acquire()
        ailf_clock.advance(31)
        assert lease.lost
"""


def run_test(folder: Path, test: str, *arguments: str, plugin: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run pytest in a project with this test."""
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (folder / "conftest.py").write_text('pytest_plugins = ["ailf.testing.plugin"]\n' if plugin else "")
    (folder / "test_crew.py").write_text(dedent(test))
    return run_pytest("-v", *arguments, cwd=folder)


def test_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    """Without the plugin there are no fixtures and no option."""
    done = run_test(tmp_path, CREW, plugin=False)
    assert "fixture 'ailf_backend' not found" in done.stdout
    assert run_test(tmp_path, CREW, "--ailf-url", "memory://", plugin=False).returncode == pytest.ExitCode.USAGE_ERROR


def test_tests_run_in_memory(tmp_path: Path) -> None:
    """By default the tests run in memory, each with a state of its own; the clock can be moved."""
    done = run_test(tmp_path, dedent(CREW) + dedent(CLOCK))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


def test_tests_run_on_memory_and_redis_alike(tmp_path: Path, any_server: Server) -> None:
    """With several URLs each test runs on each, except one that moves the clock; nothing is left on the server."""
    with redis.Redis.from_url(any_server.url) as raw:
        urls = ("--ailf-url", "memory://", "--ailf-url", any_server.url)
        done = run_test(tmp_path, dedent(CREW) + dedent(CLOCK), *urls)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "9 passed" in done.stdout
        assert done.stdout.count("::test_a_crew[") == 2
        assert list(raw.scan_iter("*ailf-test-*")) == []


def test_the_ini_file_names_backends(tmp_path: Path, any_server: Server) -> None:
    """`ailf_urls` in the ini file is the default of `--ailf-url`."""
    done = run_test(tmp_path, CREW, "-o", f"ailf_urls={any_server.url}", "-k", "test_a_crew")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "redis://" in done.stdout


def test_a_fault_that_never_happens_fails_the_test(tmp_path: Path) -> None:
    """A fault that is scripted for something that isn't called is an error of the test."""
    test = """
        def test_nothing_fails(ailf_backend, ailf_faults):
            ailf_faults.next("publish")
            ailf_backend.stream("s").add(1)
    """
    done = run_test(tmp_path, test)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "faults that never happened: ConnectionLostError at publish" in done.stdout


def test_a_schedule_prints_its_seed(tmp_path: Path) -> None:
    """The report of a test that fails under a schedule shows the seed."""
    test = """
        from ailf.testing import explore_schedules

        async def crew(backend):
            assert await backend.stream("s").add(1) == "never"

        def test_a_crew():
            explore_schedules(crew)
    """
    done = run_test(tmp_path, test, plugin=False)
    assert "AILF_SEED=0 repeats it" in done.stdout
