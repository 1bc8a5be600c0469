"""Every Python block of the README and the docs runs as written; `tests.support.pages` says what a block is."""

from pathlib import Path

import pytest

from tests.support.pages import PAGES, name_of, parse, run
from tests.support.servers import Server

WITH_BLOCKS = [page for page in PAGES if "```python" in page.read_text()]


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_a_page_runs(page: Path, request: pytest.FixtureRequest) -> None:
    """The blocks of a page run in order in one namespace, as their marks say."""

    def redis_url() -> str:
        server: Server = request.getfixturevalue("any_server")
        return server.url

    run(page, redis_url)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in WITH_BLOCKS], ids=name_of)
def test_a_page_without_blocks_has_no_marks(page: Path) -> None:
    """No block of a page is missed because of how its fence is written, and no mark is left over."""
    assert list(parse(page)) == []


def test_there_are_blocks() -> None:
    """The README and the guides have blocks, so that this file tests something."""
    assert len(list(parse(PAGES[0]))) >= 5
    assert sum(len(list(parse(page))) for page in WITH_BLOCKS) >= 100
