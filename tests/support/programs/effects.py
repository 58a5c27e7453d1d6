"""An agent with two handlers for the same events: one that just writes, one that writes once.

``python -m tests.support.programs.effects URL NAMESPACE FILE``; FILE gets a line at the beginning of each run.
"""

import asyncio
import sys
from pathlib import Path

from agentfield import Agent, Event


async def main(url: str, namespace: str, path: str) -> None:
    """Serve until killed."""
    agent = Agent("effects", nats_url=url, namespace=namespace)
    memory = agent.memory
    with Path(path).open("a", encoding="utf-8") as out:  # noqa: ASYNC230  # a line at a time, into the page cache

        def begun(handler: str, event: Event) -> None:
            out.write(f"{handler} {event.revision}\n")
            out.flush()

        @memory.on_change("order_*", start="all")
        async def plain(event: Event) -> None:
            begun("plain", event)
            await asyncio.gather(
                memory.set(f"seen_{event.key}", event.data),
                memory.set_many({f"a_{event.key}": event.data, f"b_{event.key}": event.data}),
                memory.create(f"new_{event.key}", event.data),
                memory.increment("seen"),
            )
            await memory.delete(f"new_{event.key}")

        @memory.on_change("order_*", start="all")
        async def once(event: Event) -> None:
            begun("once", event)
            async with memory.transaction(once=True) as tx:
                tx.set("total", await tx.get("total", 0, scope="global") + event.data, scope="global")

        async with agent:
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
