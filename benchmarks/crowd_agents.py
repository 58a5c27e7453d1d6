"""Some of the agents of a crowd, in a process of their own: what `crowd` starts.

``python -m benchmarks.crowd_agents URL NAMESPACE FIRST LAST HANDLERS`` serves the agents with these numbers. It prints
an empty report when all are there, and one more for each line that it is sent: how many events were handled so far.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack

from agentfield import Agent, Event


def agent(url: str, namespace: str, number: int, handlers: int, heard: list[int]) -> Agent:
    """An agent whose handlers' patterns have stars that stand for whole segments."""
    made = Agent(f"listener-{number}", nats_url=url, namespace=namespace)

    async def react(event: Event) -> None:
        heard[0] += 1

    for each in range(handlers):
        made.memory.on_change(f"job{number}x{each}_*_status", scope="global", name=f"on-{each}")(react)
    return made


async def serve(url: str, namespace: str, first: int, last: int, handlers: int) -> None:
    """Serve until the input ends."""
    heard = [0]
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        for number in range(first, last + 1):
            await stack.enter_async_context(agent(url, namespace, number, handlers, heard))
        report(heard[0])
        while await loop.run_in_executor(None, sys.stdin.readline):
            report(heard[0])


def report(heard: int) -> None:
    """Tell whoever started this."""
    print(json.dumps({"heard": heard}), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])))
