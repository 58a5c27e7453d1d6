"""The embedded server's life, whoever asks for it: made sure of, found, stopped. Blocking; the package wraps it.

Owns: the order of the steps and the start lock, which keeps starts and stops of one home apart across all processes.
Must not know: files' contents, the protocol, the server's options.

Invariant: a start happens only under the start lock and only while no server is alive on the home. The lock is the
kernel's, so it is free again as soon as its holder is gone, even by ``kill -9``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from agentfield.errors import UnavailableError
from agentfield.local.binary import find_binary
from agentfield.local.home import Home
from agentfield.local.launch import START_DEADLINE, check_room, launch
from agentfield.local.server import ANSWER_DEADLINE, Server, StorageOffError, look, wait

LOCK_DEADLINE = 15.0
"""Longer than one start or stop may take, so that who waits for another's gets its outcome."""

STOP_DEADLINE = 10.0
"""A server closes its files in milliseconds; one that takes longer is killed, which loses no acknowledged write."""

_KILL_DEADLINE = 5.0
_POLL = 0.005


def ensure(directory: Path, *, choices: Iterable[tuple[int, int]] | None = None) -> Server:
    """The server of that home, started if there is none. Any number of processes may ask at once.

    One that has switched its storage off is of no use to anybody: it is restarted, once there is room on the disk.
    ``choices`` are pairs of a client and a monitoring port for one that has to be started; see ``launch``.
    """
    home = Home(directory)
    try:
        server = look(home)
    except StorageOffError:
        check_room(home)
        server = None
    if server is not None:
        return server
    home.create()
    with _start_lock(home):
        # Somebody else may have started it by now, or may have died while starting it.
        try:
            server = wait(home, within=START_DEADLINE)
        except StorageOffError:
            _end(home, STOP_DEADLINE)
        return server if server is not None else launch(home, find_binary(), choices=choices)


def find(directory: Path) -> Server | None:
    """The server of that home, or None if none is alive. Changes nothing."""
    return wait(Home(directory), within=ANSWER_DEADLINE)


def recorded(directory: Path) -> tuple[str, str] | None:
    """The URL and the name that the last start on that home decided; None if there was none."""
    record = Home(directory).read_record()
    return None if record is None else (record.url, record.name)


def stop(directory: Path, *, patience: float = STOP_DEADLINE) -> bool:
    """Stops the server of that home, whatever state it is in; False if none was alive.

    After ``patience`` seconds it is killed.
    """
    home = Home(directory)
    if not home.is_claimed():
        return False
    with _start_lock(home):
        if not home.is_claimed():
            return False
        _end(home, patience)
        return True


def _end(home: Home, patience: float) -> None:
    """Ends the process that is alive on the home; under the start lock."""
    pid = _pid_of_server(home)
    for request, within in ((signal.SIGTERM, patience), (signal.SIGKILL, _KILL_DEADLINE)):
        _send(home, pid, request)
        _send(home, pid, signal.SIGCONT)  # a paused process takes no notice of a signal before this
        if _is_gone(home, within):
            break
    else:
        raise UnavailableError(
            f"the server of {home.directory} (process {pid}) does not even end when killed: its disk may hang"
        )
    _forget_process(home)


@contextlib.contextmanager
def _start_lock(home: Home) -> Iterator[None]:
    from filelock import FileLock, Timeout  # slow to import, and not needed to find a server that runs

    lock = FileLock(home.start_lock)
    with home.storage_errors():
        try:
            lock.acquire(timeout=LOCK_DEADLINE, poll_interval=_POLL)
        except Timeout:  # an OSError too, but none of the home's
            raise UnavailableError(
                f"another process has been starting or stopping the server of {home.directory} for more than "
                f"{LOCK_DEADLINE:g} s: end it if it hangs; it holds {home.start_lock}"
            ) from None
    try:
        yield
    finally:
        lock.release()


def _pid_of_server(home: Home) -> int:
    """The process that is alive on the home, known to be its server and nothing else."""
    deadline = time.monotonic() + ANSWER_DEADLINE
    while (pid := home.pid()) is None and time.monotonic() < deadline:
        time.sleep(_POLL)  # its starter died just now, and it has not written its process id yet
    if pid is None:
        raise UnavailableError(
            f"a server is alive on {home.directory}, but its process id is not recorded there any more: "
            f"find the nats-server process that runs with {home.config}, and end it"
        )
    if not _runs_with(pid, os.fsencode(home.config)):
        raise UnavailableError(
            f"a server is alive on {home.directory}, but process {pid} is not it, so it was left alone: the server may "
            f"run in another container; stop it there"
        )
    return pid


def _runs_with(pid: int, argument: bytes) -> bool:
    """Whether the last argument of that process is this one."""
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().removesuffix(b"\0").split(b"\0")[-1] == argument
        except OSError:
            return False
    command = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, check=False).stdout
    return command.rstrip(b"\n").endswith(b" " + argument)


def _send(home: Home, pid: int, request: signal.Signals) -> None:
    try:
        os.kill(pid, request)
    except ProcessLookupError:
        return  # it ended in this moment, as it was to
    except PermissionError:
        raise UnavailableError(
            f"the server of {home.directory} (process {pid}) belongs to another user, who alone can stop it"
        ) from None


def _is_gone(home: Home, within: float) -> bool:
    deadline = time.monotonic() + within
    while home.is_claimed():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True


def _forget_process(home: Home) -> None:
    """Keeps the record for its ports, which the next start takes again, without a process id that may be reused."""
    record = home.read_record()
    if record is not None:
        home.write_record(replace(record, pid=None))
    with home.storage_errors():
        home.pid_file.unlink(missing_ok=True)
