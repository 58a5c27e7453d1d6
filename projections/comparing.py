"""Comparing a view with one made anew: row by row, up to the first that differs.

Owns: what such a comparison says. Must not know: how either view came about. Invariant: both are compared as they were
at one event.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from projections.projection import Projection
from projections.view import Moment, View


@dataclass(frozen=True, slots=True)
class Verdict:
    """What comparing a view with a rebuilt one showed."""

    checkpoint: int
    """Up to where both were made."""
    rows: int
    """How many rows were equal."""
    found: Sequence[Any] | None = None
    """The first row of the view that differs; None if it lacks one, or nothing differs."""
    expected: Sequence[Any] | None = None
    """What the rebuilt view has in its place; None if it has none."""

    trimmed: int = 0
    """How many rows more there are that the log no longer holds, so that nothing could be compared with them."""

    @property
    def equal(self) -> bool:
        """Whether every row is the same."""
        return self.found is None and self.expected is None


def compare(projection: Projection, live: View, ours: Moment, anew: Moment) -> Verdict:
    """Compare what a live view held at a moment with what one made anew holds at that moment."""

    def rows(moment: Moment) -> Iterable[Sequence[Any]]:
        chosen = projection.snapshot(moment.content)
        return live.rows(moment.content) if chosen is None else chosen

    count = 0
    for found, expected in zip_longest(rows(ours), rows(anew)):
        if found != expected:
            return Verdict(ours.head.checkpoint, count, found, expected)
        count += 1
    return Verdict(ours.head.checkpoint, count)
