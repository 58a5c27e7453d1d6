"""Ready-made functions for ``memory.update`` that commute: whatever the order of the writers, the outcome is the same.

``await memory.update("high_score", merges.maximum(42))``. Each takes what is to be merged in and returns a function
from the old value (None if absent) to the new. Append keeps all items; their order is the order of the writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from agentfield.errors import InvalidInputError

Merge = Callable[[Any], Any]


def maximum(value: Any) -> Merge:
    """The larger of the old value and this one."""
    return lambda old: value if old is None else max(old, value)


def minimum(value: Any) -> Merge:
    """The smaller of the old value and this one."""
    return lambda old: value if old is None else min(old, value)


def union(items: Iterable[Any]) -> Merge:
    """The old list as a set, with these items added; in the order of first appearance."""
    added = list(items)

    def merge(old: Any) -> list[Any]:
        merged = _listed(old, "union")
        merged.extend(item for item in added if item not in merged)
        return merged

    return merge


def append(*items: Any) -> Merge:
    """The old list with these items at its end."""
    return lambda old: [*_listed(old, "append"), *items]


def _listed(old: Any, what: str) -> list[Any]:
    if old is not None and not isinstance(old, list):
        raise InvalidInputError(f"{what} merges into a list, and the value is of type {type(old).__name__}")
    return list(old or ())
