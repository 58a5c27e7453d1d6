"""Requests to the server's JetStream API, with its errors as :class:`ServerFault` and bounded patience.

Owns: the encoding of API requests and the decision which answers are worth asking again. Must not know: which streams
exist. Source of the subjects and shapes: the server's JetStream API (ADR-1).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import orjson

from agentfield.errors import UnavailableError
from agentfield.fabric.faults import NoAnswerFault, NoRespondersFault, ServerFault, Verdict
from agentfield.fabric.wire.client import DESCRIPTION
from agentfield.fabric.wire.connection import Connection
from agentfield.fabric.wire.message import Message

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
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    payload = orjson.dumps(body) if body is not None else b""
    attempt = 0
    while True:
        remaining = deadline - loop.time()
        fault: ServerFault | NoAnswerFault | NoRespondersFault | UnavailableError
        try:
            message = await connection.request(f"{API}.{subject}", payload, timeout=max(0.001, min(ATTEMPT, remaining)))
            answer: dict[str, Any] = orjson.loads(message.payload)
            if "error" not in answer:
                return answer
            fault = ServerFault.of(answer["error"])
            if fault.verdict is not Verdict.RETRY:
                raise fault
        except (NoAnswerFault, NoRespondersFault, UnavailableError) as caught:
            fault = caught
        pause = backoff(attempt)
        attempt += 1
        if loop.time() + pause >= deadline:
            raise fault
        await asyncio.sleep(pause)
