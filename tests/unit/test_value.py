import json
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, SecretBytes, SecretStr

from agentfield.errors import InvalidInputError
from agentfield.value import decode_value, encode_value, validate_as
from tests.unit.strategies import ANY_CHARACTER

texts = st.text(st.one_of(ANY_CHARACTER, st.characters(max_codepoint=0x9F)))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.sampled_from(["123", "true", "null", "NaN", ""]),
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=20,
)


@given(json_values)
def test_every_json_value_comes_back_the_same(value: Any) -> None:
    payload = encode_value(value)
    assert decode_value(payload) == value
    assert json.loads(payload) == value
    assert type(decode_value(payload)) is type(value)


@given(json_values, st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 3))
def test_a_number_json_does_not_have_is_refused_wherever_it_is(value: Any, number: float, depth: int) -> None:
    wrapped: Any = number
    for level in range(depth):
        wrapped = {"first": value, "level": wrapped} if level % 2 else [value, wrapped]
    with pytest.raises(InvalidInputError, match=f"is {number}, which JSON has no number for"):
        encode_value(wrapped)


class Mood(StrEnum):
    ANGRY = "angry"


class Level(IntEnum):
    HIGH = 3


class Plain(Enum):
    ONE = "one"


@dataclass
class Point:
    x: float
    y: Any = None
    tags: list[str] = field(default_factory=list)
    _cached: Any = None


@dataclass(frozen=True, slots=True)
class Slotted:
    at: datetime


class Sentiment(BaseModel):
    mood: Mood
    confidence: float
    extra: Any = None


class Aliased(BaseModel):
    customer_id: int = Field(alias="customerId")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    at: datetime
    id: UUID
    price: Decimal
    mood: Mood


class Pair(NamedTuple):
    one: int
    two: int


AT = datetime(2024, 7, 8, 18, 20, tzinfo=UTC)
AN_ID = UUID("0190a3b2-c4d5-7e8f-9012-345678901234")


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("123", b'"123"'),
        (None, b"null"),
        ((1, 2), b"[1,2]"),
        (AT, b'"2024-07-08T18:20:00Z"'),
        (date(2024, 7, 8), b'"2024-07-08"'),
        (AN_ID, b'"0190a3b2-c4d5-7e8f-9012-345678901234"'),
        ([Mood.ANGRY, Level.HIGH, Plain.ONE], b'["angry",3,"one"]'),
        (Point(1.5, None), b'{"x":1.5,"y":null,"tags":[]}'),
        (Point(1.5, _cached=object()), b'{"x":1.5,"y":null,"tags":[]}'),
        ({"at": Slotted(AT)}, b'{"at":{"at":"2024-07-08T18:20:00Z"}}'),
        (Sentiment(mood=Mood.ANGRY, confidence=0.5), b'{"mood":"angry","confidence":0.5,"extra":null}'),
        ([Point(1.0, Sentiment(mood=Mood.ANGRY, confidence=1))], None),
        (OrderedDict(a=1, n=None), b'{"a":1,"n":null}'),
        (RootModel[list[int]]([1]), b"[1]"),
        (Aliased(customerId=7), b'{"customer_id":7}'),
    ],
)
def test_models_dataclasses_enums_and_dates_are_stored_as_plain_json(value: Any, stored: bytes | None) -> None:
    payload = encode_value(value)
    json.loads(payload)
    if stored is not None:
        assert payload == stored


def circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({1, 2}, "value is of type set: .* convert it"),
        ({"a": [0, {"b": object()}]}, r"value\['a'\]\[1\]\['b'\] is of type object"),
        (b"bytes", "value is of type bytes"),
        (Decimal("1.5"), "value is of type Decimal"),
        (Pair(1, 2), "value is of type Pair"),
        (timedelta(1), "value is of type timedelta"),
        (Point, "value is of type type"),
        ({1: "x"}, "value has the key 1 of type int: make its keys plain strings"),
        ({Mood.ANGRY: "x"}, "of type Mood: make its keys plain strings"),
        ({"a": {("x",): 1}}, r"value\['a'\] has the key \('x',\) of type tuple"),
        (2**64, "value is an integer beyond 64 bits: store it as a string"),
        ([-(2**63) - 1], r"value\[0\] is an integer beyond 64 bits"),
        ("a\ud800", r"value holds the lone surrogate U\+D800 at position 1"),
        ({"\udc80": 1}, "a key of value holds the lone surrogate"),
        (circle(), "nested more than 254 levels deep, or contains itself"),
        (Point(math.nan), r"value\.x is nan"),
        (Point(0, (1, math.inf)), r"value\.y\[1\] is inf"),
        (Point(0, {1}), r"value\.y is of type set"),
        (Sentiment(mood=Mood.ANGRY, confidence=math.nan), r"value\['confidence'\] is nan"),
        (Sentiment(mood=Mood.ANGRY, confidence=1, extra=[{"a": math.nan}]), r"value\['extra'\]\[0\]\['a'\] is nan"),
        (Sentiment(mood=Mood.ANGRY, confidence=1, extra=object()), "a Sentiment, does not serialise"),
        (Sentiment(mood=Mood.ANGRY, confidence=1, extra=2**64), r"value\['extra'\] is an integer beyond"),
        ([Sentiment(mood=Mood.ANGRY, confidence=math.inf)], r"value\[0\]\['confidence'\] is inf"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_place_and_the_remedy(value: Any, fault: str) -> None:
    with pytest.raises(InvalidInputError, match=f"value cannot be stored: .*{fault}"):
        encode_value(value)


@pytest.mark.parametrize(
    ("value", "as_type"),
    [
        (Sentiment(mood=Mood.ANGRY, confidence=0.5, extra={"a": [1]}), Sentiment),
        (Point(1.5, [1], ["x"]), Point),
        (Slotted(AT), Slotted),
        (Aliased(customerId=7), Aliased),
        (Strict(at=AT, id=AN_ID, price=Decimal("1.50"), mood=Mood.ANGRY), Strict),
        (AT, datetime),
        (AN_ID, UUID),
        ([1, 2], list[int]),
        ((1, "a"), tuple[int, str]),
        ({"a": AT}, dict[str, datetime]),
        (None, Sentiment | None),
        (7, Annotated[int, Field(gt=3), ["an unhashable note"]]),
    ],
)
def test_a_value_comes_back_as_its_type(value: Any, as_type: Any) -> None:
    assert validate_as(decode_value(encode_value(value)), as_type) == value


def test_a_value_that_does_not_fit_its_type_is_refused_saying_where() -> None:
    with pytest.raises(
        InvalidInputError, match=r"fit as_type Sentiment: value\['mood'\]: input should be 'angry'; value"
    ):
        validate_as({"mood": "calm"}, Sentiment)
    with pytest.raises(InvalidInputError, match=r"fit as_type list\[int\]: value\[1\]: input should be"):
        validate_as([1, "x"], list[int])
    with pytest.raises(InvalidInputError, match="does not fit as_type int: value: input"):
        validate_as("x", int)


@pytest.mark.parametrize("as_type", [object(), "NoSuchType", 7, circle()])
def test_what_is_no_type_is_refused(as_type: Any) -> None:
    with pytest.raises(InvalidInputError, match="is not a type that values can be validated as"):
        validate_as(1, as_type)


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b"NaN", b"hello"])
def test_a_payload_that_is_not_json_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidInputError, match="is not JSON"):
        decode_value(payload)


class Login(BaseModel):
    token: SecretBytes | SecretStr
    name: str = ""


@pytest.mark.parametrize("secret", [SecretBytes(b"hunter2"), SecretStr("hunter2")])
def test_a_secret_is_neither_stored_nor_replaced_by_asterisks_in_silence(secret: SecretBytes | SecretStr) -> None:
    with pytest.raises(InvalidInputError, match=r"value\[0\]\['token'\] is a Secret\w+, of which only") as refused:
        encode_value([Login(token=secret)])
    assert "hunter2" not in str(refused.value)


def test_asterisks_and_an_empty_secret_are_stored_as_they_are() -> None:
    assert decode_value(encode_value(Login(token=SecretStr(""), name="***"))) == {"token": "", "name": "***"}
    assert decode_value(encode_value({"a": "***"})) == {"a": "***"}


@pytest.mark.parametrize("deeper", [lambda value: [value], lambda value: {"in": value}])
def test_the_deepest_value_is_stored_and_the_next_refused_for_what_it_is(deeper: Callable[[Any], Any]) -> None:
    value: Any = 1
    for _ in range(254):
        value = deeper(value)
    assert decode_value(encode_value(value)) == value
    with pytest.raises(InvalidInputError, match="nested more than 254 levels deep"):
        encode_value(deeper(value))
