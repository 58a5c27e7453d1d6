"""A program that holds a lock and writes under it, again and again, until it is refused.

``python -m tests.support.programs.holder URL NAMESPACE TTL``

Its second line is the lock's token, its third the error that refused it.
"""

import asyncio
import sys

from agentfield import ConflictError, connect


def say(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def main(url: str, namespace: str, ttl: float) -> None:
    """Hold it."""
    async with connect(url, namespace=namespace) as memory, memory.lock("guard", ttl=ttl) as lock:
        await memory.set("guarded", lock.token, fence=lock)
        say("ready")
        say(lock.token)
        while True:
            try:
                await memory.set("guarded", lock.token, fence=lock)
            except ConflictError as error:
                say(f"{type(error).__name__} {error.expected} {error.actual}")
                return


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
