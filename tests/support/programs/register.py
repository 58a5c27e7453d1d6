"""Clients of a few registers, who write down everything they do and what came of it.

``python -m tests.support.programs.register URLS NAMESPACE REGISTERS CLIENTS SECONDS``

One line of JSON an operation, at the end; times are of the machine's monotonic clock.
"""

import asyncio
import json
import random
import sys
import time
from itertools import count
from typing import Any

from agentfield import ConflictError, Memory, OutcomeUnknownError, UnavailableError, connect

PATIENCE = 2.5
"""Seconds for one operation: an election takes longer, so some outcomes will not be known."""


async def client(memory: Memory, name: str, registers: int, ends: float, notes: list[dict[str, Any]]) -> None:
    """Read, write, and compare and set, until the time is over."""
    for number in count():
        if time.monotonic() >= ends:
            return
        key, value = f"register_{random.randrange(registers)}", f"{name}-{number}"
        match random.choice(["strong", "linearizable", "write", "write", "cas", "cas"]):
            case "write":
                await noted(notes, client=name, key=key, kind="write", value=value, action=memory.set(key, value))
            case "cas":
                found = await noted(
                    notes, client=name, key=key, kind="read", mode="linearizable", action=_entry(memory, key)
                )
                if found is None:
                    continue
                expected, revision = found
                await asyncio.sleep(random.uniform(0.0, 0.02))  # somebody else may be faster
                action = memory.set(key, value, if_revision=revision)
                await noted(notes, client=name, key=key, kind="cas", expected=expected, value=value, action=action)
            case mode:
                await noted(notes, client=name, key=key, kind="read", mode=mode, action=_entry(memory, key, mode))
        await asyncio.sleep(random.uniform(0.01, 0.05))


async def _entry(memory: Memory, key: str, mode: str = "linearizable") -> tuple[Any, int]:
    entry = await memory.entry(key, consistency=mode)  # type: ignore[arg-type]
    return (entry.value, entry.revision) if entry else (None, 0)


async def noted(notes: list[dict[str, Any]], *, action: Any, **note: Any) -> tuple[Any, int] | None:
    """Do it, and write down between which times, and what came of it; return what was read."""
    note["called"] = time.monotonic()
    found = None
    try:
        outcome = await action
    except OutcomeUnknownError:
        note["done"] = None
    except UnavailableError:
        return None  # nothing was stored: whoever finds the value finds one that nobody wrote
    except ConflictError as error:
        if error.actual is None:
            return None  # refused beside a write that was not yet decided: that says nothing of what is there
        note["done"] = False
    else:
        note["done"] = True
        if note["kind"] == "read":
            found = outcome
            note["result"] = outcome[0]
    note["returned"] = time.monotonic()
    notes.append(note)
    return found


async def main(urls: str, namespace: str, registers: int, clients: int, seconds: float) -> None:
    """Run the clients, then say what they did."""
    notes: list[dict[str, Any]] = []
    async with connect(urls, namespace=namespace, timeout=PATIENCE) as memory:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        ends, tag = time.monotonic() + seconds, random.randrange(10**6)
        async with asyncio.TaskGroup() as tasks:
            for number in range(clients):
                tasks.create_task(client(memory, f"{tag}.{number}", registers, ends, notes))
    for note in notes:
        sys.stdout.write(json.dumps(note) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])))
