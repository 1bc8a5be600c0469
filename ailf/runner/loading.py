"""Finding an app by its name, ``module:app``."""

import importlib
import sys
from pathlib import Path

from ailf.app import App
from ailf.errors import InvalidArgumentError

__all__ = ["load_app"]


def load_app(target: str) -> App:
    """Import and return an app. The current directory is searched first.

    Arguments:
        target: The module and the name in it, such as ``shop.jobs:app``; "app" if the name is left out.

    Raises:
        InvalidArgumentError: There is no such module or name, or it isn't an `App`.
        Exception: The module raised it when it was imported.
    """
    module_name, _, name = target.partition(":")
    name = name or "app"
    if not all(part.isidentifier() for part in (*module_name.split("."), *name.split("."))):
        raise InvalidArgumentError(f"the app must be named like module:app, not {target!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # a module that this one imports is missing
        raise InvalidArgumentError(f"{target!r}: there is no module {error.name!r} in {here} or on sys.path") from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise InvalidArgumentError(f"{target!r}: the module {module_name!r} has no {name!r}") from error
    if not isinstance(found, App):
        hint = "; pass the App itself, not a function that makes it" if callable(found) else ""
        raise InvalidArgumentError(f"{target!r} is not an ailf.App but a {type(found).__qualname__}{hint}")
    return found
