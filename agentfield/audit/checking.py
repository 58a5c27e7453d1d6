"""Verifying what there is: the live log, an archive or an export, with the seals there are.

Owns: putting source and seals together in the right order, and keeping note of which seal covers what. Must not know:
how a verdict is shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import NamedTuple, TypedDict, TypeVar, Unpack

from agentfield.archive.checking import checked
from agentfield.archive.columns import parts_of
from agentfield.archive.directory import Segment
from agentfield.archive.notes import Note, notes_in
from agentfield.archive.reading import Archive
from agentfield.audit.beginning import Sources, What
from agentfield.audit.chain import Stored, digests_of
from agentfield.audit.comparing import Seen
from agentfield.audit.jsonl import Export
from agentfield.audit.parquet import ParquetExport
from agentfield.audit.seal import SignedSeal
from agentfield.audit.source import Live
from agentfield.audit.verifying import Events, Extent, Verdict, Witness, verify
from agentfield.errors import DecodeError, InvalidInputError
from agentfield.fabric.fabric import Fabric

T = TypeVar("T")

_PARQUET = b"PAR1"


class Span(NamedTuple):
    """What one seal covers, and where it comes from."""

    number: int
    first: int
    last: int
    sealed: int
    """When it was made: nanoseconds since the epoch."""
    key: str
    hash: str


class Checked(NamedTuple):
    """A verdict, and the seals that it rests on."""

    verdict: Verdict
    spans: list[Span]


class Terms(TypedDict, total=False):
    """What is verified of it, and whom to believe; as for :func:`~agentfield.audit.verifying.verify`."""

    trusted: Collection[str]
    witness: Witness | None
    start: int
    stop: int | None


async def check_live(fabric: Fabric, *, whole: bool = False, **terms: Unpack[Terms]) -> Checked:
    """Verify the log on the server by the seals on the server; the ``whole`` of it, with what its archive holds."""
    while True:
        checked, complete = await _check_live(fabric, whole, terms)
        if checked.verdict.finding is None or (await Live(fabric).extent()).first == complete:
            return checked
        # The log was trimmed while it was read: what went then is not missing, and is accounted for now.


async def _check_live(fabric: Fabric, whole: bool, terms: Terms) -> tuple[Checked, int]:
    """Verify the log as it is now; and from which revision on it was complete."""
    live = Live(fabric)
    last = await live.last_seal()  # before the log's extent: so the log reaches at least as far as the seals
    extent = await live.extent()
    complete = extent.first
    if whole:
        extent = extent._replace(first=await fabric.log.begins())
    read = live.history if whole else live.read
    seals = live.seals(0 if last is None else last.sequence)
    sources = await _sources(fabric, "archive" if extent.first < complete else "log")
    checked = await _checked(lambda begin: _seen(read(begin, extent.last)), seals, extent, sources=sources, **terms)
    return checked, complete


async def check_export(path: Path, *, by: Fabric | None = None, **terms: Unpack[Terms]) -> Checked:
    """Verify an export by its own seals, or by those on a server.

    Raises InvalidInputError if the file is no export, and DecodeError at a place where it is damaged so that it cannot
    be read.
    """
    export = open_export(path)
    extent = export.header.extent
    selection = export.header.selection is not None
    if by is None:
        seals = _asynchronously(export.seals())
        looked_at = export.events() if extent.first > 1 and not selection else ()
        notes = [Seen.of(stored) for stored in looked_at if Note.of(stored.subject) is not None]
        sources = Sources("export", notes, believed_unsealed=False)
    else:
        seals = await _seals_on(by, extent.stream, path)
        sources = await _sources(by, "export")
    return await _checked(
        lambda _: _seen(_asynchronously(export.events())),
        seals,
        extent,
        selection=selection,
        excerpt=by is not None,
        sources=sources,
        **terms,
    )


async def check_archive(path: Path, *, by: Fabric, **terms: Unpack[Terms]) -> Checked:
    """Verify an archive by the seals on its server.

    Raises InvalidInputError if there is no archive, or one of another log, and DecodeError at a place where it is
    damaged so that it cannot be read.
    """
    archive = Archive(path)
    segments = await archive.segments()
    if not segments:
        raise InvalidInputError(f"there is no archive in {path}")
    if strangers := await archive.strangers():
        raise InvalidInputError(
            f"{strangers[0]} is none of the archive's files, and who queries the archive would read it as well: keep "
            "it elsewhere"
        )
    log = segments[0].log
    extent = Extent(log.stream, log.created, segments[0].first, segments[-1].last)
    seals = await _seals_on(by, log.stream, path)
    sources = await _sources(by, "archive")
    return await _checked(
        lambda begin: _archived(segments, begin), seals, extent, excerpt=True, sources=sources, **terms
    )


async def _sources(by: Fabric, what: What) -> Sources:
    """What the log on the server says of its archives, and what it has itself."""
    last = int((await by.log.state())["last_seq"])
    notes = [Seen.of(stored) async for stored in Live(by).read(1, last, [notes_in(by.log)])]
    return Sources(what, notes, logged=by.log.held.complete)


async def _checked(
    messages: Events,
    seals: AsyncGenerator[SignedSeal, None],
    extent: Extent,
    *,
    selection: bool = False,
    excerpt: bool = False,
    sources: Sources,
    **terms: Unpack[Terms],
) -> Checked:
    spans: list[Span] = []
    async with aclosing(_noted(seals, spans)) as noted:
        verdict = await verify(messages, noted, extent, selection=selection, excerpt=excerpt, sources=sources, **terms)
    return Checked(verdict, spans)


async def _archived(segments: Sequence[Segment], start: int) -> AsyncGenerator[list[Seen], None]:
    """The messages of an archive from a revision on, in the order of its files; the next ones are read meanwhile.

    Raises DecodeError at a message beside which something else stands than it says.
    """
    groups = checked(segments, start)
    fault: DecodeError | None = None

    def following() -> list[Seen] | None:
        nonlocal fault
        if fault is not None:
            raise fault
        group = next(groups, None)
        if group is None:
            return None
        table, fault = group
        subjects, revisions, times, headers, payloads = parts_of(table)
        digests = digests_of(subjects, times, headers, payloads)
        seen = list(map(Seen._make, zip(subjects, revisions, times, digests, strict=True)))
        return seen if not seen or revisions[0] >= start else [each for each in seen if each.sequence >= start]

    ahead = asyncio.ensure_future(asyncio.to_thread(following))
    try:
        while (seen := await ahead) is not None:
            ahead = asyncio.ensure_future(asyncio.to_thread(following))
            yield seen
    finally:
        await asyncio.wait([ahead])
        if not ahead.cancelled():
            ahead.exception()  # looked at, so that nobody complains about it


async def _seen(messages: AsyncGenerator[Stored, None]) -> AsyncGenerator[list[Seen], None]:
    """The messages as they come."""
    async with aclosing(messages):
        async for stored in messages:
            yield [Seen.of(stored)]


async def _seals_on(by: Fabric, stream: str, path: Path) -> AsyncGenerator[SignedSeal, None]:
    live = Live(by)
    if live.stream != stream:
        raise InvalidInputError(f"{path} is of {stream}, not of {live.stream}: name its namespace")
    last = await live.last_seal()
    return live.seals(0 if last is None else last.sequence)


def open_export(path: Path) -> Export | ParquetExport:
    """An export, whichever format it has. Raises InvalidInputError if it is none, or cannot be read more than once."""
    if not path.is_file():
        raise InvalidInputError(f"{path} is no file, such as a pipe: an export is read several times; store it first")
    with path.open("rb") as file:
        parquet = file.read(len(_PARQUET)) == _PARQUET
    return ParquetExport(path) if parquet else Export(path)


async def _noted(seals: AsyncGenerator[SignedSeal, None], spans: list[Span]) -> AsyncGenerator[SignedSeal, None]:
    """The seals as they come; of each that can be read, note is taken."""
    async with aclosing(seals):
        async for signed in seals:
            try:
                seal = signed.open()
            except InvalidInputError:  # for the verdict to say
                pass
            else:
                spans.append(Span(seal.number, seal.first, seal.last, seal.sealed, signed.key, signed.hash.hex()))
            yield signed


async def _asynchronously(items: Iterator[T]) -> AsyncGenerator[T, None]:
    for item in items:
        yield item
