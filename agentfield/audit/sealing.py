"""Sealing: following the log and signing for what it holds, a stretch at a time.

Owns: when a seal is due, and that there is one chain of them however many sealers run. Everything it goes on with is in
the last seal, so it may die at any moment. Each seal is stored on the condition that the one before is still the last:
of sealers that race, one succeeds, and the others check its seal against what they have read themselves, and go on
after it. Whoever did not make the last seal waits half as long again, so that one of them is active. Invariant: the
seals cover the log from its first message that was there, without overlap, and never contradict each other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import pairwise
from typing import Final, NamedTuple

from agentfield.audit.chain import SHORT, Stored, digest_of, link
from agentfield.audit.nkey import Signer, is_signed_by
from agentfield.audit.seal import MAX_EVENTS, Head, Seal, SignedSeal, signed
from agentfield.audit.source import Live
from agentfield.errors import DecodeError, InvalidInputError, OutcomeUnknownError, UnavailableError
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import backoff

logger = logging.getLogger("agentfield.audit")

EVERY: Final = 1000
WITHIN: Final = 60.0
"""Events, and seconds after the first of them, after which they are sealed, whichever comes first."""
_STANDBY: Final = 1.5
"""By how much longer a sealer waits that did not make the last seal."""
_LOOK: Final = 0.25
"""Seconds between looks at whether a seal is due while nothing comes; at most a tenth of the time it may take."""


class _Message(NamedTuple):
    sequence: int
    timestamp: int
    digest: bytes
    chain: bytes
    """The chain's value after it."""


