"""Handlers as they are declared: what ``on_change`` was given, checked before anything runs.

Pure. Invariant: a :class:`Registration` can work; whatever could not was refused with the fact and the remedy.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from agentfield.amount import LARGEST, check_count, check_span
from agentfield.errors import InvalidInputError
from agentfield.event import Event
from agentfield.fabric.consumers.consuming import Start
from agentfield.memory.addressing import AnyScope
from agentfield.pattern import Pattern
from agentfield.schema import Schemas

Handler = Callable[[Event], Any]
Delivery = Literal["agent", "instance"]
"""Who gets an event: one instance of the agent, or every instance."""


@dataclass(frozen=True, slots=True)
class Registration:
    """A handler as it was declared."""

    name: str
    function: Handler
    patterns: tuple[Pattern, ...]
    scopes: tuple[AnyScope, ...]
    start: Start
    delivery: Delivery
    concurrency: int
    retries: int
    timeout: float | None
    schemas: Schemas

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function; any other runs in a thread."""
        return inspect.iscoroutinefunction(self.function)


def registration(
    function: Handler,
    patterns: str | Sequence[str],
    scopes: tuple[AnyScope, ...],
    *,
    name: str | None,
    start: Start,
    delivery: Delivery,
    concurrency: int,
    retries: int,
    timeout: float | None,
    schemas: Schemas,
) -> Registration:
    """Validate a declaration. Raises :class:`InvalidInputError` with the fact and the remedy."""
    if not callable(function):
        raise InvalidInputError(f"on_change decorates a function, not {function!r}")
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        raise InvalidInputError(
            f"handler {getattr(function, '__name__', function)!r} must take one argument, the event"
        ) from None
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        named = getattr(function, "__name__", function)
        raise InvalidInputError(f"handler {named!r} is a generator, so a call runs nothing of it: take its yield out")
    if isinstance(patterns, str):
        texts = [patterns]
    elif isinstance(patterns, Sequence):
        texts = list(patterns)
    else:
        raise InvalidInputError(f"patterns={patterns!r}: a pattern, or a list of patterns")
    if not texts:
        raise InvalidInputError("on_change needs at least one pattern; '*' hears every key")
    chosen = name if name is not None else getattr(function, "__name__", None)
    if not isinstance(chosen, str) or re.fullmatch(r"[A-Za-z0-9_-]{1,64}", chosen) is None:
        raise InvalidInputError(f"handler name {chosen!r}: 1 to 64 of A-Z a-z 0-9 _ -; give another with name=…")
    if not (start in ("new", "all", "current") if isinstance(start, str) else _is_point(start)):
        raise InvalidInputError(f"start={start!r}: 'new', 'all', 'current', an aware datetime, or a revision")
    if delivery not in get_args(Delivery):
        raise InvalidInputError(
            f"delivery={delivery!r}: 'agent', each event to one instance of the agent, or 'instance', to every one"
        )
    check_count(concurrency, "concurrency")
    check_count(retries, "retries", least=0, remedy=" (then no second try is made)")
    if timeout is not None:
        timeout = check_span(timeout, "timeout", remedy=", or None")
    return Registration(
        chosen,
        function,
        tuple(Pattern.parse(text) for text in texts),
        scopes,
        start,
        delivery,
        concurrency,
        retries,
        timeout,
        schemas,
    )


def _is_point(start: object) -> bool:
    if isinstance(start, datetime):
        return start.tzinfo is not None
    return type(start) is int and 0 <= start <= LARGEST
