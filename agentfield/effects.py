"""Effects: the ids of what a handler writes, the same whenever its event comes again.

Owns: the rule by which a write inside a handler gets its event id. The id is derived from the event, the agent and the
handler, from what is written where, and from how many writes to that place this run of the handler made before. So a
handler that runs again for the same event, after a crash or an error, and does the same again, gives each write the id
it had, and the server stores it once. A write with another content gets another id. Pure; knows neither memory nor the
wire.

Writes are counted for each place by itself, since the order of writes to several places may change from run to run
(``asyncio.gather``), while those to one place have an order that means something: the last one stays. Which run it is,
is no part of an id: that dies with the process. But a run that follows another one in this process knows what that one
wrote, and so whether its own last write to a place still lies beneath a later one of the failed run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

Restore = Callable[[str, str], Awaitable[None]]
"""Makes a write once more: given the id of the write that it must replace, and the id to use."""


class _State(NamedTuple):
    """What is known of a place."""

    number: int = 0
    """Writes of this run."""
    last: str = ""
    """The id of this run's last write."""
    newest: str = ""
    """The id of the write that was made last for the first time, by whichever run."""


class Effects:
    """What one handler does because of one event, over all the runs that this takes in this process.

    One is made for each event, whether its handler writes or not: that has to cost next to nothing.
    """

    __slots__ = (
        "_before",
        "_known",
        "_restores",
        "_run",
        "_seed",
        "_states",
        "_updates",
        "agent",
        "event_id",
        "handler",
        "marked",
        "revision",
        "subject",
    )

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
        self._states: dict[str, _State] = {}
        self._known: set[str] = set()
        self._before: dict[str, tuple[str, _State]] = {}
        self._restores: dict[str, Restore] = {}
        self._updates: dict[str, int] = {}

    @property
    def is_repeated(self) -> bool:
        """Whether the handler has run before for this event, in this process."""
        return self._run > 0

    def again(self) -> None:
        """The handler begins anew, after an error."""
        self._run += 1
        self._states = {place: state._replace(number=0, last="") for place, state in self._states.items()}
        self._before.clear()
        self._restores.clear()
        self._updates.clear()
        self.marked = False

    def of_write(self, place: str, *content: str | bytes, conditional: bool = False) -> str:
        """The id of a write that says what a place holds; asked for once for each write, in their order.

        Only a ``conditional`` one can be :meth:`refused`.
        """
        before = self._states.get(place, _State())
        id = self._derived("write", place, str(before.number), _digest(*content))
        newest = before.newest if id in self._known else id
        self._known.add(id)
        self._states[place] = _State(before.number + 1, id, newest)
        if conditional:
            self._before[id] = (place, before)
        return id

    def refused(self, id: str) -> None:
        """A conditional write was refused, so that nothing is stored: it does not count.

        Else what follows a lost race would depend, in its ids, on how often it was lost.
        """
        place, before = self._before.get(id, ("", None))
        if before is not None and self._states[place].last == id:
            self._states[place] = before
            if before.newest != id:
                self._known.discard(id)

    def restorable(self, id: str, restore: Restore) -> None:
        """How to make a write once more, should it turn out to lie beneath one that a failed run made after it."""
        if self._run:
            self._restores[id] = restore

    async def restore(self) -> None:
        """At the end of a run that went well: have every place hold what this run says. Raises what a write raises."""
        for last, newest in self._overtaken():
            if (restore := self._restores.get(last)) is not None:
                await restore(newest, self._derived("restored", last, newest))

    def _overtaken(self) -> Iterator[tuple[str, str]]:
        """The ids of this run's last writes, each with that of the write of an earlier run that came after it."""
        for state in self._states.values():
            if self._run and state.last and state.last != state.newest:
                yield state.last, state.newest

    def of_update(self, place: str, *content: str | bytes) -> str:
        """The id of a write whose value comes from what the place held; asked for once for each update, in their order.

        The value is no part of it: once stored, it would itself change what a repetition comes to. The n-th update of a
        place is the same in every run.
        """
        ordinal = self._updates.get(place, 0)
        self._updates[place] = ordinal + 1
        return self._derived("update", place, str(ordinal), *content)

    def of_batch(
        self, writes: Sequence[tuple[str, Sequence[str | bytes]]], *, conditional: bool = False
    ) -> tuple[str, list[str]]:
        """The id of a batch, and those of the writes in it, each a place and a content.

        Every one depends on all of them: the server refuses a batch of which it knows a part.
        """
        contents = [_digest(place, *content) for place, content in writes]
        whole = self.of_write("\n".join(sorted(place for place, _ in writes)), *contents, conditional=conditional)
        return whole, ids_in_batch(whole, [place for place, _ in writes])

    def _derived(self, *parts: str | bytes) -> str:
        self._seed = self._seed or _digest(self.event_id, str(self.revision), self.agent, self.handler)
        return _digest(self._seed, *parts)


def ids_in_batch(batch: str, places: Sequence[str]) -> list[str]:
    """The ids of the writes of a batch, given its own; the last one has that one.

    So the server knows a batch that comes again by its own id, even one that has come to write to other places.
    """
    return [*(_digest(batch, place) for place in places[:-1]), batch]


def _digest(*parts: str | bytes) -> str:
    """32 hexadecimal digits, as ids have that are not derived."""
    whole = blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode() if isinstance(part, str) else part
        whole.update(len(encoded).to_bytes(8, "big"))
        whole.update(encoded)
    return whole.hexdigest()
