"""The pictures of the docs: plots show the recorded tables, and all are readable in light and dark mode."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.support.scripts import imported

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PICTURES = sorted((DOCS / "images").rglob("*.svg"))

plots = imported(ROOT / "benchmarks" / "plots.py")


def test_plots_show_the_tables() -> None:
    """The pictures are those of the recorded tables; after a change of a table, run `make bench-plots`."""
    drawn = dict(plots.pictures(plots.PAGE.read_text()))
    assert {each.name for each in plots.IMAGES.iterdir()} == set(drawn)
    for file, svg in drawn.items():
        assert (plots.IMAGES / file).read_text() == svg, f"{file} is out of date: make bench-plots"


def test_plots_have_every_number() -> None:
    """Each number of a table is written in its picture, and each picture is on the page."""
    page = plots.PAGE.read_text()
    for table, (file, svg) in zip(plots.tables(page), plots.pictures(page), strict=True):
        assert f"(images/benchmarks/{file})" in page
        written = " ".join(
            "".join(each.itertext()) for each in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}svg")
        )
        for row in table.rows:
            for cell in row.cells[1:]:
                assert re.search(rf"(?<![\d.,]){re.escape(cell)}(?![\d.,])", written), (file, row.name, cell)


def test_all_tables_are_plotted() -> None:
    """No recorded table is left out: each line of headings of the results begins one."""
    page = plots.PAGE.read_text()
    headings = [line for block in plots.BLOCK.findall(page) for line in block.splitlines() if line.startswith("   ")]
    assert [" ".join(table.columns) for table in plots.tables(page)] == [" ".join(each.split()) for each in headings]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.stem)
def test_pictures_are_on_a_page_and_well_formed(picture: Path) -> None:
    """Each picture is shown by a page, and can be read by XML parsers."""
    ET.parse(picture)
    shown = [
        page for page in DOCS.rglob("*.md") if f"images/{picture.relative_to(DOCS / 'images')})" in page.read_text()
    ]
    assert shown


@pytest.mark.parametrize(
    "picture", [each for each in PICTURES if each.stem not in {"top", "doctor"}], ids=lambda each: each.stem
)
def test_pictures_follow_light_and_dark_mode(picture: Path) -> None:
    """Each drawn picture has colours for both modes, and a background of its own."""
    text = picture.read_text()
    assert "prefers-color-scheme: dark" in text
    assert 'fill="var(--paper)"' in text
