"""Every Python block of the README and the docs runs as written."""

import re
from pathlib import Path

import attrs
import pytest

import ailf
from tests.support.servers import Server

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- (?P<note>[^>]*) -->\n+)?```python\n(?P<text>.*?)```", re.DOTALL)


@attrs.frozen
class Block:
    """One block of a page: its text, its first line, and the note before it."""

    text: str
    line: int
    note: str


def blocks(page: Path) -> list[Block]:
    """Return the Python blocks of a page."""
    text = page.read_text()
    return [
        Block(each["text"], text.count("\n", 0, each.start("text")), each["note"] or "")
        for each in BLOCK.finditer(text)
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_blocks_run(page: Path, request: pytest.FixtureRequest) -> None:
    """The blocks of a page run in order in one namespace; a note marks those that need Redis or are only compiled."""
    shared: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        known = block.note in ("", "redis") or block.note.startswith("not run: ")
        assert known, f"{page.name}:{block.line}: unknown note {block.note!r}"
        text = block.text
        if block.note == "redis":
            server: Server = request.getfixturevalue("any_server")
            text = text.replace("redis://localhost:6379/0", server.url)
        code = compile("\n" * block.line + text, str(page), "exec")
        if not block.note.startswith("not run: "):
            exec(code, shared)
    for each in shared.values():
        if isinstance(each, ailf.Backend):
            each.close()


def test_there_are_blocks() -> None:
    """The README and the guides have blocks, so that this file tests something."""
    assert len(blocks(ROOT / "README.md")) >= 5
    assert sum(len(blocks(page)) for page in PAGES) >= 25
