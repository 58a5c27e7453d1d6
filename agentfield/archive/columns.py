"""The columns of an archive's files: every message exactly as stored, and beside it what it means.

Owns: from messages to a table and back. The names are those of exports in Parquet. The id of an event is what
compresses worst of it, so it is not kept twice: where the column ``id`` holds one, it is cut out of ``headers``, right
behind ``Nats-Msg-Id: ``. Invariant: what is read back is what was given, bit for bit; a message for which that would
not hold is kept whole, without ``id``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any, Final, NamedTuple

import orjson

from agentfield.codec import Record, decode_outline
from agentfield.errors import DecodeError, InvalidInputError
from agentfield.fabric.wire.client import ExactHeaders
from agentfield.header import EVENT_HEADER, EVENT_ID, OPERATION
from agentfield.subject import Subjects

STORED: Final = ("revision", "time", "subject", "id", "headers", "payload")
"""What a message is made of again."""
_ADDRESS: Final = ("scope", "scope_id", "key")
_ACT: Final = ("operation", "reason")
_WRITER: Final = ("agent", "execution_id", "workflow_id", "session_id", "cause", "trace")
_MEANING: Final = (*_ACT, *_WRITER)

_ID: Final = f"{EVENT_ID}: ".encode()
_EVENT: Final = f"{EVENT_HEADER}: ".encode()
_OPERATION: Final = f"{OPERATION}: ".encode()
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY: Final = 86_400 * 10**9


def pyarrow() -> Any:
    """The package. Raises InvalidInputError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise InvalidInputError('an archive needs pyarrow: `pip install "agentfield[parquet]"`') from None
    found: ModuleType = pyarrow
    return found


def schema() -> Any:
    """The schema of every file."""
    arrow = pyarrow()
    word = arrow.dictionary(arrow.int32(), arrow.string())
    return arrow.schema(
        [
            ("revision", arrow.int64()),
            ("time", arrow.timestamp("ns", tz="UTC")),
            *((name, word) for name in (*_ADDRESS, *_ACT)),
            ("id", arrow.string()),
            *((name, word) for name in _WRITER),
            ("subject", arrow.dictionary(arrow.int32(), arrow.binary())),
            ("headers", arrow.binary()),
            ("payload", arrow.binary()),
        ]
    )


def day_of(nanoseconds: int) -> int:
    """The day of a time in UTC, counted from the epoch."""
    return nanoseconds // _DAY


def day_text(day: int) -> str:
    """The day as ``2026-11-22``."""
    return f"{_EPOCH + timedelta(days=day):%Y-%m-%d}"


