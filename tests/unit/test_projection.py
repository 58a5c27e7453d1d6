"""What a projection says of itself, and how a timeline is asked."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfield import Event, InvalidInputError, Scope
from agentfield.pattern import Pattern
from projections import Projection
from projections.projection import Selection, check
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


@pytest.mark.parametrize("question", [Question(words=["a\0"]), Question(agent="\ud800"), Question(key="\0")])
def test_what_is_no_text_is_refused(question: Question) -> None:
    with (
        closing(sqlite3.connect(":memory:")) as connection,
        pytest.raises(InvalidInputError, match="holds what no text does"),
    ):
        ask(SqliteTransaction(connection), question)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1, max_size=3))
def test_any_words_can_be_searched_for(words: list[str]) -> None:
    connection = sqlite3.connect(":memory:")
    try:
        view = SqliteTransaction(connection)
        Timeline().prepare(view)
        assert ask(view, Question(words=words)) == []
    finally:
        connection.close()


@given(st.datetimes(timezones=st.just(UTC)), st.datetimes(timezones=st.just(timezone(timedelta(hours=5)))))
def test_instants_order_as_their_times_do(one: datetime, other: datetime) -> None:
    if min(one.year, other.year) > 1000:
        assert (instant(one) < instant(other)) == (one < other)
