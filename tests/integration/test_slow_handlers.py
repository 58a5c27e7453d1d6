"""Whoever hears slower than others write holds a bounded part of it, and loses nothing."""

import asyncio
import os
import signal

import psutil
import pytest

from agentfield.event import Writer
from agentfield.execution import new_id
from agentfield.fabric.fabric import Fabric
from agentfield.header import encode_event
from tests.support import NatsServer
from tests.support.events import subject
from tests.support.lengths import length
from tests.support.running import program

COUNT = length(6_000, 100_000)
PAYLOAD = "x" * 20_000
HELD = 60
"""MB that one may grow by: the window, the events on their way, and what handlers remember of before."""


@pytest.mark.timeout(length(120, 1200))
async def test_whoever_is_slow_stays_small_and_hears_everything_in_order(
    server: NatsServer, namespace: str, fabric: Fabric
) -> None:
    assert COUNT * len(PAYLOAD) > 1.5 * HELD * 1_000_000, "who held everything would not be found out"
    async with (
        program("dawdler", server.url, namespace, "agent", COUNT) as agent,
        program("dawdler", server.url, namespace, "instance", COUNT) as instance,
        program("dawdler", server.url, namespace, "watch", COUNT) as watch,
    ):
        slow = {each: psutil.Process(each.pid) for each in (agent, instance, watch)}
        before = {each: process.memory_info().rss for each, process in slow.items()}
        most = dict.fromkeys(slow, 0)

        def look() -> None:
            for each, process in slow.items():
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    most[each] = max(most[each], process.memory_info().rss - before[each])

        for number in range(COUNT):
            headers = encode_event(event_id=new_id(), operation="set", writer=Writer())
            payload = f'[{number},"{PAYLOAD}"]'.encode()
            await fabric.connection.publish(subject(fabric, f"k.{number % 50}"), payload, headers)
            if number % 200 == 0:
                await fabric.connection.flush(20)
                look()
        await fabric.connection.flush(20)
        for each in slow:
            os.kill(each.pid, signal.SIGUSR1)
        said = [asyncio.create_task(each.line(length(60, 1000))) for each in slow]
        while not all(line.done() for line in said):
            look()
            await asyncio.wait(said, timeout=0.05)
        look()
    assert [line.result() for line in said] == ["in order"] * 3
    grown = [round(size / 1_000_000) for size in most.values()]
    assert max(grown) < HELD, f"agent, instance and watch grew by {grown} MB"
