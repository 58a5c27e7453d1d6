"""Checking an archive: whether what stands beside every message is what the message says.

Owns: the comparison of columns, days and what footers say of columns with the messages themselves: who queries an
archive goes by these, and no seal covers them. Must not know: what was sealed, or what the log says. What occurs often
is looked at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

import orjson

from agentfield.archive.columns import (
    ADDRESS,
    EVENT,
    MEANING,
    STORED,
    WRITER,
    Address,
    Rows,
    address_of,
    day_of,
    day_text,
    line_of,
    pyarrow,
    records_of,
)
from agentfield.archive.directory import Segment, damaged
from agentfield.archive.footers import misdescribed
from agentfield.archive.reading import batches
from agentfield.errors import DecodeError
from agentfield.subject import Subjects

_REMEMBERED: Final = 100_000
"""Subjects whose addresses are kept in memory, some 30 MB."""
_SAID: Final = ("event", "known", "named", "scope", *MEANING)


def checked(segments: Sequence[Segment], start: int = 1) -> Iterator[tuple[Any, DecodeError | None]]:
    """The rows of an archive's files from a revision on, a group at a time, all columns of them.

    A group ends before the first row beside which something else stands than its message says, or which is not of its
    file's day; the error that names it comes with what is left, and with a group of which the footer says what is not
    so. Raises DecodeError for what cannot be read.
    """
    check = _Check(Subjects(segments[0].log.namespace))
    for segment, table, footer in batches(segments, start):
        row, fault = check.fault_of(segment, table)
        if fault is None and (name := misdescribed(table, footer)) is not None:
            revision = _revision(table.column("revision"), 0)
            what = f"of the rows from revision {revision} on, what its footer says of the column {name} is not so"
            row, fault = table.num_rows, damaged(segment.path, what, revision)
        yield table if fault is None else table.slice(0, row), fault


class _Check:
    def __init__(self, subjects: Subjects) -> None:
        self._subjects = subjects
        self._addresses: dict[bytes, Address] = {}

    def fault_of(self, segment: Segment, table: Any) -> tuple[int, DecodeError | None]:
        """The first row that is not as it should be, and what is wrong with it; None if nothing is."""
        row = self._misread(table)
        sound = table if row is None else table.slice(0, row)
        times = sound.column("time").cast(pyarrow().int64())
        if any(day_text(day_of(time)) != segment.day for time in _ends(times)):
            at = next(at for at, time in enumerate(times.to_pylist()) if day_text(day_of(time)) != segment.day)
            revision = sound.column("revision")[at].as_py()
            return at, damaged(segment.path, f"revision {revision} is not of the day {segment.day}", revision)
        if row is None:
            return 0, None
        revision = _revision(table.column("revision"), row)
        return row, damaged(segment.path, f"beside revision {revision} stands something else than it says", revision)

    def _misread(self, table: Any) -> int | None:
        """The first row whose columns do not say what the message says."""
        arrow = pyarrow()
        incomplete = [_first(table.column(name).is_null()) for name in STORED if name != "id"]
        if missing := [row for row in incomplete if row is not None]:
            return min(missing)
        subjects = table.column("subject").combine_chunks()
        addresses = [self._address(name) for name in subjects.dictionary.to_pylist()]
        texts = {name: table.column(name).cast(arrow.string()).combine_chunks() for name in (*ADDRESS, *MEANING)}
        known = arrow.array([address[0] is not None for address in addresses], arrow.bool_()).take(subjects.indices)
        events = [line_of(block, EVENT) for block in table.column("headers").to_pylist()]
        said = arrow.table(
            {
                "event": arrow.array(events, arrow.binary()),
                "known": known,
                "named": table.column("id").is_valid(),
                **{name: texts[name] for name in ("scope", *MEANING)},
            }
        )
        doubtful = {each for each in _occurring(said) if not _is_said(*each)}
        wrong = [
            *_misplaced([texts[name] for name in ADDRESS], addresses, subjects.indices),
            *self._meaning_otherwise(table, _rows_of(said, doubtful)),
        ]
        return min(wrong, default=None)

    def _meaning_otherwise(self, table: Any, rows: list[int]) -> list[int]:
        """Those of these rows whose columns, all of them, do not say what their messages say."""
        some = table.take(pyarrow().array(rows, pyarrow().int64()))
        meant = Rows(self._subjects)
        for record in records_of(some):
            meant.add(record)
        right = meant.table()
        wrong: list[int] = []
        for name in (*ADDRESS, *MEANING, "id"):
            found, other = (each.column(name).to_pylist() for each in (some, right))
            wrong += [row for row, one, two in zip(rows, found, other, strict=True) if one != two]
        return wrong

    def _address(self, subject: bytes) -> Address:
        found = self._addresses.get(subject)
        if found is None:
            if len(self._addresses) >= _REMEMBERED:
                self._addresses.clear()
            found = address_of(subject.decode("utf-8", "surrogateescape"), self._subjects)
            self._addresses[subject] = found
        return found


def _misplaced(found: Sequence[Any], addresses: Sequence[Address], place: Any) -> list[int]:
    """The first row that has an address, and another one than its subject says."""
    arrow = pyarrow()
    compute = arrow.compute
    wrong = has_one = arrow.scalar(False)
    for at, column in enumerate(found):
        right = arrow.array([address[at] for address in addresses], arrow.string()).take(place)
        alike = compute.coalesce(compute.equal(column, right), compute.and_(column.is_null(), right.is_null()))
        wrong = compute.or_(wrong, compute.invert(alike))
        has_one = compute.or_(has_one, column.is_valid())
    row = _first(compute.and_(wrong, has_one))
    return [] if row is None else [row]


def _first(rows: Any) -> int | None:
    """The number of the first row for which this is true."""
    row = int(rows.index(True).as_py())
    return None if row < 0 else row


def _revision(revisions: Any, row: int) -> int:
    """The revision of a row; where that is missing, what follows that of the row before."""
    found = revisions[row].as_py()
    return int(found) if found is not None else int(revisions[row - 1].as_py()) + 1 if row else 1


def _ends(column: Any) -> list[int]:
    """The least and the greatest of some numbers; nothing of none."""
    ends = pyarrow().compute.min_max(column).as_py()
    return [] if ends["min"] is None else [ends["min"], ends["max"]]


def _occurring(table: Any) -> list[tuple[Any, ...]]:
    """Each combination of these columns' values, once."""
    groups = table.group_by(list(_SAID)).aggregate([])
    return list(zip(*(groups.column(name).to_pylist() for name in _SAID), strict=True))


def _rows_of(table: Any, wanted: Collection[tuple[Any, ...]]) -> list[int]:
    """The numbers of all rows that have one of these combinations of the columns' values."""
    if not wanted:
        return []
    rows = zip(*(table.column(name).to_pylist() for name in _SAID), strict=True)
    return [number for number, row in enumerate(rows) if row in wanted]


def _is_said(event: bytes, known: bool, named: bool, kind: str | None, *meaning: str | None) -> bool:
    """Whether the header of an event says word for word what the columns say; if not, it takes a closer look."""
    if not (known and named and kind is not None):
        return False
    try:
        fields = orjson.loads(event[len(EVENT) :])
        return [fields["type"], *(fields.get(name) for name in ("reason", *WRITER))] == list(meaning)
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
        return False
