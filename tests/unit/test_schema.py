from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, field_serializer, field_validator

from agentfield.errors import InvalidInputError
from agentfield.schema import Schema, Schemas, Stamp, schema_of
from agentfield.value import encode_value, validate_as


class Sentiment(BaseModel):
    mood: str
    urgency: Literal["low", "high"] = "low"


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    at: datetime
    price: Decimal
    count: int = Field(alias="n")


@dataclass
class Mood:
    mood: str


def bound(model: Any = Sentiment, pattern: str = "ticket_*", **options: Any) -> Schema:
    return schema_of(pattern, model, **{"name": None, "version": 1, "upcast": None, **options})


def schemas(*several: Schema) -> Schemas:
    together = Schemas()
    for schema in several:
        together.bind(schema)
    return together


# -- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [Sentiment(mood="angry"), {"mood": "angry"}, {"mood": "angry", "other": 1}, Mood("angry")]
)
def test_what_is_stored_is_the_models_json(value: Any) -> None:
    encoded = bound().encode("ticket_7", value)
    assert encoded.payload == b'{"mood":"angry","urgency":"low"}'
    assert encoded.stamp == ("Sentiment", 1)
    assert encoded.value == Sentiment(mood="angry")


@given(st.builds(Sentiment, mood=st.text(), urgency=st.sampled_from(["low", "high"])))
def test_what_was_stored_reads_back_as_the_same_model(value: Sentiment) -> None:
    schema = bound()
    encoded = schema.encode("ticket_7", value)
    assert schema.decode(encoded.payload, encoded.stamp) == encoded.value == value


def test_strict_models_and_aliases_survive_the_way_through_json() -> None:
    value = Strict(at=datetime(2026, 1, 1, tzinfo=UTC), price=Decimal("1.50"), n=3)
    encoded = bound(Strict).encode("ticket_7", value)
    assert bound(Strict).decode(encoded.payload, encoded.stamp) == value
    assert bound(Strict).encode("ticket_7", {"at": "2026-01-01T00:00:00Z", "price": "1.50", "n": 3}).value == value


