"""The test that ``ailf dead show --pytest`` writes."""

from pathlib import Path
from typing import Any

import pytest

from ailf.cli.dead import pytest_of
from ailf.values import DeadLetter
from tests.support.programs import run_pytest

HANDLERS = {
    "good": "def handle(delivery): assert delivery.data == {'a': 1} and delivery.headers == {'h': 'x'}",
    "failing": "def handle(delivery): raise ValueError('still broken')",
    "false": "def handle(delivery): return False",
    "flaky": "def handle(delivery):\n    if delivery.attempt < 3: raise ValueError('again')",
}


def letter(body: bytes = b'{"a": 1}', headers: dict[str, str] | None = None, **more: object) -> DeadLetter[Any]:
    """Return a dead letter."""
    values: dict[str, object] = {"reason": "max_deliveries", "error": 'e"""\x1b\n', "attempts": 3, **more}
    values |= {"stream": "orders", "group": "kitchen", "key": "", "added": 0.0, "died": 1.0, "decode": dict}
    return DeadLetter(id="1-0", origin="0-1", body=body, headers={"h": "x"} if headers is None else headers, **values)  # type: ignore[arg-type]


def outcome(folder: Path, text: str) -> int:
    """Run a test file in a process of its own."""
    (folder / "test_letter.py").write_text(text)
    return run_pytest("test_letter.py", cwd=folder).returncode


@pytest.mark.parametrize(("handler", "code"), [("good", 0), ("flaky", 0), ("failing", 1), ("false", 1)])
def test_it_fails_until_the_handler_is_mended(tmp_path: Path, handler: str, code: int) -> None:
    """It passes where the handler handles the message within the attempts that it had, and fails otherwise."""
    (tmp_path / "crew.py").write_text(HANDLERS[handler])
    assert outcome(tmp_path, pytest_of("s'\x1b", "g", letter(), "crew:handle")) == code


ASYNC_HANDLERS = {
    "good": "async def handle(delivery): await delivery.ack()",
    "flaky": "async def handle(delivery):\n    if delivery.attempt < 3: raise ValueError('again')",
    "failing": "async def handle(delivery): raise ValueError('still broken')",
    "false": "async def handle(delivery): return False",
}


@pytest.mark.parametrize(("handler", "code"), [("good", 0), ("flaky", 0), ("failing", 1), ("false", 1)])
def test_a_coroutine_function_as_the_handler(tmp_path: Path, handler: str, code: int) -> None:
    """With --asyncio the test runs an asyncio worker, whose handler gets an `AsyncDelivery`."""
    (tmp_path / "crew.py").write_text(ASYNC_HANDLERS[handler])
    assert outcome(tmp_path, pytest_of("s", "g", letter(), "crew:handle", coroutine=True)) == code


def test_a_coroutine_function_to_be_filled_in(tmp_path: Path) -> None:
    """With --asyncio the function to replace is a coroutine function too."""
    text = pytest_of("s", "g", letter(), coroutine=True)
    assert "async def handle(delivery: ailf.AsyncDelivery[Any])" in text
    assert outcome(tmp_path, text) == 1


def test_it_fails_without_a_handler(tmp_path: Path) -> None:
    """Without a handler it fails, and says where to import it."""
    text = pytest_of("s", "g", letter())
    assert text.isascii()
    assert "import the handler of this group here" in text
    assert outcome(tmp_path, text) == 1


def test_bytes_stay_bytes(tmp_path: Path) -> None:
    """A message of bytes is given to the handler as bytes."""
    (tmp_path / "crew.py").write_text("def cook(delivery): assert delivery.data == b'\\xff' and not delivery.headers")
    marked = letter(b"\xff", {"content-type": "application/octet-stream"})
    assert outcome(tmp_path, pytest_of("s", "g", marked, "crew:cook")) == 0
