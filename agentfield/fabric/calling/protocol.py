"""The words of a call between agents: subjects, headers, limits, and how a failure travels.

A call is a NATS request on ``<namespace>.call.<agent>.<reasoner>``: its payload is the JSON object of arguments, its
reply the JSON result, so any NATS client can make one. A caller of ours adds the ``Agentfield-Call`` header and gets
more: a ``working`` message at once and one a second while the reasoner runs, a final message that is repeated until it
is acknowledged, and the right to stop the call on ``<namespace>.cancel.<agent>``. Failures carry the error headers of
the NATS micro protocol (ADR-32) and, as payload, the facts. Pure: no socket, no clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from agentfield.errors import AgentFieldError, AgentUnavailableError, InvalidInputError, RemoteError

CALL_HEADER = "Agentfield-Call"
"""On a request: the seconds the caller will wait. Its presence says that the caller understands heartbeats."""
STATUS_HEADER = "Agentfield-Status"
SEEN_HEADER = "Agentfield-Seen"
"""On an outcome: how far the callee has seen the log, which its caller's reads must not fall behind from then on."""
WORKING, DONE, FAILED = "working", "done", "failed"
ERROR_HEADER, ERROR_CODE_HEADER = "Nats-Service-Error", "Nats-Service-Error-Code"

HEARTBEAT = 1.0
"""Seconds between a callee's signs of life."""
SILENCE = 10.0
"""Seconds without a sign of life after which a callee counts as dead: ten missed heartbeats, which no scheduling hiccup
and no reconnection after a server's restart (0.25 s apart) uses up."""

_MESSAGE_LIMIT = 16_384
"""Characters of an exception's message that travel; a failure must never be too large to be reported."""
_HEADER_TEXT_LIMIT = 300
_HEADERS_OVERHEAD = 16  # "NATS/1.0\r\n" and the closing "\r\n", rounded up

INVALID_ARGUMENTS, RAISED, BUSY, STOPPED = "invalid-arguments", "raised", "busy", "stopped"
_CODES: Mapping[str, str] = {INVALID_ARGUMENTS: "400", RAISED: "500", BUSY: "429", STOPPED: "503"}
"""Each kind of failure and the code that NATS tools show for it."""


def call_subject(namespace: str, agent: str, reasoner: str) -> str:
    """Where a reasoner takes its calls."""
    return f"{namespace}.call.{agent}.{reasoner}"


def instance_subject(namespace: str, agent: str, reasoner: str, instance: str) -> str:
    """Where one instance alone takes calls of a reasoner; with ``*`` for it, of every one it has."""
    return f"{call_subject(namespace, agent, reasoner)}.{instance}"


def cancel_subject(namespace: str, agent: str) -> str:
    """Where every instance of an agent hears which executions their callers have given up."""
    return f"{namespace}.cancel.{agent}"


def message_size(payload: bytes, headers: Mapping[str, str]) -> int:
    """What a message counts against the server's ``max_payload``: headers and payload."""
    return (
        len(payload) + _HEADERS_OVERHEAD + sum(len(name) + len(value.encode()) + 4 for name, value in headers.items())
    )


class ArgumentsRefused(Exception):
    """The arguments do not fit the reasoner; it did not run. The text is meant for the caller."""


class Failure(NamedTuple):
    """Why a call has no result, as it travels from callee to caller."""

    kind: str
    message: str
    type_name: str = ""

    def headers(self) -> dict[str, str]:
        """The headers of the reply; NATS tools show the first two."""
        text = f"{self.type_name}: {self.message}" if self.type_name else self.message
        line = " ".join("".join(each if each.isprintable() else " " for each in text[:_HEADER_TEXT_LIMIT]).split())
        return {
            ERROR_HEADER: line.encode("ascii", "backslashreplace").decode() or self.kind,
            ERROR_CODE_HEADER: _CODES[self.kind],
            STATUS_HEADER: FAILED,
        }

    def payload(self) -> bytes:
        """The facts as JSON."""
        message = self.message
        if len(message) > _MESSAGE_LIMIT:
            message = f"{message[:_MESSAGE_LIMIT]}… ({len(message):,} characters in all)"
        return json.dumps({"kind": self.kind, "type": self.type_name, "message": message}).encode()

    @classmethod
    def of(cls, headers: Mapping[str, str], payload: bytes) -> Failure:
        """Read a failed reply; one that is not ours (some other service's) still gives its error text."""
        try:
            facts: Any = json.loads(payload)
            return cls(str(facts["kind"]), str(facts["message"]), str(facts["type"]))
        except (ValueError, TypeError, KeyError):
            return cls(
                RAISED, headers.get(ERROR_HEADER, ""), f"service error {headers.get(ERROR_CODE_HEADER, '')}".strip()
            )

    def error(self, *, agent: str, reasoner: str, execution_id: str) -> AgentFieldError:
        """The exception that the caller sees."""
        if self.kind == INVALID_ARGUMENTS:
            return InvalidInputError(self.message)
        if self.kind in (BUSY, STOPPED):
            return AgentUnavailableError(
                self.message, agent=agent, started=self.kind == STOPPED, execution_id=execution_id
            )
        return RemoteError(
            type_name=self.type_name,
            message=self.message,
            agent=agent,
            reasoner=reasoner,
            execution_id=execution_id,
        )
