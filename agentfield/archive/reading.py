"""Reading an archive as the log is read: slices, single messages, and what every subject held at a revision.

Owns: which files and which groups of rows that takes. Files are opened in threads, a group of rows at a time is in
memory. Must not know: what messages mean. Invariant: as of one revision, it gives what the log gave, in the same order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from agentfield.archive.columns import STORED, pyarrow, records_of, schema
from agentfield.archive.directory import Directory, Segment, damaged
from agentfield.archive.matching import literal_only, matcher
from agentfield.codec import Record
from agentfield.errors import InvalidInputError


class Archive:
    """An archive of one log, for reading. Making one does no I/O. See :class:`~agentfield.fabric.earlier.Earlier`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._directory = Directory(path)

    async def begins(self, stream: str, created: int, needed: int) -> int:
        """The first revision it covers; raises InvalidInputError if it is of another log, or ends before ``needed``."""
        segments = await asyncio.to_thread(self._directory.segments)
        name = self.path
        if not segments:
            raise InvalidInputError(
                f"there is no archive in {name}, and the log begins at revision {needed + 1}: name the directory it "
                "was archived to with AGENTFIELD_ARCHIVE, archive=, or --archive"
            )
        log, ours = segments[0].log, segments[0].log._replace(stream=stream, created=created)
        if log != ours:
            raise InvalidInputError(
                f"the archive {name} is of another log: of {log}, and this one is {ours}; name the right one with "
                "AGENTFIELD_ARCHIVE, archive=, or --archive"
            )
        last = segments[-1].last
        if last < needed:
            raise InvalidInputError(
                f"the archive {name} ends at revision {last}, and the log begins at {needed + 1}: what is between them "
                "is in neither; name the directory that holds it"
            )
        return segments[0].first

    async def read(self, filters: Sequence[str], start: int, stop: int) -> AsyncGenerator[Record, None]:
        """The messages that match, in order, from revision ``start`` to ``stop``."""
        matches = matcher(filters)
        for segment in await self.segments():
            if segment.last < start or segment.first > stop:
                continue
            for group in segment.groups(start, stop):
                for record in await asyncio.to_thread(_slice, segment, group, matches, not filters, start, stop):
                    yield record

    async def last(self, filters: Sequence[str], sequence: int) -> AsyncGenerator[Record, None]:
        """The last message, at or before ``sequence``, of every subject that matches, in order."""
        places = await asyncio.to_thread(self._last, filters, sequence)
        for segment, group, rows in reversed(places):
            for record in await asyncio.to_thread(_rows, segment, group, rows):
                yield record

    async def at(self, sequence: int) -> Record | None:
        """The message with this revision, None if there was none."""
        async for record in self.read((), sequence, sequence):
            return record
        return None

    async def sequence_at(self, nanoseconds: int) -> int | None:
        """The revision of the first message that was stored at or after a time; None if it has none."""
        return await asyncio.to_thread(self._sequence_at, nanoseconds)

    async def segments(self) -> list[Segment]:
        """The files in the order of the log."""
        return await asyncio.to_thread(self._directory.segments)

    async def strangers(self) -> list[Path]:
        """The files that a query over the whole directory would take for the archive's, and that are none of it."""
        return await asyncio.to_thread(self._directory.strangers)

    # -- in a thread --------------------------------------------------------------------------------------------------

    def _last(self, filters: Sequence[str], sequence: int) -> list[tuple[Segment, int, list[int]]]:
        """Where the messages are, the last first."""
        matches = matcher(filters)
        few = len(set(filters)) if literal_only(filters) else None
        seen: set[str] = set()
        places = []
        for segment in reversed(self._directory.segments()):
            if segment.first > sequence:
                continue
            for group in reversed(list(segment.groups(0, sequence))):
                rows = []
                for row, subject in _last_rows(segment, group, matches, sequence):
                    if subject not in seen:
                        seen.add(subject)
                        rows.append(row)
                if rows:
                    places.append((segment, group, sorted(rows)))
                if few is not None and len(seen) == few:
                    return places
        return places

    def _sequence_at(self, nanoseconds: int) -> int | None:
        arrow = pyarrow()
        for segment in self._directory.segments():
            for group in range(segment.metadata.num_row_groups):
                if segment.metadata.row_group(group).column(1).statistics.max_raw < nanoseconds:
                    continue
                batch = _group(segment, group, ["revision", "time"])
                times = batch.column("time").cast(arrow.int64())
                later = arrow.compute.greater_equal(times, nanoseconds)
                if arrow.compute.any(later).as_py():
                    return int(batch.column("revision").filter(later)[0].as_py())
        return None


