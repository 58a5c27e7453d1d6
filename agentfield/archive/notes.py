"""What the log itself says of its archives: where each begins, and what they hold of what may leave the log.

Owns: these notes. They are messages of the log like any other, so they are sealed with it: that somebody trimmed the
log cannot be claimed without a trace, nor that an archive never held more than it holds. All that a note says is in its
subject, so trimming leaves each of them. A note that says of an archive that it holds nothing yet says where it begins.
Before the log is trimmed, a note says that it is about to be, and afterwards one says how far: so at no moment is
anything missing that no note speaks of.
Must not know: whether a note is to be believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from agentfield.codec import Record
from agentfield.event import Writer
from agentfield.execution import new_id
from agentfield.fabric.log import Log
from agentfield.header import encode_event

_WHERE: Final = ["checks", "archives"]
TRIMMING: Final = 1 << 63
"""What is complete from an unknown revision on: the log is being trimmed, or whoever did so died over it."""
_TRIMMING: Final = "trimming"
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,17}")


class Note(NamedTuple):
    """An archive that begins at one revision holds everything from there up to before another one."""

    begins: int
    complete: int
    """From here on everything is in the log; what is before may have left it. Or :data:`TRIMMING`."""

    def subject(self, namespace: str) -> str:
        """Where it is left."""
        complete = _TRIMMING if self.complete == TRIMMING else str(self.complete)
        return ".".join([namespace, *_WHERE, str(self.begins), complete])

    @classmethod
    def of(cls, subject: str) -> Note | None:
        """What a message under this subject says; None if it is no note."""
        tokens = subject.split(".")
        if len(tokens) != 5 or tokens[1:3] != _WHERE or not _NUMBER.fullmatch(tokens[3]):
            return None
        if tokens[4] == _TRIMMING:
            return cls(int(tokens[3]), TRIMMING)
        note = cls(int(tokens[3]), int(tokens[4])) if _NUMBER.fullmatch(tokens[4]) else None
        return note if note is not None and note.begins <= note.complete else None


def notes_in(log: Log) -> str:
    """The subjects of all notes of a log."""
    return ".".join([log.connection.namespace, *_WHERE, "*", "*"])


async def leave(log: Log, note: Note) -> bool:
    """Leave a note; false if it was there, to stay. Raises as appending to the log does."""
    subject = note.subject(log.connection.namespace)
    if note.complete != TRIMMING and await log.last_of(subject) is not None:
        return False
    headers = encode_event(event_id=new_id(), operation="set", writer=Writer())
    await log.append(subject, b"null", headers)
    return True


async def left(log: Log) -> list[Note]:
    """What the log says."""
    return notes_of([record async for record in log.last_of_each([notes_in(log)])])


def notes_of(records: Iterable[Record]) -> list[Note]:
    """The notes among messages."""
    return [note for record in records if (note := Note.of(record.subject)) is not None]


def accounted(notes: Iterable[Note], first: int, last: int) -> list[Note] | None:
    """The notes by which archives hold every revision from ``first`` to ``last``, the newest first; None if not."""
    known, found = list(notes), list[Note]()
    while last >= first:
        holding = [note for note in known if note.begins <= last < note.complete]
        if not holding:
            return None
        found.append(min(holding))
        last = found[-1].begins - 1
    return found
