"""The examples in the docstrings of the core and of the memory backend run as they are written."""

import doctest
import sys
import weakref
from typing import Any

import pytest

import ailf
from ailf import codecs, llm, providers, testing, tracing
from ailf.bridges import httpx
from ailf_memory import MemoryBackend, MemoryStore, plugin

OWNERS = [
    *(ailf.AsyncBackend, ailf.Backend, ailf.connect, codecs.Codec, tracing),
    *(ailf.Backoff, ailf.DeadLetter, ailf.Decision, ailf.OnLost, ailf.Overflow, ailf.Retention),
    *(httpx.AsyncQuotaTransport, httpx.QuotaTransport, llm.estimated, llm.model_of, providers.AnswerReader),
    *(testing.ManualClock, MemoryBackend, MemoryStore),
    *(testing.Faults, testing.Recorder, testing.run_schedule, testing.run_until_idle, testing.run_until_idle_async),
]


@pytest.mark.parametrize("owner", OWNERS, ids=lambda owner: owner.__name__)
def test_an_example_runs(owner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of a class, function or module runs on an empty backend."""
    monkeypatch.setattr(plugin.memory, "_stores", weakref.WeakValueDictionary())  # others may keep ``memory://``
    module = sys.modules[getattr(owner, "__module__", owner.__name__)]
    (example,) = doctest.DocTestFinder(recurse=False).find(owner, module=module)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
