"""Seals as a view: the stream of seals on the server, whose last seal says how far it has come.

Owns: storing a stretch of the log as a signed seal, on the condition that the seal before it is still the last. So the
seal is content and checkpoint in one, and of several that would seal the same, one succeeds; the others compare what
it says with what they have read themselves. Whether it is paused, and what stopped it, is written on the stream.
Invariants: the seals cover the log from its first message that was there, without overlap, and never contradict each
other; nothing is built on a seal that is forged. Nothing here can change a seal or take one away: nor can the server.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from agentfield import AgentFieldError, InvalidInputError, OutcomeUnknownError, ProjectionError, UnavailableError
from agentfield.audit.chain import SHORT, link
from agentfield.audit.nkey import Signer, is_signed_by
from agentfield.audit.seal import Head as End
from agentfield.audit.seal import Seal, SignedSeal, signed
from agentfield.audit.source import Live
from agentfield.fabric.facts import describe, facts_of
from projections.source import EVERY_MESSAGE, Source
from projections.stores.kept import KeptStore
from projections.view import Fold, Head, Moment, Moved, Step

T = TypeVar("T")

NAME = "seals"
KIND = "seals"
NEVER = (
    "seals are not made anew, nor taken away: each is evidence of its time, in a stream that the server lets nobody "
    "change; `agentfield projections verify seals` says whether they and the log belong together"
)

logger = logging.getLogger("agentfield.projections")


class Message(NamedTuple):
    """A message of the log, as sealing needs it; it may be large, and there are many at a time."""

    revision: int
    key: str
    """Its subject: it need not be a key's."""
    timestamp: int
    digest: bytes


class SealTransaction:
    """What ``apply`` works on: the stretch that is to be sealed."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def take(self, message: Message) -> None:
        """Let the next message be of the stretch."""
        self.messages.append(message)


class SealView:
    """The seals of one log. Who only looks at them needs no key."""

    def __init__(self, source: Source, signer: Signer | None, made: Callable[[Seal], None] | None) -> None:
        self._source = source
        self._live = Live(source.fabric)
        self._signer = signer
        self._made = made
        self._end = End.none(self._live.stream)
        self._stopped = False

    @property
    def kind(self) -> str:
        """What it is."""
        return KIND

    @property
    def place(self) -> str:
        """The stream's name."""
        return self._source.fabric.topology.seals.name

    def good(self) -> bool:
        """Whether it may be advanced: there is no other generation."""
        return True

    async def exists(self) -> bool:
        """Whether anything has been sealed, or somebody has paused it."""
        return await self._live.last_seal() is not None or bool(await self._facts())

    async def head(self) -> Head:
        """Where it stands, by the last seal. What no seal says, such as that it is forged, is its error."""
        facts = await self._facts()
        last = await self._live.last_seal()
        error = facts.get("error")
        seal = first = None
        if last is not None:
            try:
                seal = last.open()
                first = seal if last.sequence == 1 else await self._first()
            except InvalidInputError as fault:
                error = f"seal {last.sequence} is forged or damaged: {fault}"
            else:
                self._end = End.at(last, seal)
        self._stopped = error is not None
        failed_at = facts.get("failed-at")
        return Head(
            name=NAME,
            version=1,
            generation=1,
            log=await self._source.log_id(),
            selection=EVERY_MESSAGE,
            checkpoint=0 if seal is None else seal.last,
            events=0 if seal is None or first is None else seal.last - first.first + 1,
            skipped=0,
            paused="paused" in facts,
            error=error,
            failed_at=None if failed_at is None else int(failed_at),
            updated=datetime.fromtimestamp((self._live.now() if seal is None else seal.sealed) / 1e9, UTC),
        )

    async def check(self) -> None:
        """See that the last seal is one to build on. Raises :class:`ProjectionError` if not, and notes it."""
        last = await self._live.last_seal()
        if last is None:
            return
        fault = _fault(last, self._live.stream)
        if fault is not None:
            await self._refuse(f"seal {last.sequence} is forged or damaged: {fault}; nothing was sealed")
        end, log = last.open().last, (await self._live.extent()).last
        if end > log:
            await self._refuse(
                f"the log ends at revision {log}, but is sealed up to {end}: it was made anew, or lost its end; "
                "`agentfield audit verify` says more. Nothing was sealed"
            )
        if self._signer is not None and last.key != self._signer.public:
            logger.warning(
                "seal %d is signed by %s; sealing goes on with %s: verify with both public keys",
                *(last.sequence, last.key, self._signer.public),
            )

    async def advance(self, step: Step, fold: Fold) -> None:
        """Seal the stretch that the fold takes, if the seal that it follows is still the last."""
        if "paused" in await self._facts():
            raise Moved("sealing is paused")
        if step.expected != self._end.last:
            raise Moved(f"the seals do not end at {step.expected}")
        stretch = SealTransaction()
        awaitable = fold(stretch)
        if inspect.isawaitable(awaitable):
            await awaitable
        if stretch.messages:
            await self._seal(stretch.messages)

    async def stop(self, error: str, sequence: int | None) -> None:
        """Note why it does not advance."""
        self._stopped = True
        await self._describe({"error": error, "failed-at": "" if sequence is None else str(sequence)})

    async def pause(self, paused: bool) -> None:
        """Let nobody seal, or let it go on."""
        await self._describe({"paused": "true" if paused else ""})

    async def forget(self, revision: int, fold: Fold | None) -> bool:
        """Nothing to do: seals hold digests of what is encrypted."""
        return True

    @asynccontextmanager
    async def frozen(self, *, alone: bool = False) -> AsyncIterator[Moment]:
        """Where it stands; seals are read by those who verify them."""
        yield Moment(await self.head(), None)

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What a function gives."""
        return await asyncio.to_thread(function, *arguments)

    def rows(self, view: Any) -> Iterable[Sequence[Any]]:
        """No rows: seals are not compared, but verified."""
        return ()

    async def rest(self) -> None:
        """Nothing to do: anybody may read seals."""

    async def aclose(self) -> None:
        """Nothing to close."""

    # -- sealing ------------------------------------------------------------------------------------------------------

    async def _seal(self, messages: Sequence[Message]) -> None:
        if self._signer is None:
            raise InvalidInputError("seals are signed, and no key was given")
        chain, end = self._end.chain, self._end
        for message in messages:
            chain = link(chain, message.revision, message.digest)
        seal = Seal(
            stream=self._live.stream,
            created=(await self._live.extent()).created,
            number=end.number + 1,
            previous=end.hash,
            first=messages[0].revision,
            last=messages[-1].revision,
            first_time=messages[0].timestamp,
            last_time=messages[-1].timestamp,
            before=end.chain,
            after=chain,
            sealed=self._live.now(),
            digests=b"".join(message.digest[:SHORT] for message in messages),
        )
        made = signed(seal, self._signer)
        try:
            stored = await self._live.store(made)
        except OutcomeUnknownError as error:  # the last seal will tell; if this one comes late, the next is refused
            raise UnavailableError(f"whether seal {seal.number} was stored is not known: {error}") from error
        if not stored:
            await self._compare(seal)
            raise Moved(f"seal {seal.number} was made by another")
        self._end = End.at(made, seal)
        if self._stopped:
            self._stopped = False
            await self._describe({"error": "", "failed-at": ""})
        if self._made is not None:
            self._made(seal)

    async def _compare(self, ours: Seal) -> None:
        """Another's seal is where ours would be. Raises :class:`ProjectionError` if it says something else."""
        other = await self._live.seal(ours.number)
        if other is None or _fault(other, self._live.stream) is not None:
            return  # to be found when it is built upon
        theirs = other.open()
        for revision in range(max(ours.first, theirs.first), min(ours.last, theirs.last) + 1):
            if ours.digest(revision) != theirs.digest(revision):
                await self._refuse(
                    f"seal {ours.number} says something else of revision {revision} than what is read there: one of "
                    "the sealers was given other events; nothing was sealed",
                    revision,
                )

    async def _refuse(self, why: str, sequence: int | None = None) -> None:
        try:
            await self.stop(why, sequence)
        except AgentFieldError as error:
            logger.warning("why sealing stopped could not be noted: %s", error)
        raise ProjectionError(why, projection=NAME, sequence=sequence)

    async def _first(self) -> Seal:
        first = await self._live.seal(1)
        if first is None:
            raise InvalidInputError("the first seal is gone")
        return first.open()

    async def _facts(self) -> dict[str, str]:
        return await facts_of(self._source.fabric.connection, self.place)

    async def _describe(self, facts: dict[str, str]) -> None:
        await describe(self._source.fabric.connection, self.place, facts)


