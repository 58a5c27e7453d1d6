"""Verifying: recomputing the chain over a log, and comparing it with the seals.

Owns: the walk over seals and messages side by side, and the verdict. Must not know: where either comes from; the live
log, an export and an archive are verified alike. Of the messages of two seals it keeps the digests, and nothing of the
others. Invariant: a log that is found intact holds, from the first to the last revision named, exactly the messages
that the seals' keys have signed for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

from agentfield.audit.beginning import THE_LOG, Absent, Beginning, Sources
from agentfield.audit.chain import chained
from agentfield.audit.comparing import Difference, Seen, expected_of, first_difference, misplaced
from agentfield.audit.seal import Head, Seal, SignedSeal, fault_of

_AHEAD: Final = 2000
"""Messages read past the seal in which a difference was found, to see whether the one concerned was only moved."""


class Extent(NamedTuple):
    """What a source of messages says of itself, before any is read."""

    stream: str
    created: int
    """When the server made the stream: nanoseconds since the epoch."""
    first: int
    """The first sequence that it still holds; one past the last if it holds none."""
    last: int


class Witness(NamedTuple):
    """A seal that was found in order before: its number and its hash in hexadecimal."""

    number: int
    hash: str


@dataclass(slots=True)
class Verdict:
    """What verifying found. Revisions are 0 where there are none."""

    finding: Difference | None = None
    """The first event that is not as it was sealed."""
    seal_fault: str | None = None
    """What is wrong with the seals themselves; nothing after that place was verified."""
    first: int = 0
    last: int = 0
    """The first and the last revision that were verified."""
    last_time: int = 0
    """When the last verified event was stored: nanoseconds since the epoch."""
    events: int = 0
    seals: int = 0
    unsealed: int = 0
    """Events after the last seal: nothing is said about them."""
    unsealed_since: int = 0
    """When the first of them was stored; 0 if there is none."""
    keys: list[str] = field(default_factory=list)
    """Who signed the seals, each once."""
    trusted_on_first: bool = False
    """Whether no key was named, so that the first seal's was believed."""
    witness: Witness | None = None
    """The last seal that was found in order."""
    begins_at: int = 0
    """From which revision on everything is there, if there are sealed ones before it; else 0."""
    absent: Absent | None = None
    """Sealed events from before that which are not there, and where they are, by the word of the log."""
    kept: int = 0
    """How many sealed events from before that are there, each as it was sealed: what keys held when it was trimmed."""
    sealed: int = 0
    """How many events the seals cover that were found in order."""
    selection: bool = False
    """Whether only some of the events were there to be verified: each was, and whether any is missing is not known."""
    facts: list[str] = field(default_factory=list)
    """What one should know besides, such as that the stream is not the one that was sealed, but a copy."""

    @property
    def intact(self) -> bool:
        """Whether nothing was found."""
        return self.finding is None and self.seal_fault is None

    @property
    def whole(self) -> bool:
        """Whether every event that a seal covers was there and is as it was sealed: that none is missing is proven."""
        return self.intact and 0 < self.sealed == self.events + self.kept


Events = Callable[[int], AsyncIterator[Sequence[Seen]]]
"""Gives the messages from a sequence on, in the order in which they stand, as many at a time as is convenient."""


async def verify(
    events: Events,
    seals: AsyncIterator[SignedSeal],
    extent: Extent,
    *,
    trusted: Collection[str] = (),
    witness: Witness | None = None,
    start: int = 1,
    stop: int | None = None,
    selection: bool = False,
    excerpt: bool = False,
    sources: Sources = THE_LOG,
) -> Verdict:
    """Compare the messages with the seals, from revision ``start`` to ``stop``, and say where they first part.

    All seals are checked, whatever the range; messages in whole seals, those that overlap it. ``trusted`` are the
    public keys to believe; without any, that of the first seal. With ``selection``, only some of the messages are
    there: each that is there is checked, and none is missed. An ``excerpt`` ends before the seals do, and nothing that
    comes after its extent is missed. What comes before it is, unless ``sources`` account for that. Raises what reading
    raises.
    """
    walk = _Walk(events, extent, start, stop, selection, excerpt, sources)
    try:
        await walk.run(seals, frozenset(trusted), witness)
    finally:
        await walk.aclose()
    return walk.verdict


