import asyncio
import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfield.errors import InvalidInputError
from agentfield.execution import (
    CONTEXT_HEADER,
    LONGEST_PATH,
    TRACE_HEADER,
    Execution,
    child,
    current,
    from_headers,
    new_id,
    root,
    to_headers,
)
from tests.unit.strategies import scope_ids

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

executions = st.builds(
    Execution,
    execution_id=scope_ids,
    workflow_id=st.none() | scope_ids,
    session_id=st.none() | scope_ids,
    agent=st.none() | scope_ids,
    actor_id=st.none() | scope_ids,
    parent_id=st.none() | scope_ids,
    cause=st.none() | scope_ids,
    cause_revision=st.none() | st.integers(0, 2**63),
    trace=st.sampled_from([None, TRACE]),
    path=st.lists(scope_ids, max_size=LONGEST_PATH).map(tuple),
    nesting=st.integers(0, 1000),
    depth=st.integers(0, 1000),
)


@given(executions)
def test_an_execution_travels_in_ascii_headers_and_comes_back_the_same(execution: Execution) -> None:
    headers = to_headers(execution)
    assert from_headers(headers) == execution
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    assert headers.keys() <= {CONTEXT_HEADER, TRACE_HEADER}


def test_the_context_is_readable_json_without_what_is_not_set() -> None:
    execution = Execution("e1", "w1", None, "triage", "triage", trace=TRACE)
    headers = to_headers(execution)
    assert json.loads(headers["Agentfield-Context"]) == {
        "v": 1,
        "execution_id": "e1",
        "workflow_id": "w1",
        "agent": "triage",
        "actor_id": "triage",
    }
    assert headers["traceparent"] == TRACE


def test_a_request_that_says_nothing_has_no_execution() -> None:
    assert from_headers({}) is None
    assert from_headers({TRACE_HEADER: TRACE}) is None


def test_fields_that_are_not_known_are_ignored() -> None:
    packed = json.dumps({"v": 1, "execution_id": "e", "colour": ["red"]})
    assert from_headers({CONTEXT_HEADER: packed}) == Execution("e", None, None, None, None)


@pytest.mark.parametrize(
    ("packed", "fault"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "is not a JSON object with v=1"),
        ("{}", "is not a JSON object with v=1"),
        ('{"v":2,"execution_id":"e"}', "is not a JSON object with v=1"),
        ('{"v":1}', "has no execution_id"),
        ('{"v":1,"execution_id":""}', "has no execution_id"),
        ('{"v":1,"execution_id":7}', "holds no text in execution_id"),
        ('{"v":1,"execution_id":"e","agent":{}}', "holds no text in agent"),
        ('{"v":1,"execution_id":"e","depth":-1}', "holds no count in depth"),
        ('{"v":1,"execution_id":"e","depth":true}', "holds no count in depth"),
        ('{"v":1,"execution_id":"e","depth":1e9}', "holds no count in depth"),
        ('{"v":1,"execution_id":"e","nesting":"2"}', "holds no count in nesting"),
        ('{"v":1,"execution_id":"e","cause_revision":-7}', "holds no count in cause_revision"),
        ('{"v":1,"execution_id":"e","path":"a.b/e0"}', "holds no list of texts in path"),
        ('{"v":1,"execution_id":"e","path":[1]}', "holds no list of texts in path"),
        ('{"v":1,"execution_id":"e","workflow_id":""}', "scope id '' is empty"),
        ('{"v":1,"execution_id":"e","session_id":"a\\u0000"}', "control character"),
    ],
)
def test_a_malformed_context_is_refused_rather_than_guessed(packed: str, fault: str) -> None:
    with pytest.raises(InvalidInputError, match=fault):
        from_headers({CONTEXT_HEADER: packed})


@pytest.mark.parametrize(
    "trace",
    [
        "",
        "garbage",
        TRACE.upper(),
        TRACE + "\n",
        TRACE[:-1],
        "ff" + TRACE[2:],
        "00-" + "0" * 32 + TRACE[35:],
        TRACE[:36] + "0" * 16 + "-01",
        TRACE + "-extra",
    ],
)
def test_a_malformed_traceparent_counts_as_absent(trace: str) -> None:
    headers: Mapping[str, str] = {**to_headers(Execution("e", "w", None, None, None)), TRACE_HEADER: trace}
    assert from_headers(headers) == Execution("e", "w", None, None, None)
    assert root("a", "a", trace=trace).trace != trace


def test_a_traceparent_of_a_later_version_is_continued() -> None:
    later = "cc" + TRACE[2:] + "-what-the-future-will-be-like"
    assert (root("a", "a", trace=later).trace or "").startswith(TRACE[:36])


