"""Counts and spans of time: what can be one, and what to say of anything else; and how a count is said. Pure."""

from __future__ import annotations

from typing import Final

from agentfield.errors import InvalidInputError
from agentfield.naming import shown

LONGEST: Final = 100 * 366 * 86400.0
"""The longest span in seconds, a century: a clock's reading plus a span must stay a number that clocks can take."""
LARGEST: Final = 2**63 - 1
"""The largest count, sequence or revision that the server can hold."""


def check_count(value: object, name: str, *, least: int = 1, remedy: str = "") -> int:
    """The count. Raises InvalidInputError unless it is a whole number of at least ``least``."""
    if type(value) is not int or not least <= value <= LARGEST:
        raise InvalidInputError(f"{name}={shown(value)}: a whole number, at least {least}{remedy}")
    return value


def check_span(value: object, name: str, *, remedy: str = "") -> float:
    """The span in seconds. Raises InvalidInputError unless it is a number above 0, and at most a century."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= LONGEST:
        raise InvalidInputError(f"{name}={shown(value)}: seconds, above 0 and at most a century{remedy}")
    return float(value)


def number_of(count: int, one: str, many: str = "") -> str:
    """So many of something, in words: ``1 event``, ``2,000 events``, ``3 tries``."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
