"""Timing: when somebody is to look whether a value should go, and of which keys a timer asks that.

Owns: the names and contents of the timers of keys. Must not know: whether a value has run out, which the log says when
the timer fires. Invariant: what a timer is about is in its name, or its digest is, so that nobody can move the timer of
another write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

from agentfield.errors import InvalidInputError
from agentfield.fabric.fabric import Fabric

logger = logging.getLogger("agentfield.writing")

_TIMER_SLACK = 50_000_000
"""Nanoseconds a timer is set past the ttl, since the event's own time is a little later than the timer's."""
_SHORT = 60_000_000_000
_TIMERS_AT_ONCE = 200
KEYS_A_TIMER = 500
"""Keys that one timer may be about: as many as a worker deletes together."""
_BYTES_A_TIMER = 64 * 1024
"""Bytes that the keys' names in one timer may take: a worker holds hundreds of timers at once."""
_MANY = "key.many."


def timer_moment(now: int, ttl: float) -> int:
    """When to ask whether a value written now with this ttl (seconds) should go; all in nanoseconds.

    Such moments lie on a grid whose step grows with the ttl: however often a key is written, it has at most some 130
    timers. A short ttl's is late by up to a 64th of it; a long one's is early, and the worker then asks again at the
    very time.
    """
    span = round(ttl * 1_000_000_000)
    if span < _SHORT:
        step = 1 << max(20, (span // 64).bit_length() - 1)
        return ((now + span + _TIMER_SLACK) // step + 1) * step
    step = 1 << ((span // 8).bit_length() - 1)
    return (now + span) // step * step


async def set_timers(fabric: Fabric, moments: Iterable[tuple[str, int]]) -> None:
    """Have a worker look at the keys of these subjects, each at its moment, whether their values should go.

    The moment is part of the timer's name, ``key.<scope>.<id>.<tokens>.<moment>``, and so nobody can move it: neither
    a write that fails afterwards, nor one that races with this one and is stored before it. Keys with one moment share
    timers, ``key.many.<digest>.<moment>``, which hold the keys' names: setting a timer, and its firing, costs the
    server as much as a write does. The digest is of what the timer holds, so this one cannot be moved either.
    """
    by_moment: dict[int, list[str]] = {}
    for subject, at in moments:
        by_moment.setdefault(at, []).append(subject.removeprefix(_prefix(fabric)))
    timers = [(name, at, content) for at, keys in by_moment.items() for name, content in _timers(keys, at)]
    for begin in range(0, len(timers), _TIMERS_AT_ONCE):
        await asyncio.gather(*(fabric.timers.schedule(*timer) for timer in timers[begin : begin + _TIMERS_AT_ONCE]))


def _timers(keys: Sequence[str], at: int) -> Iterator[tuple[str, bytes]]:
    """The names and contents of the timers that ask about these keys at this moment."""
    for begin in range(0, len(keys), KEYS_A_TIMER):
        some = keys[begin : begin + KEYS_A_TIMER]
        content = "\n".join(some).encode()
        if len(some) == 1:
            yield f"key.{some[0]}.{at}", b""
        elif len(content) > _BYTES_A_TIMER:
            yield from _timers(some[: len(some) // 2], at)
            yield from _timers(some[len(some) // 2 :], at)
        else:
            yield f"{_MANY}{blake2b(content, digest_size=16).hexdigest()}.{at}", content


def timed_subjects(fabric: Fabric, name: str, content: bytes) -> list[str]:
    """The subjects of the keys that a timer is about; those left out that are no key's."""
    if name.startswith(_MANY):
        keys = content.decode(errors="replace").split("\n")
    else:
        keys = [name.removeprefix("key.").rpartition(".")[0]]
    subjects = []
    for key in keys:
        subject = _prefix(fabric) + key
        try:
            fabric.subjects.parse(subject)
        except InvalidInputError as error:
            logger.warning("timer %s: %s", name, error)
        else:
            subjects.append(subject)
    return subjects


def _prefix(fabric: Fabric) -> str:
    return f"{fabric.subjects.namespace}.memory."