def test_a_root_execution_begins_a_workflow_named_after_itself_unless_it_joins_one() -> None:
    alone = root("triage", "triage")
    assert alone.workflow_id == alone.execution_id
    assert (alone.nesting, alone.parent_id, alone.cause, alone.session_id) == (0, None, None, None)
    joined = root("triage", "tom", workflow_id="w", session_id="s", cause="event", trace=TRACE)
    assert (joined.workflow_id, joined.session_id, joined.cause, joined.actor_id) == ("w", "s", "event", "tom")
    assert joined.execution_id != "w"


def test_a_child_inherits_workflow_session_cause_and_trace() -> None:
    parent = root("triage", "triage", session_id="s", cause="event")
    called = child(parent, "billing", "bill")
    assert called.execution_id != parent.execution_id
    assert (called.workflow_id, called.session_id, called.cause) == (parent.workflow_id, "s", "event")
    assert (called.agent, called.actor_id, called.parent_id, called.nesting) == (
        "billing",
        "bill",
        parent.execution_id,
        1,
    )
    assert child(called, "a", "a").nesting == 2


def test_a_call_is_no_handler_so_the_depth_stays() -> None:
    handler = replace(root("triage", "triage", cause="event"), cause_revision=7, depth=3, function="react")
    called = child(handler, "billing", None)
    assert (called.depth, called.cause, called.cause_revision) == (3, "event", 7)
    assert called.function is None, "which reasoner runs, the callee says"


def test_a_child_knows_by_which_calls_it_came_to_run_and_forgets_the_furthest() -> None:
    first = replace(root("triage", "triage"), function="intake")
    second = replace(child(first, "billing", None), function="bill")
    third = child(second, "mail", None)
    assert third.path == (f"triage.intake/{first.execution_id}", f"billing.bill/{second.execution_id}")
    assert child(root(None, None), "a", None).path[0].startswith("/")
    last = third
    for number in range(40):
        last = child(replace(last, function=f"f{number}"), "deep", None)
    assert (len(last.path), last.nesting) == (LONGEST_PATH, 42)
    assert last.path[-1].startswith("deep.f39/")
    assert last.path[0].startswith("deep.f24/")
    assert from_headers(to_headers(last)) == last


def test_a_child_of_what_is_in_no_workflow_begins_one() -> None:
    called = child(Execution("e", None, "s", None, None), "billing", "billing")
    assert called.workflow_id == called.execution_id
    assert called.session_id == "s"


def test_a_trace_is_one_trace_id_with_a_span_for_each_execution() -> None:
    parent = root("a", "a", trace=TRACE)
    called = child(parent, "b", "b")
    traces = [TRACE, parent.trace or "", called.trace or ""]
    assert {trace[:36] for trace in traces} == {TRACE[:36]}
    assert len({trace[36:52] for trace in traces}) == 3
    assert {trace[52:] for trace in traces} == {"-01"}
    assert root("a", "a").trace != root("a", "a").trace


def test_ids_are_uuid7_ordered_by_time() -> None:
    at = 1_720_462_800_123_456_789
    ids = [new_id(clock=partial(int, at + step)) for step in (0, 500, 1_000, 1_000_000, 10**9, 10**15)]
    assert ids == sorted(ids)
    for id in ids:
        parsed = uuid.UUID(hex=id)
        assert (len(id), parsed.version, parsed.variant) == (32, 7, uuid.RFC_4122)
    assert uuid.UUID(hex=ids[0]).int >> 80 == at // 1_000_000
    fraction = (uuid.UUID(hex=ids[0]).int >> 64) & 0xFFF
    assert abs(fraction / 4096 - 0.456789) < 1 / 4096


@given(st.integers(0, 2**48 * 1_000_000 - 1), st.binary(min_size=8, max_size=8))
def test_ids_are_legal_for_every_time_and_chance(now: int, noise: bytes) -> None:
    id = uuid.UUID(hex=new_id(clock=lambda: now, random=lambda size: noise[:size]))
    assert (id.version, id.variant) == (7, uuid.RFC_4122)


def test_ids_are_unique_at_the_same_instant() -> None:
    assert len({new_id(clock=lambda: 0) for _ in range(10_000)}) == 10_000


async def test_overlapping_tasks_never_see_each_others_execution() -> None:
    everyone_is_in = asyncio.Barrier(50)

    async def run(name: str) -> str | None:
        current.set(root(name, name))
        await everyone_is_in.wait()
        found = current.get()
        return found.agent if found else None

    names = [f"agent-{number}" for number in range(50)]
    assert await asyncio.gather(*(run(name) for name in names)) == names
    assert current.get() is None


def test_text_that_is_not_unicode_never_reaches_a_header() -> None:
    with pytest.raises(InvalidInputError, match="cannot be put in a header"):
        to_headers(Execution("e", None, "\ud800", None, None))
