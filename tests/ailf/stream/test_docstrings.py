"""The examples in the docstrings of the public classes of streams run as they are written."""

import doctest
import inspect
import sys

import pytest

import ailf

CLASSES = [
    *(ailf.Consumer, ailf.Delivery, ailf.Group, ailf.Stream),
    *(ailf.AsyncConsumer, ailf.AsyncDelivery, ailf.AsyncGroup, ailf.AsyncStream),
]


@pytest.mark.parametrize("owner", CLASSES, ids=lambda owner: owner.__name__)
def test_the_example_of_a_class_runs(owner: type, namespace: str) -> None:
    """Each public class has an example, and it runs on an empty backend."""
    module = sys.modules[owner.__module__]
    (example,) = doctest.DocTestFinder(recurse=False).find(owner, module=module)
    assert ">>> import" in inspect.cleandoc(owner.__doc__ or "")
    for each in example.examples:  # a store of its own: another test may still use that of "memory://"
        each.source = each.source.replace("memory://", f"memory://{namespace}")
    assert doctest.DocTestRunner().run(example).failed == 0