def batches(segments: Sequence[Segment], start: int = 1) -> Iterator[tuple[Segment, Any, Any]]:
    """The rows of files from a revision on, a group at a time, and what the file's footer says of the group.

    Raises DecodeError for what cannot be read.
    """
    for segment in segments:
        if segment.last < start:
            continue
        for group in segment.groups(start, segment.last):
            yield segment, *_described(segment, group, schema().names)


def _group(segment: Segment, group: int, columns: Sequence[str]) -> Any:
    """Some columns of a group of rows."""
    return _described(segment, group, columns)[0]


def _described(segment: Segment, group: int, columns: Sequence[str]) -> tuple[Any, Any]:
    """The same, and what the footer says of it. A file that was replaced meanwhile begins with the very same rows."""
    arrow = pyarrow()
    try:
        with arrow.parquet.ParquetFile(segment.path, page_checksum_verification=True) as file:
            table = file.read_row_group(group, columns=list(columns), use_threads=False)
            footer = file.metadata.row_group(group)
    except (arrow.ArrowException, KeyError, OSError, ValueError) as error:
        raise damaged(segment.path, error, segment.metadata.row_group(group).column(0).statistics.min) from error
    return table.select(list(columns)).combine_chunks(), footer


def _wanted(
    segment: Segment, group: int, matches: Callable[[str], bool], start: int, stop: int
) -> tuple[list[str], Any, Any]:
    """The subjects of a group of rows; which one each row has; and the numbers of the rows that are wanted."""
    arrow = pyarrow()
    compute = arrow.compute
    batch = _group(segment, group, ["revision", "subject"])
    subjects = batch.column("subject").combine_chunks()
    names = [name.decode("utf-8", "surrogateescape") for name in subjects.dictionary.to_pylist()]
    revisions = batch.column("revision").combine_chunks()
    wanted = arrow.array([matches(name) for name in names], arrow.bool_()).take(subjects.indices)
    within = compute.and_(compute.greater_equal(revisions, start), compute.less_equal(revisions, stop))
    return names, subjects.indices, compute.indices_nonzero(compute.and_(wanted, within))


def _last_rows(
    segment: Segment, group: int, matches: Callable[[str], bool], sequence: int
) -> Iterator[tuple[int, str]]:
    """The last row of each subject that matches, at or before a sequence."""
    arrow = pyarrow()
    names, places, rows = _wanted(segment, group, matches, 0, sequence)
    table = arrow.table({"place": places.take(rows), "row": rows})
    last = table.group_by("place").aggregate([("row", "max")])
    for place, row in zip(last.column("place").to_pylist(), last.column("row_max").to_pylist(), strict=True):
        yield row, names[place]


def _slice(
    segment: Segment, group: int, matches: Callable[[str], bool], everything: bool, start: int, stop: int
) -> list[Record]:
    statistics = segment.metadata.row_group(group).column(0).statistics
    if everything and statistics.min >= start and statistics.max <= stop:
        return _taken(_group(segment, group, STORED))
    rows = _wanted(segment, group, matches, start, stop)[2].to_pylist()
    return _rows(segment, group, rows) if rows else []


def _rows(segment: Segment, group: int, rows: Sequence[int]) -> list[Record]:
    return _taken(_group(segment, group, STORED).take(list(rows)))


def _taken(table: Any) -> list[Record]:
    return records_of(table)
