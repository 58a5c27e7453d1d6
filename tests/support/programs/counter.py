"""A program that counts in a file, one step after the other, each under a lock.

``python -m tests.support.programs.counter URL NAMESPACE DIRECTORY STEPS``

Reading, adding and writing are apart, so that two counters at once would lose a step. Beside the count it writes down
the token of every step.
"""

import asyncio
import random
import sys
from pathlib import Path

from agentfield import connect


async def main(url: str, namespace: str, directory: Path, steps: int) -> None:
    """Take so many steps."""
    count, tokens = directory / "count", directory / "tokens"
    async with connect(url, namespace=namespace) as memory:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        for _ in range(steps):
            async with memory.lock("the count", ttl=5) as lock:
                number = int(count.read_text())  # a few bytes
                await asyncio.sleep(0.005 * random.random())
                count.write_text(str(number + 1))
                with tokens.open("a") as out:
                    out.write(f"{lock.token}\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
