"""The site as text for language models: ``llms.txt`` lists the pages, ``llms-full.txt`` has all of them.

Each page is written beside its HTML: as the Markdown that it was made of, the API reference as plain text. So the links
between pages work there too. https://llmstxt.org describes the format.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).parent
TOCTREE = re.compile(r"^```\{toctree\}\n:hidden:\n:caption: (?P<title>.+)\n\n(?P<pages>(?:.+\n)+?)```$", re.MULTILINE)
ENTRY = re.compile(r"^(?:.+ <)?([^<>\n]+)>?$", re.MULTILINE)
API = re.compile(r"^   (\w+)$", re.MULTILINE)
INCLUDED = re.compile(r"^```\{include\} \.\./(\S+)$", re.MULTILINE)
SITE_ONLY = re.compile(r"^<!-- site\n.*?^-->\n", re.DOTALL | re.MULTILINE)
NOT_PROSE = re.compile(r"^(#|```|<!--|\||[-*>] |\d+\. |\.\. |=)")
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)|:\w+:`([^<`]+)(?: <[^>]*>)?`")


@attrs.frozen
class Page:
    """A page of the site.

    Attributes:
        name: Its path in this folder, without the suffix.
        text: Its source; of a page that includes a file, the file's.
        api: Whether it is made from docstrings.
    """

    name: str
    text: str
    api: bool

    @property
    def file(self) -> str:
        """The path of the page as text."""
        return self.name + (".txt" if self.api else ".md")

    @property
    def title(self) -> str:
        """Its first heading."""
        return next(line for line in self.text.splitlines() if line and not line.startswith("<!--")).lstrip("# ")

    @property
    def summary(self) -> str:
        """The first sentence of its first paragraph."""
        paragraphs = self.text.split("\n\n")[1:]
        prose = next((each for each in paragraphs if not NOT_PROSE.match(each)), None)
        assert prose, f"{self.name} begins with no paragraph of text"
        plain = LINK.sub(lambda link: link[1] or link[2].strip("/"), " ".join(prose.split()))
        return re.split(r"(?<=[.:])\s", plain)[0].rstrip(":.") + "."


@attrs.frozen
class Section:
    """The pages under one title of the navigation."""

    title: str
    pages: tuple[Page, ...]


def page(name: str) -> Page:
    """Read a page."""
    rst = DOCS / f"{name}.rst"
    if rst.exists():
        return Page(name, rst.read_text(), api=True)
    text = SITE_ONLY.sub("", (DOCS / f"{name}.md").read_text())
    if included := INCLUDED.search(text):
        text = (DOCS.parent / included[1]).read_text().replace("](docs/", "](")
    return Page(name, text, api=False)


def sections() -> list[Section]:
    """Return the navigation: the toctrees of the index, each page of the API reference after its list."""
    return [Section(each["title"], tuple(_pages(ENTRY.findall(each["pages"])))) for each in TOCTREE.finditer(_index())]


def _index() -> str:
    return (DOCS / "index.md").read_text()


def _pages(names: list[str]) -> Iterator[Page]:
    for name in names:
        found = page(name)
        yield found
        if found.api:
            folder = name.rpartition("/")[0]
            yield from (page(f"{folder}/{each}") for each in API.findall(found.text.partition(".. toctree::")[2]))


def listing() -> str:
    """Return the text of ``llms.txt``."""
    index = page("index")
    lines = ["# ailf", "", f"> {' '.join(index.text.split(chr(10) * 2)[1].split())}", ""]
    lines += ["[Everything in one file](llms-full.txt)", ""]
    for section in sections():
        lines += [f"## {section.title}", ""]
        lines += [f"- [{each.title}]({each.file}): {each.summary}" for each in section.pages]
        lines.append("")
    return "\n".join(lines)


def write(out: Path, api_text: Callable[[str], str]) -> None:
    """Write ``llms.txt``, ``llms-full.txt`` and each page as text; `api_text` returns that of an API page."""
    full = []
    for each in (each for section in sections() for each in section.pages):
        text = api_text(each.name) if each.api else each.text
        (out / each.file).write_text(text)
        full.append(f"<!-- {each.file} -->\n\n{text.strip()}\n")
    (out / "llms-full.txt").write_text("\n".join(full))
    (out / "llms.txt").write_text(listing())


# --- Sphinx ------------------------------------------------------------------------------------------------------


def setup(app: "Sphinx") -> dict[str, Any]:
    """Write the files after a build of HTML."""
    app.connect("build-finished", _finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _finish(app: "Sphinx", error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        write(Path(app.outdir), _text_of(app))


def _text_of(app: "Sphinx") -> Callable[[str], str]:
    """Return a function that renders a page as plain text."""
    from sphinx.builders.text import TextBuilder  # noqa: PLC0415 - the tests import this module without Sphinx

    builder = TextBuilder(app, app.env)
    builder.init()

    def text(name: str) -> str:
        document = app.env.get_and_resolve_doctree(name, builder)
        visitor = builder.create_translator(document, builder)
        document.walkabout(visitor)
        return str(visitor.body)

    return text
