"""The runner with workers that are killed at random, on every server."""

from pathlib import Path

import pytest

from tests.ailf_redis.runner.load import Load, run
from tests.support.effort import Tell
from tests.support.servers import Server


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_killed_workers_lose_nothing(server: Server, namespace: str, tmp_path: Path, seed: int, tell: Tell) -> None:
    """Of 5000 messages none is lost when three workers are killed at random and SIGTERM ends them in between."""
    report = run(tmp_path, f"{server.url}?namespace={namespace}", Load(messages=5000, pause=1.0, pace=0.1, seed=seed))
    tell(f"{server.version}: {report}")
    assert report.lost == []
    assert report.dead == 0
    assert report.status == 0
    assert report.killed >= 5
