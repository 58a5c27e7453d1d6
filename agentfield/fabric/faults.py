"""What can go wrong on the wire, and what each thing means to a user: one table.

Owns: the internal faults that modules of ``fabric/`` raise to each other, and the table from the server's JetStream
error codes to a :class:`Verdict`. Must not know: keys, values, agents. Invariant: nothing that is raised out of
``fabric/`` towards users is a fault of this module or an exception of nats-py; callers turn a fault into an error of
:mod:`agentfield.errors` with :func:`error_of`, or retry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

from agentfield.errors import (
    AccessDeniedError,
    AgentFieldError,
    IncompatibleServerError,
    InvalidInputError,
    UnavailableError,
)

NO_MESSAGE = 10037
"""The server's error code for a message that is not there."""


class Fault(Exception):
    """Something went wrong below the public surface; never reaches a user."""


class NoRespondersFault(Fault):
    """Nobody listens on the subject (no such service or stream, or JetStream is starting); nothing was done."""


class NoAnswerFault(Fault):
    """The request was sent and no answer came in time: whether it was carried out is unknown."""


class ConnectionLostFault(NoAnswerFault):
    """The connection broke while an answer was awaited: whether the request was carried out is unknown."""


class Verdict(Enum):
    """What a server error means for the one who asked."""

    CONFLICT = "an expectation did not hold; nothing was stored"
    COMMITTED = "this very event was stored by an earlier try"
    RETRY = "not now; nothing was stored; ask again"
    UNAVAILABLE = "the server cannot do it at present; nothing was stored"
    DENIED = "the stream's own rules or permissions forbid it"
    INVALID = "the request can never succeed"
    ABSENT = "there is no such stream, consumer or message"
    EXISTS = "something of that name exists with another configuration"
    NO_PEERS = "the cluster has not enough servers for that many replicas"
    INCOMPATIBLE = "this server lacks what is needed"


VERDICTS: Mapping[int, Verdict] = MappingProxyType(
    {
        10071: Verdict.CONFLICT,  # wrong last sequence
        10164: Verdict.CONFLICT,  # the same, while another write of the subject is in flight (replicated streams)
        10201: Verdict.COMMITTED,  # a batch holds a message id that is in the duplicate window
        10158: Verdict.RETRY,  # this message id is being processed right now
        10210: Verdict.RETRY,  # too many batches in flight
        10008: Verdict.RETRY,  # JetStream temporarily unavailable (no meta leader)
        10009: Verdict.RETRY,  # not the leader
        10007: Verdict.RETRY,  # not yet assigned
        10176: Verdict.RETRY,  # a batch of which a part was lost on the way: none of it is stored
        10195: Verdict.RETRY,  # too many requests in flight
        10002: Verdict.UNAVAILABLE,  # account resources exceeded
        10023: Verdict.UNAVAILABLE,  # insufficient resources
        10028: Verdict.UNAVAILABLE,  # memory exceeded
        10047: Verdict.UNAVAILABLE,  # storage exceeded
        10077: Verdict.UNAVAILABLE,  # the store refused (full, or failing)
        10057: Verdict.DENIED,  # message delete on an immutable stream
        10110: Verdict.DENIED,  # purge on an immutable stream
        10111: Verdict.DENIED,  # roll-up on an immutable stream
        10166: Verdict.DENIED,  # per-message TTL on an immutable stream
        10054: Verdict.INVALID,  # message larger than the stream allows
        10097: Verdict.INVALID,  # header block too large
        10199: Verdict.INVALID,  # batch of more than 1,000 messages
        10014: Verdict.ABSENT,  # consumer
        NO_MESSAGE: Verdict.ABSENT,
        10059: Verdict.ABSENT,  # stream
        10058: Verdict.EXISTS,  # stream
        10148: Verdict.EXISTS,  # consumer
        10005: Verdict.NO_PEERS,
        10074: Verdict.NO_PEERS,  # more than one replica on a server without a cluster
        10039: Verdict.INCOMPATIBLE,  # JetStream not enabled for the account
        10076: Verdict.INCOMPATIBLE,  # JetStream not enabled
    }
)

_SEQUENCE = re.compile(r"wrong last sequence: (\d+)")


@dataclass(eq=False)
class ServerFault(Fault):
    """The server answered with an error of its JetStream API."""

    code: int
    err_code: int
    description: str

    def __post_init__(self) -> None:
        super().__init__(f"{self.description} ({self.err_code or self.code})")

    @classmethod
    def of(cls, error: Mapping[str, Any]) -> ServerFault:
        """Build the fault from the ``error`` object of an API answer or a publish acknowledgement."""
        return cls(int(error.get("code", 500)), int(error.get("err_code", 0)), str(error.get("description", "")))

    @property
    def verdict(self) -> Verdict:
        """What the error means, by the table, or by its class of code if the table does not know it."""
        known = VERDICTS.get(self.err_code)
        if known is not None:
            return known
        if self.code == 404:
            return Verdict.ABSENT
        return Verdict.RETRY if self.code == 503 else Verdict.UNAVAILABLE

    @property
    def in_flight(self) -> bool:
        """Whether another write of the subject, not yet decided, stands in the way; maybe an earlier try of ours."""
        return self.err_code == 10164

    @property
    def actual_sequence(self) -> int | None:
        """The subject's last sequence as a conflict names it, or None when the answer does not say."""
        found = _SEQUENCE.search(self.description)
        return int(found.group(1)) if found else None


def error_of(fault: Fault | UnavailableError, doing: str) -> AgentFieldError:
    """Translate a fault that retrying did not mend, or the lack of a connection, into what a user sees.

    ``doing`` names the attempted work ("reading 3 keys"). Use it only where nothing was stored, or nothing was to be
    stored: an unknown outcome of a write is for the writer to report, with its event id.
    """
    if isinstance(fault, ServerFault):
        detail = f"{doing}: the server says “{fault.description}” (error {fault.err_code or fault.code})"
        if fault.verdict is Verdict.DENIED:
            return AccessDeniedError(detail)
        if fault.verdict is Verdict.INVALID:
            return InvalidInputError(detail)
        if fault.verdict is Verdict.INCOMPATIBLE:
            return IncompatibleServerError(
                found=fault.description,
                needed="JetStream",
                message=f"{detail}: agentfield stores everything in JetStream; enable it in the server's "
                "configuration, for the account of these credentials, or use other credentials",
            )
        return UnavailableError(detail)
    if isinstance(fault, UnavailableError):
        return UnavailableError(f"{doing}: {fault}")
    if isinstance(fault, NoRespondersFault):
        return UnavailableError(
            f"{doing}: nobody answers there: the server's storage (JetStream) is off, as after a full disk, or has not "
            "finished starting; `agentfield doctor` says what to do"
        )
    return UnavailableError(f"{doing}: no answer from the server in time")
