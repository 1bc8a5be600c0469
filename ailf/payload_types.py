"""What the ``type`` of an object says about its payloads. All of it is pure.

`TypeForm` annotates ``type=``: a class, a union, ``Annotated``, ``Literal`` or any other form of a type. Type checkers
that don't know it see `Any`. At run time it is `type`, so it needs no package.

`T` and `T_co` are the type variables of the public classes: the payload's type, mostly. Their default is `Any`, so that
an annotation may say ``Delivery`` alone. Python's own type variables have a default from 3.13 on, so they have none at
run time.
"""

from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, NewType, Union, get_args, get_origin

if TYPE_CHECKING:
    from typing_extensions import TypeForm, TypeVar

    T = TypeVar("T", default=Any)
    T_co = TypeVar("T_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    TypeForm = type
    T = TypeVar("T")
    T_co = TypeVar("T_co", covariant=True)

__all__ = ["T", "T_co", "TypeForm", "classes_of"]

_WIDER = {float: (float, int), bytes: (bytes, bytearray, memoryview)}
"""The classes whose instances are also accepted for a class, as type checkers accept them."""


def classes_of(type_: Any) -> tuple[type, ...]:
    """Return the classes of which a payload must be an instance; () if no class says whether it fits.

    That is so for `Any`, ``Literal``, ``list[int]``, a `TypedDict` or a protocol, and for unions with one of these.
    """
    plain = _without_names(type_)
    if get_origin(plain) in (Union, UnionType):
        members = [classes_of(each) for each in get_args(plain)]
        return tuple(dict.fromkeys(kind for member in members for kind in member)) if all(members) else ()
    if plain is Any or not isinstance(plain, type) or get_origin(plain) is not None:
        return ()
    try:
        isinstance(None, plain)
    except TypeError:  # it can't be asked, as a `TypedDict`
        return ()
    return _WIDER.get(plain, (plain,))


def _without_names(type_: Any) -> Any:
    """Return the type behind ``Annotated``, `NewType` and aliases."""
    while True:
        if type_ is None:
            return NoneType
        if isinstance(type_, NewType):
            type_ = type_.__supertype__
        elif get_origin(type_) is Annotated:
            type_ = get_args(type_)[0]
        elif get_origin(type_) is None and not isinstance(type_, type) and hasattr(type_, "__value__"):
            type_ = type_.__value__  # of `type X = …`
        else:
            return type_
