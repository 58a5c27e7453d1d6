"""The object store of a namespace below agentfield: what lies in it, and ways to hurt it."""

from collections.abc import AsyncIterator

import orjson

from agentfield import Memory
from agentfield.codec import Record, reference_of
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import api
from agentfield.fabric.reader import Reader

LARGE = "x" * 300_000
"""A value that is stored as an object of three chunks."""


async def fabric_of(memory: Memory) -> Fabric:
    """The fabric under a memory."""
    return await memory._fabric()


async def messages(fabric: Fabric, filter: str = ">") -> int:
    """How many messages the store's stream holds under a filter."""
    info = await api(fabric.connection, f"STREAM.INFO.{fabric.topology.objects.name}", {"subjects_filter": filter})
    return sum((info["state"].get("subjects") or {}).values())


async def names(fabric: Fabric, *, complete: bool = True) -> set[str]:
    """The objects in the store that are complete, or those that are not."""
    return {info.name async for info in fabric.objects.infos(0) if info.complete is complete}


async def condemned(fabric: Fabric) -> int:
    """How many objects the log says were given up."""
    info = await api(
        fabric.connection,
        f"STREAM.INFO.{fabric.log.stream}",
        {"subjects_filter": f"{fabric.topology.namespace}.checks.objects.>"},
    )
    return len(info["state"].get("subjects") or {})


async def last_record(memory: Memory, key: str) -> Record:
    """What the log holds for a key of the global scope."""
    fabric = await fabric_of(memory)
    (record,) = await fabric.log.last([f"{fabric.topology.namespace}.memory.global.global.{key.replace('_', '.')}"])
    assert record is not None
    return record


async def object_of(memory: Memory, key: str) -> str:
    """The name of the object that holds the value of a key of the global scope."""
    reference = reference_of(await last_record(memory, key))
    assert reference is not None, f"the value of {key} is in the event itself"
    return reference.name


async def chunks(fabric: Fabric, name: str) -> AsyncIterator[Record]:
    """The messages that hold an object's content."""
    subject = f"$O.{fabric.objects.bucket}.C.{name}"
    if not await messages(fabric, subject):
        return
    target = int((await api(fabric.connection, f"STREAM.INFO.{fabric.topology.objects.name}"))["state"]["last_seq"])
    async with Reader(fabric.connection, fabric.topology.objects.name, [subject]) as reader:
        async for record in reader.until(target):
            yield record


async def rewrite(fabric: Fabric, name: str, content: list[bytes]) -> None:
    """Put other messages in the place of an object's chunks, past agentfield."""
    subject = f"$O.{fabric.objects.bucket}.C.{name}"
    await api(fabric.connection, f"STREAM.PURGE.{fabric.topology.objects.name}", {"filter": subject})
    for chunk in content:
        ack = orjson.loads((await fabric.connection.request(subject, chunk, timeout=5)).payload)
        assert "error" not in ack, ack


async def flip_a_bit(fabric: Fabric, name: str) -> None:
    """Damage the last of an object's chunks in one bit."""
    content = [record.payload async for record in chunks(fabric, name)]
    damaged = bytearray(content[-1])
    damaged[len(damaged) // 2] ^= 1
    await rewrite(fabric, name, [*content[:-1], bytes(damaged)])
