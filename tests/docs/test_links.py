"""Every link of the README and the docs has a target, and the index links to every page."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FILES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
PAGES = [each for each in FILES if not each.read_text().startswith("```{include}")]  # the site's page of such a file
CODE = re.compile(r"^```.*?^```$|`[^`]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def links(page: Path) -> list[str]:
    """Return the targets of a page's links to other files and to headings."""
    targets = LINK.findall(CODE.sub("", page.read_text()))
    return [each for each in targets if not each.startswith(("https://", "http://"))]


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub(lambda code: code[0].strip("`"), page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_have_targets(page: Path) -> None:
    """The file of each link exists, and so does the heading."""
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def test_the_index_leads_to_every_page() -> None:
    """`docs/index.md` links to each other page of the docs, to the README and to the changelog."""
    index = DOCS / "index.md"
    reached = {(index.parent / each.partition("#")[0]).resolve() for each in links(index)}
    assert {page.relative_to(ROOT) for page in PAGES if page != index and page.resolve() not in reached} == set()
