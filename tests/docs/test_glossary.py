"""The glossary has every public name, in order, and no name that doesn't exist."""

import ast
import builtins
import itertools
import re
from pathlib import Path

import pytest

import ailf
import ailf.driver

ROOT = Path(__file__).parents[2]
PACKAGES = ("ailf", "ailf_redis", "ailf_memory", "ailf_pytest", "contract_tests")
TEXT = (ROOT / "docs" / "glossary.md").read_text()
ENTRY = re.compile(r"^- ((?:`\w+`(?:, )?)+|\*\*[^*]+\*\*): ", re.MULTILINE)
CLASS_NAME = re.compile(r"`([A-Z]\w*[a-z]\w*)`")


def names() -> set[str]:
    """Return the names that have an entry."""
    return {name for entry in ENTRY.findall(TEXT) for name in re.findall(r"`(\w+)`", entry)}


def defined() -> set[str]:
    """Return the names of the packages' classes, and those that a module defines by assignment."""
    found = set()
    for file in itertools.chain.from_iterable((ROOT / package).rglob("*.py") for package in PACKAGES):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {each.id for each in targets if isinstance(each, ast.Name)}
    return found


@pytest.mark.parametrize("name", ailf.__all__)
def test_public_names_have_an_entry(name: str) -> None:
    """Each public name of `ailf` has an entry."""
    assert name in names()


@pytest.mark.parametrize("name", ailf.driver.__all__)
def test_names_of_drivers_have_an_entry(name: str) -> None:
    """Each public name of `ailf.driver` has an entry."""
    assert name in names()


def test_classes_exist() -> None:
    """Each class that the glossary names in backticks exists."""
    mentioned = set(CLASS_NAME.findall(TEXT)) - {"AsyncX", "X"}
    assert mentioned - defined() - set(dir(builtins)) == set()


def test_entries_are_sorted() -> None:
    """The entries of each section are in alphabetical order, and no word has two entries in one section."""
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]:
        words = [re.sub(r"[`*]", "", each).lower() for each in ENTRY.findall(section)]
        assert words == sorted(words)
        assert len(ENTRY.findall(section)) == len(re.findall(r"^- ", section, re.MULTILINE))
        assert len(ENTRY.findall(section)) == len(set(ENTRY.findall(section)))
