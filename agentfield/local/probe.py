"""Asking whatever listens on a port of this machine whether it is a NATS server, and which one.

Owns: the few lines of the NATS client protocol that a greeting takes, and the server's health endpoint. Must not know:
homes, processes, which answer would be the right one. Invariant: a question ends by its deadline, whatever the other
side does.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from enum import Enum

LOOPBACK = "127.0.0.1"
"""The only interface the embedded server uses; the IPv4 one, because IPv6 may be off."""

_LONGEST_INFO = 64 * 1024
"""A real INFO line has a few hundred bytes; what sends more than this before a line end is something else."""

_GREETING = b'CONNECT {"verbose":false,"pedantic":false,"protocol":1,"name":"agentfield probe"}\r\nPING\r\n'


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said of itself, after it also answered a PING."""

    name: str
    version: str
    jetstream: bool


class Silence(Enum):
    """Why there is no answer."""

    NOBODY = "nothing listens on the port"
    MUTE = "the connection was accepted and nothing came in time"
    FOREIGN = "what listens there does not speak the NATS protocol, or hung up"


def ask(port: int, *, within: float) -> Answer | Silence:
    """Greets the server on a loopback port, and returns its answer or why there is none, within so many seconds."""
    deadline = time.monotonic() + within
    try:
        with socket.create_connection((LOOPBACK, port), timeout=within) as connection:
            return _greet(connection, deadline)
    except TimeoutError:
        return Silence.MUTE
    except ConnectionRefusedError:
        return Silence.NOBODY
    except OSError:
        return Silence.FOREIGN


def ask_health(port: int, *, within: float) -> str | None:
    """What the server's monitoring endpoint finds wrong with it, in its words; None when it finds nothing.

    Raises OSError when nobody answers.
    """
    from http.client import HTTPConnection, HTTPException  # seldom needed, and slow to import

    connection = HTTPConnection(LOOPBACK, port, timeout=within)
    try:
        connection.request("GET", "/healthz")
        found = json.loads(connection.getresponse().read())
        status, fault = found["status"], found.get("error")
    except (HTTPException, ValueError, LookupError, TypeError) as error:
        raise OSError(f"what listens on port {port} is not the monitoring endpoint of a NATS server") from error
    finally:
        connection.close()
    return None if status == "ok" else str(fault or status)


def _greet(connection: socket.socket, deadline: float) -> Answer | Silence:
    line, rest = _read_line(connection, b"", deadline)
    if not line.startswith(b"INFO "):
        return Silence.FOREIGN
    connection.sendall(_GREETING)
    reply, _ = _read_line(connection, rest, deadline)
    try:
        info = json.loads(line.removeprefix(b"INFO "))
        answer = Answer(str(info["server_name"]), str(info["version"]), info.get("jetstream") is True)
    except (ValueError, KeyError, TypeError):
        return Silence.FOREIGN
    return answer if reply == b"PONG" else Silence.FOREIGN


def _read_line(connection: socket.socket, begun: bytes, deadline: float) -> tuple[bytes, bytes]:
    """The next line without its end, and what came after it; empty when the other side hung up or does not end it."""
    received = begun
    while b"\r\n" not in received:
        connection.settimeout(max(0.001, deadline - time.monotonic()))  # 0 would mean "do not wait at all"
        more = connection.recv(_LONGEST_INFO)
        if not more or len(received) > _LONGEST_INFO:
            return b"", b""
        received += more
    line, _, rest = received.partition(b"\r\n")
    return line, rest
