"""The runner under load loses nothing. The same with more messages and on every server: ``tests/campaigns``."""

import logging
from pathlib import Path

import pytest

from tests.ailf_redis.runner.load import Load, run
from tests.support.servers import Server

log = logging.getLogger("tests")


@pytest.mark.timeout(300)
def test_killed_workers_lose_nothing(any_server: Server, namespace: str, tmp_path: Path) -> None:
    """Of 1000 messages none is lost when workers are killed at random and SIGTERM ends the rest in between."""
    report = run(tmp_path, f"{any_server.url}?namespace={namespace}", Load(messages=1000, pause=0.8))
    log.info("%s", report)
    assert report.lost == []
    assert report.dead == 0
    assert report.status == 0
    assert report.killed >= 2
