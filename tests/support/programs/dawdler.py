"""A program that hears events and takes the first only when it is sent SIGUSR1; then all, as fast as it can.

``python -m tests.support.programs.dawdler URL NAMESPACE agent|instance|watch COUNT``

When it has taken COUNT events it says ``in order``, or that they were not.
"""

import asyncio
import signal
import sys
from contextlib import aclosing
from typing import Any

from agentfield import Agent, CaughtUp, Event


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def main(url: str, namespace: str, how: Any, count: int) -> None:
    """Take so many events, and end."""
    agent = Agent(f"dawdler-{how}", nats_url=url, namespace=namespace)
    go, done = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, go.set)
    numbers: list[int] = []

    async def take(event: Event) -> None:
        await go.wait()
        numbers.append(event.data[0])
        if len(numbers) == count:
            done.set()

    if how == "watch":
        async with aclosing(agent.memory.watch("k_*")) as items:
            async for item in items:
                if isinstance(item, CaughtUp):
                    say("ready")
                    continue
                await take(item)
                if done.is_set():
                    break
        await agent.aclose()
    else:
        agent.memory.on_change("k_*", delivery=how)(take)
        async with agent:
            say("ready")
            await done.wait()
    say("in order" if numbers == list(range(count)) else "out of order, or not whole")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
