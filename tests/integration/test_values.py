"""Values: what is put in comes out."""

import enum
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal, assert_type
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from agentfield import InvalidInputError, Memory

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


class Mood(enum.Enum):
    ANGRY = "angry"


class Sentiment(BaseModel):
    mood: str
    confidence: float


@dataclass
class Point:
    x: int
    at: datetime


@pytest.mark.parametrize(
    "value", ["123", "true", "null", "[1]", '"quoted"', "", " ", "None", "1e5", "{}", "ünïcode 🎉", "a\nb\x00c", "0123"]
)
async def test_a_string_comes_back_as_the_same_string(memory: Memory, value: str) -> None:
    await memory.set("k", value)
    found = await memory.get("k")
    assert found == value
    assert type(found) is str


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
@given(value=PLAIN)
async def test_any_plain_value_comes_back_equal_and_of_the_same_types(memory: Memory, value: Any) -> None:
    await memory.set("k", value)
    assert repr(await memory.get("k")) == repr(value)


async def test_models_dataclasses_datetimes_and_their_kin_are_stored_as_json(memory: Memory) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    for value, stored in (
        (Sentiment(mood="angry", confidence=0.5), {"mood": "angry", "confidence": 0.5}),
        (Point(1, moment), {"x": 1, "at": "2026-01-02T03:04:05.000678Z"}),
        (moment, "2026-01-02T03:04:05.000678Z"),
        (date(2026, 1, 2), "2026-01-02"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (Mood.ANGRY, "angry"),
        ((1, 2), [1, 2]),
        ({"deep": [Sentiment(mood="calm", confidence=1)]}, {"deep": [{"mood": "calm", "confidence": 1.0}]}),
    ):
        await memory.set("k", value)
        assert await memory.get("k") == stored


async def test_as_type_gives_the_value_back_in_its_type(memory: Memory) -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    for value, as_type in (
        (Sentiment(mood="angry", confidence=0.5), Sentiment),
        (Point(1, moment), Point),
        (moment, datetime),
        (UUID(int=7), UUID),
        ([moment], list[datetime]),
    ):
        await memory.set("k", value)
        assert await memory.get("k", as_type=as_type) == value
    await memory.set("k", {"mood": "angry"})
    with pytest.raises(InvalidInputError, match="confidence"):
        await memory.get("k", as_type=Sentiment)
    assert await memory.get("absent", None, as_type=Sentiment) is None


async def test_whatever_stands_for_a_type_can_be_read_as_one(memory: Memory) -> None:
    await memory.set("k", None)
    past = memory.as_of(await memory.set("other", 1))
    found: int | None = await memory.get("k", as_type=int | None)  # a type checker has to agree with these lines
    before: int | None = await past.get("k", as_type=int | None)
    assert (found, before) == (None, None)
    await memory.set("k", "b")
    letter: Literal["a", "b"] = await memory.get("k", as_type=Literal["a", "b"])
    text: str = await memory.get("k", as_type=Annotated[str, Field(max_length=1)])
    assert (letter, text) == ("b", "b")
    assert_type(await memory.get("k", as_type=str), str | None)  # there may be no value
    assert_type(await memory.get("k", "", as_type=str), str)
    assert_type(await memory.get("k", 0, as_type=str), str | int)
    assert_type(await past.get("absent", as_type=str), str | None)
    assert_type(await past.get("absent", "", as_type=str), str)
    with pytest.raises(InvalidInputError, match=r"does not fit as_type int \| None"):
        await memory.get("k", as_type=int | None)