class Sealer:
    """Seals the log of one namespace. ``seal_all`` what is there, or ``follow`` it; one call at a time."""

    def __init__(self, fabric: Fabric, signer: Signer, *, every: int = EVERY, within: float = WITHIN) -> None:
        if not 1 <= every <= MAX_EVENTS:
            raise InvalidInputError(f"a seal of {every} events: at least 1 and at most {MAX_EVENTS:,}")
        if not within > 0:
            raise InvalidInputError(f"within={within}: give a number of seconds above zero")
        self._live = Live(fabric)
        self._signer = signer
        self._every = every
        self._within = within
        self._head = Head.none(fabric.log.stream)
        self._created = 0
        self._pending: list[_Message] = []
        self._gap = 0
        self._active = True

    @property
    def sealed_up_to(self) -> int:
        """The last revision that is sealed, as far as this sealer knows."""
        return self._head.last

    async def seal_all(self) -> AsyncGenerator[Seal, None]:
        """Seal everything that is in the log now; gives each seal that this sealer has made.

        Raises :class:`DecodeError` if the last seal is forged, or is of more than the log holds: nothing may be built
        on it. Raises :class:`UnavailableError`; then everything up to the last seal given is sealed.
        """
        target = await self._begin()
        async with aclosing(self._live.read(self._head.last + 1, target)) as messages:
            async for stored in messages:
                self._add(stored)
                while self._is_full():
                    for seal in await self._seal():
                        yield seal
        while self._pending:
            for seal in await self._seal():
                yield seal

    async def follow(self) -> AsyncGenerator[Seal, None]:
        """Seal what is there, then what comes, until the iteration ends; gives each seal that this sealer has made.

        Raises :class:`DecodeError` as :meth:`seal_all`. An outage is waited for, once it has begun.
        """
        async with aclosing(self.seal_all()) as seals:
            async for seal in seals:
                yield seal
        looks = min(_LOOK, self._within / 10)
        attempt = 0
        async with aclosing(self._live.follow(self._head.last + 1)) as messages:
            coming = asyncio.ensure_future(anext(messages))
            try:
                while True:
                    if not self._is_full():
                        await asyncio.wait({coming}, timeout=looks if self._pending else None)
                    if coming.done():
                        self._add(coming.result())
                        coming = asyncio.ensure_future(anext(messages))
                    if not (self._is_full() or self._is_due()):
                        continue
                    try:
                        made = await self._seal()
                        attempt = 0
                    except (UnavailableError, OutcomeUnknownError) as error:
                        logger.warning(
                            "sealing from revision %d on: %s; trying again", self._pending[0].sequence, error
                        )
                        await asyncio.sleep(backoff(attempt))
                        attempt += 1
                        continue
                    for seal in made:
                        yield seal
            finally:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)

    # -- when ---------------------------------------------------------------------------------------------------------

    async def _begin(self) -> int:
        """Take up where the last seal ends; return the last sequence of the log."""
        last = await self._live.last_seal()
        self._head = self._checked(last)
        extent = await self._live.extent()
        self._created = extent.created
        self._keep([])
        if self._head.last > extent.last:
            raise DecodeError(
                f"the log ends at revision {extent.last}, but is sealed up to {self._head.last}: it was made anew, or "
                "lost its end; `agentfield audit verify` says more. Nothing was sealed",
                subject=self._live.subject,
                revision=self._head.number,
            )
        return extent.last

    def _add(self, stored: Stored) -> None:
        """Take note of the next message, unless another sealer has sealed it already."""
        if stored.sequence <= self._head.last:
            return
        chain = self._pending[-1].chain if self._pending else self._head.chain
        if self._pending and stored.sequence != self._pending[-1].sequence + 1:
            self._gap = self._gap or len(self._pending)
        digest = digest_of(stored)
        chain = link(chain, stored.sequence, digest)
        self._pending.append(_Message(stored.sequence, stored.timestamp, digest[:SHORT], chain))

    def _is_full(self) -> bool:
        """Whether there is enough for a seal, or a stretch that cannot grow, since messages are missing after it."""
        return self._gap > 0 or len(self._pending) >= (self._every if self._active else self._every * _STANDBY)

    def _is_due(self) -> bool:
        if not self._pending:
            return False
        patience = self._within if self._active else self._within * _STANDBY
        return self._live.now() - self._pending[0].timestamp >= patience * 1e9

    # -- sealing ------------------------------------------------------------------------------------------------------

    async def _seal(self) -> list[Seal]:
        """Seal the first stretch of what is pending, unless others have sealed it meanwhile."""
        await self._catch_up()
        if not self._pending:
            return []
        messages = self._pending[: min(self._every, self._gap or self._every)]
        seal = Seal(
            stream=self._live.stream,
            created=self._created,
            number=self._head.number + 1,
            previous=self._head.hash,
            first=messages[0].sequence,
            last=messages[-1].sequence,
            first_time=messages[0].timestamp,
            last_time=messages[-1].timestamp,
            before=self._head.chain,
            after=messages[-1].chain,
            sealed=self._live.now(),
            digests=b"".join(message.digest for message in messages),
        )
        made = signed(seal, self._signer)
        if not await self._live.store(made):
            logger.debug("seal %d was made by another", seal.number)
            self._active = False
            await self._catch_up()
            return []
        self._active = True
        self._head = Head.at(made, seal)
        self._keep(self._pending[len(messages) :])
        return [seal]

    def _keep(self, messages: list[_Message]) -> None:
        """These are pending now; a seal ends where the next sequence is missing."""
        self._pending = messages
        places = (at for at, (one, other) in enumerate(pairwise(messages), 1) if other.sequence != one.sequence + 1)
        self._gap = next(places, 0)

    async def _catch_up(self) -> None:
        """Go on after the last seal there is, having compared it with what we read ourselves."""
        last = await self._live.last_seal()
        if last is None or last.sequence == self._head.number:
            return
        head = self._checked(last)
        self._active = False
        ours = next((message for message in self._pending if message.sequence == head.last), None)
        if ours is not None and ours.chain != head.chain:
            raise DecodeError(
                f"seal {head.number} says of the log up to revision {head.last} something else than what is read "
                "there: one of the sealers was given other events; nothing was sealed",
                subject=self._live.subject,
                revision=head.number,
            )
        self._keep([message for message in self._pending if message.sequence > head.last])
        self._head = head

    def _checked(self, last: SignedSeal | None) -> Head:
        """Where a seal ends. Raises DecodeError if its signature does not hold, or it is of another log."""
        if last is None:
            return Head.none(self._live.stream)
        fault = "its signature does not hold"
        if is_signed_by(last.key, last.signature, last.body):
            try:
                seal = last.open()
            except InvalidInputError as error:
                fault = str(error)
            else:
                if (seal.number, seal.stream) == (last.sequence, self._live.stream):
                    return Head.at(last, seal)
                fault = f"it calls itself seal {seal.number} of {seal.stream}"
        raise DecodeError(
            f"seal {last.sequence} is forged or damaged: {fault}; nothing was sealed",
            subject=self._live.subject,
            revision=last.sequence,
        )
