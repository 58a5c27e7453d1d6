"""What a projection says of itself, and how a timeline is asked."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfield import Event, InvalidInputError, Scope, Writer
from agentfield.pattern import Pattern
from projections import Projection, state
from projections.projection import RESERVED, Selection, check
from projections.shipped import SHIPPED, shipped
from projections.stores.sqlite import SqliteTransaction
from projections.timeline import Question, Timeline, ask, glob_of, instant

TEXTS = st.text(st.sampled_from("ab_?[]-^*"), min_size=1, max_size=6)
KEYS = st.text(st.sampled_from("ab_?[]-^"), min_size=1, max_size=8)


class Heard(Projection):
    name = "heard"
    patterns = ("order_*", "cart_*")
    scopes = ("session", Scope("actor", "a b"))

    def apply(self, event: Event, view: Any) -> None:
        """Nothing."""


def test_a_selection_survives_being_stored() -> None:
    selection = Selection.of(Heard())
    assert selection == Selection(("order_*", "cart_*"), (("session", None), ("actor", "a b")))
    assert Selection.from_fields(selection.fields()) == selection


def test_what_is_no_projection_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="is no projection"):
        check(Heard)


@given(TEXTS, KEYS)
def test_a_timeline_matches_keys_as_patterns_do(pattern: str, key: str) -> None:
    connection = sqlite3.connect(":memory:")
    try:
        (found,) = connection.execute("SELECT ? GLOB ?", (key, glob_of(pattern))).fetchone()
    finally:
        connection.close()
    assert bool(found) == Pattern(pattern).matches(key)


def event(revision: int, key: str, data: Any, **fields: Any) -> Event:
    writer = Writer(agent=fields.pop("agent", None), execution_id=fields.pop("execution", None))
    scope = {"scope": "global", "scope_id": "global", **fields}
    at = datetime(2026, 1, 1, 12, revision, tzinfo=UTC)
    operation = "set" if data is not None else "delete"
    return Event(
        key=key,
        data=data,
        timestamp=at,
        operation=operation,
        revision=revision,
        id=f"e{revision}",
        writer=writer,
        **scope,
    )


EVENTS = [
    event(1, "ticket_42_message", "Where is my refund?", scope="session", scope_id="s-1", agent="triage"),
    event(2, "ticket_43", {"note": "Refund paid"}, agent="billing", execution="x-1"),
    event(3, "other", "[a?b*c]", execution="x-1"),
    event(4, "ticket_43", None),
]


@contextmanager
def transaction() -> Iterator[SqliteTransaction]:
    """What ``apply`` works on, over nothing."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("BEGIN")
        yield SqliteTransaction(connection)


@pytest.mark.parametrize(
    ("question", "revisions"),
    [
        (Question(), [1, 2, 3, 4]),
        (Question(words=["refund"]), [1, 2]),
        (Question(words=["REFUND", "paid"]), [2]),
        (Question(words=["refu*"], scope=("session", None)), [1]),
        (Question(words=["refu"]), []),
        (Question(scope=("session", "s-2")), []),
        (Question(words=["ticket"], agent="billing"), [2]),
        (Question(execution="x-1"), [2, 3]),
        (Question(key="ticket_*", limit=2), [2, 4]),
        (Question(key="ticket_*", limit=2, oldest_first=True), [1, 2]),
        (Question(key="ticket_43"), [2, 4]),
        (Question(since=2, until=3), [2, 3]),
        (Question(since=EVENTS[1].timestamp, until=EVENTS[3].timestamp), [2, 3]),
    ],
)
def test_a_timeline_answers_what_was_asked(question: Question, revisions: list[int]) -> None:
    with transaction() as view:
        timeline = Timeline()
        timeline.prepare(view)
        for each in EVENTS:
            timeline.apply(each, view)
        assert [moment.revision for moment in ask(view, question)] == revisions


def test_the_names_of_what_ships_are_nobody_elses() -> None:
    assert {*SHIPPED, state.NAME} == RESERVED
    for name in SHIPPED:
        projection = shipped(name)
        assert projection is None or check(projection) is projection


@pytest.mark.parametrize("question", [Question(words=["a\0"]), Question(agent="\ud800"), Question(key="\0")])
def test_what_is_no_text_is_refused(question: Question) -> None:
    with transaction() as view, pytest.raises(InvalidInputError, match="holds what no text does"):
        ask(view, question)


@pytest.mark.parametrize("word", ["", "*", "😀", "->"])
def test_a_word_that_the_index_cannot_know_is_refused(word: str) -> None:
    with transaction() as view, pytest.raises(InvalidInputError, match="no letter and no digit"):
        ask(view, Question(words=["calm", word]))


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@given(st.lists(TEXTS.map("{}x".format) | TEXTS.map("x{}".format), min_size=1, max_size=3))
def test_any_words_can_be_searched_for(words: list[str]) -> None:
    with transaction() as view:
        Timeline().prepare(view)
        assert ask(view, Question(words=words)) == []


@given(st.datetimes(timezones=st.just(UTC)), st.datetimes(timezones=st.just(timezone(timedelta(hours=5)))))
def test_instants_order_as_their_times_do(one: datetime, other: datetime) -> None:
    if min(one.year, other.year) > 1000:
        assert (instant(one) < instant(other)) == (one < other)