class Rows:
    """Takes messages, which must be of one day, and gives them as a table."""

    def __init__(self, subjects: Subjects) -> None:
        self._subjects = subjects
        self._numbers: list[int] = []
        self._times: list[int] = []
        self._ids: list[str | None] = []
        self._headers: list[bytes] = []
        self._payloads: list[bytes] = []
        self._places: dict[str, int] = {}
        self._place: list[int] = []
        self._acts: dict[tuple[bytes, bytes], int] = {}
        self._act: list[int] = []
        self._meanings: list[Sequence[str | None]] = []
        self._addresses: list[Sequence[str | None]] = []
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def first(self) -> int:
        """The first revision."""
        return self._numbers[0]

    @property
    def last(self) -> int:
        """The last revision."""
        return self._numbers[-1]

    def add(self, record: Record) -> None:
        """Take a message, with its exact headers."""
        subject, sequence, time, headers, payload, _, _ = record
        block = headers.block if isinstance(headers, ExactHeaders) else b""
        place = self._places.get(subject)
        if place is None:
            place = self._places[subject] = len(self._places)
            self._addresses.append(_address(subject, self._subjects))
        self._numbers.append(sequence)
        self._times.append(time)
        self._place.append(place)
        self._payloads.append(payload)
        id, rest = _cut(block)
        self._ids.append(id)
        self._headers.append(rest)
        known = self._addresses[place][0] is not None
        self._act.append(self._meaning(record, rest) if known and id is not None else -1)
        self.bytes += len(block) + len(payload)

    def table(self) -> Any:
        """All of them."""
        arrow = pyarrow()
        names = [subject.encode("utf-8", "surrogateescape") for subject in self._places]
        place = arrow.array(self._place, arrow.int32())
        act = arrow.array([each if each >= 0 else None for each in self._act], arrow.int32())
        # What has no meaning as an event has no address either, though its subject may look like a key's.
        kept = arrow.compute.if_else(arrow.compute.is_valid(act), place, arrow.scalar(None, arrow.int32()))
        columns: dict[str, Any] = {
            "revision": arrow.array(self._numbers, arrow.int64()),
            "time": arrow.array(self._times, arrow.timestamp("ns", tz="UTC")),
            "id": arrow.array(self._ids, arrow.string()),
            "subject": arrow.DictionaryArray.from_arrays(place, arrow.array(names, arrow.binary())),
            "headers": arrow.array(self._headers, arrow.binary()),
            "payload": arrow.array(self._payloads, arrow.binary()),
        }
        for indices, of, names_of in ((kept, self._addresses, _ADDRESS), (act, self._meanings, _MEANING)):
            for at, name in enumerate(names_of):
                values = arrow.array([row[at] for row in of], arrow.string())
                columns[name] = values.take(indices).dictionary_encode()
        return arrow.table([columns[field.name] for field in schema()], schema=schema())

    def _meaning(self, record: Record, rest: bytes) -> int:
        """The number of what the headers say of an event; -1 if it is none of agentfield's."""
        act = _line(rest, _EVENT), _line(rest, _OPERATION)  # nothing is parsed that was seen before
        number = self._acts.get(act)
        if number is None:
            try:
                event = decode_outline(record, self._subjects)
            except DecodeError:
                number = -1
            else:
                number = len(self._meanings)
                parts = [getattr(event, name) for name in _ACT] + [getattr(event.writer, name) for name in _WRITER]
                self._meanings.append(parts)
            self._acts[act] = number
        return number


def _line(block: bytes, name: bytes) -> bytes:
    at = block.find(name)
    return b"" if at < 0 else block[at : block.find(b"\r\n", at)]


def _cut(block: bytes) -> tuple[str | None, bytes]:
    """An event's id and the header block without it; no id and the whole block where that could not be undone."""
    at = block.find(_ID)
    if at < 0:
        return None, block
    begin = at + len(_ID)
    end = block.find(b"\r\n", begin)
    id = block[begin:end]
    if end <= begin or not id.isascii() or b"\0" in id:
        return None, block
    return id.decode(), block[:begin] + block[end:]


class Parts(NamedTuple):
    """Messages, column by column."""

    subjects: list[str]
    revisions: list[int]
    times: list[int]
    headers: list[bytes]
    """Whole header blocks."""
    payloads: list[bytes]


def parts_of(table: Any) -> Parts:
    """The messages of a table of the columns ``STORED``."""
    arrow = pyarrow()
    numbers, times, subjects, ids, headers, payloads = (table.column(name).combine_chunks() for name in STORED)
    known = [name.decode("utf-8", "surrogateescape") for name in subjects.dictionary.to_pylist()]
    return Parts(
        [known[place] for place in subjects.indices.to_pylist()],
        numbers.to_pylist(),
        times.cast(arrow.int64()).to_pylist(),
        _blocks(ids.cast(arrow.binary()).to_pylist(), headers.to_pylist()),
        payloads.to_pylist(),
    )


def records_of(table: Any) -> list[Record]:
    """The same as records."""
    return [
        Record(subject, number, time, ExactHeaders(block), payload)
        for subject, number, time, block, payload in zip(*parts_of(table), strict=True)
    ]


def _blocks(ids: Sequence[bytes | None], headers: Sequence[bytes]) -> list[bytes]:
    """The header blocks as they were stored."""
    size = len(_ID)
    whole = []
    for id, rest in zip(ids, headers, strict=True):
        if id is None:
            whole.append(rest)
        else:
            begin = rest.find(_ID) + size
            whole.append(rest[:begin] + id + rest[begin:])
    return whole


