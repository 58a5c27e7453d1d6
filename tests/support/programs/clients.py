"""Clients of a bank: each moves money between two accounts, for ever, by transactions.

``python -m tests.support.programs.clients URL NAMESPACE ACCOUNTS CLIENTS``
"""

import asyncio
import random
import sys

from agentfield import AgentFieldError, ConflictError, Memory, connect


async def serve(memory: Memory, accounts: int) -> None:
    """One client: transfers, for ever."""
    while True:
        source, target = random.sample(range(accounts), 2)
        try:
            async with memory.transaction() as tx:
                has = await tx.get(f"account_{source}")
                amount = random.randint(0, has)
                tx.set(f"account_{target}", await tx.get(f"account_{target}") + amount)
                tx.set(f"account_{source}", has - amount)
        except ConflictError:
            await asyncio.sleep(0.005 * random.random())
        except AgentFieldError:
            await asyncio.sleep(0.1)  # the server is away: whatever came of it, the next transfer begins with a look


async def main(url: str, namespace: str, accounts: int, clients: int) -> None:
    """Serve clients until killed."""
    async with connect(url, namespace=namespace) as memory, asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(serve(memory, accounts))
        sys.stdout.write("ready\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
