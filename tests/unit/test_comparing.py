"""Comparing what a handler writes with what it wrote."""

from datetime import UTC, datetime
from typing import Any

from agentfield import Event, Writer
from agentfield.replay.comparing import compare


def event(key: str, data: Any = None, **changes: Any) -> Event:
    fields = {
        "key": key,
        "data": data,
        "scope": "global",
        "scope_id": "global",
        "timestamp": datetime(2026, 1, 1, tzinfo=UTC),
        "operation": "set",
        "revision": 1,
        "id": "id",
        "writer": Writer(),
    }
    return Event(**(fields | changes))


def verdicts(recorded: list[Event], replayed: list[Event]) -> list[tuple[str, str]]:
    return [(each.event.key, each.verdict) for each in compare(recorded, replayed)]


def test_the_same_json_is_the_same_whatever_its_order() -> None:
    recorded = [event("a", {"x": 1, "y": [1.0]}), event("b", None)]
    assert verdicts(recorded, [event("b", None), event("a", {"y": [1.0], "x": 1})]) == [("a", "same"), ("b", "same")]


def test_another_value_ttl_or_operation_is_different() -> None:
    recorded = [event("value", 1), event("type", 1), event("ttl", 1, ttl=5), event("deleted", operation="delete")]
    now = [event("value", 2), event("type", "1"), event("ttl", 1, ttl=6), event("deleted", None)]
    assert verdicts(recorded, now) == [(key, "different") for key in ("value", "type", "ttl", "deleted")]


def test_what_is_not_on_both_sides_is_missing_or_extra() -> None:
    elsewhere = event("a", 1, scope="session", scope_id="s")
    assert verdicts([event("a", 1)], [elsewhere]) == [("a", "missing"), ("a", "extra")]


def test_writes_to_one_place_are_compared_in_their_order() -> None:
    recorded = [event("status", "working"), event("other", 0), event("status", "done")]
    assert verdicts(recorded, [event("status", "working"), event("other", 0)]) == [
        ("status", "same"),
        ("status", "missing"),
        ("other", "same"),
    ]
    assert verdicts([event("status", "done")], [event("status", "working"), event("status", "done")]) == [
        ("status", "different"),
        ("status", "extra"),
    ]


def test_of_what_is_erased_nobody_can_say() -> None:
    (compared,) = compare([event("a", None, erased=True)], [event("a", 7)])
    assert (compared.verdict, compared.differs) == ("erased", False)


def test_a_workflow_that_a_run_began_counts_by_its_place_among_those() -> None:
    def into(id: str, key: str = "a", *, runs_in: str | None = None) -> Event:
        return event(key, 1, scope="workflow", scope_id=id, writer=Writer(workflow_id=runs_in or id))

    recorded, now = [into("r1"), into("r2")], [into("n1"), into("n2")]
    assert [each.verdict for each in compare(recorded, now, workflow_id="w")] == ["same", "same"]
    named, elsewhere = [into("one", runs_in="w")], [into("two", runs_in="w")]
    assert [each.verdict for each in compare(named, elsewhere, workflow_id="w")] == ["missing", "extra"]
    assert [each.verdict for each in compare([into("w")], [into("x", runs_in="w")], workflow_id="w")] == [
        "missing",
        "extra",
    ]
