"""Updating: writes whose value comes from what is there, and which lose nothing that others write meanwhile."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Callable, MutableMapping, MutableSequence, MutableSet
from copy import deepcopy
from dataclasses import is_dataclass
from typing import Any

from pydantic import BaseModel, RootModel

from agentfield.codec import expires_at_ns
from agentfield.errors import ConflictError, InvalidInputError
from agentfield.memory.addressing import write_scope
from agentfield.memory.preparing import check_write, prepare
from agentfield.memory.state import is_live
from agentfield.memory.storing import Storing, last_record, place_of

UPDATE_TRIES = 1000
"""Rounds an update may lose against concurrent writers. One writer wins every round, so among n busy writers each waits
about n rounds; this many means that something else is wrong."""
_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.25


class Updates(Storing):
    """The updating operations."""

    async def update(
        self,
        key: str,
        function: Callable[[Any], Any],
        default: Any = None,
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        ttl: float | None = None,
    ) -> Any:
        """Read a value, apply a function to it, store the outcome if nobody wrote meanwhile, else begin again.

        ``function`` gets the value (a copy of ``default`` if there is none) and returns the new one; it may be async
        and take minutes, and it may be called several times, so it should do nothing but compute. Returns the value
        stored.
        Rounds pause with jitter; after 1,000 lost rounds :class:`ConflictError`. What the function raises is raised,
        and nothing is stored. ``agentfield.memory.merges`` has ready-made functions that commute.

        A value that expires still does so when it would have, unless ``ttl`` lets it expire so many seconds after this
        write. In a handler, an update that is stored already when its event comes again is not made again; what it
        stored is returned.
        """
        return await self._update(key, function, default, scope, scope_id, ttl=ttl)

    async def _update(
        self,
        key: str,
        function: Callable[[Any], Any],
        default: Any,
        scope: str | None,
        scope_id: str | None,
        *,
        ttl: float | None,
        kind: str = "update",
    ) -> Any:
        """As :meth:`update`; ``kind`` is what tells one update of the key from another besides their order."""
        check_write(key, ttl)
        if not callable(function):
            raise InvalidInputError(f"update of {key!r} with {function!r}: give a function that makes the new value")
        target = write_scope(self._place(), scope, scope_id)
        effects = self._effects()
        id = None if effects is None else effects.of_update(place_of(target, key), kind)
        fabric = await self._fabric()
        resolver = self._resolver(fabric)
        pause = _FIRST_PAUSE
        for attempt in range(UPDATE_TRIES):
            record = await last_record(fabric, target, key)
            present = record is not None and is_live(record, fabric.log.now())
            value = function(await resolver.value(record) if record is not None and present else _fresh(default))
            if inspect.isawaitable(value):
                value = await value
            encoded = self.schemas.encode(key, value)
            expected = record.sequence if record else 0
            ends = expires_at_ns(record) if record is not None and present and ttl is None else None
            left = ttl if ends is None else (ends - fabric.log.now()) / 1e9
            try:
                if ends is not None and left is not None and left <= 0:
                    raise ConflictError.of_expired(key, expected)  # while the function ran
                write = prepare(
                    fabric,
                    target,
                    key,
                    "set",
                    encoded.payload,
                    self._writer(),
                    ttl=left,
                    ends=ends,
                    event_id=id,
                    stamp=encoded.stamp,
                )
                revision = await self._store(fabric, write, expected)
            except ConflictError:
                if attempt == UPDATE_TRIES - 1:
                    raise
            else:
                return encoded.value if revision > expected else await self._stored(fabric, key, revision)
            await asyncio.sleep(pause * random.random())
            pause = min(_LONGEST_PAUSE, pause * 1.5)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def increment(
        self,
        key: str,
        by: int | float = 1,
        scope: str | None = None,
        scope_id: str | None = None,
        *,
        ttl: float | None = None,
    ) -> int | float:
        """Add to a number (absent: 0), whatever else is written meanwhile, and return the sum.

        What holds for ``update`` holds for its ``ttl``, too: without it, a number that expires still does so when it
        would have. A key that is bound to a model must be bound to a ``RootModel`` of a number.
        """
        if isinstance(by, bool) or not isinstance(by, (int, float)):
            raise InvalidInputError(f"by={by!r} is not a number")

        def add(value: Any) -> int | float:
            value = _bare(value)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InvalidInputError(
                    f"key {key!r} holds {type(value).__name__}, not a number: only numbers can be incremented"
                )
            return value + by

        total: int | float = _bare(await self._update(key, add, 0, scope, scope_id, ttl=ttl, kind=f"increment {by!r}"))
        return total


def _fresh(default: Any) -> Any:
    """A default that a function may change as it likes: the next round, and the next update, begin with the same.

    What is no container is given as it is, so that a function can tell by identity that there was no value.
    """
    changes = isinstance(default, MutableSequence | MutableMapping | MutableSet | BaseModel) or is_dataclass(default)
    return deepcopy(default) if changes else default


def _bare(value: Any) -> Any:
    """The number in a model that is nothing but a number."""
    return value.root if isinstance(value, RootModel) else value
