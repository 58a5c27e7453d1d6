"""Namespaces for one run: the signs of life on them, and which of them are taken away when their run has died."""

import secrets
from datetime import timedelta
from functools import partial

import pytest

from agentfield import Memory, connect
from agentfield.fabric import stages
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.removal import remove
from agentfield.fabric.stages import ABANDONED, Presence, remove_abandoned, stage_name
from agentfield.fabric.topology import stream_names
from agentfield.memory.lifetimes import sweeping
from tests.support import NatsServer, eventually

AT_ONCE = timedelta(0)


async def stage(server: NatsServer, *, signed: bool = True, written: bool = True) -> str:
    """A stage that nobody is on any more, as one that was killed would have left it."""
    name = stage_name()
    async with connect(server.url, namespace=name) as memory:
        there = await memory._fabric()
        if signed:
            async with Presence(there):
                pass
        if written:
            await memory.set("key", 1)
    return name


async def test_what_killed_runs_have_left_goes_with_all_its_streams(server: NatsServer, memory: Memory) -> None:
    connection = (await memory._fabric()).connection
    left = sorted(
        [await stage(server), await stage(server, written=False), await stage(server, signed=False, written=False)]
    )
    assert await remove_abandoned(connection) == []
    await memory.set("key", 1)
    assert await remove_abandoned(connection, AT_ONCE) == left
    assert not [name for name in await stream_names(connection) if any(each in name.lower() for each in left)]
    assert await memory.get("key") == 1
    assert await remove_abandoned(connection, AT_ONCE) == []


async def test_what_only_has_such_a_name_stays(server: NatsServer, memory: Memory) -> None:
    connection = (await memory._fabric()).connection
    theirs = [await stage(server, signed=False), f"my-{stage_name()}", f"replay-{secrets.token_hex(4)}"]
    for name in theirs:
        async with connect(server.url, namespace=name) as other:
            await other.set("key", 1)
    try:
        assert await remove_abandoned(connection, AT_ONCE) == []
    finally:
        for name in theirs:
            await remove(connection, name)


async def test_who_is_on_a_stage_shows_it_again_and_again(
    server: NatsServer, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stages._SIGN_EVERY * 5 <= ABANDONED
    monkeypatch.setattr(stages, "_SIGN_EVERY", timedelta(milliseconds=20))
    fabric = await memory._fabric()

    async def signs() -> int:
        return len([each async for each in fabric.log.read([f"{fabric.topology.namespace}.checks.stage"])])

    async def several() -> bool:
        return await signs() >= 3

    async with Presence(fabric):
        assert await signs() >= 1
        await eventually(several)
    assert [each async for each in memory.history()] == []


async def test_the_workers_of_agents_take_them_away(
    server: NatsServer, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = await stage(server)
    await sweeping.ensure_sweeps(fabric)
    assert f"{sweeping.SWEEP}.{sweeping.STAGES}" in await fabric.timers.names(sweeping.SWEEP)
    assert await sweeping.sweep(fabric, sweeping.STAGES, b"0") == 0
    monkeypatch.setattr(sweeping, "remove_abandoned", partial(remove_abandoned, after=AT_ONCE))
    assert await sweeping.sweep(fabric, sweeping.STAGES, b"0") == 1
    assert not [name for name in await stream_names(fabric.connection) if left in name.lower()]
    assert f"{sweeping.SWEEP}.{sweeping.STAGES}" in await fabric.timers.names(sweeping.SWEEP)
