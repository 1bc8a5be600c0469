"""Every public class has an example in its docstring, and every example in a docstring runs as it is written."""

import doctest
import itertools
import re
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

import ailf
import ailf.driver
import ailf.instruments
import ailf.llm
import ailf.testing
import ailf_memory
import ailf_redis
from ailf.bridges import asgi, httpx, langchain, ratelimit_fields
from ailf_memory import plugin
from tests.support.docstrings import WITH_EXAMPLES, examples_of
from tests.support.pages import REDIS_URL, ROOT
from tests.support.servers import Server

PUBLIC = (
    *(ailf, ailf_memory, ailf_redis, ailf.driver, ailf.instruments, ailf.llm, ailf.testing),
    *(asgi, httpx, langchain, ratelimit_fields),
)


@pytest.fixture
def new_redis_url(request: pytest.FixtureRequest) -> Callable[[], str]:
    """Return the URL of a server, with a new namespace at each call."""
    numbers = itertools.count()

    def find() -> str:
        server: Server = request.getfixturevalue("any_server")
        return f"{server.url}?namespace={request.getfixturevalue('namespace')}-{next(numbers)}"

    return find


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_examples_of_a_module_run(
    file: Path, new_redis_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example of a module runs on an empty backend; those of the Redis backend on a server."""
    report: list[str] = []
    for example in examples_of(file):
        monkeypatch.setattr(plugin.memory, "_stores", weakref.WeakValueDictionary())  # others may keep ``memory://``
        if file.is_relative_to(ROOT / "ailf_redis"):
            url = new_redis_url()
            monkeypatch.setenv("AILF_URL", url)
            for each in example.examples:
                each.source = each.source.replace(REDIS_URL, url)
        doctest.DocTestRunner().run(example, out=report.append)
    if report:
        pytest.fail("".join(report), pytrace=False)


def test_every_public_class_has_an_example() -> None:
    """Each public class has an example.

    An error needs none: that of `AilfError` is for all of them. Values of `ailf.driver` are in the examples of drivers.
    """
    drivers = {
        name
        for file in WITH_EXAMPLES
        if file.is_relative_to(ROOT / "ailf" / "driver")
        for test in examples_of(file)
        for each in test.examples
        for name in re.findall(r"\w+", each.source)
    }
    missing = [
        f"{package.__name__}.{name}"
        for package in PUBLIC
        for name in package.__all__
        if isinstance(owner := getattr(package, name), type)
        and not doctest.DocTestParser().get_examples(vars(owner)["__doc__"] or "")
        and not issubclass(owner, Exception)
        and not (package is ailf.driver and name in drivers)
    ]
    assert missing == []
