"""A reasoner runs only with arguments that fit its hints, and says what is wrong with others."""

import asyncio
import contextvars
import functools
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from agentfield import InvalidInputError
from agentfield.agent.reasoner import Reasoner
from agentfield.fabric.calling.protocol import ArgumentsRefused


class Ticket(BaseModel):
    id: str
    urgency: int = 0


@dataclass
class Customer:
    name: str
    since: datetime


def arguments(function: Any, **given: Any) -> dict[str, Any]:
    return Reasoner(function).arguments(json.dumps(given).encode())


def refusal(function: Any, **given: Any) -> str:
    with pytest.raises(ArgumentsRefused) as caught:
        arguments(function, **given)
    return str(caught.value)


async def check_stock(order_id: str, count: int = 1) -> dict[str, Any]:
    """Look at the shelves.

    And more.
    """
    return {"order_id": order_id, "count": count}


def test_the_function_gives_name_and_description() -> None:
    reasoner = Reasoner(check_stock)
    assert (reasoner.name, reasoner.description, reasoner.is_async) == ("check_stock", "Look at the shelves.", True)
    assert Reasoner(check_stock, "stock-2").name == "stock-2"


def test_arguments_that_fit_are_passed_and_defaults_are_left_to_the_function() -> None:
    assert arguments(check_stock, order_id="42") == {"order_id": "42"}
    assert arguments(check_stock, order_id="42", count=3) == {"order_id": "42", "count": 3}


def test_a_missing_argument_is_named_with_what_was_expected() -> None:
    text = refusal(check_stock, count=3)
    assert "'check_stock'" in text
    assert "'order_id' is missing" in text
    assert "str" in text


def test_an_unexpected_argument_is_named_with_those_there_are() -> None:
    text = refusal(check_stock, order_id="42", colour="red")
    assert "'colour' is not one of its parameters (order_id, count)" in text


def test_a_wrong_argument_is_named_with_its_value_and_what_was_expected() -> None:
    text = refusal(check_stock, order_id="42", count="many")
    assert "'count' must be int, not 'many'" in text


def test_a_fault_deep_inside_an_argument_is_located() -> None:
    async def take(tickets: list[Ticket]) -> None: ...

    assert "tickets[0]['urgency']" in refusal(take, tickets=[{"id": "a", "urgency": "high"}])


def test_several_faults_are_all_named_but_a_flood_is_cut() -> None:
    assert refusal(check_stock, count="many", x=1).count("argument") == 3
    assert "and 5 more" in refusal(check_stock, order_id="42", **{f"x{i}": i for i in range(10)})


@pytest.mark.parametrize("payload", [b"[]", b"7", b"null", b"{", b'"x"', b"\xff"])
def test_what_is_no_json_object_is_refused(payload: bytes) -> None:
    with pytest.raises(ArgumentsRefused, match="must be a JSON object"):
        Reasoner(check_stock).arguments(payload)


def test_an_empty_request_means_no_arguments() -> None:
    async def ping() -> str:
        return "pong"

    assert Reasoner(ping).arguments(b"") == {}


def test_models_dataclasses_and_datetimes_arrive_as_such() -> None:
    async def take(ticket: Ticket, customer: Customer, at: datetime) -> None: ...

    at = "2024-07-08T18:20:00Z"
    got = arguments(take, ticket={"id": "a"}, customer={"name": "Ada", "since": at}, at=at)
    assert got["ticket"] == Ticket(id="a")
    assert got["customer"] == Customer("Ada", datetime.fromisoformat(at))
    assert got["at"] == datetime.fromisoformat(at)


def test_strings_that_look_like_numbers_stay_strings() -> None:
    async def take(value: Any, text: str) -> None: ...

    assert arguments(take, value="123", text="null") == {"value": "123", "text": "null"}


def test_parameters_may_have_names_that_pydantic_uses_itself() -> None:
    async def take(schema: str, json: int, copy: bool, _private: str, model_config: str, self: int) -> None: ...

    given = {"schema": "s", "json": 1, "copy": True, "_private": "p", "model_config": "m", "self": 2}
    assert arguments(take, **given) == given


def test_annotated_constraints_hold() -> None:
    async def take(count: Annotated[int, Field(gt=0)]) -> None: ...

    assert "greater than 0" in refusal(take, count=0)


def test_extra_keywords_reach_a_function_that_takes_them() -> None:
    async def take(a: int, **others: Any) -> None: ...

    assert arguments(take, a=1, b=2) == {"a": 1, "b": 2}


