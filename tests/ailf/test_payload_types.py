"""The `type` of an object: models of pydantic, the check of a producer's payload, and errors that name the field."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar

import msgspec
import pydantic
import pytest

import ailf
from tests.support.flavours import Flavour, flavours

T = TypeVar("T")

SECRET = "xyzzy-plugh"  # a word that must not appear in error messages


class Color(Enum):
    """A choice."""

    RED = "red"


class Cat(pydantic.BaseModel):
    """A model with an alias, a dict and a model within."""

    kind: Literal["cat"] = "cat"
    lives: int = pydantic.Field(default=9, alias="livesLeft")
    names: dict[str, int] = {}
    color: Color = Color.RED
    mother: "Cat | None" = None

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def dead(self) -> bool:
        """A field that is not sent."""
        return self.lives == 0


class Dog(pydantic.BaseModel):
    """A model that refuses what it does not know."""

    model_config = pydantic.ConfigDict(extra="forbid")
    kind: Literal["dog"] = "dog"
    weight: float = 1.0

    @pydantic.field_validator("weight")
    @classmethod
    def _positive(cls, weight: float) -> float:
        if weight < 0:
            raise ValueError(f"{SECRET} {weight}")
        return weight


class Box(pydantic.BaseModel, Generic[T]):
    """A generic model."""

    content: T


@pydantic.dataclasses.dataclass
class Point:
    """A dataclass of pydantic."""

    x: int


@dataclass
class Walk:
    """A dataclass with models in its fields."""

    dog: Dog
    minutes: int = 5
    colors: list[Color] = field(default_factory=list)
    others: dict[str, Dog] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.minutes == 13:
            raise ValueError(SECRET)


class Pair(NamedTuple):
    """A tuple with names."""

    a: int
    b: str


class Options(TypedDict):
    """A dict with a known key."""

    a: int


Animal = Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]
UserId = NewType("UserId", int)


@pytest.fixture(params=["memory-blocking", "memory-asyncio", "redis-blocking", "redis-asyncio"])
def flavour(request: pytest.FixtureRequest, namespace: str) -> Flavour:
    """Each flavour on each backend."""
    return flavours(request, namespace)


@pytest.mark.parametrize(
    ("type_", "payloads"),
    [
        (Cat, [Cat(livesLeft=3, names={"Tom": 1}, mother=Cat())]),
        (Animal, [Cat(), Dog(weight=2.5)]),
        (Cat | Dog | None, [Cat(), None]),
        (list[Dog], [[Dog(), Dog(weight=3)]]),
        (Box[int], [Box[int](content=3)]),
        (Point, [Point(x=1)]),
        (Walk, [Walk(Dog(weight=3.0), others={"b": Dog()})]),
        (Annotated[int, pydantic.Field(gt=0)], [1]),
        (Pair, [Pair(1, "b")]),
        (Options, [{"a": 1}]),
        (int | str | None, [1, "a", None]),
        (Literal["a", 7], ["a", 7]),
    ],
    ids=lambda value: getattr(value, "__name__", None) or (str(value) if not isinstance(value, list) else ""),
)
def test_payloads_arrive_as_they_were_sent(flavour: Flavour, type_: Any, payloads: list[Any]) -> None:
    """A payload of each form of type arrives as it was sent, by a stream, a channel and a request."""

    async def scenario(backend: Any) -> None:
        stream, pubsub = backend.stream("s", type=type_, validate=True), backend.pubsub(type=type_, validate=True)
        await flavour.wait(stream.add_many(payloads))
        assert [each.data for each in await flavour.wait(stream.read())] == payloads
        async with flavour.entered(pubsub.listen("c")) as subscription:
            for each in payloads:
                await flavour.wait(pubsub.publish("c", each))
                assert (await flavour.wait(subscription.get(timeout=5))).data == each

    flavour.run(scenario)


def test_a_model_is_sent_without_a_type(namespace: str) -> None:
    """An object without a type sends a model as its fields in JSON, also within a dict."""
    with ailf.connect(f"memory://{namespace}") as backend:
        stream = backend.stream("s")
        stream.add({"dog": Dog(weight=2)})
        assert stream.read()[0].data == {"dog": {"kind": "dog", "weight": 2.0}}


def test_a_body_has_the_names_of_json(namespace: str) -> None:
    """A model's fields have their aliases in the body, and no computed field is sent."""
    with ailf.connect(f"memory://{namespace}") as backend:
        backend.stream("s", type=Cat).add(Cat())
        body = backend.stream("s").read()[0].data
    assert body == {"kind": "cat", "livesLeft": 9, "names": {}, "color": "red", "mother": None}


