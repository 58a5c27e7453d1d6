"""What was sealed and is not there any more, before a log, an archive or an export begins, or behind an archive's end.

Pure. Events leave the log by being trimmed into an archive, and the log keeps a note of that, which is sealed with it.
So what is missing at the beginning is either where such a note says, or somebody took it away. Owns: telling the two
apart. What a log, an archive or an export says of itself counts for nothing here: nobody has signed it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

from agentfield.archive.notes import TRIMMING, Note, accounted
from agentfield.audit.comparing import Difference, Seen
from agentfield.audit.seal import Seal

What = Literal["log", "archive", "export"]


class Sources(NamedTuple):
    """What is verified, and what the log says of its archives."""

    what: What = "log"
    notes: Sequence[Seen] = ()
    """Messages that are notes, each believed only if it is as it was sealed."""
    believed_unsealed: bool = True
    """Whether one that no seal covers yet is believed: of a log, but not of a file that anybody can add to."""
    logged: int | None = None
    """Of what is not the log itself: from which revision on the log still has everything."""


THE_LOG: Final = Sources()
"""A log that says nothing of any archive."""


class Left(NamedTuple):
    """A note by which what is missing lies in an archive."""

    note: Note
    revision: int
    time: int
    sealed: bool


class Absent(NamedTuple):
    """Sealed revisions that lie before what is there, and are not among it; so nothing here is verified of them."""

    first: int
    last: int
    left: Sequence[Left] = ()
    """The notes that say where they are; empty if there are none, or the log still has them."""
    logged: bool = False
    """Whether the log still has them."""

    @property
    def is_accounted_for(self) -> bool:
        """Whether it is known where they are."""
        return self.logged or bool(self.left)

    def difference(self, what: What) -> Difference | None:
        """What that amounts to; None if it is accounted for."""
        if self.is_accounted_for:
            return None
        also = "" if self.first == self.last else f"with it everything up to revision {self.last}, as far as sealed, "
        why = {
            "log": "and nothing in the log says that it was trimmed",
            "archive": "it is in the log no more, and nothing in the log says that an archive began after it",
            "export": "and nothing sealed in it says that the log was trimmed up to there",
        }[what]
        return Difference("removed", self.first, None, f"{also}{why}")


class Beginning:
    """Notes which sealed revisions are missing at the beginning, and which notes are as they were sealed."""

    def __init__(self, begins: int, sources: Sources) -> None:
        self._begins = begins
        self._sources = sources
        self._sealed: set[int] = set()
        self._end = 0
        self._first = self._last = 0

    def seal(self, seal: Seal) -> None:
        """Look at a seal: which of the notes it covers, and whether they are what was sealed."""
        self._end = seal.last
        for seen in self._sources.notes:
            if seal.first <= seen.sequence <= seal.last and seen.is_digested_as(seal.digest(seen.sequence)):
                self._sealed.add(seen.sequence)

    def missing(self, first: int, last: int, there: Iterable[int]) -> None:
        """Note that of the revisions from ``first`` to ``last``, which were sealed, only these are there, in order."""
        for sequence in there:
            if sequence > first:
                self._gone(first, sequence - 1)
            first = max(first, sequence + 1)
        if first <= last:
            self._gone(first, last)

    def _gone(self, first: int, last: int) -> None:
        self._first = self._first or first
        self._last = last

    def absent(self) -> Absent | None:
        """What is missing, and what is known of it; None if nothing is."""
        if not self._first:
            return None
        absent, logged = Absent(self._first, self._last), self._sources.logged
        last = self._last if logged is None else min(self._last, logged - 1)
        if last < self._first:
            return absent._replace(logged=True)
        known = {left.note: left for left in self._known()}
        if not any(self._speaks_of_it(note) for note in known):
            return absent
        return absent._replace(left=[known[note] for note in accounted(known, self._first, last) or ()])

    def end(self, last: int) -> Difference | None:
        """What it amounts to that an archive ends there: what comes behind must be in the log, or another archive."""
        first, gone = last + 1, min(self._end, (self._sources.logged or 1) - 1)
        if self._sources.what != "archive" or gone < first:
            return None
        others = [left.note for left in self._known() if left.note.begins != self._begins]
        if accounted(others, first, gone) is not None:
            return None
        also = "" if first == gone else f"with it everything up to revision {gone}, as far as sealed: "
        return Difference(
            "removed", first, None, f"{also}the archive ends before it, and the log was trimmed behind it"
        )

    def _known(self) -> list[Left]:
        """The notes that are believed, in their order."""
        found: list[Left] = []
        for seen in self._sources.notes:
            note, sealed = Note.of(seen.subject), seen.sequence in self._sealed
            if note is None or not (sealed or (self._sources.believed_unsealed and seen.sequence > self._end)):
                continue
            found = [left for left in found if left.note != (note.begins, TRIMMING)]  # this one says how far it went
            found.append(Left(note, seen.sequence, seen.timestamp, sealed))
        return found

    def _speaks_of_it(self, note: Note) -> bool:
        """Whether a note says that what is verified may begin where it does."""
        if self._sources.what == "archive":
            return note == (self._begins, self._begins)
        return note.complete == self._begins or (self._sources.what == "log" and note.complete > self._begins)
