"""What a log says of itself once it was trimmed, and that nobody else's cut is taken for one of ours."""

from typing import Any

from agentfield.fabric.trimmed import (
    NEVER,
    Holding,
    Trimmed,
    expected,
    frozen,
    frozen_since,
    holding,
    is_frozen,
    limited,
    lost_to,
    missing,
    renoted,
    thawed,
)

CONFIG: dict[str, Any] = {"name": "A_MEMORY", "subjects": ["a.memory.>", "a.locks.>"], "max_msgs_per_subject": -1}


def state(first: int, last: int, messages: int) -> dict[str, Any]:
    return {"first_seq": first, "last_seq": last, "messages": messages}


def cut(config: dict[str, Any], before: dict[str, Any], complete: int, after: dict[str, Any]) -> dict[str, Any]:
    return thawed(limited(frozen(config, before, complete, 7), complete, 1), after)


def test_a_log_that_was_never_touched_is_whole() -> None:
    assert holding(CONFIG, state(1, 9, 9)) == Holding(1, 0)
    assert holding(CONFIG, state(0, 0, 0)) == Holding(1, 0)
    assert missing(CONFIG, state(1, 9, 8)) == 1


def test_a_log_that_an_operator_cut_knows_nothing_of_before() -> None:
    assert holding(CONFIG, state(5, 9, 5)) == Holding(5, NEVER)
    assert missing(CONFIG, state(5, 9, 5)) == 0


def test_a_trimmed_log_knows_what_it_keeps() -> None:
    config = cut(CONFIG, state(1, 9, 9), 10, state(3, 9, 4))
    assert Trimmed.of(config) == Trimmed(10, 3, 4, 9, at=7)
    assert holding(config, state(3, 9, 4)) == Holding(10, 9)
    assert holding(config, state(3, 12, 7)) == Holding(10, 9)
    assert (missing(config, state(3, 12, 7)), missing(config, state(3, 12, 5))) == (0, 2)
    assert expected(config, state(3, 12, 5)) == 7


def test_who_was_there_when_it_was_trimmed_has_lost_nothing() -> None:
    config = cut(CONFIG, state(1, 9, 9), 10, state(3, 9, 4))
    assert [lost_to(config, state(3, 9, 4), made) for made in (6, 8)] == [1, 10]
    assert lost_to(config, state(5, 9, 2), 6) == 10, "somebody else has cut it"
    assert lost_to(CONFIG, state(5, 9, 5), 6) == 5


def test_a_trimmed_log_that_is_cut_by_others_is_found_out() -> None:
    config = cut(CONFIG, state(1, 9, 9), 10, state(3, 9, 4))
    assert holding(config, state(5, 12, 6)) == Holding(10, NEVER)
    assert holding(config, state(11, 12, 2)) == Holding(11, NEVER)


def test_thawing_gives_back_what_was_and_knows_no_more_than_that() -> None:
    config = cut(CONFIG, state(1, 9, 9), 10, state(3, 9, 4))
    assert {name: value for name, value in config.items() if name in CONFIG} == CONFIG
    assert not is_frozen(config)
    assert config["discard_new_per_subject"] is False


def test_a_frozen_log_takes_nothing_and_says_since_when() -> None:
    config = frozen(CONFIG, state(1, 9, 9), 1, 123)
    assert not set(config["subjects"]) & set(CONFIG["subjects"])
    assert is_frozen(config)
    assert frozen_since(config) == 123
    assert holding(config, state(4, 9, 3)) == Holding(1, 0), "while it is trimmed, what it says may be behind"
    assert limited(config, 10, 2)["discard"] == "new", "the limit by itself would take more out"


def test_a_note_that_was_made_too_early_is_made_again() -> None:
    config = cut(CONFIG, state(1, 9, 9), 10, state(1, 9, 9))
    assert renoted(config, state(1, 12, 12)) is None
    again = renoted(config, state(3, 12, 7))
    assert again is not None
    assert Trimmed.of(again) == Trimmed(10, 3, 7, 12, at=7)
    assert renoted(CONFIG, state(1, 9, 9)) is None