class _Walk:
    def __init__(
        self,
        events: Events,
        extent: Extent,
        start: int,
        stop: int | None,
        selection: bool,
        excerpt: bool,
        sources: Sources,
    ) -> None:
        self.verdict = Verdict(selection=selection)
        self._events = events
        self._extent = extent
        self._asked = start
        self._start = max(start, extent.first)
        self._what = sources.what
        self._beginning = Beginning(extent.first, sources)
        self._stop = stop  # without one, what is sealed is wanted even beyond the log's end
        self._selection = selection
        self._excerpt = excerpt
        self._source: AsyncIterator[Sequence[Seen]] | None = None
        self._ahead: Sequence[Seen] = ()
        self._at = 0
        self._over = False
        self._recreated = False

    async def aclose(self) -> None:
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()

    async def run(self, seals: AsyncIterator[SignedSeal], trusted: frozenset[str], witness: Witness | None) -> None:
        verdict, stream = self.verdict, self._extent.stream
        head = Head.none(stream)
        waiting: Seal | None = None  # compared when the one after it is known, in case messages changed places
        async for signed in seals:
            if not trusted:
                trusted, verdict.trusted_on_first = frozenset([signed.key]), True
            verdict.seal_fault = fault_of(signed, stream, head, trusted) or _witnessed(signed, witness)
            if verdict.seal_fault is not None:
                break
            seal = signed.open()
            self._note_gap(seal, head)
            head = Head.at(signed, seal)
            self._beginning.seal(seal)
            verdict.seals += 1
            verdict.sealed += seal.count
            verdict.witness = Witness(head.number, head.hash.hex())
            if signed.key not in verdict.keys:
                verdict.keys.append(signed.key)
            if seal.created != self._extent.created and not self._recreated:
                self._recreated = True
                verdict.facts.append(
                    "the server made this stream at another time than the one that was sealed: it was restored, copied "
                    "or made anew"
                )
            if waiting is not None and not await self._compare(waiting, seal):
                return
            waiting = seal
        if waiting is not None and not await self._compare(waiting, None):
            return
        if verdict.seal_fault is None and witness is not None and witness.number > head.number:
            one = witness.number == head.number + 1
            gone = f"seal {witness.number} is" if one else f"seals {head.number + 1} to {witness.number} are"
            there = "it" if one else f"seal {witness.number}"
            verdict.seal_fault = f"{gone} gone: {there} was there when this was last verified"
        await self._look_at_the_rest(head)
        verdict.absent = self._beginning.absent()
        if verdict.intact and verdict.absent is not None:
            verdict.finding = verdict.absent.difference(self._what)
        if verdict.intact and (self._stop is None or self._stop > self._extent.last):
            verdict.finding = self._beginning.end(self._extent.last)

    def _note_gap(self, seal: Seal, head: Head) -> None:
        if seal.first > head.last + 1:
            lost = "" if seal.first == head.last + 2 else f" to {seal.first - 1}"
            when = "before sealing began" if not head.number else "when this was sealed"
            self.verdict.facts.append(f"revision {head.last + 1}{lost}: gone from the log already {when}")

    # -- one seal -----------------------------------------------------------------------------------------------------

    async def _compare(self, seal: Seal, following: Seal | None) -> bool:
        """Compare the messages of one seal; false if they are not as they were sealed."""
        verdict, extent = self.verdict, self._extent
        if seal.first < extent.first:
            verdict.begins_at = extent.first
            if not await self._compare_kept(seal):
                return False
        if seal.last < extent.first and seal.last <= extent.last:
            return True
        if seal.last < self._start or (self._stop is not None and seal.first > self._stop):
            return True
        begin = max(seal.first, extent.first)
        end = min(seal.last, extent.last) if self._excerpt else seal.last
        if end < begin:
            return True
        messages = await self._up_to(end, begin)
        if self._selection:
            difference = self._misplaced(seal, messages)
        elif (begin, end) == (seal.first, seal.last) and _holds(seal, messages):
            difference = None
        else:
            difference = await self._difference(seal, following, begin, end, messages)
        if difference is not None:
            verdict.finding = difference
            return False
        verdict.events += len(messages)
        if self._selection:
            if messages:
                verdict.first = verdict.first or messages[0].sequence
                verdict.last, verdict.last_time = messages[-1].sequence, messages[-1].timestamp
            return True
        verdict.first = verdict.first or begin
        verdict.last, verdict.last_time = end, messages[-1].timestamp if messages else seal.last_time
        return True

    async def _compare_kept(self, seal: Seal) -> bool:
        """Compare what was left of a seal's messages when the others were trimmed; false if one is not as it was."""
        kept = await self._up_to(min(seal.last, self._extent.first - 1), seal.first)
        if seal.number == 1:
            kept = [seen for seen in kept if seen.sequence >= seal.first]  # before it, nothing was sealed
        self.verdict.finding = self._misplaced(seal, kept)
        self.verdict.kept += len(kept)
        if not self._selection and (self._stop is None or seal.first <= self._stop):
            asked, last = max(seal.first, self._asked), min(seal.last, self._extent.first - 1)
            self._beginning.missing(asked, last, (seen.sequence for seen in kept))
        return self.verdict.finding is None

    async def _difference(
        self, seal: Seal, following: Seal | None, begin: int, end: int, messages: list[Seen]
    ) -> Difference | None:
        expected = expected_of([seal], begin, end)
        difference = first_difference(expected, messages, complete=True)
        if difference is None:
            if len(messages) > len(expected):
                extra = messages[len(expected)]
                return Difference("inserted", extra.sequence, extra, f"it stands behind revision {seal.last}")
            if (begin, end) == (
                seal.first,
                seal.last,
            ):  # every message is what it was, so the chain over them must hold
                return Difference("changed", seal.first, None, "the seal's chain does not follow from its own digests")
            return None
        further = list(messages)
        while len(further) < len(messages) + _AHEAD and (seen := await self._next()) is not None:
            further.append(seen)
        wider = expected_of(
            [seal] if following is None else [seal, following], begin, self._extent.last if self._excerpt else None
        )
        return first_difference(wider, further, complete=True) or difference

    def _misplaced(self, seal: Seal, messages: Sequence[Seen]) -> Difference | None:
        for seen in messages:
            if seen.sequence < seal.first:
                return Difference("inserted", seen.sequence, seen, "there was no such event when this was sealed")
            difference = misplaced(seal, seen)
            if difference is not None:
                return difference
        for before, after in pairwise(messages):
            if after.sequence <= before.sequence:
                return Difference("reordered", after.sequence, after, f"it stands behind revision {before.sequence}")
        return None

    # -- messages -----------------------------------------------------------------------------------------------------

    async def _up_to(self, last: int, begin: int) -> list[Seen]:
        """The next messages up to the first whose sequence is above ``last``."""
        if self._source is None and not self._over:
            self._source = self._events(begin)
        messages: list[Seen] = []
        while self._at < len(self._ahead) or await self._more():
            for at in range(self._at, len(self._ahead)):
                if self._ahead[at].sequence > last:
                    messages.extend(self._ahead[self._at : at])
                    self._at = at
                    return messages
            messages.extend(self._ahead[self._at :])
            self._at = len(self._ahead)
        return messages

    async def _next(self) -> Seen | None:
        if self._at >= len(self._ahead) and not await self._more():
            return None
        self._at += 1
        return self._ahead[self._at - 1]

    async def _more(self) -> bool:
        """Whether there are further messages; then the next ones are ahead."""
        while self._source is not None and not self._over:
            ahead = await anext(self._source, None)
            if ahead is None:
                self._over = True
            elif ahead:
                self._ahead, self._at = ahead, 0
                return True
        return False

    async def _look_at_the_rest(self, head: Head) -> None:
        """What comes after the last seal; it belongs to the range only if that has no end of its own."""
        verdict, extent = self.verdict, self._extent
        if self._excerpt and extent.last < head.last:
            verdict.facts.append(f"the seals go on up to revision {head.last}; this ends at revision {extent.last}")
        bounded = self._stop is not None and self._stop < extent.last
        if bounded or verdict.seal_fault is not None:
            return
        begin = max(head.last + 1, self._start)
        if not head.number:  # nothing can be verified, so nothing is read for it
            verdict.unsealed = 0 if self._selection else max(0, extent.last - begin + 1)
            return
        if self._source is None and not self._over:
            self._source = self._events(begin)
        before = 0
        while (seen := await self._next()) is not None:
            if seen.sequence > extent.last:
                detail = f"this says of itself that it ends at revision {extent.last}"
                verdict.finding = Difference("inserted", seen.sequence, seen, detail)
                return
            if seen.sequence <= before:
                detail = f"it stands behind revision {before}"
                verdict.finding = Difference("inserted", seen.sequence, seen, detail)
                return
            before = seen.sequence
            if seen.sequence >= begin:
                verdict.unsealed += 1
                verdict.unsealed_since = verdict.unsealed_since or seen.timestamp


def _holds(seal: Seal, messages: Sequence[Seen]) -> bool:
    """Whether these are all messages of a seal, and no others, by the chain."""
    return chained(seal.before, ((seen.sequence, seen.digest) for seen in messages)) == seal.after


def _witnessed(signed: SignedSeal, witness: Witness | None) -> str | None:
    if witness is None or witness.number != signed.sequence or witness.hash == signed.hash.hex():
        return None
    return f"seal {witness.number} is not the one that was there when this was last verified"
