"""Another process that reads memory when asked."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def reading_process(url: str, namespace: str) -> AsyncIterator[Callable[[str], Awaitable[Any]]]:
    """Start the reader program and give a function that asks it for a key."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.programs.reader", url, namespace, stdin=PIPE, stdout=PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    async def ask(key: str) -> Any:
        stdin.write(f"{key}\n".encode())
        async with asyncio.timeout(30):
            return json.loads(await stdout.readline())

    try:
        async with asyncio.timeout(20):
            assert await stdout.readline() == b"ready\n"
        yield ask
    finally:
        stdin.close()
        async with asyncio.timeout(20):
            await process.wait()
