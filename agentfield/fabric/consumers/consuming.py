"""What consumers of the log give, and to whom: the items, the protocol, and where hearing begins.

Owns: the words between a consumer and whoever takes from it. Must not know: how events come. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple, Protocol

from agentfield.codec import Record

Start = Literal["new", "all", "current"] | datetime | int
"""Where hearing begins: with what is new, with the whole past, with the present values and then their changes, at a
moment, or with a revision."""


@dataclass(frozen=True, slots=True)
class Activated:
    """This instance hears events now. Every event up to ``floor`` has been handled, by whomever, or is not wanted."""

    floor: int


class Received(NamedTuple):
    """An event to handle, in the order of the log. ``handled``: this instance did, before an interruption: skip it."""

    record: Record
    handled: bool
    present: bool = False
    """It is given because it was its key's last when hearing began; what its key held before was not."""
    previous: Record | None = None
    """The event of its key just before a present value."""


@dataclass(frozen=True, slots=True)
class Shortened:
    """Somebody has taken events out of the log that this consumer had, for all that is known, still to give."""

    after: int
    """Events up to here were received, or are not wanted; 0 if that is not known."""
    first_available: int
    """Here the log begins now."""


Item = Activated | Received | Shortened


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A consumer: its name, what it hears, where it begins if it is new, and what operators should see."""

    name: str
    filters: tuple[str, ...]
    start: Start = "new"
    description: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


class Consumer(Protocol):
    """What hands out the events of a handler. ``ensure`` it, ``run`` it in a task of yours, take from ``next``.

    Report each received event with ``done``. To stop: end taking, ``drain``, cancel ``run``, ``leave``. After ``run``
    has broken off, go on with a ``successor``.
    """

    async def ensure(self) -> None:
        """Fix where it begins: from here on no event is missed. Raises :class:`UnavailableError`."""

    async def run(self) -> None:
        """Get events, until cancelled."""

    async def next(self) -> Item:
        """What to do next."""

    def done(self, sequence: int) -> None:
        """The event has been handled, or given up for good."""

    def put_back(self, sequence: int) -> None:
        """The event was handed out and is not for this instance: it stays unhandled."""

    def surely_ours(self, sequence: int) -> bool:
        """Whether, beyond doubt, an event handed out earlier is still this instance's to handle."""

    async def still_ours(self, sequence: int) -> bool:
        """Whether an event handed out earlier is still this instance's to handle; waits while that is uncertain."""

    async def reported(self, gap: Shortened) -> None:
        """That the log was shortened has been reported, and need not be again."""

    async def drain(self) -> None:
        """Hand out nothing more, and return when every event handed out is done."""

    async def leave(self) -> None:
        """Let go of what is held on the server. Call after ``run`` has ended."""

    def successor(self) -> Consumer:
        """One that goes on where this one was."""

    async def learn_floor(self) -> None:
        """Ask how far others have come. Raises :class:`UnavailableError`."""

    @property
    def floor(self) -> int:
        """The sequence up to which everything is known to have been handled; 0 for nothing."""

    def is_begun(self, sequence: int) -> bool:
        """Whether the event was handed out here and is not done yet."""

    def is_handled(self, sequence: int) -> bool:
        """Whether the event is known to have been handled, or came before the beginning."""
