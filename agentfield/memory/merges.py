"""Ready-made functions for ``memory.update`` that commute: the order of the writers does not change the outcome.

``await memory.update("high_score", merges.maximum(42))``. Each takes what is to be merged in and returns a function
from the old value (None if absent) to the new. What is merged in is taken as it will be stored, as JSON, so that it
compares with what was stored before: a tuple is a list, a datetime its text. A maximum or minimum is the very same one
in any order, a union the same as a set, an append the same but for the order: lists are in the order of the writes.
Raise InvalidInputError for what cannot be merged; nothing is stored then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from agentfield.errors import InvalidInputError
from agentfield.naming import shown
from agentfield.value import decode_value, encode_value

Merge = Callable[[Any], Any]


def maximum(value: Any) -> Merge:
    """The larger of the old value and this one; of two that are equal, such as 1 and 1.0, always the same one."""
    new = _ordered(value, "maximum")
    return lambda old: new if old is None or _less(old, new, "maximum") else old


def minimum(value: Any) -> Merge:
    """The smaller of the old value and this one; of two that are equal, such as 1 and 1.0, always the same one."""
    new = _ordered(value, "minimum")
    return lambda old: new if old is None or _less(new, old, "minimum") else old


def union(items: Iterable[Any]) -> Merge:
    """The old list as a set, with these items added; in the order of first appearance. Items are equal as JSON.

    In another order of the writers the list holds the same items, maybe in another order.
    """
    if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, Iterable):
        raise InvalidInputError(f"union of {shown(items)}: give a list of items, such as union([{shown(items)}])")
    added = _stored(list(items))

    def merge(old: Any) -> list[Any]:
        found: dict[bytes, Any] = {}
        for item in [*_listed(old, "union"), *added]:
            found.setdefault(_identity(item), item)
        return list(found.values())

    return merge


def append(*items: Any) -> Merge:
    """The old list with these items at its end."""
    added = _stored(list(items))
    return lambda old: [*_listed(old, "append"), *added]


def _stored(value: Any) -> Any:
    return decode_value(encode_value(value))


def _ordered(value: Any, what: str) -> Any:
    """The value as it will be stored. Refused if it has no order even with itself, whatever it would be compared to."""
    new = _stored(value)
    _less(new, new, what)
    return new


def _less(one: Any, other: Any, what: str) -> bool:
    """Whether one comes before the other, in an order in which only identical values are equal."""
    try:
        return bool(one < other) or (not other < one and _identity(one) < _identity(other))
    except TypeError:
        raise InvalidInputError(
            f"{what} compares {shown(one)} with {shown(other)}: values of one kind have an order, these have none"
        ) from None


def _identity(item: Any) -> bytes:
    return orjson.dumps(item, option=orjson.OPT_SORT_KEYS)


def _listed(old: Any, what: str) -> list[Any]:
    if old is not None and not isinstance(old, list):
        raise InvalidInputError(f"{what} merges into a list, and the value is of type {type(old).__name__}")
    return list(old or ())
