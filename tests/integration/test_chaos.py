"""Three instances of an agent that are killed, paused, parted from the server and stopped at random, under load.

Every event is handled at least once, per key in order, with the right previous data; and whatever happens to one
instance, another goes on within five seconds.
"""

import asyncio
import json
import random
import signal
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentfield import Memory, connect
from tests.support import NatsServer, eventually
from tests.support.lengths import length
from tests.support.recording import Recorder, judge, recorded, start_recorder, without_late
from tests.support.wire import Wire, wire

SECONDS = length(8.0, 60.0)
KEYS = 200
TAKEOVER = 5.0
HARMS = ("kill", "stop", "pause", "refuse", "stall")


class Instance:
    """An instance with a wire of its own to the server, and what has been done to it."""

    def __init__(self, namespace: str, out: Path, link: Wire) -> None:
        self._namespace = namespace
        self._out = out
        self._link = link
        self._recorder: Recorder | None = None
        self._harm: str | None = None
        self.paused: set[tuple[int, int]] = set()

    @property
    def pid(self) -> int:
        assert self._recorder is not None
        return self._recorder.pid

    async def start(self) -> None:
        self._recorder = await start_recorder(self._link.url, self._namespace, self._out, "item_*")

    async def harm(self, how: str) -> None:
        """Do this to it; it lasts until it is healed."""
        assert self._recorder is not None
        self._harm = how
        if how == "kill":
            await self._recorder.end(signal.SIGKILL)
        elif how == "stop":
            await self._recorder.end(signal.SIGTERM)
        elif how == "pause":
            self._recorder.pause()
            self.paused.add((self.pid, sum(line["pid"] == self.pid for line in recorded(self._out))))
        elif how == "refuse":
            self._link.refuse()
        else:
            self._link.stall()

    async def heal(self) -> None:
        """Undo what was done."""
        assert self._recorder is not None
        harm, self._harm = self._harm, None
        if harm in ("kill", "stop"):
            await self.start()
        elif harm == "pause":
            self._recorder.resume()
        self._link.refuse(False)
        self._link.stall(False)

    async def end(self) -> None:
        if self._recorder is not None and self._recorder.process.returncode is None:
            await self._recorder.end(signal.SIGKILL)


@asynccontextmanager
async def instance(server: NatsServer, namespace: str, out: Path) -> AsyncIterator[Instance]:
    async with wire(server.client_port) as link:
        one = Instance(namespace, out, link)
        try:
            await one.start()
            yield one
        finally:
            await one.end()


async def write(memory: Memory, keys: range, written: dict[str, list[tuple[int, Any]]], stop: asyncio.Event) -> None:
    """Count these keys up until told to stop."""
    number = 0
    while not stop.is_set():
        for key in keys:
            revision = await memory.set(f"item_{key}", number)
            written.setdefault(f"item_{key}", []).append((revision, number))
            await asyncio.sleep(0.002)
        number += 1


def goes_on(out: Path, harmed: set[int], size: int) -> bool:
    """Whether, since the file had that size, an instance that was left alone has handled something."""
    with out.open("rb") as file:
        file.seek(size)
        *lines, _ = file.read().split(b"\n")  # the last is not whole yet
    return any(json.loads(line)["pid"] not in harmed for line in lines)


@pytest.mark.timeout(180)
async def test_whatever_happens_to_instances_every_event_is_handled_in_order_and_others_take_over(
    server: NatsServer, namespace: str, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    out = tmp_path / "handled"
    written: dict[str, list[tuple[int, Any]]] = {}
    stop = asyncio.Event()
    done: list[str] = []
    async with (
        connect(server.url, namespace=namespace, timeout=30) as memory,
        instance(server, namespace, out) as one,
        instance(server, namespace, out) as two,
        instance(server, namespace, out) as three,
        asyncio.TaskGroup() as tasks,
    ):
        for begin in range(0, KEYS, 50):
            tasks.create_task(write(memory, range(begin, begin + 50), written, stop))
        await eventually(lambda: out.exists() and out.stat().st_size > 0)
        harmed: deque[Instance] = deque()
        ending = time.monotonic() + SECONDS
        while time.monotonic() < ending:
            whole = [each for each in (one, two, three) if each not in harmed]
            active = [each for each in whole if each.pid == recorded(out)[-1]["pid"]]
            chosen = chance.choice(active or whole) if chance.random() < 0.75 else chance.choice(whole)
            how = chance.choice(HARMS)
            done.append(f"{how} {'the active one' if chosen in active else 'another'}")
            size = len(out.read_bytes().rpartition(b"\n")[0]) + 1
            harmed.append(chosen)
            pids = {each.pid for each in harmed}
            await chosen.harm(how)
            await eventually(partial(goes_on, out, pids, size), within=TAKEOVER, what=f"seed {seed}: {done}")
            if len(harmed) == 2:
                await harmed.popleft().heal()
        stop.set()
        for each in harmed:
            await each.heal()

        async def all_handled() -> bool:
            lines = await asyncio.to_thread(recorded, out)
            return {line["revision"] for line in lines} >= {
                revision for writes in written.values() for revision, _ in writes
            }

        await eventually(all_handled, within=30, what=f"seed {seed}: {done}")
    paused = one.paused | two.paused | three.paused
    judge(without_late(recorded(out), paused), written)
