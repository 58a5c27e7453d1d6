"""A directory of archive files: what is in it, and adding to it.

Owns: names and places of files, and what makes several of them one archive. A file lies in ``day=YYYY-MM-DD`` by the
server's time and is named by the first revision it covers; its footer says of which log it is, where the archive
begins, and up to where the file goes.
The last file of an archive grows by being replaced as a whole; when it is large, or the day is over, the next one is
begun. So files do not pile up, and never do two hold the same message. Where the server's clock steps back, a later
file lies under an earlier day: the order is that of revisions. Must not know: what is in a message.

Invariants: a file under its own name is whole and on the disk; how far the archive goes is what its files say, so
there is nothing that could disagree with them.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson
from filelock import FileLock, Timeout

from agentfield.archive.columns import Rows, day_text, pyarrow, schema
from agentfield.archive.footers import check_types
from agentfield.errors import DecodeError, InvalidInputError

_VERSION: Final = 1
_FOOTER: Final = b"agentfield.archive"
_DAY: Final = re.compile(r"day=\d{4}-\d{2}-\d{2}")
_FILE: Final = re.compile(r"(\d{12,})\.parquet")
_DRAFT: Final = ".draft-"
_PAUSED: Final = ".paused"
_NOTED: Final = ".stopped"
_IDENTITY: Final = ".store"
_LOCK: Final = ".lock"
_LOCKED: Final = 30.0
"""Seconds that a writer waits for another one."""
MOST_ROWS: Final = 100_000
MOST_BYTES: Final = 64 * 1024 * 1024
"""Rows, and bytes of headers and payloads, after which a file is not added to."""
_GROUP: Final = 25_000
"""Rows that are compressed, and read, together."""


class LogId(NamedTuple):
    """What tells a log from any other."""

    namespace: str
    stream: str
    created: int
    """When the server made the stream: nanoseconds since the epoch."""

    def __str__(self) -> str:
        return f"{self.stream}, made {_time(self.created)}"


class Moved(Exception):
    """The archive is not where its writer believed it was, or is paused. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One file: a consecutive stretch of the log, of one day."""

    path: Path
    log: LogId
    first: int
    last: int
    """Everything that the log held from the first to the last of these is in it."""
    begins: int
    """The first revision of the archive that the file was written for."""
    metadata: Any
    """The file's footer, as pyarrow has it."""

    @property
    def rows(self) -> int:
        """How many messages it holds."""
        return int(self.metadata.num_rows)

    @property
    def day(self) -> str:
        """The day of its messages, such as ``2026-11-22``."""
        return self.path.parent.name.removeprefix("day=")

    def groups(self, start: int, stop: int) -> Iterator[int]:
        """The numbers of the groups of rows that may hold messages from ``start`` to ``stop``."""
        for number in range(self.metadata.num_row_groups):
            found = self.metadata.row_group(number).column(0).statistics
            if found.max >= start and found.min <= stop:
                yield number


