"""The Python blocks of the README and the docs, found by Sybil, and the marks before them.

A block is a fence that begins with three backticks and ``python``. An HTML comment before it, which readers don't see,
may mark it:

- ``<!-- redis -->``: where it says `REDIS_URL`, it runs with the URL of a server of the tests.
- ``<!-- not run: reason -->``: it is only compiled.
- ``<!-- not typed: reason -->``: no type checker sees it.

Several marks have commas between them: ``<!-- not run, not typed: Celery is not installed here -->``.
"""

import re
import sys
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Final, Self

import attrs
import pytest
from sybil import Document, Example, Region
from sybil.evaluators.python import PythonEvaluator, pad
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer
from sybil.region import Lexeme

import ailf
from ailf_memory import plugin

__all__ = ["PAGES", "REDIS_URL", "ROOT", "Marks", "PageError", "module_of", "name_of", "parse", "run"]

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
REDIS_URL: Final = "redis://localhost:6379/0"

MARKS: Final = ("redis", "not run", "not typed")
COMMENT: Final = re.compile(r"^[ \t]*<!--(.*?)-->", re.DOTALL | re.MULTILINE)
FENCE: Final = re.compile(r"^[ \t>*+-]*(?:`{3,}|~{3,})(?P<info>[^`\n]+)$", re.MULTILINE)


class PageError(AssertionError):
    """A page has a block or a mark that can't be understood; the message has the line, and what to write instead."""


@attrs.frozen
class Marks:
    """What the comment before a block says about it.

    Attributes:
        redis: Whether it needs Redis.
        run: Whether it runs; else it is only compiled.
        typed: Whether type checkers see it.
    """

    redis: bool = False
    run: bool = True
    typed: bool = True

    @classmethod
    def read(cls, comment: str) -> Self:
        """Return the marks that a comment has.

        Raises:
            ValueError: It has another word, or no reason where one belongs.
        """
        text, _, reason = (each.strip() for each in comment.partition(":"))
        words = [each.strip() for each in text.split(",")]
        for word in words:
            if word not in MARKS:
                raise ValueError(
                    f"unknown mark {word!r} before a block; write <!-- redis -->, <!-- not run: reason --> "
                    "or <!-- not typed: reason -->, or move the comment away from the block"
                )
        if (words != ["redis"]) != bool(reason):
            raise ValueError(
                f"the marks {text!r} need a reason: <!-- {text}: reason -->" if not reason else "'redis' has no reason"
            )
        return cls("redis" in words, "not run" not in words, "not typed" not in words)


class _Blocks:
    """A parser for Sybil: the blocks of a page, each of which runs as its marks say."""

    def __init__(self, redis_url: Callable[[], str]) -> None:
        self._find = FencedCodeBlockLexer("python")
        self._run = PythonEvaluator()
        self._redis_url = redis_url

    def __call__(self, document: Document) -> Iterable[Region]:
        used = set()
        for region in self._find(document):
            region.parsed, region.evaluator = region.lexemes["source"], self._evaluate
            comment = _comment_before(document, region)
            marks = Marks()
            if comment is not None:
                used.add(comment.start())
                marks = _marks(document, comment)
            region.lexemes["marks"] = marks
            if marks.redis and REDIS_URL not in region.parsed:
                raise _error(document, region.start, f"a block with the mark 'redis' must have the URL {REDIS_URL}")
            yield region
        _check_comments(document, used)
        _check_fences(document)

    def _evaluate(self, example: Example) -> None:
        __tracebackhide__ = True
        marks: Marks = example.region.lexemes["marks"]
        source: Lexeme = example.parsed
        if not marks.run:
            compile(pad(source, example.line), example.path, "exec", dont_inherit=True)
            return
        if marks.redis:
            source = Lexeme(source.replace(REDIS_URL, self._redis_url()), source.offset, source.line_offset)
            example.parsed = source
        self._run(example)


def _comment_before(document: Document, region: Region) -> re.Match[str] | None:
    """Return the comment that ends where the block begins, with nothing but empty lines between them."""
    before = document.text[: region.start].rstrip()
    begin = before.rfind("\n", 0, max(before.rfind("<!--"), 0)) + 1
    return COMMENT.fullmatch(before, begin) if before.endswith("-->") else None


def _marks(document: Document, comment: re.Match[str]) -> Marks:
    try:
        return Marks.read(comment[1])
    except ValueError as error:
        raise _error(document, comment.start(), str(error)) from None


def _check_comments(document: Document, used: set[int]) -> None:
    """Refuse a mark that is before no block."""
    for comment in COMMENT.finditer(document.text):
        if comment.start() not in used and re.match(r"\s*(?:redis\s*$|not run\b|not typed\b)", comment[1]):
            raise _error(document, comment.start(), f"the mark {comment[1].strip()!r} is before no Python block")


def _check_fences(document: Document) -> None:
    """Refuse Python in a fence of another kind: it wouldn't run, or wouldn't be coloured on GitHub."""
    for fence in FENCE.finditer(document.text):
        info = fence["info"]
        if info != "python" and re.match(r"(?i)\s*(?:\{code[\w-]*\}\s*)?(?:python|py\b|pycon|ipython)", info):
            raise _error(document, fence.start(), f"a Python block must begin with ```python, not with {info!r}")


def _error(document: Document, start: int, text: str) -> PageError:
    line = document.text.count("\n", 0, start) + 1
    return PageError(f"{name_of(Path(document.path))}:{line}: {text}")


def name_of(page: Path) -> str:
    """Return the path of a page as messages and tests name it: relative to the project's folder, if it is there."""
    return str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name


def parse(page: Path, redis_url: Callable[[], str] = lambda: REDIS_URL) -> Document:
    """Return a page whose examples are its blocks.

    Arguments:
        page: The file.
        redis_url: Returns the URL of a server. It is called when a block needs one.

    Raises:
        PageError: A block or a mark can't be understood.
    """
    return Document.parse(str(page), _Blocks(redis_url))


def run(page: Path, redis_url: Callable[[], str]) -> None:
    """Run the blocks of a page in order, as one program whose main module they are; close the backends it leaves open.

    Arguments:
        page: The file.
        redis_url: As for `parse`.
    """
    main = ModuleType("__main__")
    document = parse(page, redis_url)
    document.namespace = vars(main)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "__main__", main)  # where annotations in text are looked up
        patch.setattr(plugin.memory, "_stores", weakref.WeakValueDictionary())  # others may keep ``memory://``
        try:
            for example in document:
                example.evaluate()
        finally:
            for each in list(vars(main).values()):
                if isinstance(each, ailf.Backend):
                    each.close()


def module_of(page: Path) -> str:
    """Return the blocks that are typed as one module, in which each line has the number that it has in the page."""
    document = parse(page)
    lines = [""] * (document.text.count("\n") + 1)
    for example in document:
        if example.region.lexemes["marks"].typed:
            block = example.parsed.splitlines()
            lines[example.line : example.line + len(block)] = block
    return "\n".join(lines) + "\n"
