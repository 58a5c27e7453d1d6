"""Events as the log takes them, for tests below the level of keys and values."""

import asyncio
from collections.abc import Sequence

from agentfield.event import Writer
from agentfield.execution import new_id
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import api
from agentfield.header import encode_event


def headers(event_id: str | None = None) -> dict[str, str]:
    """The headers of an event that sets a value."""
    return encode_event(event_id=event_id or new_id(), operation="set", writer=Writer())


async def write(fabric: Fabric, tokens: str, payload: bytes = b"1", *, event_id: str | None = None) -> int:
    """Store one event of the global scope; return its sequence."""
    return (await fabric.log.append(subject(fabric, tokens), payload, headers(event_id))).sequence


async def write_many(fabric: Fabric, tokens: Sequence[str], payload: bytes = b"1") -> int:
    """Store one event for each, in order, as fast as the server takes them; return the last sequence."""
    await fabric.connection.wait_connected(20)
    for number, each in enumerate(tokens[:-1]):
        await fabric.connection.publish(subject(fabric, each), payload, headers())
        if number % 100 == 0:
            await asyncio.sleep(0)  # publishing alone never gives way
    return await write(fabric, tokens[-1], payload)  # stored after all the others


def subject(fabric: Fabric, tokens: str) -> str:
    """The subject of a key's tokens in the global scope."""
    return f"{fabric.topology.namespace}.memory.global.global.{tokens}"


async def shorten(fabric: Fabric, *, keep: int) -> int:
    """Take all but the last few events out of the log, as an operator can; return where it begins now.

    Smaller limits alone do not do it, since the log refuses what is new rather than discard what is old.
    """
    stream = fabric.log.stream
    config = (await api(fabric.connection, f"STREAM.INFO.{stream}"))["config"]
    for change in ({"discard": "old", "max_msgs": keep}, {}):
        await api(fabric.connection, f"STREAM.UPDATE.{stream}", {**config, **change})
    return int((await fabric.log.state())["first_seq"])
