"""Requests to the server's JetStream API, with its errors as :class:`ServerFault` and bounded patience.

Owns: the encoding of API requests, the decision which answers are worth asking again, and how often and how long. Must
not know: which streams exist. Source of the subjects and shapes: the server's JetStream API (ADR-1).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import orjson

from agentfield.errors import UnavailableError
from agentfield.fabric.faults import NoAnswerFault, NoRespondersFault, ServerFault, Verdict
from agentfield.fabric.wire.client import DESCRIPTION
from agentfield.fabric.wire.connection import Connection
from agentfield.fabric.wire.message import Message

T = TypeVar("T")

API = "$JS.API"
ATTEMPT = 3.0
"""Seconds one try may take. A leader change takes 4–9 s, so several tries fit a patience of 15 s."""
PATIENCE = 15.0
"""Seconds after which a request is given up, retries included."""


def backoff(attempt: int) -> float:
    """Seconds to wait before try number ``attempt`` + 1: exponential from 20 ms to 500 ms, with jitter."""
    return float(min(0.5, 0.02 * 2**attempt)) * (0.5 + random.random())


def ends_pull(message: Message) -> bool:
    """Whether a status ends a pull in the ordinary way: it expired, it is complete, or the next event is too large.

    Any other (409 for a consumer that was deleted or moved, 503 for one that is gone) means that something happened.
    """
    if message.status == 409:
        description = message.headers.get(DESCRIPTION, "")
        return "MaxBytes" in description or description == "Batch Completed"
    return message.status in (404, 408)


async def api(
    connection: Connection, subject: str, body: Mapping[str, Any] | None = None, *, patience: float = PATIENCE
) -> dict[str, Any]:
    """Ask ``$JS.API.<subject>`` and return the answer's object.

    For requests that may be repeated (information, idempotent creation). Asks again while nobody answers or the
    verdict is RETRY, up to ``patience`` seconds; then raises the last fault, or :class:`UnavailableError` if there was
    no connection. A :class:`ServerFault` of any other verdict is raised at once.
    """
    payload = orjson.dumps(body) if body is not None else b""
    return await patiently(lambda limit: _answer(connection, f"{API}.{subject}", payload, None, limit), patience)


async def publish(
    connection: Connection,
    subject: str,
    payload: bytes,
    headers: dict[str, str],
    *,
    patience: float,
    attempt: float = ATTEMPT,
) -> dict[str, Any]:
    """Have a stream store a message that may be sent again; return its acknowledgement. Raises as :func:`api`."""
    return await patiently(lambda limit: _answer(connection, subject, payload, headers, limit), patience, attempt)


async def patiently(ask: Callable[[float], Awaitable[T]], patience: float, attempt: float = ATTEMPT) -> T:
    """What ``ask`` gives, which is told how many seconds it may take, and is asked again while nobody answers.

    So it is while the connection is away, and while the server's verdict is RETRY; up to ``patience`` seconds, and then
    the last of these is raised. Whatever else is raised, is raised at once. One try takes ``attempt`` seconds at most.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    tries = 0
    while True:
        fault: ServerFault | NoAnswerFault | NoRespondersFault | UnavailableError
        try:
            return await ask(min(attempt, max(0.001, deadline - loop.time())))
        except (NoAnswerFault, NoRespondersFault, UnavailableError) as caught:
            fault = caught
        except ServerFault as caught:
            if caught.verdict is not Verdict.RETRY:
                raise
            fault = caught
        pause = backoff(tries)
        tries += 1
        if loop.time() + pause >= deadline:
            raise fault
        await asyncio.sleep(pause)


async def _answer(
    connection: Connection, subject: str, payload: bytes, headers: dict[str, str] | None, limit: float
) -> dict[str, Any]:
    message = await connection.request(subject, payload, headers, timeout=limit)
    answer: dict[str, Any] = orjson.loads(message.payload)
    if "error" in answer:
        raise ServerFault.of(answer["error"])
    return answer
