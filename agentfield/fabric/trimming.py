"""Trimming the log: taking out of it what is kept elsewhere, and nothing that the present needs.

The server lets nobody delete from the log, for good, and that stays so. What it does allow is to limit how many
messages of each subject there are, and then it takes out the oldest of those that have more. So a subject keeps at
least as many as it has from the revision on from which the log is to stay complete, and one more: what it held then.
The limit has to be right to the message, so the log takes no writes while it is counted and for the moment the limit is
there; writers try again and notice nothing, since no step takes long. Owns: these steps. Must not know: where what is
taken out is kept.

Invariants: a message goes only if it lies before the revision, and another one of its subject does, too, behind it.
Whoever dies at any moment leaves a log from which nothing else goes: one that is frozen, at the worst, which others
thaw (:func:`~agentfield.fabric.topology.thaw_if_left`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from sys import intern
from typing import Any, Final, NamedTuple

import orjson

from agentfield.errors import OutcomeUnknownError, UnavailableError
from agentfield.fabric.consumers.durables import consumers
from agentfield.fabric.faults import Fault, NoAnswerFault, ServerFault, error_of
from agentfield.fabric.jetstream import API, api
from agentfield.fabric.log import Log
from agentfield.fabric.reader import Reader
from agentfield.fabric.records import nanoseconds_of
from agentfield.fabric.topology import thaw_if_left
from agentfield.fabric.trimmed import FREEZE, frozen, is_frozen, limited, renoted, thawed

_STEP: Final = 20_000
"""Messages that a step takes out at most, or one of each subject, if that is more; fewer where that takes long."""
_PAUSE: Final = 0.5
"""Seconds that a step should take at most, since nobody can write meanwhile."""
_QUIET: Final = 0.1
"""Seconds without a new message after which what was on its way when the log was frozen has been stored."""
_DRAINED: Final = 5.0
_FRESH: Final = 20.0
"""Seconds after freezing in which the limit may be set: long before anybody thaws the log."""
_ANSWER: Final = 600.0
"""Seconds that the server may take for a step: where millions of subjects have each one message too many, minutes."""
_PAGE_OF_SUBJECTS: Final = 100_000


class Need(NamedTuple):
    """Who has still to be given messages of the log, and from which sequence on."""

    name: str
    sequence: int


class Step(NamedTuple):
    """What one step took out, and for how many seconds nobody could write."""

    messages: int
    seconds: float


class Busy(Exception):
    """Somebody else trims the log, or it is not as it was when this began. Nothing was taken out by this step."""


class _Recent:
    """How many messages each subject has from a sequence on.

    Whoever holds trimming back may be a million messages behind. So they are counted before the log is frozen, and only
    what came since, or is needed no more, while nobody can write.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._begin(1)

    def _begin(self, start: int) -> None:
        self._start, self._stop = start, start - 1
        self._counts: Counter[str] = Counter()
        self._sequences: deque[int] = deque()
        self._subjects: deque[str] = deque()

    async def most(self, start: int, stop: int) -> int:
        """How many messages from one sequence to another the subject has that has most of them."""
        if not self._start <= start <= self._stop:
            self._begin(start)
        while self._sequences and self._sequences[0] < start:
            self._sequences.popleft()
            self._counts[self._subjects.popleft()] -= 1
        self._start = start
        if self._stop < stop:
            log = self._log
            async with Reader(log.connection, log.stream, [], start=self._stop + 1, patience=log.timeout) as reader:
                async for record in reader.until(stop):
                    subject = intern(record.subject)
                    self._sequences.append(record.sequence)
                    self._subjects.append(subject)
                    self._counts[subject] += 1
            self._stop = stop
        return max(self._counts.values(), default=0)


async def needs(log: Log) -> list[Need]:
    """What consumers have still to be given, of handlers and of any other program, the oldest first."""
    found = []
    leases = f"{log.connection.namespace}.checks.projections."
    async for info in consumers(log.connection, log.stream, patience=log.timeout):
        filters = info["config"].get("filter_subjects") or [info["config"].get("filter_subject") or ">"]
        if all(each.startswith(leases) for each in filters):
            continue  # of an event that is never acknowledged, and stays
        acknowledges = info["config"].get("ack_policy", "none") != "none"
        if not info["num_pending"] and not (acknowledges and info["num_ack_pending"]):
            continue
        done = info["ack_floor" if acknowledges else "delivered"]["stream_seq"]
        found.append(Need(str(info["name"]), int(done) + 1))
    return sorted(found, key=lambda need: need.sequence)


async def trim(
    log: Log,
    expected: Callable[[], Awaitable[int]],
    announce: Callable[[], Awaitable[None]],
    settle: Callable[[int], Awaitable[int]],
    *,
    allowed: Callable[[], bool],
) -> AsyncGenerator[Step, None]:
    """Take out of the log what no longer has to be in it, a step at a time, until there is nothing left of that.

    ``expected`` says from which revision on the log would have to stay complete now; if nothing could go then, it is
    not frozen at all. Otherwise ``announce`` is called before every step. ``settle`` is called while the
    log is frozen, with its last sequence, and says from which revision on it must stay complete: everything before must
    be kept elsewhere by then. It has a few seconds. ``allowed`` is asked in each step whether it may still be done: two
    must never trim at once. Raises :class:`Busy`, :class:`UnavailableError`, :class:`AccessDeniedError`, what
    ``announce`` and ``settle`` raise, and :class:`OutcomeUnknownError`, if the log may have been left frozen; it is
    thawed after a minute then.
    """
    step = _STEP
    while True:
        totals = await _totals(log)
        recent = _Recent(log)
        most = await recent.most(max(log.held.complete, await expected()), int((await log.state())["last_seq"]))
        if max(totals.values(), default=0) <= 1 + most and not is_frozen((await _info(log))["config"]):
            return
        await announce()
        begun = time.monotonic()
        removed, more = await _step(log, settle, totals, recent, step, allowed)
        seconds = time.monotonic() - begun
        yield Step(removed, seconds)
        if not more or not removed:
            return
        step = max(1000, min(_STEP, int(step * _PAUSE / max(0.01, seconds))))


