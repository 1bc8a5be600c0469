"""The parts of the documentation site that need no Sphinx: navigation, the API's names, `llms.txt`.

`make docs` builds the site, with all warnings as errors.
"""

import ast
import importlib
import re
from pathlib import Path

import pytest

from tests.support.scripts import imported

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


llms = imported(DOCS / "llms.py")


# --- navigation --------------------------------------------------------------------------------------------------


def test_every_page_is_in_the_navigation() -> None:
    """Each page is in a toctree of the index, or of the API reference, once."""
    listed = [page.name for section in llms.sections() for page in section.pages]
    files = [each for suffix in ("md", "rst") for each in DOCS.rglob(f"*.{suffix}")]
    assert sorted(listed) == sorted({each.relative_to(DOCS).with_suffix("").as_posix() for each in files} - {"index"})


def test_llms_txt_lists_every_page() -> None:
    """`llms.txt` has a link and a sentence for each page, and `llms-full.txt` has their texts."""
    listing = llms.listing()
    for section in llms.sections():
        assert f"## {section.title}" in listing
        for page in section.pages:
            (line,) = [each for each in listing.splitlines() if f"]({page.file}): " in each]
            assert re.search(r": \S.{10,}\.$", line), line


def test_text_is_written_beside_each_page(tmp_path: Path) -> None:
    """Each page is written as text, pages that include a file with that file's text."""
    for section in llms.sections():
        for page in section.pages:
            (tmp_path / page.file).parent.mkdir(parents=True, exist_ok=True)
    llms.write(tmp_path, lambda name: f"the text of {name}")
    assert (tmp_path / "guides/streams.md").read_text() == (DOCS / "guides/streams.md").read_text()
    assert "](guides/streams.md)" in (tmp_path / "overview.md").read_text()
    full = (tmp_path / "llms-full.txt").read_text()
    assert "the text of reference/stream" in full
    assert (ROOT / "README.md").read_text().partition("\n\n")[2].partition("\n\n")[0] in full


# --- the API -----------------------------------------------------------------------------------------------------


def modules() -> tuple[str, ...]:
    """Return the public modules, as `docs/conf.py` names them."""
    for node in ast.parse((DOCS / "conf.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODULES":
            return ast.literal_eval(node.value)  # type: ignore[no-any-return]
    raise AssertionError


def documented() -> set[str]:
    """Return the names that the pages of the API document."""
    names = set()
    for page in (DOCS / "reference").glob("*.rst"):
        module = ""
        for directive, argument in re.findall(r"^\.\. (\w+):: (\S+)$", page.read_text(), re.MULTILINE):
            if directive == "currentmodule":
                module = argument
            elif directive.startswith("auto"):
                names.add(f"{module}.{argument}")
    return names


PARTLY = {"ailf.runtime"}
"""Modules of which only the names that drivers use are documented."""


@pytest.mark.parametrize("name", [each for each in modules() if each not in PARTLY])
def test_every_public_name_is_in_the_api(name: str) -> None:
    """Each public name is documented under its own module or under one that comes before it."""
    found = {each.rpartition(".")[2] for each in documented()}
    assert set(importlib.import_module(name).__all__) - found == set()