def test_parameters_without_hints_take_anything() -> None:
    def take(a, b=None):  # type: ignore[no-untyped-def]
        return a, b

    assert arguments(take, a={"x": [1, None]}) == {"a": {"x": [1, None]}}


def test_the_schema_describes_the_arguments_by_their_names() -> None:
    schema = json.loads(Reasoner(check_stock).schema or "")
    assert schema["required"] == ["order_id"]
    assert {name: field["type"] for name, field in schema["properties"].items()} == {
        "order_id": "string",
        "count": "integer",
    }
    assert schema["additionalProperties"] is False


def test_a_schema_that_is_large_or_impossible_is_left_out() -> None:
    async def large(a: Annotated[str, Field(description="x" * 5_000)]) -> None: ...

    async def impossible(a: threading.Thread) -> None: ...

    assert Reasoner(large).schema is None
    assert Reasoner(impossible).schema is None


@pytest.mark.parametrize("name", ["", "two words", "a.b", "a*", ">", "é", "x" * 65])
def test_an_illegal_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match="reasoner name"):
        Reasoner(check_stock, name)


def test_a_lambda_needs_a_name() -> None:
    with pytest.raises(InvalidInputError, match="<lambda>"):
        Reasoner(lambda: None)
    assert Reasoner(lambda: None, "nothing").name == "nothing"


def test_parameters_that_a_call_takes_for_itself_are_refused_with_the_reason() -> None:
    async def one(timeout: float) -> None: ...

    async def two(session_id: str) -> None: ...

    with pytest.raises(InvalidInputError, match=r"'timeout', which app\.call\(\) takes for itself"):
        Reasoner(one)
    with pytest.raises(InvalidInputError, match="'session_id'"):
        Reasoner(two)


def test_positional_parameters_are_refused() -> None:
    async def one(a: int, /) -> None: ...

    async def two(*values: int) -> None: ...

    for function in (one, two):
        with pytest.raises(InvalidInputError, match="positional"):
            Reasoner(function)


def test_generators_are_refused() -> None:
    async def one() -> AsyncIterator[int]:
        yield 1

    def two() -> Iterator[int]:
        yield 1

    for function in (one, two):
        with pytest.raises(InvalidInputError, match="yields"):
            Reasoner(function)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="must be a function"):
        Reasoner("check_stock")  # type: ignore[arg-type]


def test_hints_that_do_not_resolve_are_reported_when_they_are_needed() -> None:
    async def take(a: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    reasoner = Reasoner(take)
    with pytest.raises(InvalidInputError, match="Missing"):
        reasoner.prepare()


async def test_results_become_json_whatever_they_are_made_of() -> None:
    async def ticket() -> Ticket:
        return Ticket(id="a", urgency=2)

    async def customer() -> list[Customer]:
        return [Customer("Ada", datetime.fromisoformat("2024-07-08T18:20:00+00:00"))]

    assert json.loads(await Reasoner(ticket).run({})) == {"id": "a", "urgency": 2}
    assert json.loads(await Reasoner(customer).run({})) == [{"name": "Ada", "since": "2024-07-08T18:20:00Z"}]


async def test_a_result_that_json_cannot_hold_is_an_error_that_says_so() -> None:
    async def bad() -> Any:
        return {"thread": threading.current_thread()}

    with pytest.raises(InvalidInputError, match="its result cannot be sent"):
        await Reasoner(bad).run({})


async def test_a_plain_function_runs_in_a_thread_with_the_context_of_the_call() -> None:
    marker = contextvars.ContextVar[str]("marker")

    def look() -> list[str]:
        return [marker.get(), threading.current_thread().name]

    marker.set("here")
    found = json.loads(await Reasoner(look).run({}))
    assert found[0] == "here"
    assert found[1] != threading.main_thread().name


async def test_many_slow_plain_functions_run_at_once() -> None:
    together = threading.Barrier(50, timeout=20)

    def wait() -> None:
        together.wait()

    reasoner = Reasoner(wait)
    await asyncio.gather(*(reasoner.run({}) for _ in range(50)))


async def test_what_a_plain_function_raises_is_raised() -> None:
    def fail(kind: str) -> None:
        raise {"value": ValueError, "stop": StopIteration}[kind]("no")

    with pytest.raises(ValueError, match="no"):
        await Reasoner(fail).run({"kind": "value"})
    with pytest.raises(RuntimeError, match="StopIteration"):
        await Reasoner(fail).run({"kind": "stop"})


async def test_a_partial_of_a_coroutine_function_is_awaited() -> None:
    reasoner = Reasoner(functools.partial(check_stock, count=2), "stock")
    assert json.loads(await reasoner.run({"order_id": "1"})) == {"order_id": "1", "count": 2}
