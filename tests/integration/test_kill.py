"""What a handler has to survive: the death of its process, of the server, of the active instance among several."""

import asyncio
import signal
from pathlib import Path
from typing import Any

from agentfield import Memory, connect
from tests.support import NatsServer, eventually
from tests.support.recording import judge, recorded, recorder

KEYS = 20


async def _write(memory: Memory, written: dict[str, list[tuple[int, Any]]], count: int, *, start: int = 0) -> None:
    async def one_key(key: str) -> None:
        for number in range(start, start + count // KEYS):
            revision = await memory.set(key, number)
            written.setdefault(key, []).append((revision, number))

    await asyncio.gather(*(one_key(f"item_{index}") for index in range(KEYS)))


def _distinct(path: Path) -> int:
    return len({line["revision"] for line in recorded(path)})


async def test_an_agent_killed_in_mid_stream_and_restarted_handles_every_event_in_order(
    server: NatsServer, namespace: str, tmp_path: Path
) -> None:
    out, total = tmp_path / "handled", 2000
    written: dict[str, list[tuple[int, Any]]] = {}
    async with connect(server.url, namespace=namespace) as memory:
        async with recorder(server.url, namespace, out, "item_*") as first:
            writing = asyncio.create_task(_write(memory, written, total))
            await eventually(lambda: _distinct(out) > total // 4, within=60)
            await first.end(signal.SIGKILL)
        async with recorder(server.url, namespace, out, "item_*"):
            await writing
            await eventually(lambda: _distinct(out) == total, within=60)
    judge(recorded(out), written)


async def test_the_server_killed_and_restarted_under_load_costs_a_handler_nothing(
    fresh_server: NatsServer, namespace: str, tmp_path: Path
) -> None:
    out, total = tmp_path / "handled", 2000
    written: dict[str, list[tuple[int, Any]]] = {}
    async with (
        connect(fresh_server.url, namespace=namespace, timeout=30) as memory,
        recorder(fresh_server.url, namespace, out, "item_*"),
    ):
        writing = asyncio.create_task(_write(memory, written, total))
        await eventually(lambda: _distinct(out) > total // 4, within=60)
        await fresh_server.restart(gracefully=False)
        await writing
        await eventually(lambda: _distinct(out) == total, within=60)
    judge(recorded(out), written)


async def test_a_standby_takes_over_within_5_s_when_the_active_instance_is_killed(
    server: NatsServer, namespace: str, tmp_path: Path
) -> None:
    out, total = tmp_path / "handled", 400
    written: dict[str, list[tuple[int, Any]]] = {}
    async with (
        connect(server.url, namespace=namespace) as memory,
        recorder(server.url, namespace, out, "item_*") as one,
        recorder(server.url, namespace, out, "item_*") as other,
    ):
        await _write(memory, written, total)
        await eventually(lambda: _distinct(out) == total, within=30)
        (active_pid,) = {line["pid"] for line in recorded(out)}
        active, standby = (one, other) if one.pid == active_pid else (other, one)
        await active.end(signal.SIGKILL)
        await _write(memory, written, KEYS, start=total // KEYS)
        await eventually(lambda: _distinct(out) == total + KEYS, within=5)
        assert {line["pid"] for line in recorded(out)[-KEYS:]} == {standby.pid}
    judge(recorded(out), written)


async def test_an_instance_that_was_paused_hands_out_nothing_stale_when_it_wakes_up(
    server: NatsServer, namespace: str, tmp_path: Path
) -> None:
    out = tmp_path / "handled"
    written: dict[str, list[tuple[int, Any]]] = {}
    async with (
        connect(server.url, namespace=namespace) as memory,
        recorder(server.url, namespace, out, "item_*", delay=0.005) as one,
        recorder(server.url, namespace, out, "item_*", delay=0.005) as other,
    ):
        writing = asyncio.create_task(_write(memory, written, 1000))
        await eventually(lambda: _distinct(out) > 50, within=30)
        (active_pid,) = {line["pid"] for line in recorded(out)}
        active = one if one.pid == active_pid else other
        active.pause()
        try:
            await writing
            await eventually(lambda: _distinct(out) >= 1000, within=40)
        finally:
            active.resume()
        before = len(recorded(out))
        await _write(memory, written, KEYS, start=50)
        await eventually(lambda: _distinct(out) == 1000 + KEYS, within=10)
        woken = [line for line in recorded(out)[before:] if line["pid"] == active_pid]
        # What it was in the middle of, it may finish; it may not go on with what it had received before the pause.
        assert len([line for line in woken if line["data"] < 50]) <= 1
    judge([line for line in recorded(out) if line not in woken], written)


async def test_a_graceful_stop_hands_over_at_once_and_repeats_nothing(
    server: NatsServer, namespace: str, tmp_path: Path
) -> None:
    out, total = tmp_path / "handled", 1000
    written: dict[str, list[tuple[int, Any]]] = {}
    async with (
        connect(server.url, namespace=namespace) as memory,
        recorder(server.url, namespace, out, "item_*") as first,
    ):
        writing = asyncio.create_task(_write(memory, written, total))
        await eventually(lambda: _distinct(out) > total // 4, within=60)
        async with recorder(server.url, namespace, out, "item_*"):
            await first.end(signal.SIGTERM)
            await writing
            await eventually(lambda: _distinct(out) == total, within=30)
    lines = recorded(out)
    assert len(lines) == total, "an event was handled twice although nobody died"
    judge(lines, written)
