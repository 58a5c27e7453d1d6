"""Logs and seals made up in memory, and verifying them, for tests of the rules of auditing."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from agentfield.audit.chain import SHORT, Stored, chained, digest_of
from agentfield.audit.comparing import Seen
from agentfield.audit.nkey import Signer
from agentfield.audit.seal import Head, Seal, SignedSeal, signed
from agentfield.audit.verifying import Extent, Verdict, verify

STREAM = "TEST_MEMORY"
SIGNER = Signer.generate()
BLOCK = b'NATS/1.0\r\nNats-Msg-Id: %d\r\nAgentfield-Event: {"v":1,"type":"set"}\r\n\r\n'


def log(count: int) -> list[Stored]:
    """So many messages, each different."""
    return [
        Stored(f"test.memory.global.global.k.{n % 7}", n, 10**18 + n * 1000, BLOCK % n, b'{"n":%d}' % n)
        for n in range(1, count + 1)
    ]


def sealed(messages: Sequence[Stored], every: int = 5, signer: Signer = SIGNER) -> list[SignedSeal]:
    """Seals over these, each of so many; one ends where a sequence is missing."""
    seals: list[SignedSeal] = []
    head = Head.none(STREAM)
    rest = list(messages)
    while rest:
        stretch = [each for at, each in enumerate(rest[:every]) if each.sequence == rest[0].sequence + at]
        digests = [(each.sequence, digest_of(each)) for each in stretch]
        seal = Seal(
            stream=STREAM,
            created=1,
            number=head.number + 1,
            previous=head.hash,
            first=stretch[0].sequence,
            last=stretch[-1].sequence,
            first_time=stretch[0].timestamp,
            last_time=stretch[-1].timestamp,
            before=head.chain,
            after=chained(head.chain, digests),
            sealed=2,
            digests=b"".join(digest[:SHORT] for _, digest in digests),
        )
        seals.append(signed(seal, signer))
        head = Head.at(seals[-1], seal)
        del rest[: len(stretch)]
    return seals


def renumbered(messages: Iterable[Stored]) -> list[Stored]:
    """The same, with sequences as they would be had they been stored so."""
    return [each._replace(sequence=number) for number, each in enumerate(messages, 1)]


def verdict(messages: Sequence[Stored], seals: Iterable[SignedSeal], **options: Any) -> Verdict:
    """What verifying says of these."""
    first = min((each.sequence for each in messages), default=1)
    extent = options.pop("extent", None) or Extent(
        STREAM, 1, options.pop("first", 1 if messages else first), max((each.sequence for each in messages), default=0)
    )

    async def events(start: int) -> AsyncIterator[list[Seen]]:
        for each in messages:
            if each.sequence >= start or each.sequence < 1:
                yield [Seen.of(each)]

    async def stored_seals() -> AsyncIterator[SignedSeal]:
        for each in seals:
            yield each

    options.setdefault("trusted", [SIGNER.public])
    return asyncio.run(verify(events, stored_seals(), extent, **options))
