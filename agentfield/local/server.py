"""What is running on a home, as the network and the claim show it.

Owns: the decision that an answer on a port comes from the home's own server. Must not know: how a server is started or
stopped. Invariant: a server is only ever returned after it answered with the name that its start recorded, so neither
another server on the recorded port nor a reused process id is taken for it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from agentfield.errors import IncompatibleServerError, UnavailableError
from agentfield.local.home import Home, Record
from agentfield.local.probe import LOOPBACK, Answer, Silence, ask, ask_health
from agentfield.server_version import MINIMUM_SERVER, is_supported

ANSWER_DEADLINE = 2.0
"""A healthy server greets within milliseconds; one that takes longer is paused or in distress."""

_PATIENT_AFTER = 0.25
"""A server that has not greeted by then is only waited for if it is alive: else something mute has taken its port."""

_POLL = 0.005


class TroubleError(UnavailableError):
    """A server that cannot be used as it is: ``fact`` says what is wrong, ``remedy`` what to do, the message both."""

    def __init__(self, fact: str, remedy: str) -> None:
        super().__init__(f"{fact}: {remedy}")
        self.fact = fact
        self.remedy = remedy


class StorageOffError(TroubleError):
    """It runs, but stores nothing and reads nothing until it is restarted: it does that to itself on a full disk."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running embedded server. ``started`` is True for the one caller that started it."""

    url: str
    pid: int
    version: str
    store_dir: Path
    log_path: Path
    started: bool
    name: str
    monitor_port: int
    started_at: datetime

    @property
    def monitor_url(self) -> str:
        """Where the server tells about itself over HTTP."""
        return f"http://{LOOPBACK}:{self.monitor_port}"

    def fault(self) -> str | None:
        """What the server finds wrong with itself, in its own words; None if all is well. Blocks for up to 2 s.

        A full disk shows here and nowhere else: the server goes on answering, but no write is acknowledged any more,
        and not before a restart with room on the disk.
        """
        try:
            return ask_health(self.monitor_port, within=ANSWER_DEADLINE)
        except OSError as error:
            return f"its monitoring endpoint {self.monitor_url} does not answer ({error})"


def look(home: Home) -> Server | None:
    """The home's server if it serves clients; None if it does not, because it is gone or is only starting.

    Raises:
        UnavailableError: it is alive, but stuck or without JetStream.
        IncompatibleServerError: it runs, but is too old.
    """
    record, pid = home.read_record(), home.pid()
    if record is None or pid is None:
        return None
    for within in (_PATIENT_AFTER, ANSWER_DEADLINE - _PATIENT_AFTER):
        answer = ask(record.port, within=within)
        if answer is not Silence.MUTE or not home.is_claimed():
            break
    else:
        raise _stuck(home, record, pid)
    if isinstance(answer, Silence) or answer.name != record.name:
        return None
    _check(answer, home, record)
    return Server(
        url=record.url,
        pid=pid,
        version=answer.version,
        store_dir=home.store,
        log_path=home.log,
        started=False,
        name=record.name,
        monitor_port=record.monitor_port,
        started_at=record.started_at,
    )


def wait(home: Home, *, within: float) -> Server | None:
    """The home's server as soon as it serves clients; None as soon as it is known that there is none.

    Raises:
        UnavailableError: it is alive, but does not serve within so many seconds.
        IncompatibleServerError: it runs, but is too old.
    """
    deadline = time.monotonic() + within
    while True:
        alive = home.is_claimed()  # asked first: a server that comes up in between is then found by the look
        server = look(home)
        if server is not None or not alive:
            return server
        if time.monotonic() > deadline:
            raise _not_ready(home, within)
        time.sleep(_POLL)


def _check(answer: Answer, home: Home, record: Record) -> None:
    if not is_supported(answer.version):
        raise IncompatibleServerError(found=answer.version, needed=MINIMUM_SERVER, server=record.url)
    if not answer.jetstream:
        raise StorageOffError(
            f"the server at {record.url} has switched its storage (JetStream) off, as it does when its disk is full; "
            f"its log {home.log} says why",
            "make room, or mend what the log names, then `agentfield up` restarts it",
        )


def _stuck(home: Home, record: Record, pid: int) -> UnavailableError:
    return UnavailableError(
        f"the server of {home.directory} (process {pid}) is running, but does not answer at {record.url} within "
        f"{ANSWER_DEADLINE:g} s: if it was paused, `kill -CONT {pid}` resumes it; `agentfield down` stops it"
    )


def _not_ready(home: Home, within: float) -> UnavailableError:
    pid = home.pid()
    process = "its process is not known" if pid is None else f"process {pid}"
    return UnavailableError(
        f"a server is alive on {home.directory} ({process}), but does not serve clients within {within:g} s: it may be "
        f"restoring a large store, so try again; its log is {home.log}; `agentfield down` stops it"
    )
