"""Exports in Parquet, for tables and queries: every message exactly as stored, and beside it what it means.

Owns: the columns. The seals are in the file's metadata. Needs the package pyarrow, which the extra ``parquet`` brings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from agentfield.archive.footers import check_types, misdescribed
from agentfield.audit.chain import Stored
from agentfield.audit.jsonl import Header, seal_line, seal_of
from agentfield.audit.seal import SignedSeal
from agentfield.audit.source import record_of
from agentfield.codec import decode_outline
from agentfield.errors import DecodeError, InvalidInputError
from agentfield.naming import shown
from agentfield.subject import Subjects

_ROWS: Final = 10_000
_BYTES: Final = 32 * 1024 * 1024
"""Rows, and bytes of headers and payload, after which what is held is written out."""
_HEADER: Final = b"agentfield.export"
_SEALS: Final = b"agentfield.seals"
_MEANING: Final = ("scope", "scope_id", "key", "operation", "reason", "id")
_WRITER: Final = ("agent", "execution_id", "workflow_id", "session_id", "cause", "trace")
_TEXTS: Final = (*_MEANING, *_WRITER)
_STORED: Final = ("subject", "revision", "headers", "payload")


def require_pyarrow() -> Any:
    """The package. Raises InvalidInputError if it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InvalidInputError('Parquet needs pyarrow: `pip install "agentfield[parquet]"`') from None
    return pyarrow


def _schema(arrow: Any) -> Any:
    return arrow.schema(
        [
            ("revision", arrow.int64()),
            ("time", arrow.timestamp("ns", tz="UTC")),
            *((name, arrow.string()) for name in _TEXTS),
            ("subject", arrow.binary()),
            ("headers", arrow.binary()),
            ("payload", arrow.binary()),
        ]
    )


def _texts_of(stored: Stored, subjects: Subjects) -> tuple[str | None, ...]:
    """What a message means, as the columns ``_TEXTS`` say it."""
    try:
        event = decode_outline(record_of(stored), subjects)
    except DecodeError:  # not the event of a key: of a lock, say, or written by others
        return (None,) * len(_TEXTS)
    return (*(getattr(event, name) for name in _MEANING), *(getattr(event.writer, name) for name in _WRITER))


class ParquetSink:
    """Takes messages into a file."""

    def __init__(self, path: Path, header: bytes, subjects: Subjects) -> None:
        arrow = require_pyarrow()
        self._arrow = arrow
        self._subjects = subjects
        self._schema = _schema(arrow)
        self._stack = ExitStack()
        self._writer = self._stack.enter_context(
            arrow.parquet.ParquetWriter(path, self._schema, compression="zstd", write_page_checksum=True)
        )
        self._writer.add_key_value_metadata({_HEADER: header})
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0
        self._seals: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    async def event(self, stored: Stored) -> bool:
        """Take a message."""
        texts = _texts_of(stored, self._subjects)
        subject = stored.subject.encode("utf-8", "surrogateescape")
        self._rows.append((stored.sequence, stored.timestamp, *texts, subject, stored.headers, stored.payload))
        self._bytes += len(stored.headers) + len(stored.payload)
        if len(self._rows) >= _ROWS or self._bytes >= _BYTES:
            self._flush()
        return True

    def seal(self, signed: SignedSeal) -> bool:
        """Take a seal."""
        self._seals.append(seal_line(signed))
        return True

    def end(self, events: int, seals: int) -> None:
        """Write out what is left."""
        self._flush()
        self._writer.add_key_value_metadata({_SEALS: b"".join(self._seals)})

    def _flush(self) -> None:
        if self._rows:
            columns = [
                self._arrow.array(column, field.type)
                for column, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
            ]
            self._writer.write_table(self._arrow.Table.from_arrays(columns, schema=self._schema))
        self._rows.clear()
        self._bytes = 0


class ParquetExport:
    """A file that was exported as Parquet. Raises InvalidInputError if it is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._arrow = require_pyarrow()
        columns = None
        self._metadata: dict[bytes, bytes] = {}
        try:
            footer = self._arrow.parquet.read_metadata(path)
            self._metadata = footer.metadata or {}
            columns = footer.schema.to_arrow_schema()
            check_types(footer)
        except (self._arrow.ArrowException, OSError, ValueError):  # also for a footer that says nothing legible
            columns = None
        self.header = Header.of(self._metadata.get(_HEADER, b""), path)
        self._subjects = Subjects(self.header.namespace)
        if columns is None or columns.remove_metadata() != _schema(self._arrow):
            raise InvalidInputError(f"{path} is damaged: its columns are not those of an export")

    def events(self) -> Iterator[Stored]:
        """The messages, in the order of the file.

        Raises DecodeError if it cannot be read further, or where the columns beside a message do not say what it says.
        """
        last = self.header.extent.first - 1
        try:
            with self._arrow.parquet.ParquetFile(self._path, page_checksum_verification=True) as file:
                for number in range(file.num_row_groups):
                    batch = file.read_row_group(number)
                    times = batch.column("time").cast("int64").to_pylist()
                    columns = [batch.column(name).to_pylist() for name in _STORED]
                    meanings = zip(*(batch.column(name).to_pylist() for name in _TEXTS), strict=True)
                    for parts, time, texts in zip(zip(*columns, strict=True), times, meanings, strict=True):
                        if time is None or None in parts:
                            raise self._damaged("a part of a message is missing", last + 1)
                        subject, revision, headers, payload = parts
                        name = subject.decode("utf-8", "surrogateescape")
                        stored = Stored(name, revision, time, headers, payload)
                        self._check(stored, texts)
                        yield stored
                        last = revision
                    if (wrong := misdescribed(batch, file.metadata.row_group(number))) is not None:
                        said = f"what its footer says of the column {wrong} of the rows up to revision {last} is not so"
                        raise self._damaged(said, last)
        except (self._arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._damaged(str(error), last + 1) from error

    def _check(self, stored: Stored, texts: tuple[str | None, ...]) -> None:
        for name, found, meant in zip(_TEXTS, texts, _texts_of(stored, self._subjects), strict=True):
            if found != meant:
                said = (
                    f"of revision {stored.sequence}, column {name} says {shown(found)}, and the message {shown(meant)}"
                )
                raise self._damaged(said, stored.sequence)

    def _damaged(self, what: str, revision: int) -> DecodeError:
        return DecodeError(f"{self._path} is damaged: {what}", subject=str(self._path), revision=revision)

    def seals(self) -> Iterator[SignedSeal]:
        """The seals, in their order."""
        for line in self._metadata.get(_SEALS, b"").splitlines():
            yield seal_of(line)