class SealStore(KeptStore):
    """Where seals are kept: one stream in each namespace. To seal takes a ``signer``; ``made`` hears of every seal."""

    never = NEVER

    def __init__(
        self, source: Source, signer: Signer | None = None, made: Callable[[Seal], None] | None = None
    ) -> None:
        self._view = SealView(source, signer, made)
        self._seals = signer is not None

    def identity(self, kind: str) -> str:
        """There is one place for seals in a namespace."""
        return KIND

    async def names(self) -> list[str]:
        """The seals, if there are any."""
        return [NAME] if await self._view.exists() else []

    async def live(self, name: str) -> SealView | None:
        """The seals, or None if there are none. Who is to go on with them gets only those to be built upon."""
        if name != NAME or not await self._view.exists():
            return None
        if self._seals:
            await self._view.check()
        return self._view

    async def create(self, kind: str, head: Head, prepare: Fold) -> SealView:
        """The seals, of which there are none yet."""
        if head.name != NAME:
            raise InvalidInputError(f"projection {head.name!r} asks for store {KIND!r}, which is for seals alone")
        return self._view

    async def remove(self, name: str) -> bool:
        """Refused, where there are any."""
        if name == NAME and await self._view.exists():
            raise InvalidInputError(NEVER)
        return False


def _fault(last: SignedSeal, stream: str) -> str | None:
    """What keeps a seal from being built upon, looked at alone."""
    if not is_signed_by(last.key, last.signature, last.body):
        return "its signature does not hold"
    try:
        seal = last.open()
    except InvalidInputError as error:
        return str(error)
    if (seal.number, seal.stream) != (last.sequence, stream):
        return f"it calls itself seal {seal.number} of {seal.stream}"
    return None
