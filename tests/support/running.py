"""A program of `tests.support.programs` as a process of its own: to kill, to pause, to let go on."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_READY_WITHIN = 30.0
_GONE_WITHIN = 20.0


class Program:
    """A running program. It has said that it is ready."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def kill(self) -> None:
        """End it as a crash would, wherever it is."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """Ask it to end, and fail if it complains."""
        await self._end(signal.SIGTERM)
        assert self._process.returncode == 0, f"ended with {self._process.returncode}"

    async def finish(self, within: float) -> None:
        """Wait until it ends by itself, and fail if it complains."""
        async with asyncio.timeout(within):
            assert await self._process.wait() == 0, f"ended with {self._process.returncode}"

    def pause(self) -> None:
        """Stop it where it is."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    async def line(self, within: float = _READY_WITHIN) -> str:
        """The next line it writes; empty when it has ended."""
        assert self._process.stdout is not None
        async with asyncio.timeout(within):
            return (await self._process.stdout.readline()).decode().rstrip("\n")

    async def _end(self, how: signal.Signals) -> None:
        if self._process.returncode is None:
            self._process.send_signal(how)
        async with asyncio.timeout(_GONE_WITHIN):
            await self._process.wait()


async def start(name: str, *arguments: object, environment: dict[str, str] | None = None) -> Program:
    """Start `tests.support.programs.<name>`, without waiting until it is ready: its first line says so."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"tests.support.programs.{name}", *map(str, arguments)),
        stdout=PIPE,
        limit=16 * 1024 * 1024,
        env=os.environ | (environment or {}),
    )
    return Program(process)


@asynccontextmanager
async def program(name: str, *arguments: object, environment: dict[str, str] | None = None) -> AsyncIterator[Program]:
    """A program that is ready; killed at the end of the block if it still runs."""
    running = await start(name, *arguments, environment=environment)
    try:
        assert await running.line() == "ready"
        yield running
    finally:
        await running.kill()
