"""A transaction that has read and written and never comes to its end.

``python -m tests.support.programs.undecided URL NAMESPACE``
"""

import asyncio
import sys

from agentfield import connect


async def main(url: str, namespace: str) -> None:
    """Stay inside the transaction until killed."""
    async with connect(url, namespace=namespace) as memory, memory.transaction() as tx:
        tx.set("first", await tx.get("first", 0) + 1)
        tx.set("second", 1, scope="session", scope_id="s")
        tx.delete("third")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
