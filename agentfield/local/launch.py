"""Starting one server process on a home that has none.

Owns: the process from its birth until it answers, and the reasons for which it may not. Must not know: who else may be
starting one; the caller holds the home's start lock. Invariant: when it fails, either no process is left, or the one
that is left holds the home's claim and answers to the record, so that the next caller finds it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from agentfield.errors import UnavailableError
from agentfield.local.binary import Binary
from agentfield.local.config import CLIENT_PORT, MONITOR_PORT, configuration, ports
from agentfield.local.home import REMEDY, Home, Record
from agentfield.local.server import Server, look

START_DEADLINE = 10.0
"""An empty store takes 20 ms, a log of a million events a few seconds."""

_LEAST_ROOM = 1024 * 1024
"""Below this a server comes up, but cannot even create its streams."""

_POLL = 0.002
_PORT_TAKEN = "address already in use"
_LOG_LINE = re.compile(r"^\[\d+\] \S+ \S+ \[(?P<level>[A-Z]{3})\] (?P<text>.*)$")
_SHOWN_LINES = 3


def launch(home: Home, binary: Binary, *, choices: Iterable[tuple[int, int]] | None = None) -> Server:
    """Starts the server and returns it when it answers.

    ``choices`` are pairs of a client and a monitoring port to try in turn; by default the ones of the last start come
    first, so that agents that are running find their server again.

    Raises:
        UnavailableError: it did not come up; nothing is left behind, unless it still is at it after 10 s.
    """
    check_room(home)
    earlier = home.read_record()
    if choices is None:
        choices = zip(
            ports(CLIENT_PORT, earlier.port if earlier else None),
            ports(MONITOR_PORT, earlier.monitor_port if earlier else None),
            strict=False,
        )
    deadline = time.monotonic() + START_DEADLINE
    for port, monitor_port in choices:
        record = Record(
            name=f"agentfield-{secrets.token_hex(8)}",
            port=port,
            monitor_port=monitor_port,
            version=binary.version,
            started_at=datetime.now(UTC),
        )
        server = _try(home, binary, record, deadline)
        if server is not None:
            return server
        if time.monotonic() > deadline:
            break
    raise UnavailableError(f"the server of {home.directory} found no free port on this machine: stop what holds them")


def _try(home: Home, binary: Binary, record: Record, deadline: float) -> Server | None:
    """One process on these ports; None if somebody else got one of them first."""
    home.write_record(record)
    home.write(home.config, configuration(home, record))
    with home.storage_errors():
        home.pid_file.unlink(missing_ok=True)
    log_start = _size(home.log)
    process = _spawn(home, binary)
    home.write_record(replace(record, pid=process.pid))
    while process.poll() is None:
        server = look(home)
        if server is not None:
            return replace(server, started=True)
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"the server of {home.directory} (process {process.pid}) is not ready after {START_DEADLINE:g} s and "
                f"goes on trying; its log {home.log} ends: {_end(_log_since(home.log, log_start))}"
            )
        time.sleep(_POLL)
    said = _log_since(home.log, log_start)
    if any(_PORT_TAKEN in line for line in said):
        return None
    raise UnavailableError(
        f"the server of {home.directory} ended while starting ({_ending(process.returncode)}): "
        f"{_complaint(said) or 'it left no word; the disk may be full or its log unwritable'} (its log is {home.log})"
    )


def _spawn(home: Home, binary: Binary) -> subprocess.Popen[bytes]:
    """A process that nothing ties to this one: it has a session, a directory and files of its own.

    It inherits the claim. A thread waits for its end, so that no dead process is left when it ends before this one.
    """
    with home.claim() as claim, _appending(home) as log:
        try:
            process = subprocess.Popen(
                [binary.path, "-c", home.config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=home.directory,
                pass_fds=[claim],
                start_new_session=True,
                umask=0o077,
            )
        except OSError as error:
            raise UnavailableError(f"{binary.path} cannot be run ({error.strerror}): reinstall it") from error
    threading.Thread(target=process.wait, name="agentfield-server-end", daemon=True).start()
    return process


def check_room(home: Home) -> None:
    """Raises :class:`UnavailableError` if the disk is too full for a server."""
    with home.storage_errors():
        free = shutil.disk_usage(home.directory).free
    if free < _LEAST_ROOM:
        raise UnavailableError(
            f"there is no room for the server's data in {home.directory} ({free // 1024} KB are free): free some, "
            f"or {REMEDY}"
        )


@contextlib.contextmanager
def _appending(home: Home) -> Iterator[int]:
    """The log, for what the server says before it opens it itself, and for its last words if it crashes."""
    with home.storage_errors():
        descriptor = os.open(home.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _log_since(path: Path, start: int) -> list[str]:
    """The lines since that byte; all of them if the server has begun a new file meanwhile."""
    try:
        with path.open("rb") as log:
            log.seek(start if start <= _size(path) else 0)
            return log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def _complaint(lines: list[str]) -> str:
    """Why the server ended: its fatal error, else its last error, else the first thing it said that is no log line."""
    parsed = [_LOG_LINE.match(line) for line in lines]
    for level in ("FTL", "ERR"):
        found = [line["text"] for line in parsed if line is not None and line["level"] == level]
        if found:
            return found[-1]
    return next((line for line, match in zip(lines, parsed, strict=True) if match is None and line.strip()), "")


def _end(lines: list[str]) -> str:
    return " | ".join(line for line in lines[-_SHOWN_LINES:] if line.strip()) or "(empty)"


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
