"""Payloads that are models of pydantic: found by their attributes, written and read by pydantic itself.

The core doesn't depend on pydantic. It is imported only for a type or a payload that is a model, so it is there then.
Errors show names that a model declares, and nothing of a payload.
"""

import contextlib
import functools
import re
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from ailf.errors import InvalidArgumentError

__all__ = ["ModelError", "PydanticCodec", "dump", "is_model", "load", "uses_pydantic"]

_MAY_QUOTE = ("assertion_error", "union_tag_invalid", "value_error")
"""The errors of pydantic whose message may quote the payload."""

_UNEXPECTED = re.compile(r"Expected `[^`']*`")
_FIELD = re.compile(r"\[field_name='(\w+)'")


class ModelError(ValueError):
    """A payload or a body is not what its model says. The text names the field, and shows nothing of the content."""


def is_model(kind: object) -> bool:
    """Tell whether this is a class of pydantic: a model or a dataclass."""
    return isinstance(kind, type) and hasattr(kind, "__pydantic_core_schema__")


def uses_pydantic(type_: Any) -> bool:
    """Tell whether a type is a model, or a union, a list, … of models, or is annotated for pydantic."""
    if is_model(type_):
        return True
    if get_origin(type_) is Annotated:
        kind, *notes = get_args(type_)
        return uses_pydantic(kind) or any(type(each).__module__.split(".")[0] == "pydantic" for each in notes)
    if get_origin(type_) is None and hasattr(type_, "__value__"):  # an alias made by `type X = …`
        return uses_pydantic(type_.__value__)
    return any(uses_pydantic(each) for each in get_args(type_))


class PydanticCodec:
    """JSON, written and read by pydantic. Fields have the names that the model gives them in JSON: their aliases."""

    def __init__(self, type_: Any) -> None:
        from pydantic import TypeAdapter  # noqa: PLC0415 - only programs that use pydantic have it

        try:
            self._adapter = TypeAdapter(type_)
        except Exception as error:  # its own errors have no common base
            raise InvalidArgumentError(f"type={type_!r} can't be used by pydantic: {error}") from error

    def encode(self, data: Any) -> bytes:
        """Return the body of a payload, for `ailf.codecs.Codec`."""
        with _serializing():
            body: bytes = self._adapter.dump_json(data, by_alias=True, round_trip=True, warnings="error")
        return body

    def plain(self, data: Any) -> Any:
        """Return a payload that was encoded as values of Python."""
        return self._adapter.dump_python(data)

    def decode(self, body: bytes, *, foreign: bool) -> Any:  # noqa: ARG002 - pydantic reads numbers from text, too
        """Return the payload of a body, for `ailf.codecs.Codec`."""
        with _validating(self._adapter):
            return self._adapter.validate_json(body)


def dump(model: Any) -> Any:
    """Return a model as values that JSON has."""
    with _serializing():
        return _adapter(model.__class__).dump_python(model, by_alias=True, round_trip=True, warnings="error")


def load(kind: Any, data: Any) -> Any:
    """Return the model that decoded JSON describes."""
    adapter = _adapter(kind)
    with _validating(adapter):
        return adapter.validate_python(data)


@contextlib.contextmanager
def _serializing() -> Iterator[None]:
    from pydantic_core import PydanticSerializationError  # noqa: PLC0415 - as above

    try:
        yield
    except PydanticSerializationError as error:
        text = str(error)
        expected, field = _UNEXPECTED.search(text), _FIELD.search(text)
        where = f"field `{field[1]}`: " if field else ""
        raise ModelError(f"{where}{expected[0] if expected else 'pydantic refuses a value'}") from error


@contextlib.contextmanager
def _validating(adapter: Any) -> Iterator[None]:
    from pydantic import ValidationError  # noqa: PLC0415 - as above

    try:
        yield
    except ValidationError as error:
        raise ModelError(_mismatch(error, adapter)) from error


def _mismatch(error: Any, adapter: Any) -> str:
    """Return the first field that differs from the model, and what it should be."""
    from pydantic_core import core_schema  # noqa: PLC0415 - as above

    first, *others = error.errors(include_input=False, include_url=False, include_context=False)
    kind, message = first["type"], first["msg"]
    known = kind in get_args(core_schema.ErrorType) and kind not in _MAY_QUOTE
    if known and message.startswith("Input should be"):
        # A comma begins the reason, which may quote the body; but it also divides the choices of an enum or a literal.
        expected = message if kind in ("enum", "literal_error") else message.partition(",")[0]
        expected = expected.replace("Input ", "")
    else:
        expected = {"missing": "is missing", "json_invalid": "is not JSON"}.get(kind, "has a value that is refused")
    declared = _declared(adapter)
    path = "".join(f".{each}" if each in declared else "[...]" for each in first["loc"])
    return f"`${path}` {expected}" + (f", and {len(others)} more" if others else "")


@functools.lru_cache(maxsize=256)
def _adapter(model: Any) -> Any:
    """Return the adapter of a model, which is made once, as that takes long."""
    from pydantic import TypeAdapter  # noqa: PLC0415 - as above

    return TypeAdapter(model)


@functools.lru_cache(maxsize=64)
def _declared(adapter: Any) -> frozenset[str]:
    """Return every text in the schema of a type: the names of fields are among them, keys of a payload are not."""
    found: set[str] = set()
    parts: list[Any] = [adapter.core_schema]
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            found.add(part)
        elif isinstance(part, dict):
            parts += [*part, *part.values()]
        elif isinstance(part, list | tuple):
            parts += part
    return frozenset(found)
