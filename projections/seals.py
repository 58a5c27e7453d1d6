"""Seals: signed statements of what the log holds, a stretch at a time, by which anybody can prove that it still does.

Owns: when a seal is due, and which messages go into it: every one that the log stores, locks and checks included. What
a seal says and how it is stored is the view's (``stores.seals``). Invariant: a seal's messages follow one another
without a gap, and none waits for longer than it may while somebody seals.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from itertools import pairwise
from types import TracebackType
from typing import Any, Final, NoReturn, Self

from agentfield import InvalidInputError
from agentfield.audit.chain import digest_of
from agentfield.audit.checking import check_live
from agentfield.audit.nkey import Signer
from agentfield.audit.seal import MAX_EVENTS, Seal
from agentfield.audit.source import stored_of
from agentfield.codec import Record
from projections.comparing import Verdict
from projections.messages import Messages
from projections.projection import Projection, Selection
from projections.runner import Runner
from projections.source import EVERY_MESSAGE, Batch, Source
from projections.stores.seals import KIND, NAME, NEVER, Message, SealStore, SealTransaction

EVERY: Final = 1000
WITHIN: Final = 60.0
"""Events, and seconds after the first of them, after which they are sealed, whichever comes first."""


class Seals(Projection):
    """Every message of the log, sealed. Without a ``signer`` it can be looked at, but not run.

    ``every`` events, or after ``within`` seconds, a seal is made; ``made`` hears of each.
    """

    name = NAME
    store = KIND

    def __init__(
        self,
        signer: Signer | None = None,
        *,
        every: int = EVERY,
        within: float = WITHIN,
        made: Callable[[Seal], None] | None = None,
    ) -> None:
        if not 1 <= every <= MAX_EVENTS:
            raise InvalidInputError(f"a seal of {every} events: at least 1 and at most {MAX_EVENTS:,}")
        if not within > 0:
            raise InvalidInputError(f"within={within}: give a number of seconds above zero")
        self.signer = signer
        self.every = every
        self.within = within
        self.made = made

    def apply(self, event: Any, view: SealTransaction) -> None:
        """Take a message into the seal."""
        view.take(event)


class Sealer(Runner):
    """Runs :class:`Seals`. Raises InvalidInputError if they have no key to be signed with."""

    def __init__(self, source: Source, projection: Seals) -> None:
        if projection.signer is None:
            raise InvalidInputError(
                "seals are signed: give the key with --key FILE; `agentfield audit keygen FILE` makes one"
            )
        super().__init__(source, projection, SealStore(source, projection.signer, projection.made))
        self._seals = projection

    async def rebuild(self) -> NoReturn:
        """Refused: a seal says what the log held at its time."""
        raise InvalidInputError(NEVER)

    async def verify(self) -> Verdict:
        """Compare the log with the seals, the first of which says whose they are; see ``agentfield audit verify``."""
        verdict = (await check_live(self.source.fabric)).verdict
        if verdict.intact:
            return Verdict(verdict.last, verdict.events)
        found = (verdict.seal_fault,) if verdict.finding is None else tuple(verdict.finding)
        return Verdict(verdict.last, verdict.events, found, ("what was sealed",))

    @property
    def keeps_values(self) -> bool:
        """Seals hold digests of what is stored, and personal values are stored encrypted."""
        return False

    def _selected(self) -> Selection:
        return EVERY_MESSAGE

    def _feed(self, start: int) -> Stretches:
        return Stretches(self.source, start, every=self._seals.every, within=self._seals.within)


class Stretches:
    """A walk over every message of the log, in batches that are a seal each."""

    def __init__(self, source: Source, start: int, *, every: int, within: float) -> None:
        self._source = source
        self._messages = Messages(source, start)  # what a trimmed log has kept of before, is sealed, or never was
        self._every = every
        self._within = within
        self._pending: list[Message] = []
        self._gap = 0

    async def __aenter__(self) -> Self:
        await self._messages.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._messages.__aexit__(kind, error, trace)

    async def batch(self, most: int) -> Batch:
        """What the next seal is of, as soon as that is due."""
        while not self._is_full() and self._patience() != 0:
            self._add(await self._messages.some(self._patience()))
        return self._taken()

    async def until(self, target: int, most: Callable[[], int]) -> AsyncIterator[Batch]:
        """What is to be sealed up to sequence ``target``, a seal each, the last one as far as it goes."""
        async for record in self._messages.until(target):
            self._add([record])
            while self._is_full():
                yield self._taken()
        while self._pending:
            yield self._taken()

    def _add(self, records: Iterable[Record]) -> None:
        for record in records:
            if self._pending and record.sequence != self._pending[-1].revision + 1:
                self._gap = self._gap or len(self._pending)
            digest = digest_of(stored_of(record))
            self._pending.append(Message(record.sequence, record.subject, record.timestamp, digest))

    def _is_full(self) -> bool:
        """Whether there is enough for a seal, or a stretch that cannot grow, since messages are missing after it."""
        return self._gap > 0 or len(self._pending) >= self._every

    def _patience(self) -> float | None:
        """Seconds for which what is pending may still wait; None if nothing is pending."""
        if not self._pending:
            return None
        return max(0.0, self._within - (self._source.fabric.log.now() - self._pending[0].timestamp) / 1e9)

    def _taken(self) -> Batch:
        count = min(self._every, self._gap or self._every)
        stretch: list[Any] = self._pending[:count]
        self._pending = self._pending[count:]
        places = (at for at, (one, other) in enumerate(pairwise(self._pending), 1) if other[0] != one[0] + 1)
        self._gap = next(places, 0)
        return Batch(stretch[-1].revision, stretch)
