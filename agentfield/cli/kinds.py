"""What people write on a command line for a count, a span of time, a point in history and a value, and what it means.

Pure. Invariant: what cannot be understood is wrong usage and never guessed at.
"""

from __future__ import annotations

import json
import math
import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from agentfield.errors import InvalidInputError

Point = datetime | timedelta | int
"""A moment, an age before now, or a revision."""

if TYPE_CHECKING:  # generic for type checkers only, since at run time click's class is so only in its later versions
    _Seconds = click.ParamType[float]
    _Points = click.ParamType[Point]
else:
    _Seconds = _Points = click.ParamType

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)", re.ASCII)


class _Duration(_Seconds):
    """Seconds, as a number or with a unit."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds above zero."""
        found = _SPAN.fullmatch(str(value))
        seconds = float(found[1]) * _UNITS[found[2] or "s"] if found else 0.0
        if not 0 < seconds < math.inf:
            self.fail(f"{value!r} is not a time above zero: give seconds, or a number with s, m, h, d or w", param, ctx)
        return seconds


class _Point(_Points):
    """A moment of history."""

    name = "point"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Point:
        """A revision if it is all digits, an age if it is a number with a unit, else an RFC 3339 time."""
        text = str(value)
        if re.fullmatch(r"\d{1,18}", text, re.ASCII):
            return int(text)
        if (found := _SPAN.fullmatch(text)) is not None and found[2]:
            try:
                return timedelta(seconds=float(found[1]) * _UNITS[found[2]])
            except OverflowError:
                self.fail(f"{text!r} is longer ago than time can tell", param, ctx)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(
                f"{text!r} is no point in history: give a time such as 2024-07-08T18:20:00Z, an age such as 15m or 2h, "
                f"or a revision",
                param,
                ctx,
            )
        if moment.tzinfo is None:
            self.fail(f"{text!r} has no time zone: add Z for UTC, or an offset such as +02:00", param, ctx)
        return moment


class Count(click.IntRange):
    """A whole number within bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            bounds = f"at least {self.min}" if self.max is None else f"from {self.min} to {self.max}"
            self.fail(f"{value!r} is not a whole number, {bounds}", param, ctx)


DURATION: Final = _Duration()
POINT: Final = _Point()


def value_of(text: str) -> Any:
    """The value that an argument stands for: what it says as JSON, or the text itself if it is not JSON.

    Raises InvalidInputError for JSON that is too deep or holds numbers that are too long to read.
    """
    try:
        return json.loads(text, parse_constant=_no_json)
    except json.JSONDecodeError:
        return text
    except _NotJson:
        return text
    except (RecursionError, ValueError) as error:
        raise InvalidInputError(
            f"the value is JSON that cannot be read ({error}): make it flatter or its numbers shorter"
        ) from None


class _NotJson(Exception):
    """Python's reader takes NaN and Infinity, which are no JSON."""


def _no_json(_: str) -> Any:
    raise _NotJson
