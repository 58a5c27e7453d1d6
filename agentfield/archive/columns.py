"""The columns of an archive's files: every message exactly as stored, and beside it what it means.

Owns: from messages to a table and back. The names are those of exports in Parquet. The id of an event is what
compresses worst of it, so it is not kept twice: where the column ``id`` holds one, it is cut out of ``headers``, right
behind ``Nats-Msg-Id: ``. Invariant: what is read back is what was given, bit for bit; a message for which that would
not hold is kept whole, without ``id``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any, Final, NamedTuple

from agentfield.codec import Record, decode_outline
from agentfield.errors import DecodeError, InvalidInputError
from agentfield.fabric.wire.client import ExactHeaders
from agentfield.header import EVENT_HEADER, EVENT_ID, OPERATION
from agentfield.subject import Subjects

STORED: Final = ("revision", "time", "subject", "id", "headers", "payload")
"""What a message is made of again."""
ADDRESS: Final = ("scope", "scope_id", "key")
ACT: Final = ("operation", "reason")
WRITER: Final = ("agent", "execution_id", "workflow_id", "session_id", "cause", "trace")
MEANING: Final = (*ACT, *WRITER)

_ID: Final = f"{EVENT_ID}: ".encode()
EVENT: Final = f"{EVENT_HEADER}: ".encode()
_OPERATION: Final = f"{OPERATION}: ".encode()
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY: Final = 86_400 * 10**9

Address = tuple[str | None, str | None, str | None]
"""Kind and id of a scope, and a key."""


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
            *((name, word) for name in (*ADDRESS, *ACT)),
            ("id", arrow.string()),
            *((name, word) for name in WRITER),
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
            self._addresses.append(address_of(subject, self._subjects))
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
        for indices, of, names_of in ((kept, self._addresses, ADDRESS), (act, self._meanings, MEANING)):
            for at, name in enumerate(names_of):
                values = arrow.array([row[at] for row in of], arrow.string())
                columns[name] = values.take(indices).dictionary_encode()
        return arrow.table([columns[field.name] for field in schema()], schema=schema())

    def _meaning(self, record: Record, rest: bytes) -> int:
        """The number of what the headers say of an event; -1 if it is none of agentfield's."""
        act = line_of(rest, EVENT), line_of(rest, _OPERATION)  # nothing is parsed that was seen before
        number = self._acts.get(act)
        if number is None:
            try:
                event = decode_outline(record, self._subjects)
            except DecodeError:
                number = -1
            else:
                number = len(self._meanings)
                parts = [getattr(event, name) for name in ACT] + [getattr(event.writer, name) for name in WRITER]
                self._meanings.append(parts)
            self._acts[act] = number
        return number


def line_of(block: bytes, name: bytes) -> bytes:
    """The first line of a header block that begins so; empty if there is none."""
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


def address_of(subject: str, subjects: Subjects) -> Address:
    """Kind and id of the scope, and the key, whose subject this is; nothing of each if it is no key's."""
    try:
        scope, key = subjects.parse(subject)
    except InvalidInputError:
        return None, None, None
    return scope.kind, scope.id, key
