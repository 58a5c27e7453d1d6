"""An agent whose handler writes down every event it handles, one JSON line each, flushed at once.

``python -m tests.support.programs.recorder URL NAMESPACE FILE PATTERN [DELAY]``
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from agentfield import Agent, Event


async def main(url: str, namespace: str, path: str, pattern: str, delay: float) -> None:
    """Serve until SIGTERM."""
    agent = Agent("recorder", nats_url=url, namespace=namespace)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with Path(path).open("a", encoding="utf-8") as out:  # noqa: ASYNC230  # a line at a time, into the page cache

        @agent.memory.on_change(pattern, start="all")
        async def record(event: Event) -> None:
            if delay:
                await asyncio.sleep(delay)
            line = {
                "pid": os.getpid(),
                "revision": event.revision,
                "key": event.key,
                "data": event.data,
                "previous": event.previous_data,
            }
            out.write(json.dumps(line) + "\n")
            out.flush()

        async with agent:
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], float(sys.argv[5]) if sys.argv[5:] else 0.0))