class Directory:
    """An archive's directory. Its methods block: call them from a thread. What is read of footers is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[Path, tuple[tuple[int, int, int], Segment]] = {}

    def segments(self) -> list[Segment]:
        """The files in the order of the log.

        Raises InvalidInputError, by name, for what is no archive of one log without a gap, and DecodeError for a file
        that is damaged.
        """
        while True:
            try:
                found = sorted(self._found(), key=lambda each: each.first)
                break
            except FileNotFoundError:
                continue  # one was replaced in between
        begins = min((each.begins for each in found), default=0)
        if found and begins < found[0].first:
            raise _incomplete(
                self.path, f"revisions {begins} to {found[0].first - 1} are missing, before {found[0].path}"
            )
        for one, other in pairwise(found):
            if one.log != other.log:
                raise InvalidInputError(
                    f"{self.path} holds archives of two logs: {one.path.name} is of {one.log}, "
                    f"{other.path.name} of {other.log}; keep each in a directory of its own"
                )
            if other.first != one.last + 1:
                what = f"revisions {one.last + 1} to {other.first - 1} are missing" if other.first > one.last else "two"
                what = what if what != "two" else f"{one.path.name} and {other.path.name} overlap"
                raise _incomplete(self.path, f"{what}, between {one.path} and {other.path}")
        return found

    def strangers(self) -> list[Path]:
        """The files that a query over the whole directory would take for the archive's, and that are none of it."""
        ours = {segment.path for segment in self.segments()}
        found = self.path.glob("**/*.parquet")
        return sorted(path for path in found if path not in ours and not path.name.startswith(_DRAFT) and path.exists())

    def _found(self) -> Iterator[Segment]:
        kept: dict[Path, tuple[tuple[int, int, int], Segment]] = {}
        try:
            days = [path for path in self.path.iterdir() if _DAY.fullmatch(path.name)]
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unreadable(self.path, error) from None
        for day in days:
            for path in day.iterdir():
                if _FILE.fullmatch(path.name) is None:
                    continue
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise damaged(path, "it is no file")
                state = status.st_ino, status.st_size, status.st_mtime_ns
                known = self._known.get(path)
                kept[path] = known if known is not None and known[0] == state else (state, _segment(path))
                yield kept[path][1]
        self._known = kept

    # -- writing ------------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep every other writer out. Raises OSError, and Moved if another one does not let go."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / _LOCK, timeout=_LOCKED):
                yield
        except Timeout:
            raise Moved(f"another process writes to {self.path}") from None

    def add(self, log: LogId, expected: int, days: Sequence[tuple[int, Rows]], *, begin: int) -> int:
        """Add messages, those of each day in their order, if the archive goes up to ``expected``; return where it goes.

        ``begin`` is the first revision that is covered, where there was nothing before. Each file is on the disk when
        it has its name. Raises :class:`Moved`, OSError, and as :meth:`segments`; then everything up to where the
        archive goes is in it, and nothing twice.
        """
        with self.writing():
            segments = self.segments()
            last = segments[-1].last if segments else 0
            if last != expected or self.paused:
                raise Moved(f"the archive {self.path} goes up to {last}, not {expected}, or is paused")
            self._sweep()
            for day, rows in days:
                tail = segments[-1] if segments else None
                table = rows.table()
                first = tail.last + 1 if tail else begin
                if tail is not None and tail.path.parent.name == _folder(day) and _has_room(tail, rows):
                    before = pyarrow().parquet.read_table(tail.path, schema=table.schema, partitioning=None)
                    table = pyarrow().concat_tables([before, table]).unify_dictionaries()
                    first = tail.first
                    segments.pop()
                begins = segments[0].begins if segments else tail.begins if tail else begin
                segments.append(self._write(log, day, first, rows.last, table, begins=begins))
            return segments[-1].last if segments else expected

    def _write(self, log: LogId, day: int, first: int, last: int, table: Any, *, begins: int) -> Segment:
        folder = self.path / _folder(day)
        if not folder.is_dir():
            folder.mkdir()
            _to_disk(self.path)
        path = folder / f"{first:012d}.parquet"
        footer = {"v": _VERSION, **log._asdict(), "day": day, "begins": begins, "first": first, "last": last}
        draft = folder / f"{_DRAFT}{os.getpid()}-{path.stem}"  # no name that whoever reads *.parquet takes for a file
        try:
            pyarrow().parquet.write_table(
                table.replace_schema_metadata({_FOOTER: orjson.dumps(footer)}),
                draft,
                compression="zstd",
                compression_level=3,
                row_group_size=_GROUP,
                use_dictionary=[name for name in table.column_names if name not in _PLAIN],
                column_encoding={"revision": "DELTA_BINARY_PACKED", "time": "DELTA_BINARY_PACKED"},
                write_page_checksum=True,
            )
            _to_disk(draft)
            draft.replace(path)
            _to_disk(folder)
        finally:
            draft.unlink(missing_ok=True)
        return _segment(path)

    def _sweep(self) -> None:
        """Take away what a writer that died has left."""
        for draft in self.path.glob(f"day=*/{_DRAFT}*"):
            draft.unlink(missing_ok=True)

    # -- beside the files ---------------------------------------------------------------------------------------------

    def identity(self) -> str:
        """What the directory is called for ever. Makes it, if it is not there. Raises InvalidInputError."""
        path = self.path / _IDENTITY
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                draft = path.with_name(f"{_DRAFT}{os.getpid()}-{secrets.token_hex(4)}")
                draft.write_text(f"{secrets.token_hex(6)}\n")
                with suppress(FileExistsError):
                    os.link(draft, path)
                draft.unlink()
            return path.read_text().strip()
        except OSError as error:
            raise _unreadable(self.path, error) from None

    def noted(self) -> dict[str, Any]:
        """What was noted of why it is not added to; empty if there is nothing."""
        try:
            fields: dict[str, Any] = orjson.loads((self.path / _NOTED).read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            return {}
        return fields

    def note(self, fields: Mapping[str, Any]) -> None:
        """Note that, or that there is nothing."""
        if fields:
            (self.path / _NOTED).write_bytes(orjson.dumps(dict(fields)))
        else:
            (self.path / _NOTED).unlink(missing_ok=True)

    @property
    def paused(self) -> bool:
        """Whether nobody may add to it."""
        return (self.path / _PAUSED).exists()

    def pause(self, paused: bool) -> None:
        """Let nobody add to it, or let it go on."""
        if paused:
            (self.path / _PAUSED).touch()
        else:
            (self.path / _PAUSED).unlink(missing_ok=True)


_PLAIN: Final = frozenset({"revision", "time", "id", "headers", "payload"})


def _has_room(tail: Segment, rows: Rows) -> bool:
    size = sum(tail.metadata.row_group(at).total_byte_size for at in range(tail.metadata.num_row_groups))
    return tail.rows + len(rows) <= MOST_ROWS and size + rows.bytes <= MOST_BYTES


def _folder(day: int) -> str:
    return f"day={day_text(day)}"


def _segment(path: Path) -> Segment:
    arrow = pyarrow()
    try:
        metadata = arrow.parquet.read_metadata(path)
        fields = orjson.loads((metadata.metadata or {})[_FOOTER])
        if fields["v"] != _VERSION:
            raise InvalidInputError(f"{path} is of version {fields['v']}, which this agentfield cannot read: upgrade")
        log = LogId(fields["namespace"], fields["stream"], fields["created"])
        first = int(fields["first"])
        segment = Segment(path, log, first, fields["last"], fields.get("begins", first), metadata)
        _check(segment)
        _check_place(segment, fields.get("day"))
        return segment
    except FileNotFoundError:
        raise
    except InvalidInputError:
        raise
    except KeyError:
        raise InvalidInputError(f"{path} is no file of an archive: keep other files elsewhere") from None
    except (arrow.ArrowException, AttributeError, OSError, OverflowError, TypeError, ValueError) as error:
        raise damaged(path, error) from error


def _check(segment: Segment) -> None:
    """Raises ValueError if a footer contradicts itself: nothing in the file proves that it is what was written."""
    metadata = segment.metadata
    if not metadata.schema.to_arrow_schema().equals(schema()):
        raise ValueError("its columns are not those of an archive")
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if sum(groups) != segment.rows or min(groups, default=0) < 1:
        raise ValueError("the number of its rows is not that of its parts")
    whole = segment.rows == segment.last - segment.first + 1
    before = segment.first - 1
    check_types(metadata)
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        found = group.column(0).statistics
        if not before < found.min <= found.max <= segment.last:
            raise ValueError(f"its rows do not follow one another after revision {before}")
        if whole and (found.min, found.max) != (before + 1, before + group.num_rows):
            raise ValueError(f"the number of its rows is not right after revision {before}")
        before = found.max


def _check_place(segment: Segment, day: int | None) -> None:
    """Raises InvalidInputError for a file that has changed its name or day.

    Who adds goes by names, and who asks by days, so that it would be replaced by another one, or not be found.
    """
    folder = segment.path.parent
    place = folder.parent / (folder.name if day is None else _folder(day)) / f"{segment.first:012d}.parquet"
    if segment.path != place:
        raise InvalidInputError(
            f"{segment.path} is out of place: it holds revisions {segment.first} to {segment.last}, and belongs to "
            f"{place}; move it back there"
        )


def _incomplete(path: Path, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"the archive {path} is not whole: {what}; put back what was taken away, or begin another archive in another "
        "directory"
    )


def damaged(path: Path, error: Exception | str, revision: int = 0) -> DecodeError:
    """What is raised for a file that cannot be read."""
    return DecodeError(f"{path} is damaged: {error}", subject=str(path), revision=revision)


def _unreadable(path: Path, error: OSError) -> InvalidInputError:
    return InvalidInputError(f"the archive {path} cannot be read: {error.strerror or error}")


def _to_disk(path: Path) -> None:
    """Have a file, or the names in a directory, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        with suppress(OSError):
            os.close(descriptor)


def _time(nanoseconds: int) -> str:
    return f"{day_text(nanoseconds // (86_400 * 10**9))} ({nanoseconds})"
