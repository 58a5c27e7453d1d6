"""What the consumers of handlers are called, and what the server says of them."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentfield.fabric.consumers.durables import Durable, described, durable_name

NAMES = st.text("abcXYZ019_-", min_size=1, max_size=64)

INFO: dict[str, Any] = {
    "created": "2026-11-22T14:20:51.99358287Z",
    "config": {"filter_subjects": ["n.memory.>"], "metadata": {"_nats.ver": "2.15.1"}},
    "delivered": {"consumer_seq": 0, "stream_seq": 0},
    "ack_floor": {"consumer_seq": 0, "stream_seq": 0},
    "num_ack_pending": 2,
    "num_pending": 3,
}


@given(NAMES, NAMES)
def test_agent_and_handler_can_be_told_from_the_name_whatever_they_are_called(agent: str, handler: str) -> None:
    name = durable_name(agent, handler)
    assert not set(name) & set("./\\*> ")
    durable = Durable.of({**INFO, "name": name})
    assert durable is not None
    assert (durable.agent, durable.handler) == (agent, handler)


@given(st.lists(st.text(min_size=1)))
def test_patterns_come_back_as_they_were_declared(patterns: list[str]) -> None:
    metadata = {**INFO["config"]["metadata"], **described("a", "b", patterns)}
    durable = Durable.of({**INFO, "name": "handler-a-b", "config": {**INFO["config"], "metadata": metadata}})
    assert durable is not None
    assert durable.patterns == tuple(patterns)


def test_what_is_delivered_and_not_acknowledged_counts_as_behind() -> None:
    durable = Durable.of({**INFO, "name": "handler-a-b"})
    assert durable is not None
    assert (durable.lag, durable.active, durable.last_active, durable.patterns) == (5, False, None, ())


def test_other_consumers_are_no_handlers() -> None:
    for name in ("expiry", "reader-0123", "handler-", "handler-a", "handler--b", "handlers-a-b"):
        assert Durable.of({**INFO, "name": name}) is None
