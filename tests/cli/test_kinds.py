"""What people write for times, points and values means one thing, or is refused."""

import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfield.cli.kinds import DURATION, POINT, Count, value_of
from agentfield.cli.output import age, moment, shortened, size, visible
from agentfield.cli.root import root
from agentfield.errors import InvalidInputError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5), ("0.5", 0.5), ("30s", 30), ("1.5m", 90), ("2h", 7200), ("1d", 86400), ("1w", 604800)],
)
def test_a_duration_is_seconds_or_has_a_unit(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-1", "1y", "h", "1 h", "inf", "nan", "1e3", "9" * 400])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        DURATION.convert(text, None, None)


@pytest.mark.parametrize("text", ["x", "", "1.5", "0", "-1", "11"])
def test_what_is_no_count_is_refused_with_what_it_could_be(text: str) -> None:
    with pytest.raises(click.BadParameter, match=f"'{re.escape(text)}' is not a whole number, from 1 to 10"):
        Count(1, 10).convert(text, None, None)
    assert Count(1, 10).convert("10", None, None) == 10
    with pytest.raises(click.BadParameter, match="is not a whole number, at least 0"):
        Count(min=0).convert("x", None, None)


def test_every_number_among_the_options_is_a_count() -> None:
    ranges = [option for option in options(root) if isinstance(option.type, (click.IntRange, click.FloatRange))]
    assert ranges
    assert all(isinstance(option.type, Count) for option in ranges)


def options(command: click.Command) -> Iterator[click.Parameter]:
    yield from command.params
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from options(found)


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("0", 0),
        ("20240708", 20240708),
        ("15m", timedelta(minutes=15)),
        ("2024-07-08T18:20:00Z", datetime(2024, 7, 8, 18, 20, tzinfo=UTC)),
        ("2024-07-08 18:20:00.5+02:00", datetime(2024, 7, 8, 18, 20, 0, 500000, timezone(timedelta(hours=2)))),
    ],
)
def test_a_point_is_a_revision_an_age_or_a_time(text: str, point: object) -> None:
    assert POINT.convert(text, None, None) == point


@pytest.mark.parametrize("text", ["", "-1", "now", "2024-07-08", "2024-07-08T18:20:00", "٣", "1" * 19, "99999999999w"])
def test_what_is_no_point_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        POINT.convert(text, None, None)


@given(JSON)
def test_a_value_that_is_json_is_that_value(value: Any) -> None:
    assert value_of(json.dumps(value)) == value


@given(st.text())
def test_a_text_that_is_not_json_is_that_text(text: str) -> None:
    value = value_of(text)
    assert value == text or json.loads(text) == value


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "[NaN]", "hello", "", "{", "'a'", "01", "0x1", "True"])
def test_what_only_looks_like_json_is_text(text: str) -> None:
    assert value_of(text) == text


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000])
def test_json_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        value_of(text)


@given(st.text(), st.integers(min_value=2, max_value=80))
def test_a_shortened_value_is_one_line_without_control_characters(text: str, limit: int) -> None:
    short = shortened(text, limit)
    assert len(short) <= limit
    assert short.isprintable()


@given(st.text(st.characters(max_codepoint=0x9F)))
def test_a_visible_text_keeps_its_lines_and_loses_its_control_characters(text: str) -> None:
    assert visible(text).count("\n") == text.count("\n")
    assert all(c.isprintable() or c in "\t\n" for c in visible(text))


def test_ages_sizes_and_times_are_short() -> None:
    assert [age(s) for s in (-3, 0.5, 59, 60, 7200, 200_000)] == ["0s", "0s", "59s", "1m", "2h", "2d"]
    assert [size(n) for n in (0, 999, 1500, 123_456, 10**9)] == ["0 B", "999 B", "1.5 kB", "123 kB", "1.0 GB"]
    assert moment(datetime(2024, 7, 8, 20, 20, tzinfo=timezone(timedelta(hours=2)))) == "2024-07-08T18:20:00.000Z"
    assert math.isfinite(float(size(1).split()[0]))
