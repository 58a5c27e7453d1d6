"""The directory in which one embedded server lives, and what is written there.

Owns: the names of the files, the record of the last start, and the claim that tells whether a server is alive. Must not
know: how a server is started, found or stopped.

Invariant: at most one server is alive on a store. Its life is not read from a process id, which may be another
process's by now, but from the claim: a lock on a file that the server's starter takes and the server inherits, so that
the kernel gives it back at the very moment the server is gone, however it went.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from agentfield.errors import InvalidInputError, UnavailableError
from agentfield.local.probe import LOOPBACK

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when there is no room: on the disk, in a quota, or under a file size limit."""

_LONGEST_LOOK = 1.0
"""A free claim can only be out of reach while other processes look at it, each for microseconds."""

REMEDY = "name another directory in AGENTFIELD_HOME"


@dataclass(frozen=True, slots=True)
class Record:
    """What the last start decided. Written before the server runs, so that a starter that dies leaves nothing unknown.

    ``name`` is the server's own, new at each start: a server that answers with it is that one and no other. ``pid`` is
    None until the process exists and after it was stopped.
    """

    name: str
    port: int
    monitor_port: int
    version: str
    started_at: datetime
    pid: int | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://{LOOPBACK}:{self.port}"

    @property
    def monitor_url(self) -> str:
        """Where the server tells about itself over HTTP."""
        return f"http://{LOOPBACK}:{self.monitor_port}"

    def to_json(self) -> str:
        """The text of the record's file; the URLs are there for people and scripts."""
        facts = dataclasses.asdict(self) | {"started_at": self.started_at.isoformat()}
        return json.dumps({"url": self.url, "monitor_url": self.monitor_url, **facts}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The record that a text holds. Raises ValueError if it holds none."""
        facts = json.loads(text)
        try:
            record = cls(
                name=str(facts["name"]),
                port=int(facts["port"]),
                monitor_port=int(facts["monitor_port"]),
                version=str(facts["version"]),
                started_at=datetime.fromisoformat(facts["started_at"]),
                pid=None if facts["pid"] is None else int(facts["pid"]),
            )
        except (LookupError, TypeError) as error:
            raise ValueError("not the record of a server's start") from error
        if not (0 < record.port < 65536 and 0 < record.monitor_port < 65536 and (record.pid is None or record.pid > 0)):
            raise ValueError("no such port or process can exist")
        return record


class Home:
    """The files of one embedded server. Making the object touches nothing.

    Whatever the operating system has against the directory comes out as one sentence: ``InvalidInputError`` if the path
    is no place for a directory, else ``UnavailableError``.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_absolute():
            raise InvalidInputError(
                f"{str(directory)!r} cannot be the server's home, because it is not an absolute path: {REMEDY}"
            )
        try:
            self.directory = directory.resolve()  # one home, one name, whichever link it was reached by
        except (OSError, RuntimeError, ValueError) as error:
            raise InvalidInputError(f"{str(directory)!r} cannot be the server's home ({error}): {REMEDY}") from error
        self.config = self.directory / "server.conf"
        self.log = self.directory / "server.log"
        self.store = self.directory / "jetstream"
        self.pid_file = self.directory / "server.pid"
        self.start_lock = self.directory / "start.lock"
        self._record = self.directory / "server.json"
        self._claim = self.directory / "alive.lock"

    def create(self) -> None:
        """Makes the directory if need be, for this user only."""
        with self.storage_errors():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.start_lock.touch(mode=0o600)  # tells what is wrong here; the lock's library would wait and try again

    def read_record(self) -> Record | None:
        """What the last start decided; None if there was none, or if its record is damaged."""
        text = self._read(self._record)
        try:
            return None if text is None else Record.from_json(text)
        except ValueError:
            return None

    def write_record(self, record: Record) -> None:
        """Replaces the record, all or nothing; only the holder of the start lock may."""
        self.write(self._record, record.to_json())

    def pid(self) -> int | None:
        """The process of the last start, as the starter or, if it died too soon, the server itself wrote it down."""
        record = self.read_record()
        if record is not None and record.pid is not None:
            return record.pid
        text = self._read(self.pid_file)
        return int(text) if text and text.isdecimal() else None

    def write(self, path: Path, text: str) -> None:
        """Replaces a file of the home, all or nothing."""
        new = path.with_name(path.name + ".new")
        with self.storage_errors():
            try:
                new.write_text(text, "utf-8")
                new.replace(path)
            except OSError:
                new.unlink(missing_ok=True)
                raise

    def is_claimed(self) -> bool:
        """Whether a server is alive on this home, whatever state it is in."""
        with self.storage_errors():
            try:
                descriptor = os.open(self._claim, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return False
            try:
                return not _lock(descriptor, fcntl.LOCK_SH)
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def claim(self) -> Iterator[int]:
        """Takes the claim for a server, which is to inherit the descriptor that is given and then has it for life.

        Raises UnavailableError if another server has it.
        """
        with self.storage_errors():
            descriptor = os.open(self._claim, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + _LONGEST_LOOK
            while not self._try_claim(descriptor):
                if time.monotonic() > deadline:
                    raise UnavailableError(f"another server is alive on {self.directory}")
                time.sleep(0.001)
            yield descriptor
        finally:
            os.close(descriptor)

    def _try_claim(self, descriptor: int) -> bool:
        with self.storage_errors():
            return _lock(descriptor, fcntl.LOCK_EX)

    def _read(self, path: Path) -> str | None:
        with self.storage_errors():
            try:
                return path.read_text("utf-8", errors="replace")
            except FileNotFoundError:
                return None

    @contextlib.contextmanager
    def storage_errors(self) -> Iterator[None]:
        """Turns an OSError of a block that works on the home's files into the one sentence."""
        try:
            yield
        except (NotADirectoryError, FileExistsError) as error:
            raise InvalidInputError(
                f"{self.directory} cannot be the server's home, because there is a file in its place: {REMEDY}"
            ) from error
        except OSError as error:
            if error.errno in _FULL:
                raise UnavailableError(
                    f"there is no room for the server's data in {self.directory} ({error.strerror}): free some, "
                    f"or {REMEDY}"
                ) from error
            raise UnavailableError(
                f"the server's data cannot be kept in {self.directory} ({error.strerror}): make it writable, "
                f"or {REMEDY}"
            ) from error


def _lock(descriptor: int, kind: int) -> bool:
    """Takes a lock without waiting; False if somebody has one that excludes it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