@pytest.mark.parametrize("value", [{}, {"mood": 7}, {"mood": "x", "urgency": "sometimes"}, "angry", None, [1]])
def test_an_invalid_value_is_refused_with_key_model_and_fields(value: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        bound().encode("ticket_7", value)
    text = str(caught.value)
    assert "'ticket_7'" in text
    assert "Sentiment" in text
    assert "value" in text
    assert "nothing was written" in text


def test_every_field_at_fault_is_named_and_the_rest_counted() -> None:
    with pytest.raises(InvalidInputError) as caught:
        bound(Strict).encode("ticket_7", {"at": "soon", "price": "much", "n": "many", "colour": "red", "size": 1})
    for part in ("value['at']", "value['price']", "value['n']", "and 2 more"):
        assert part in str(caught.value)


def test_an_instance_that_was_made_invalid_afterwards_is_refused() -> None:
    value = Sentiment(mood="angry")
    value.urgency = "sometimes"  # type: ignore[assignment]  # what a program without a type checker does
    with pytest.raises(InvalidInputError, match=r"value\['urgency'\]"):
        bound().encode("ticket_7", value)


def test_a_model_that_cannot_read_what_it_writes_is_refused_before_it_is_stored() -> None:
    class OneWay(BaseModel):
        size: int

        @field_serializer("size")
        def in_words(self, size: int) -> str:
            return f"{size} bytes"

    with pytest.raises(InvalidInputError, match=r"value\['size'\]"):
        bound(OneWay).encode("ticket_7", OneWay(size=1))


def test_what_json_cannot_hold_is_refused_by_its_place() -> None:
    class Measured(BaseModel):
        value: float

    with pytest.raises(InvalidInputError, match="is nan, which JSON has no number for"):
        bound(Measured).encode("ticket_7", Measured(value=float("nan")))


def test_a_root_model_is_its_value() -> None:
    counter = bound(RootModel[int], name="Counter")
    assert counter.encode("ticket_7", 3).payload == b"3"
    assert counter.decode(b"3", Stamp("Counter", 1)) == RootModel[int](3)


# -- reading ----------------------------------------------------------------------------------------------------------


def renamed(data: dict[str, Any]) -> dict[str, Any]:
    return {"mood": data["feeling"]}


def judged(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "urgency": "high" if data["mood"] == "angry" else "low"}


async def slowly(data: Any) -> Any:
    return data


class Slowly:
    async def __call__(self, data: Any) -> Any:
        return data


V3 = bound(version=3, upcast={1: renamed, 2: judged})


@pytest.mark.parametrize(
    ("data", "stamp"),
    [
        ({"feeling": "angry"}, Stamp("Sentiment", 1)),
        ({"feeling": "angry"}, None),
        ({"mood": "angry"}, Stamp("Sentiment", 2)),
        ({"mood": "angry", "urgency": "high"}, Stamp("Sentiment", 3)),
    ],
)
def test_older_data_is_lifted_step_by_step(data: dict[str, Any], stamp: Stamp | None) -> None:
    assert V3.decode(encode_value(data), stamp) == Sentiment(mood="angry", urgency="high")


def test_a_newer_version_asks_for_an_upgrade() -> None:
    with pytest.raises(InvalidInputError, match="of version 4, but this program knows Sentiment up to version 3: upgr"):
        V3.decode(b"{}", Stamp("Sentiment", 4))


def test_another_schemas_data_is_not_taken_for_this_ones() -> None:
    with pytest.raises(InvalidInputError, match=r"is a 'Mood', but 'ticket_\*' is bound to Sentiment .*name='Mood'"):
        bound().decode(b'{"mood":"x"}', Stamp("Mood", 1))
    assert bound(name="Mood").decode(b'{"mood":"x"}', Stamp("Mood", 1)) == Sentiment(mood="x")


def test_a_version_without_a_way_up_says_which_function_is_missing() -> None:
    with pytest.raises(InvalidInputError, match="no function from version 1 to 2"):
        bound(version=2).decode(b'{"mood":"x"}', Stamp("Sentiment", 1))
    with pytest.raises(InvalidInputError, match="no function from version 1 to 2"):
        bound(version=3, upcast={2: judged}).decode(b"{}", None)


def test_a_failing_function_is_named_with_its_error() -> None:
    with pytest.raises(InvalidInputError, match="from version 1 to 2 failed with KeyError: 'feeling'"):
        V3.decode(b'{"mood":"x"}', None)


def test_a_function_that_turns_out_to_be_async_is_named() -> None:
    schema = bound(version=2, upcast={1: lambda data: slowly(data)})
    with pytest.raises(InvalidInputError, match="from version 1 returned a coroutine: write it as a plain function"):
        schema.decode(b"{}", None)


class Stammering(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Fragile(BaseModel):
    size: int

    @field_validator("size")
    @classmethod
    def check(cls, size: int) -> int:
        if size == 13:
            raise KeyError("what a validator raises")
        if size == 14:
            raise Stammering
        return size


def test_a_validator_that_raises_anything_refuses_the_value() -> None:
    schema = bound(model=Fragile)
    with pytest.raises(InvalidInputError, match=r"validating the value for 'ticket_1' as Fragile failed with KeyError"):
        schema.encode("ticket_1", {"size": 13})
    with pytest.raises(InvalidInputError, match=r"failed with Stammering: \(Stammering cannot say"):
        schema.encode("ticket_1", {"size": 14})
    with pytest.raises(InvalidInputError, match=r"as Fragile failed with KeyError: .*as_type=dict"):
        schema.decode(b'{"size":13}', None)
    with pytest.raises(InvalidInputError, match=r"as Fragile failed with KeyError"):
        validate_as({"size": 13}, Fragile)


def test_a_model_that_holds_what_it_should_not_is_refused_without_a_warning() -> None:
    wrong: dict[str, Any] = {"mood": 5, "urgency": "low"}
    with pytest.raises(InvalidInputError, match=r"not a valid Sentiment.*value\['mood'\]"):  # warnings are errors here
        bound().encode("ticket_1", Sentiment.model_construct(**wrong))
    assert encode_value(Sentiment.model_construct(**wrong)) == b'{"mood":5,"urgency":"low"}'
    wrong["mood"] = float("nan")
    with pytest.raises(InvalidInputError, match=r"\['mood'\] is nan"):
        encode_value(Sentiment.model_construct(**wrong))


@pytest.mark.parametrize("bind", [True, False])
def test_a_value_that_json_cannot_hold_is_refused_with_its_key(bind: bool) -> None:
    together = schemas(bound()) if bind else schemas()
    for key in ("other", "ticket_1") if bind else ("other",):
        with pytest.raises(InvalidInputError, match=f"key '{key}': value cannot be stored: value.* is nan"):
            together.encode(key, {"mood": float("nan")})


def test_data_that_does_not_fit_says_so_and_how_to_see_it() -> None:
    with pytest.raises(
        InvalidInputError, match=r"without a schema, is not a valid Sentiment.*\['mood'\].*as_type=dict"
    ):
        bound().decode(b"{}", None)


# -- binding ----------------------------------------------------------------------------------------------------------


def test_a_key_has_the_schema_whose_pattern_matches() -> None:
    one, two = bound(), bound(Strict, "order_*")
    both = schemas(one, two)
    assert (both.of("ticket_7"), both.of("order_7"), both.of("other")) == (one, two, None)
    assert both.encode("other", {"free": 1}) == (b'{"free":1}', None, {"free": 1})


def test_a_binding_of_just_this_key_counts_more_than_a_pattern() -> None:
    index, general = bound(RootModel[list[str]], "ticket_index", name="Index"), bound()
    for order in ((index, general), (general, index)):
        assert schemas(*order).of("ticket_index") is index
        assert schemas(*order).of("ticket_7") is general


def test_a_key_with_several_schemas_is_refused_with_both_named() -> None:
    both = schemas(bound(), bound(Strict, "*_sentiment"))
    assert both.of("ticket_7") is not None
    with pytest.raises(InvalidInputError, match=r"'ticket_\*' \(Sentiment\) and '\*_sentiment' \(Strict\)"):
        both.encode("ticket_7_sentiment", {"mood": "x"})


def test_a_pattern_is_bound_once() -> None:
    with pytest.raises(InvalidInputError, match="bound to Sentiment already"):
        schemas(bound(), bound(Strict))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": dict}, "binds a pattern to a Pydantic model"),
        ({"model": Sentiment(mood="x")}, "binds a pattern to a Pydantic model"),
        ({"pattern": "a>"}, "pattern"),
        ({"version": 0}, "version=0"),
        ({"version": True}, "version=True"),
        ({"version": "2"}, "version='2'"),
        ({"name": ""}, "schema name"),
        (
            {"version": 1, "upcast": {1: judged}},
            "a function from version 1, but what is lifted is older than version=1",
        ),
        (
            {"version": 2, "upcast": {2: judged}},
            "a function from version 2, but what is lifted is older than version=2",
        ),
        ({"version": 2, "upcast": {0: judged, 1: judged}}, "a function from version 0, but .* 1 is the first"),
        (
            {"version": 3, "upcast": {1: judged}},
            r"versions \[1\], but none from version 2: .* each version from 1 to 2",
        ),
        ({"version": 2, "upcast": {1: slowly}}, "function from version 1 is async: write it as a plain function"),
        ({"version": 2, "upcast": {1: Slowly()}}, "function from version 1 is async: write it as a plain function"),
        ({"version": 2, "upcast": {"1": judged}}, "upcast must be"),
        ({"version": 2, "upcast": {1: "judged"}}, "upcast must be"),
    ],
)
def test_a_binding_that_could_never_work_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        bound(**options)


def test_a_key_that_is_none_is_refused_as_everywhere() -> None:
    with pytest.raises(InvalidInputError, match="key must be a string"):
        schemas(bound()).encode(7, {"mood": "x"})  # type: ignore[arg-type]
