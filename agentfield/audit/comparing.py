"""Naming the first message that is not as it was sealed.

Pure. Given the digests that were sealed and the messages that are there now, with some more behind them, it says at
which place they part, and in the plainest words why: a message is recognised by its digest wherever it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from agentfield.audit.chain import SHORT, Stored, digest_of
from agentfield.audit.seal import Seal

Kind = Literal["changed", "removed", "inserted", "reordered"]


class Seen(NamedTuple):
    """A message that is there now, as far as comparing needs it; it may be large, and there are many at a time."""

    subject: str
    sequence: int
    timestamp: int
    digest: bytes

    @classmethod
    def of(cls, stored: Stored) -> Seen:
        """The message, looked at."""
        return cls(stored.subject, stored.sequence, stored.timestamp, digest_of(stored))

    def is_digested_as(self, short: bytes) -> bool:
        """Whether its digest begins with what a seal keeps of one."""
        return self.digest[:SHORT] == short


class Difference(NamedTuple):
    """The first place where log and seals part. ``found`` is what stands there now, None for nothing."""

    kind: Kind
    sequence: int
    """Of the event concerned: as sealed, for one that was inserted as it stands there now."""
    found: Seen | None
    detail: str


def expected_of(seals: Sequence[Seal], first: int = 1, last: int | None = None) -> list[tuple[int, bytes]]:
    """Sequence and short digest of every message that the seals cover, from sequence ``first`` to ``last``."""
    return [
        (sequence, seal.digest(sequence))
        for seal in seals
        for sequence in range(max(first, seal.first), min(seal.last, seal.last if last is None else last) + 1)
    ]


def first_difference(
    expected: Sequence[tuple[int, bytes]], actual: Sequence[Seen], *, complete: bool
) -> Difference | None:
    """Where ``actual`` first parts from ``expected``, None if it begins with all of it.

    ``complete`` says that nothing comes after what was given. To name what was moved, give more of both than the
    stretch in question.
    """
    digests = [seen.digest[:SHORT] for seen in actual]
    for at, (sequence, digest) in enumerate(expected):
        if at >= len(actual):
            if not complete:
                return None
            return Difference("removed", sequence, None, _tail(sequence, expected[-1][0]))
        found = actual[at]
        if digests[at] == digest:
            if found.sequence != sequence:
                detail = f"the event that was sealed as revision {sequence} now stands as revision {found.sequence}"
                return Difference("changed", sequence, found, detail)
            continue
        return _parted(expected, actual, digests, at)
    return None


def _parted(
    expected: Sequence[tuple[int, bytes]], actual: Sequence[Seen], digests: Sequence[bytes], at: int
) -> Difference:
    sequence, digest = expected[at]
    found = actual[at]
    sealed_at = {each: place for place, each in expected}
    elsewhere = sealed_at.get(digests[at])
    still_comes = digest in digests[at + 1 :]
    if elsewhere is not None and elsewhere < sequence:
        return Difference("inserted", found.sequence, found, f"it is a copy of revision {elsewhere}")
    if elsewhere is not None and still_comes and digests[at] not in digests[at + 1 :]:
        return Difference("reordered", sequence, found, f"in its place stands what was sealed as revision {elsewhere}")
    if still_comes:
        return Difference("inserted", found.sequence, found, f"revision {sequence} comes after it, as it was sealed")
    if elsewhere is not None or found.sequence > sequence:
        behind = f"sealed as revision {elsewhere}" if elsewhere else f"revision {found.sequence}"
        return Difference("removed", sequence, None, f"in its place stands what is {behind}")
    return Difference("changed", sequence, found, "its time, subject, headers or payload are not what was sealed")


def _tail(first: int, last: int) -> str:
    return "it was the last one" if first == last else f"with it everything up to revision {last}"


def misplaced(seal: Seal, seen: Seen) -> Difference | None:
    """What is wrong with one message that a seal covers, looked at alone; None if nothing is."""
    digest = seen.digest[:SHORT]
    if seal.digest(seen.sequence) == digest:
        return None
    for sequence in range(seal.first, seal.last + 1):
        if seal.digest(sequence) == digest:
            return Difference("reordered", seen.sequence, seen, f"this is what was sealed as revision {sequence}")
    detail = "its time, subject, headers or payload are not what was sealed"
    return Difference("changed", seen.sequence, seen, detail)
