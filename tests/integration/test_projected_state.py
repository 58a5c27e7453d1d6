"""The buckets that the server fills are compared with the log, and made anew from it."""

import asyncio
from datetime import timedelta

import pytest

from agentfield import Memory
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import api
from agentfield.memory.lifetimes import sweeping
from projections import Source, state
from projections.buckets import ScopeBucket
from tests.support import eventually


@pytest.fixture
def source(fabric: Fabric) -> Source:
    return Source(fabric)


async def write(memory: Memory, count: int) -> None:
    for begin in range(0, count, 100):
        await memory.set_many({f"item_{number}": number for number in range(begin, begin + 100)})
    await memory.delete("item_7")
    await memory.session("s.1 *").set("a", 1)


async def test_buckets_are_the_fold_of_the_log(memory: Memory, source: Source) -> None:
    await write(memory, 300)
    everything = await state.verify(source, "global")
    assert (everything.equal, everything.keys, everything.checkpoint) == (True, 299, 302)
    assert (await state.verify(source, "session")).keys == 1
    assert (await state.verify(source, "actor")).keys == 0


async def test_writes_that_go_on_meanwhile_are_no_difference(memory: Memory, source: Source) -> None:
    await write(memory, 300)
    writing = asyncio.create_task(write(memory, 1000))
    while not writing.done():
        assert not (await state.verify(source, "global")).differences
    await writing


async def test_a_key_that_the_bucket_lacks_is_named_and_a_rebuild_brings_it_back(
    memory: Memory, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(memory, 300)
    assert (await state.verify(source, "global")).equal
    namespace = source.namespace
    purge = {"filter": f"$KV.{namespace}-global.item.42"}
    await api(source.fabric.connection, f"STREAM.PURGE.KV_{namespace}-global", purge)
    monkeypatch.setattr(state, "_SETTLES", 0.3)
    (difference,) = (await state.verify(source, "global")).differences
    assert (difference.subject, difference.found) == (f"{namespace}.memory.global.global.item.42", "nothing")
    assert (await state.rebuild(source, "global")).equal
    assert (await state.verify(source, "session")).equal


async def test_a_marker_that_was_swept_is_no_difference(memory: Memory, source: Source) -> None:
    await memory.set("gone", 1)
    await memory.delete("gone")
    bucket = ScopeBucket(source, "global")
    subject = f"{source.namespace}.memory.global.global.gone"

    async def marked() -> bool:
        entry = await bucket.entry(subject)
        return entry is not None and entry.deleted

    await eventually(marked, within=5)
    assert await sweeping.sweep(source.fabric, "global", b"0", timedelta(0)) == 1
    assert await bucket.entry(subject) is None
    assert (await state.verify(source, "global")).equal