# --- what a producer may send ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [
        (int, [1, True], ["1", 1.0, None]),
        (float, [1.5, 1], ["1"]),
        (bytes, [b"a", bytearray(b"a"), memoryview(b"a")], ["a"]),
        (int | None, [1, None], ["a"]),
        (Annotated[int | str, "note"], [1, "a"], [1.5]),
        (UserId, [UserId(1)], ["a"]),
        (Walk, [Walk(Dog())], [{"dog": {}}]),
        (Animal, [Cat(), Dog()], [Walk(Dog()), {"kind": "dog"}]),
        (Color, [Color.RED], ["red"]),
        (Pair, [Pair(1, "b")], [(1, "b")]),
        (Sequence, [[1], (1,)], [1]),
        (None, [None], [0]),
        (list[int], [[1], (1,), "not checked"], []),
        (Literal["a"], ["a", "not checked"], []),
        (Options, [{"a": 1}, "not checked"], []),
        (list[int] | int, [1, "not checked"], []),
        (Any, [1, "a"], []),
    ],
    ids=lambda value: getattr(value, "__name__", None) or (str(value) if not isinstance(value, list) else ""),
)
def test_a_payload_of_another_class_is_refused(flavour: Flavour, type_: Any, good: list[Any], bad: list[Any]) -> None:
    """A payload that is no instance of the class, or of a class of the union, is refused, and nothing is sent."""

    async def scenario(backend: Any) -> None:
        stream, pubsub = backend.stream("s", type=type_), backend.pubsub(type=type_)
        for each in good:
            await flavour.wait(stream.add(each))
            await flavour.wait(pubsub.publish("c", each))
        for each in bad:
            sends = [
                lambda: stream.add(each),  # noqa: B023 - called at once
                lambda: stream.add_many([each]),  # noqa: B023
                lambda: stream.add_once("d", each),  # noqa: B023
                lambda: pubsub.publish("c", each),  # noqa: B023
                lambda: pubsub.publish_many([("c", each)]),  # noqa: B023
            ]
            for send in sends:
                with pytest.raises(ailf.EncodeError, match=r"of its type \(.*\), not .*Nothing was sent"):
                    await flavour.wait(send())
        assert (await flavour.wait(stream.info())).length == len(good)

    flavour.run(scenario)


def test_requests_and_replies_may_be_of_two_types(flavour: Flavour) -> None:
    """The type of an object that requests is that of the replies: a request and a reply are not checked by class."""

    async def scenario(backend: Any) -> None:
        async with flavour.entered(backend.pubsub(type=str).listen("ask")) as questions:
            replies = [each async for each in _replies(flavour, backend, questions)]
        assert replies == [7]

    flavour.run(scenario)


async def _replies(flavour: Flavour, backend: Any, questions: Any) -> Any:
    import asyncio  # noqa: PLC0415
    import threading  # noqa: PLC0415

    asker = backend.pubsub(type=int)
    if flavour.is_async:
        asking = asyncio.create_task(asker.request("ask", "how many?", timeout=5))
        await (await questions.get(timeout=5)).reply(7)
        yield (await asking).data
        return
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(asker.request("ask", "how many?", timeout=5).data))
    thread.start()
    questions.get(timeout=5).reply(7)
    thread.join(5)
    yield found[0]


def test_validation_finds_a_wrong_field_before_it_is_sent(flavour: Flavour) -> None:
    """With `validate=True` a payload that receivers could not decode is refused; without it is sent."""
    wrong = Walk(Dog(), minutes="five")  # type: ignore[arg-type]

    async def scenario(backend: Any) -> None:
        checked, pubsub = backend.stream("s", type=Walk, validate=True), backend.pubsub(type=Walk, validate=True)
        for send in (lambda: checked.add(wrong), lambda: pubsub.publish("c", wrong)):
            with pytest.raises(ailf.EncodeError, match=r"nothing was sent.*Expected `int`, got `str` at `\$.minutes`"):
                await flavour.wait(send())
        assert (await flavour.wait(checked.info())).length == 0
        await flavour.wait(backend.stream("s", type=Walk).add(wrong))

    flavour.run(scenario)


