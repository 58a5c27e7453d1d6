"""What a log says of itself once it was trimmed: from where on it is complete.

Pure. Owns: the note of that in the metadata of the log's stream, and what follows from it. A trimmed log holds every
message from one revision on, and of each subject the last one before, mostly: so what any key held at that revision
and since, it answers by itself. Invariant: a log that was shortened by anybody else is never taken for one that holds
what was trimmed around.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

NOTE = "agentfield-trimmed"
"""The name of the note among the metadata."""
FREEZE = "agentfield-frozen"
"""There while nobody can write to the log, since it is being trimmed: when that began, in nanoseconds."""


NEVER = 1 << 63
"""A revision that no log reaches."""


class Trimmed(NamedTuple):
    """What the note says."""

    complete: int
    """The first revision from which on nothing is missing."""
    first: int
    """The first sequence that was left."""
    messages: int
    last: int
    """How many messages there were then, and the last sequence."""
    at: int = 0
    """When that began, by the server's clock: nanoseconds. Who was there then has got, or gets, all that is for it."""

    def note(self) -> str:
        """The note."""
        return " ".join(map(str, self))

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self | None:
        """What the configuration of a stream says; None if it was never trimmed."""
        text = (config.get("metadata") or {}).get(NOTE)
        return None if text is None else cls(*map(int, text.split()))


class Holding(NamedTuple):
    """What a log holds."""

    complete: int
    """The first revision from which on nothing is missing; at least 1."""
    known: int
    """The first revision as of which it says what every subject held; ``NEVER`` where that is gone for good."""


def holding(config: Mapping[str, Any], state: Mapping[str, Any]) -> Holding:
    """What a log holds, by its configuration and its state."""
    first = max(1, int(state["first_seq"]))
    trimmed = Trimmed.of(config)
    if trimmed is None:
        return Holding(first, 0 if first == 1 else NEVER)
    whole = first <= trimmed.first or is_frozen(config)
    complete = trimmed.complete if whole else max(first, trimmed.complete)
    return Holding(complete, complete - 1 if whole else NEVER)


def lost_to(config: Mapping[str, Any], state: Mapping[str, Any], created: int) -> int:
    """The first revision from which on a consumer made at that time has lost nothing that was for it."""
    held, trimmed = holding(config, state), Trimmed.of(config)
    spared = trimmed is not None and held.known != NEVER and created < trimmed.at
    return 1 if spared else held.complete


def missing(config: Mapping[str, Any], state: Mapping[str, Any]) -> int:
    """How many messages the log should hold and does not: none may ever go but by trimming."""
    trimmed = Trimmed.of(config)
    first, last, found = int(state["first_seq"]), int(state["last_seq"]), int(state["messages"])
    if trimmed is None or first > trimmed.first:
        return max(0, last - first + 1 - found) if last else 0
    return max(0, trimmed.messages + last - trimmed.last - found)


def expected(config: Mapping[str, Any], state: Mapping[str, Any]) -> int:
    """How many messages a log that has this state should hold."""
    return int(state["messages"]) + missing(config, state)


def is_frozen(config: Mapping[str, Any]) -> bool:
    """Whether the log is being trimmed at this moment."""
    return FREEZE in (config.get("metadata") or {})


def frozen(config: Mapping[str, Any], state: Mapping[str, Any], complete: int, now: int) -> dict[str, Any]:
    """The configuration of a log that takes nothing new, and says that it is complete from a revision on.

    The subjects it has are noted, so that whoever finds it frozen can thaw it.
    """
    metadata = dict(config.get("metadata") or {})
    before = Trimmed.of(config)
    first = int(state["first_seq"]) if before is None else before.first
    metadata[NOTE] = Trimmed(complete, first, int(state["messages"]), int(state["last_seq"]), now).note()
    metadata[FREEZE] = " ".join([str(now), *config["subjects"]])
    return {**config, "subjects": [f"{config['name']}.frozen"], "metadata": metadata}


def limited(config: Mapping[str, Any], complete: int, keep: int) -> dict[str, Any]:
    """The configuration of a frozen log of which at most the last so many messages of each subject are kept.

    By itself it takes nothing new out, ever: what would exceed the limit is refused.
    """
    before = Trimmed.of(config)
    metadata = dict(config["metadata"])
    if before is not None:
        metadata[NOTE] = before._replace(complete=complete).note()
    config = {**config, "metadata": metadata}
    return {**config, "max_msgs_per_subject": keep, "discard": "new", "discard_new_per_subject": True}


def thawed(config: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a frozen log as it was before, with a note of what it holds."""
    metadata = dict(config.get("metadata") or {})
    subjects = metadata.pop(FREEZE).split()[1:]
    before = Trimmed.of(config)
    if before is not None:
        first, messages, last = (int(state[name]) for name in ("first_seq", "messages", "last_seq"))
        metadata[NOTE] = before._replace(first=first, messages=messages, last=last).note()
    without = {"max_msgs_per_subject": -1, "discard_new_per_subject": False}
    return {**config, "subjects": subjects, "metadata": metadata, **without}


def renoted(config: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The configuration with a note of what a log holds that was just trimmed; None if it says so already.

    It does not if somebody thawed the log while the server was still at it.
    """
    before = Trimmed.of(config)
    first, messages, last = (int(state[name]) for name in ("first_seq", "messages", "last_seq"))
    if before is None or (before.first, before.messages + last - before.last) == (first, messages):
        return None
    note = before._replace(first=first, messages=messages, last=last).note()
    return {**config, "metadata": {**config["metadata"], NOTE: note}}


def frozen_since(config: Mapping[str, Any]) -> int:
    """When a log was frozen: nanoseconds since the epoch, by the server's clock."""
    return int(config["metadata"][FREEZE].split()[0])
