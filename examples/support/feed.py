"""What happens while the demo runs, as ``agentfield tail`` tells it: shown at once, and awaited by what it says."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from examples.support.processes import COMMAND
from examples.support.screen import Screen

Happening = dict[str, Any]
"""An event, or a note, as JSON. A note is what has a field ``note``, an event what has a ``key``."""


class Feed:
    """Everything that has happened so far."""

    def __init__(self, process: Process, screen: Screen) -> None:
        self._process = process
        self._screen = screen
        self._past: list[Happening] = []
        self._more = asyncio.Event()

    async def ready(self) -> None:
        """Return when the command has begun to follow, which it says on its standard error."""
        assert self._process.stderr is not None
        said = (await self._process.stderr.readline()).decode()
        if not said.startswith("following"):
            raise RuntimeError(f"`agentfield tail` does not follow: {said.strip()}")

    async def follow(self) -> None:
        """Take in and show what happens; raise RuntimeError if the command ends."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        async for line in self._process.stdout:
            happening: Happening = json.loads(line)
            if "note" in happening:
                self._screen.note(happening)
            else:
                self._screen.event(happening)
            self._past.append(happening)
            self._more.set()
        raise RuntimeError(f"`agentfield tail` ended: {(await self._process.stderr.read()).decode().strip()}")

    async def until(self, condition: Callable[[Happening], bool]) -> Happening:
        """Return the first thing for which the condition holds, as soon as it has happened."""
        looked_at = 0
        while True:
            for happening in self._past[looked_at:]:
                if condition(happening):
                    return happening
            looked_at = len(self._past)
            self._more.clear()
            await self._more.wait()


@asynccontextmanager
async def following(environment: dict[str, str], screen: Screen) -> AsyncIterator[Feed]:
    """Everything that happens on the server of that environment, from the beginning on; ends with the block."""
    arguments = ("tail", "--json", "--notes", "--from-start")
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, env=environment, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True
    )
    try:
        yield Feed(process, screen)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
