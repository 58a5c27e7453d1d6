"""Views and the stores that keep them: what a runner needs of either, and nothing of how they do it.

Owns: the words of that contract. A view has generations, one of them live; a rebuild fills the next one beside it. Its
head, which says how far it has come, is stored in the view itself and advances in the same transaction as its content.
Invariants: a transaction begins only where its events begin (``expected``), so of several that would apply the same
events one wins; and only on the generation that is live, or is being built, at that moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol, TypeVar

from agentfield import ProjectionError
from projections.projection import Selection

T = TypeVar("T")

_AGAIN = 0.05
"""Seconds until a view is looked at again that was replaced meanwhile."""

Fold = Callable[[Any], Awaitable[None] | None]
"""Does something to what ``apply`` is given as the view."""


class Moved(Exception):
    """The view is not where this transaction expected it, is paused, or is no longer live. Nothing was changed."""


class Busy(ProjectionError):
    """Somebody else has kept the view to himself for longer than anything takes. Nothing was changed; try again."""


@dataclass(frozen=True, slots=True)
class Head:
    """Where one generation of a view stands, as the view itself says."""

    name: str
    version: int
    generation: int
    log: str
    """Which log it was made from: a namespace's, and when it was created."""
    selection: Selection
    checkpoint: int
    """Every event up to this sequence of the log is in it."""
    events: int
    """How many events it was made of."""
    skipped: int
    """Stored messages that could not be decoded, and were passed over."""
    paused: bool
    error: str | None
    """What stopped it, if it stopped; None once it has gone on."""
    failed_at: int | None
    """The sequence of the event it stopped at."""
    updated: datetime
    """When it last advanced, by the clock of who did it."""
    erased: int = 0
    """It owes no erasure whose notice has this revision or a smaller one. Negative while what was taken out of it may
    still lie in its files: it then owes them all."""


@dataclass(frozen=True, slots=True)
class Step:
    """An advance of a view: from where, to where, over how much."""

    expected: int
    checkpoint: int
    events: int
    skipped: int = 0
    erased: int = 0
    """What the view's head has to say of erasures: events that were decrypted before one are not added after it."""


class Moment(NamedTuple):
    """A view as it was at one moment."""

    head: Head
    content: Any
    """What ``apply`` is given as the view; not to be written to."""


class TooMuch(Exception):
    """More was changed than fits into one transaction. Nothing was changed: take fewer events."""


class View(Protocol):
    """One open generation of a view.

    Raises :class:`~agentfield.ProjectionError` when the store cannot do it (the disk is full,
    say); then nothing was changed.
    """

    @property
    def kind(self) -> str:
        """What it is, by the word that projections use."""

    @property
    def place(self) -> str:
        """Where people find it."""

    def good(self) -> bool:
        """Whether it may be advanced: it is the live generation, or one to come."""

    async def head(self) -> Head:
        """Where it stands."""

    async def advance(self, step: Step, fold: Fold) -> None:
        """Apply ``fold`` and move the checkpoint, both or neither.

        Raises :class:`Moved`, :class:`TooMuch`, and what the fold raises.
        """

    async def stop(self, error: str, sequence: int | None) -> None:
        """Note why it does not advance."""

    async def pause(self, paused: bool) -> None:
        """Let nobody advance it, or let it go on."""

    async def forget(self, revision: int, fold: Fold | None) -> bool:
        """Take out by a fold what was erased, paused or not; on return no file holds it, and the head says so.

        Without a fold, nothing is to be taken out. False, and nothing was changed, where files cannot be freed of it.
        """

    def frozen(self, *, alone: bool = False) -> AbstractAsyncContextManager[Moment]:
        """The view as it is at one moment, to be read during the block; ``alone``: nobody can advance it meanwhile."""

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What a function gives that looks at a frozen view's content; it runs outside the event loop."""

    def rows(self, view: Any) -> Iterable[Sequence[Any]]:
        """Every row that a projection has put into a view, in a fixed order, for use in :meth:`call`."""

    async def rest(self) -> None:
        """Nothing is to be done for now: let others at it, if they could not be meanwhile."""

    async def aclose(self) -> None:
        """Close it. Idempotent."""


async def looking(look: Callable[[], Awaitable[T]]) -> T:
    """What is seen of a view. ``look`` is called again if the generation that it finds is replaced meanwhile."""
    while True:
        try:
            return await look()
        except Moved:
            await asyncio.sleep(_AGAIN)


class Store(Protocol):
    """Where views are kept.

    Raises :class:`~agentfield.ProjectionError` when the store cannot do it (the disk is full,
    say); then nothing was changed.
    """

    def identity(self, kind: str) -> str:
        """Tells the place where views of a kind are from every other."""

    async def names(self) -> list[str]:
        """The views that there are."""

    async def live(self, name: str) -> View | None:
        """The live generation of a view, or None if there is no such view. Close it."""

    async def building(self, name: str) -> View | None:
        """The generation that a rebuild has begun and not finished. Close it."""

    async def create(self, kind: str, head: Head, prepare: Fold) -> View:
        """A new, empty generation, the first or one to be built beside the live one. Close it.

        If another process makes it at the same time, one is made and both get it.
        """

    async def scratch(self, kind: str, head: Head, prepare: Fold) -> View:
        """An empty view of nobody's, which is gone when it is closed."""

    async def switch(self, name: str, generation: int) -> None:
        """Make a generation the live one, at once and as a whole; the one before it is removed."""

    async def discard(self, name: str, generation: int) -> None:
        """Remove a generation that is not live."""

    async def tidy(self, name: str) -> None:
        """Remove what somebody left behind who died while he compared a view, or put another in its place."""

    async def remove(self, name: str) -> bool:
        """Remove a view with all its generations; whether there was one."""
