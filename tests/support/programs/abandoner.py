"""An agent whose call begins many workflows, writes into each, and never comes to its end.

``python -m tests.support.programs.abandoner URL NAMESPACE COUNT``
"""

import asyncio
import os
import sys

from agentfield import Agent


async def main(url: str, namespace: str, count: int) -> None:
    """Begin the workflows, say so, and stay until killed."""
    name = f"abandoner-{os.getpid()}"  # calls go to this very process
    app = Agent(name, nats_url=url, namespace=namespace)
    begun = asyncio.Semaphore(0)

    @app.reasoner()
    async def work() -> None:
        await app.memory.set("state", "working")
        await app.memory.set("more", [1, 2, 3], ttl=3600)
        begun.release()
        await asyncio.Event().wait()

    async with app, asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(app.call(f"{name}.work"))
        for _ in range(count):
            await begun.acquire()
        sys.stdout.write("ready\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
