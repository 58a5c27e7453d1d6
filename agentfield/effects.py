"""Effects: the ids of what a handler writes, the same whenever its event comes again.

Owns: the rule by which a write inside a handler gets its event id. The id is derived from the event, the agent and the
handler, from what is written where, and from how many writes to that place the handler made before. So a handler that
runs again for the same event, after a crash or an error, and does the same again, gives each write the id it had, and
the server stores it once. A write with another content gets another id. Pure; knows neither memory nor the wire.

Writes are counted for each place by itself, since the order of writes to several places may change from run to run
(``asyncio.gather``), while those to one place have an order that means something: the last one stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple


class _Write(NamedTuple):
    """The last write to a place."""

    run: int
    ordinal: int
    digest: str
    id: str
    before: _Write | None
    """The write before it, in case that this one is refused."""


class Effects:
    """What one handler does because of one event, over all the runs that this takes in this process.

    One is made for each event, whether its handler writes or not: that has to cost next to nothing.
    """

    __slots__ = ("_last", "_run", "_seed", "_updates", "agent", "event_id", "handler", "marked", "revision", "subject")

    def __init__(self, *, agent: str, handler: str, event_id: str, revision: int, subject: str) -> None:
        self.agent = agent
        self.handler = handler
        self.event_id = event_id
        self.revision = revision
        """The event's revision."""
        self.subject = subject
        """The event's subject."""
        self.marked = False
        """Whether this run has begun the one transaction that marks the event as handled, and has not given it up."""
        self._seed = ""
        self._run = 0
        self._last: dict[str, _Write] = {}
        self._updates: dict[str, int] = {}

    def again(self) -> None:
        """The handler begins anew, after an error."""
        self._run += 1
        self._updates.clear()
        self.marked = False

    def of_write(self, place: str, *content: str | bytes) -> str:
        """The id of a write that says what a place holds from then on; asked for once for each write, in their order.

        A run that follows an error here knows what the one before wrote: a write that repeats the last one to its place
        is that write once more. Any other is new, even if it is equal to one before the last: what has been
        overwritten since must be written again to be there.
        """
        digest = _digest(*content)
        last = self._last.get(place)
        if last is None:
            ordinal = 0
        elif last.run != self._run and last.digest == digest:
            ordinal = last.ordinal
        else:
            ordinal = last.ordinal + 1
        id = self._derived("write", place, str(ordinal), digest)
        self._last[place] = _Write(self._run, ordinal, digest, id, last and last._replace(before=None))
        return id

    def refused(self, id: str) -> None:
        """A conditional write was refused, so that nothing is stored: it does not count.

        Else what follows a lost race would depend, in its ids, on how often it was lost.
        """
        for place, write in self._last.items():
            if write.id == id:
                if write.before is None:
                    del self._last[place]
                else:
                    self._last[place] = write.before
                return

    def of_update(self, place: str, *content: str | bytes) -> str:
        """The id of a write whose value comes from what the place held; asked for once for each update, in their order.

        The value is no part of it: once stored, it would itself change what a repetition comes to. The n-th update of a
        place is the same in every run.
        """
        ordinal = self._updates.get(place, 0)
        self._updates[place] = ordinal + 1
        return self._derived("update", place, str(ordinal), *content)

    def of_batch(self, writes: Sequence[tuple[str, Sequence[str | bytes]]]) -> tuple[str, list[str]]:
        """The id of a batch, and those of the writes in it, each a place and a content.

        Every one depends on all of them: the server refuses a batch of which it knows a part.
        """
        contents = [_digest(place, *content) for place, content in writes]
        whole = self.of_write("\n".join(sorted(place for place, _ in writes)), *contents)
        return whole, [_digest(whole, place) for place, _ in writes]

    def _derived(self, *parts: str | bytes) -> str:
        self._seed = self._seed or _digest(self.event_id, str(self.revision), self.agent, self.handler)
        return _digest(self._seed, *parts)


def _digest(*parts: str | bytes) -> str:
    """32 hexadecimal digits, as ids have that are not derived."""
    whole = blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode() if isinstance(part, str) else part
        whole.update(len(encoded).to_bytes(8, "big"))
        whole.update(encoded)
    return whole.hexdigest()
