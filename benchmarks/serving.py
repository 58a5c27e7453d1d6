"""An agent in a process of its own, as ``agentfield run`` serves it, and what it takes of the machine."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil

from benchmarks.surroundings import NAMESPACE, Surroundings

IDLE_AGENT = Path(__file__).with_name("idle_agent.py")
TOOL = (sys.executable, "-m", "agentfield")


@asynccontextmanager
async def served(here: Surroundings, file: Path, **environment: str) -> AsyncIterator[psutil.Process]:
    """The process that serves the agents of a file; it serves when this begins, and is gone when this ends."""
    process = await asyncio.create_subprocess_exec(
        *TOOL,
        "run",
        str(file),
        env={**os.environ, "AGENTFIELD_NATS_URL": here.url, "AGENTFIELD_NAMESPACE": NAMESPACE, **environment},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    listening: asyncio.Task[None] | None = None
    try:
        said = b""
        while b"serves" not in said:
            if not (said := await process.stderr.readline()):
                raise RuntimeError(f"agentfield run {file.name} ended before it served")
        listening = asyncio.create_task(_listen(process.stderr))
        yield psutil.Process(process.pid)
    finally:
        with suppress(ProcessLookupError):  # it may have been killed meanwhile
            process.terminate()
        if listening is not None:
            await listening
        await process.wait()


async def _listen(stream: asyncio.StreamReader) -> None:
    """What it goes on to say must be taken from it, or it would wait for that one day."""
    while await stream.readline():
        pass


def megabytes(process: psutil.Process) -> float:
    """The resident size of a process."""
    return float(process.memory_info().rss) / 1e6


class Peak:
    """The largest resident size of a process while this is entered, looked at ten times a second."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._watching: asyncio.Task[None] | None = None
        self.before = self.most = megabytes(process)

    async def __aenter__(self) -> Peak:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        self.most = max(self.most, megabytes(self._process))

    async def _watch(self) -> None:
        while True:
            self.most = max(self.most, megabytes(self._process))
            await asyncio.sleep(0.1)
