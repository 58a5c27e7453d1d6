"""Exporting: the log, or some of it, to one file.

Owns: which messages go into an export, and that a file of that name is whole or not there: it is written beside its
place under another name, and moved there at the end. Must not know: what the lines of a format look like. Memory stays
flat, however long the log is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agentfield.audit.chain import Stored
from agentfield.audit.cloudevents import cloud_event_line
from agentfield.audit.jsonl import end_line, event_line, header_line, seal_line
from agentfield.audit.replacing import replacing
from agentfield.audit.seal import SignedSeal
from agentfield.audit.source import Live, place_of, record_of
from agentfield.audit.verifying import Extent
from agentfield.codec import decode_outline
from agentfield.errors import DecodeError
from agentfield.fabric.fabric import Fabric
from agentfield.memory.addressing import AnyScope
from agentfield.memory.resolving import Resolver
from agentfield.pattern import Pattern
from agentfield.scope import RESOLUTION

FORMATS = ("jsonl", "cloudevents", "parquet")


@dataclass(frozen=True, slots=True)
class Selection:
    """What an export is to hold: keys, scopes, and revisions, both ends included."""

    pattern: Pattern
    scopes: Sequence[AnyScope]
    first: int | None = None
    last: int | None = None

    @property
    def of_keys(self) -> bool:
        """Whether it leaves out any key."""
        return str(self.pattern) != "*" or {(kind, None) for kind in RESOLUTION} - set(self.scopes) != set()

    @property
    def is_everything(self) -> bool:
        """Whether it is the whole log, with what is in it beside the events of keys."""
        return not self.of_keys and self.first is None and self.last is None

    def fields(self) -> dict[str, Any]:
        """What the export says of it."""
        scopes = [f"{kind}:{id}" if id is not None else kind for kind, id in self.scopes]
        return {"pattern": str(self.pattern), "scopes": scopes, "first": self.first, "last": self.last}


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export holds."""

    events: int
    seals: int
    left_out: int
    """Messages that the format has no place for: it holds events of keys, as agentfield writes them, alone."""
    first: int
    last: int
    begins: int = 0
    """The first revision that could be exported, if what was selected began before it and was trimmed; else 0."""


class _Sink(Protocol):
    """A format: takes messages in order, then the seals over them."""

    async def event(self, stored: Stored) -> bool: ...

    def seal(self, signed: SignedSeal) -> None: ...

    def end(self, events: int, seals: int) -> None: ...


def require_packages(format: str) -> None:
    """Raises InvalidInputError if a format needs a package that is missing."""
    if format == "parquet":
        from agentfield.audit.parquet import require_pyarrow

        require_pyarrow()


async def export(fabric: Fabric, path: Path, format: str, selection: Selection) -> Exported:
    """Write what is selected to ``path``, as it is at the call. An export in JSON Lines and Parquet brings its seals.

    After any failure there is no new file, and one that was there before is as it was. Raises what reading raises,
    OSError, and InvalidInputError where a format needs a package that is missing.
    """
    live = Live(fabric)
    last_seal = await live.last_seal()  # before the log: so that no seal is of more than is exported
    async with aclosing(live.seals(0 if last_seal is None else last_seal.sequence)) as stored_seals:
        extent = await live.extent()
        first = max(extent.first, selection.first or 1)
        last = extent.last if selection.last is None else min(selection.last, extent.last)
        part = extent._replace(first=first, last=max(last, first - 1))
        events = seals = left_out = 0
        with replacing(path) as partial, _opened(format, partial, fabric, part, selection) as sink:
            async with aclosing(_selected(fabric, live, selection, first, last)) as messages:
                async for stored in messages:
                    if await sink.event(stored):
                        events += 1
                    else:
                        left_out += 1
            async for signed in stored_seals:
                sink.seal(signed)
                seals += 1
            sink.end(events, seals)
    return Exported(events, seals, left_out, first, last, extent.lacking(selection.first))


async def _selected(
    fabric: Fabric, live: Live, selection: Selection, first: int, last: int
) -> AsyncGenerator[Stored, None]:
    patterns = [selection.pattern]
    filters = fabric.subjects.filters(patterns, selection.scopes) if selection.of_keys else ()
    async with aclosing(live.read(first, last, filters)) as messages:
        async for stored in messages:
            place = place_of(fabric.subjects, stored.subject) if filters else None
            if not filters or (place is not None and selection.pattern.matches(place[1])):
                yield stored


@contextmanager
def _opened(format: str, path: Path, fabric: Fabric, extent: Extent, selection: Selection) -> Iterator[_Sink]:
    fields = None if selection.is_everything else selection.fields()
    header = header_line(extent, namespace=fabric.topology.namespace, exported=fabric.log.now(), selection=fields)
    if format == "parquet":
        from agentfield.audit.parquet import ParquetSink

        with ParquetSink(path, header, fabric.subjects) as sink:
            yield sink
        return
    with path.open("wb") as file:
        if format == "cloudevents":
            yield _CloudEvents(file, fabric)
        else:
            file.write(header)
            yield _Lines(file)


class _Lines:
    """JSON Lines."""

    def __init__(self, file: Any) -> None:
        self._file = file

    async def event(self, stored: Stored) -> bool:
        self._file.write(event_line(stored))
        return True

    def seal(self, signed: SignedSeal) -> None:
        self._file.write(seal_line(signed))

    def end(self, events: int, seals: int) -> None:
        self._file.write(end_line(events, seals))


class _CloudEvents:
    """CloudEvents, one a line. There is no place in them for seals."""

    def __init__(self, file: Any, fabric: Fabric) -> None:
        self._file = file
        self._subjects = fabric.subjects
        self._resolver = Resolver(fabric)
        self._namespace = fabric.topology.namespace

    async def event(self, stored: Stored) -> bool:
        record = record_of(stored)
        try:
            decode_outline(record, self._subjects)
        except DecodeError:  # of a lock, say, or written by others
            return False
        event = await self._resolver.event(record)
        self._file.write(cloud_event_line(event, self._namespace, stored.timestamp))
        return True

    def seal(self, signed: SignedSeal) -> None:
        pass

    def end(self, events: int, seals: int) -> None:
        pass