def test_validate_is_a_flag(namespace: str) -> None:
    """`validate` must be True or False."""
    with ailf.connect(f"memory://{namespace}") as backend:
        with pytest.raises(ailf.InvalidArgumentError, match="validate must be True or False"):
            backend.stream("s", validate="no")  # type: ignore[call-overload]
        with pytest.raises(ailf.InvalidArgumentError, match="validate must be True or False"):
            backend.pubsub(validate=1)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("type_", "payload", "text"),
    [
        (Dog, Dog.model_construct(weight=SECRET), "field `weight`: Expected `float`"),
        (Dog, Dog(weight=float("nan")), "no NaN"),
        (list[Dog], [Dog(), {"weight": SECRET}], "Expected `Dog`"),
        (Any, Dog.model_construct(weight=SECRET), "field `weight`: Expected `float`"),
    ],
)
def test_a_model_that_cannot_be_written_is_refused(namespace: str, type_: Any, payload: Any, text: str) -> None:
    """A model whose field has another type, or that JSON can't hold, is refused without its content in the error."""
    with ailf.connect(f"memory://{namespace}") as backend, pytest.raises(ailf.EncodeError, match=text) as caught:
        backend.stream("s", type=type_).add(payload)
    assert SECRET not in str(caught.value)


def test_a_model_that_pydantic_cannot_use_is_refused_when_the_object_is_made(namespace: str) -> None:
    """A type with a class that pydantic doesn't know is refused when the stream is first used."""
    with (
        ailf.connect(f"memory://{namespace}") as backend,
        pytest.raises(ailf.InvalidArgumentError, match="can't be used"),
    ):
        backend.stream("s", type=list[Dog] | type("Plain", (), {})).add(1)


# --- errors of decoding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "body", "text"),
    [
        (Walk, {"dog": {}, "minutes": SECRET}, ": Expected `int`, got `str` at `$.minutes`"),
        (Walk, {"minutes": 1}, ": Object missing required field `dog`"),
        (Walk, {"dog": {}, "colors": [SECRET]}, ": a value is refused at `$.colors[0]`"),
        (Walk, {"dog": {}, "minutes": 13}, ": a value is refused"),
        (Walk, {"dog": {"weight": SECRET}}, ": `$.weight` should be a valid number at `$.dog`"),
        (Walk, {"dog": {}, "others": {SECRET: {"weight": -1}}}, ": `$.weight` has a value that is refused"),
        (Annotated[int, msgspec.Meta(ge=3)], 1, ": Expected `int` >= 3"),
        (int | str, [SECRET], ": Expected `int | str`, got `array`"),
        (dict[int, int], {SECRET: 1}, ": Expected `int`, got `str` at `key` in `$`"),
        (Cat, {"livesLeft": SECRET}, ": `$.livesLeft` should be a valid integer"),
        (Cat, {"names": {SECRET: "a"}}, ": `$.names[...]` should be a valid integer"),
        (Cat, {"color": SECRET}, ": `$.color` should be 'red'"),
        (Cat, {"mother": {"kind": SECRET, "livesLeft": "a"}}, ": `$.mother.kind` should be 'cat', and 1 more"),
        (Animal, {"kind": SECRET}, ": `$` has a value that is refused"),
        (Animal, {"kind": "dog", "weight": -1}, ": `$.dog.weight` has a value that is refused"),
        (Dog, {SECRET: 1}, ": `$[...]` has a value that is refused"),
        (Box[int], {}, ": `$.content` is missing"),
    ],
)
def test_an_error_names_the_field_and_the_type(namespace: str, type_: Any, body: Any, text: str) -> None:
    """The error of a body says which field differs and what it should be, and nothing else of the body."""
    with ailf.connect(f"memory://{namespace}") as backend:
        backend.stream("s").add(body)
        with pytest.raises(ailf.DecodeError) as caught:
            backend.stream("s", type=type_).read()
    assert text in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_body_that_is_not_json_is_no_model(namespace: str) -> None:
    """A body that isn't JSON is a `DecodeError` of a model, too."""
    with ailf.connect(f"memory://{namespace}") as backend, pytest.raises(ailf.DecodeError, match="is not JSON"):
        backend.stream("s").add(b"nonsense")
        backend.stream("s", type=Dog).read()


def test_pydantic_is_imported_only_for_models() -> None:
    """A program without models doesn't import pydantic."""
    program = (
        "import ailf, sys, dataclasses\n"
        "D = dataclasses.make_dataclass('D', [('a', int)])\n"
        "with ailf.connect('memory://') as backend:\n"
        "    backend.stream('s', type=D | None).add(D(1))\n"
        "    backend.stream('s').read()\n"
        "assert 'pydantic' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
