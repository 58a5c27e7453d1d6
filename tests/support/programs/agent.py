"""An agent that does nothing of its own: it lends its process to the work that every agent does.

``python -m tests.support.programs.agent URL NAMESPACE``
"""

import asyncio
import signal
import sys

from agentfield import Agent


async def main(url: str, namespace: str) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Agent("idle", nats_url=url, namespace=namespace):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