def misread(table: Any, subjects: Subjects) -> tuple[int, int] | None:
    """The first row of a table, all columns of it, whose columns do not say what the message says, and its revision.

    Each combination that occurs of subject and address, and of an event's header and meaning, is looked at once.
    """
    arrow = pyarrow()
    revisions = table.column("revision").combine_chunks()
    parts = [table.column(name).combine_chunks() for name in STORED if name != "id"]
    if missing := [part.is_null().index(True).as_py() for part in parts if part.null_count]:
        return min(missing), _revision(revisions, min(missing))
    names = table.column("subject").combine_chunks()
    known = arrow.array(
        [_address(name, subjects)[0] is not None for name in names.dictionary.to_pylist()], arrow.bool_()
    )
    events = [_line(block, _EVENT) for block in table.column("headers").to_pylist()]
    plain = arrow.table(
        {
            **{name: table.column(name).cast(arrow.string()) for name in (*_ADDRESS, *_MEANING)},
            "subject": names.cast(arrow.binary()),
            "known": known.take(names.indices),
            "event": arrow.array(events, arrow.binary()),
            "named": arrow.compute.is_valid(table.column("id")),
            "row": arrow.array(range(table.num_rows), arrow.int64()),
        }
    )
    places = _occurring(plain, ("subject", *_ADDRESS))
    said = ("event", "known", "named", "scope", *_MEANING)
    doubtful = {tuple(each) for _, *each in _occurring(plain, said) if not _is_said(*each)}
    wrong = [
        *(
            row
            for row, subject, *found in places
            if found != [None] * 3 and tuple(found) != _address(subject, subjects)
        ),
        *_meaning_otherwise(table, subjects, _rows_of(plain, said, doubtful)),
    ]
    return (min(wrong), _revision(revisions, min(wrong))) if wrong else None


def _revision(revisions: Any, row: int) -> int:
    """The revision of a row; where that is missing, what follows that of the row before."""
    found = revisions[row].as_py()
    return int(found) if found is not None else int(revisions[row - 1].as_py()) + 1 if row else 1


def _occurring(table: Any, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Each combination of these columns' values, behind the number of the first row that has it."""
    groups = table.group_by(list(names)).aggregate([("row", "min")])
    return list(zip(*(groups.column(name).to_pylist() for name in ("row_min", *names)), strict=True))


def _rows_of(table: Any, names: Sequence[str], wanted: Collection[tuple[Any, ...]]) -> list[int]:
    """The numbers of all rows that have one of these combinations of the columns' values."""
    if not wanted:
        return []
    rows = zip(*(table.column(name).to_pylist() for name in names), strict=True)
    return [number for number, row in enumerate(rows) if row in wanted]


def _is_said(event: bytes, known: bool, named: bool, kind: str | None, *meaning: str | None) -> bool:
    """Whether the header of an event says word for word what the columns say; if not, it takes a closer look."""
    if not (known and named and kind is not None):
        return False
    try:
        fields = orjson.loads(event[len(_EVENT) :])
        return [fields["type"], *(fields.get(name) for name in ("reason", *_WRITER))] == list(meaning)
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
        return False


def _meaning_otherwise(table: Any, subjects: Subjects, rows: list[int]) -> list[int]:
    """Those of these rows whose columns, all of them, do not say what their messages say."""
    some = table.take(pyarrow().array(rows, pyarrow().int64()))
    meant = Rows(subjects)
    for record in records_of(some):
        meant.add(record)
    right = meant.table()
    wrong: list[int] = []
    for name in (*_ADDRESS, *_MEANING, "id"):
        found, other = (each.column(name).to_pylist() for each in (some, right))
        wrong += [row for row, one, two in zip(rows, found, other, strict=True) if one != two]
    return wrong


def _address(subject: bytes | str, subjects: Subjects) -> tuple[str | None, str | None, str | None]:
    name = subject if isinstance(subject, str) else subject.decode("utf-8", "surrogateescape")
    try:
        scope, key = subjects.parse(name)
    except InvalidInputError:
        return None, None, None
    return scope.kind, scope.id, key
