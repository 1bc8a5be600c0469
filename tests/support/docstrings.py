"""The examples in the docstrings of the packages: programs that need no name but those that they import."""

import ast
import doctest
from pathlib import Path
from typing import Final

from tests.support.pages import ROOT

__all__ = ["PACKAGES", "WITH_EXAMPLES", "examples_of", "module_of"]

PACKAGES: Final = ("ailf", "ailf_memory", "ailf_redis")
WITH_EXAMPLES: Final = tuple(
    file for each in PACKAGES for file in sorted((ROOT / each).rglob("*.py")) if ">>> " in file.read_text()
)


def examples_of(file: Path) -> list[doctest.DocTest]:
    """Return the examples in the docstrings of a file: of the module, its classes and its functions."""
    parser, found = doctest.DocTestParser(), []
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if (text := ast.get_docstring(node, clean=False)) and ">>> " in text:
            name = getattr(node, "name", file.stem)
            line = node.body[0].lineno - 1
            found.append(parser.get_doctest(text, {"__name__": "__main__"}, name, str(file), line))
    return found


def module_of(test: doctest.DocTest) -> str:
    """Return an example as a module in which each line has its number in the file."""
    lines: list[str] = []
    for example in test.examples:
        lines += [""] * ((test.lineno or 0) + example.lineno - len(lines))
        lines += example.source.splitlines()
    return "\n".join(lines) + "\n"
