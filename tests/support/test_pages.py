"""Blocks of pages are found, run and typed as their marks say, and every error names the page and the line."""

import traceback
from pathlib import Path

import pytest

import ailf
from tests.support.pages import REDIS_URL, PageError, module_of, parse, run

GOOD = """# A page

```python
import ailf

backend = ailf.connect("memory://page")
```

1. A block in a list sees the names of the blocks before it. A comment in a line, as `<!-- redis -->`, is text.

   ```python
   assert backend.pubsub()
   ```

<!-- redis -->

```python
url = "redis://localhost:6379/0"
```

<!-- not run: it never ends -->
```python
while True:
    pass
```

<!-- not typed, redis: the type of the number is wrong -->
```python
number: int = "redis://localhost:6379/0"
```

```console
$ python
```

<!-- a comment is no mark if no block is below it -->

The end.

"""


def written(tmp_path: Path, text: str) -> Path:
    """Return a page with this text."""
    page = tmp_path / "page.md"
    page.write_text(text)
    return page


def test_blocks_run_as_one_program(tmp_path: Path) -> None:
    """Blocks share their names, run on the server if they are so marked, and those that never end are not run."""
    asked = []
    page = written(tmp_path, GOOD + "```python\nassert url == number == 'redis://there'\n```\n")
    run(page, lambda: asked.append(1) or "redis://there")
    assert len(asked) == 2


def test_a_page_is_the_main_module(tmp_path: Path) -> None:
    """Code below ``if __name__ == "__main__"`` runs, and classes may name each other in text."""
    typed = "import msgspec\nclass A(msgspec.Struct):\n    b: 'B'\nclass B(msgspec.Struct):\n    pass\n"
    page = written(tmp_path, f"```python\n{typed}\nmsgspec.json.decode(b'{{\"b\": {{}}}}', type=A)\n```\n")
    run(page, str)
    page = written(tmp_path, "```python\nif __name__ == '__main__':\n    raise LookupError\n```\n")
    with pytest.raises(LookupError):
        run(page, str)


def test_open_backends_are_closed(tmp_path: Path) -> None:
    """A backend that a page leaves open is closed at its end, after an error too."""
    page = written(tmp_path, GOOD + "```python\nprint(backend.no_such_name)\n```\n")
    with pytest.raises(AttributeError) as caught:
        run(page, str)
    backend = caught.value.obj
    assert isinstance(backend, ailf.Backend)
    with pytest.raises(ailf.ClosedError):
        backend.pubsub().publish("a", 1)


@pytest.mark.parametrize(
    ("block", "line"),
    [("```python\n\n1 / 0\n```", 5), ("- ```python\n  x = 1\n  1 / 0\n  ```", 5), ("```python\n(\n```", 4)],
)
def test_an_error_has_the_line_of_the_page(tmp_path: Path, block: str, line: int) -> None:
    """The traceback of a block that fails, or can't be compiled, has the line in the page."""
    page = written(tmp_path, f"A page\n\n{block}\n")
    with pytest.raises((ZeroDivisionError, SyntaxError)) as caught:
        run(page, str)
    if isinstance(caught.value, SyntaxError):
        assert (caught.value.filename, caught.value.lineno) == (str(page), line)
    else:
        last = traceback.extract_tb(caught.value.__traceback__)[-1]
        assert (last.filename, last.lineno) == (str(page), line)


def test_a_block_that_does_not_run_is_compiled(tmp_path: Path) -> None:
    """A block with the mark ``not run`` is Python all the same."""
    with pytest.raises(SyntaxError):
        run(written(tmp_path, "<!-- not run: why -->\n```python\nno Python\n```\n"), str)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- reddis -->\n```python\n```\n", "page.md:3: unknown mark 'reddis' before a block; write <!-- redis -->"),
        (
            "<!-- not run -->\n```python\n```\n",
            "page.md:3: the marks 'not run' need a reason: <!-- not run: reason -->",
        ),
        ("<!-- not typed: -->\n```python\n```\n", "page.md:3: the marks 'not typed' need a reason"),
        ("<!-- redis: why -->\n```python\n```\n", "page.md:3: 'redis' has no reason"),
        ("<!-- redis -->\n```python\nx = 1\n```\n", f"page.md:4: .* must have the URL {REDIS_URL}"),
        ("<!-- not run: why -->\n\nText.\n", "page.md:3: the mark 'not run: why' is before no Python block"),
        ("<!-- redis -->\n```console\n```\n", "page.md:3: the mark 'redis' is before no Python block"),
        ("```py\n```\n", "page.md:3: a Python block must begin with ```python, not with 'py'"),
        ("``` python\n```\n", "page.md:3: a Python block must begin"),
        ("```{code-block} python\n```\n", "page.md:3: a Python block must begin"),
        ("~~~Python\n~~~\n", "page.md:3: a Python block must begin"),
    ],
)
def test_what_cannot_be_understood_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """An unknown mark, a mark without its reason or block, and another kind of fence are errors with the line."""
    with pytest.raises(PageError, match=message):
        parse(written(tmp_path, f"A page\n\n{text}"))


def test_a_module_has_the_lines_of_the_page(tmp_path: Path) -> None:
    """In the module for type checkers each line has its number in the page; a block that is not typed is left out."""
    page, module = GOOD.splitlines(), module_of(written(tmp_path, GOOD)).splitlines()
    found = {number: line for number, line in enumerate(module) if line}
    assert {number: page[number].strip() for number in found} == {key: line.strip() for key, line in found.items()}
    assert [line for line in found.values() if line.startswith("assert")] == ["assert backend.pubsub()"]
    assert "while True:" in module
    assert not any("number" in line for line in module)
