"""Dead letters as they are stored: whatever went wrong can be told, and what is no letter is said to be none."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfield import DecodeError, Event, Writer
from agentfield.codec import Record
from agentfield.memory.reacting.letters import Letter, letter, request, requested
from tests.unit.strategies import ANY_CHARACTER

EVENT = Event(
    key="order_1",
    data={"n": 1},
    scope="workflow",
    scope_id="wf-1",
    timestamp=datetime(2026, 1, 1, tzinfo=UTC),
    operation="set",
    revision=17,
    id="e1",
    writer=Writer(),
)


def record(payload: bytes) -> Record:
    return Record("ns.deadletters.billing.charge", 4, 1_700_000_000_000_000_000, {}, payload)


@given(st.text(ANY_CHARACTER | st.characters(categories=["Cs"])))
def test_a_letter_comes_back_as_it_was_stored_whatever_the_error_says(text: str) -> None:
    stored = letter(EVENT, ValueError(text), agent="billing", handler="charge", tries=6, replays=2)
    found = Letter.of(record(stored))
    assert (found.number, found.agent, found.handler, found.tries, found.replays) == (4, "billing", "charge", 6, 2)
    assert (found.key, found.scope, found.scope_id, found.revision, found.event_id) == (
        "order_1", "workflow", "wf-1", 17, "e1",
    )  # fmt: skip
    assert found.error_type == "ValueError"
    assert found.message == text.encode("utf-8", "backslashreplace").decode()


def test_what_its_writer_did_not_know_is_left_out() -> None:
    found = Letter.of(record(b'{"error": {"type": "Trimmed"}}'))
    assert (found.key, found.revision, found.tries, found.replays, found.message) == (None, None, 0, 0, "")


@pytest.mark.parametrize("payload", [b"", b"[]", b"7", b"no json", b'{"revision": "x"}', b'{"error": "text"}'])
def test_what_is_no_letter_is_said_to_be_none(payload: bytes) -> None:
    with pytest.raises(DecodeError, match="no dead letter"):
        Letter.of(record(payload))


def test_a_request_names_its_letter() -> None:
    found = Letter.of(record(letter(EVENT, KeyError(), agent="a", handler="b", tries=1, replays=0)))
    assert requested(record(request(found))) == found.number