def _limit(totals: Mapping[str, int], least: int, step: int) -> int:
    """The smallest limit that takes out about so many messages, but never fewer than ``least`` of a subject."""
    low, high = least, max(totals.values(), default=least)
    if sum(max(0, count - low) for count in totals.values()) <= step:
        return low
    while low < high:
        middle = (low + high) // 2
        if sum(count - middle for count in totals.values() if count > middle) <= step:
            high = middle
        else:
            low = middle + 1
    return max(least, low - 1)  # so that a step takes out something, however many subjects have the same count


async def _step(
    log: Log,
    settle: Callable[[int], Awaitable[int]],
    totals: Mapping[str, int],
    recent: _Recent,
    step: int,
    allowed: Callable[[], bool],
) -> tuple[int, bool]:
    """Freeze the log, limit it, and thaw it; how many messages that took out, and whether there are more to go."""
    info = await _info(log)
    if is_frozen(info["config"]):
        await thaw_if_left(log.connection, info)
        raise Busy("it is frozen; whoever froze it, it is thawed a minute later")
    stamp = nanoseconds_of(info["ts"])
    at = time.monotonic()
    await _update(log, frozen(info["config"], info["state"], log.held.complete, stamp))
    try:
        info = await _drained(log, stamp)
        before, last = int(info["state"]["messages"]), int(info["state"]["last_seq"])
        complete = max(log.held.complete, await settle(last))
        least = 1 + await recent.most(complete, last)
        keep = max(least, _limit(totals, least, step))
        if time.monotonic() > at + _FRESH or not allowed():
            raise Busy("it took too long to get ready, or somebody else has begun; nothing was taken out")
        await _update(log, limited(info["config"], complete, keep))
    except (NoAnswerFault, OutcomeUnknownError):
        raise
    except BaseException:
        await asyncio.shield(_thaw(log, stamp))
        raise
    state = await asyncio.shield(_thaw(log, stamp))
    return before - int(state["messages"]), keep > least


async def _drained(log: Log, stamp: int) -> dict[str, Any]:
    """What the log is once everything has been stored that was on its way."""
    deadline = time.monotonic() + _DRAINED
    last = -1
    while True:
        info = await _info(log)
        if (info["config"].get("metadata") or {}).get(FREEZE, "").split()[:1] != [str(stamp)]:
            raise Busy("somebody else trims the log, or has thawed it")
        behind = any(not each.get("current") for each in (info.get("cluster") or {}).get("replicas") or ())
        if int(info["state"]["last_seq"]) == last and not behind:
            return info
        if time.monotonic() > deadline:
            raise UnavailableError("the log was frozen, but does not come to rest: is every server of it well?")
        last = int(info["state"]["last_seq"])
        await asyncio.sleep(_QUIET)


async def _thaw(log: Log, stamp: int) -> Mapping[str, Any]:
    """Let the log be written to again; returns its state before that."""
    info = await _info(log)
    state: Mapping[str, Any] = info["state"]
    if (info["config"].get("metadata") or {}).get(FREEZE, "").split()[:1] == [str(stamp)]:
        await _update(log, thawed(info["config"], state))
    info = await _info(log)
    if not is_frozen(info["config"]) and (mended := renoted(info["config"], info["state"])) is not None:
        await _update(log, mended)
    await log.state()
    return state


async def _info(log: Log) -> dict[str, Any]:
    try:
        return await api(log.connection, f"STREAM.INFO.{log.stream}", patience=log.timeout)
    except Fault as fault:
        raise error_of(fault, "trimming the log") from None


async def _update(log: Log, config: Mapping[str, Any]) -> None:
    """Change the stream's configuration by one request, never repeated: a second one could come too late."""
    subject = f"{API}.STREAM.UPDATE.{log.stream}"
    try:
        answer = orjson.loads((await log.connection.request(subject, orjson.dumps(config), timeout=_ANSWER)).payload)
        if "error" in answer:
            raise ServerFault.of(answer["error"])
    except NoAnswerFault:
        raise OutcomeUnknownError(
            "trimming the log: the server did not answer; if it is left frozen, it takes writes again within a minute"
        ) from None
    except Fault as fault:
        raise error_of(fault, "trimming the log") from None


async def _totals(log: Log) -> dict[str, int]:
    """How many messages each subject has."""
    totals: dict[str, int] = {}
    while True:
        body = {"subjects_filter": ">", "offset": len(totals)}
        try:
            info = await api(log.connection, f"STREAM.INFO.{log.stream}", body, patience=log.timeout)
        except Fault as fault:
            raise error_of(fault, "trimming the log") from None
        page = info["state"].get("subjects") or {}
        totals.update(page)
        if len(page) < _PAGE_OF_SUBJECTS or len(totals) >= int(info["state"]["num_subjects"]):
            return totals
