"""``app.note``: remarks of an agent about its work, for people to follow.

Owns: a bounded queue, and one task that appends what is in it to the stream of notes, each with an id that makes a
repeat harmless. Must not know: reasoners. Invariants: :meth:`Notes.add` never blocks and may be called from any thread;
every note is logged at once, and one that does not reach the stream is logged again at WARNING, with its text.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from agentfield.amount import number_of
from agentfield.errors import AgentFieldError, ClosedError, InvalidInputError, OutcomeUnknownError, UnavailableError
from agentfield.execution import Execution, current, new_id, to_headers
from agentfield.fabric.fabric import Fabric
from agentfield.header import EVENT_ID
from agentfield.naming import shown
from agentfield.value import encode_value

logger = logging.getLogger("agentfield.notes")

CAPACITY = 10_000
"""Notes that may wait for the stream: minutes of an outage at any sane rate, some megabytes of memory."""
_BATCH = 64
"""Notes in flight together; order is kept within and between batches unless one has to be sent again."""
_FLUSH = 5.0
_FLUSH_AT_END = 2.0
"""Seconds that a program which never closed its agent may be held up at its end."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class Note(NamedTuple):
    """One note, as it waits to be sent."""

    id: str
    text: str
    tags: tuple[str, ...]
    time: datetime
    execution: Execution | None


class Notes:
    """The notes of one agent. The first note made inside a loop starts the sender; :meth:`aclose` ends it.

    ``fabric`` gives the agent's connection; ``connect`` opens one apart from it, for what is left when a loop ends.
    """

    def __init__(
        self,
        agent: str,
        fabric: Callable[[], Awaitable[Fabric]],
        connect: Callable[[], Awaitable[Fabric]],
        *,
        capacity: int = CAPACITY,
    ) -> None:
        self.delivered = 0
        self.lost = 0
        self._agent = agent
        self._fabric = fabric
        self._connect = connect
        self._capacity = capacity
        self._waiting: deque[Note] = deque()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sender: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._closed = False

    def add(self, text: str, tags: Sequence[str] = ()) -> None:
        """Log a note and queue it for the stream. Never blocks, never raises for anything but wrong arguments."""
        if not isinstance(text, str):
            raise InvalidInputError(f"a note must be text, not {type(text).__name__} ({shown(text)}): format it first")
        if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
            raise InvalidInputError(f"the tags of a note must be a list of texts, not {shown(tags)}")
        execution = current.get()
        note = Note(new_id(), text, tuple(tags), datetime.now(UTC), execution)
        logger.info("%s: %s", self._agent, text, extra={"agent": self._agent, "tags": note.tags})
        with self._lock:
            accepted = not self._closed and len(self._waiting) < self._capacity
            if accepted:
                self._waiting.append(note)
        if not accepted:
            self._lose([note], "the agent is closed" if self._closed else f"{self._capacity:,} are waiting already")
            return
        self._nudge()

    def start(self) -> None:
        """Send in the running loop what waits, and what comes."""
        loop = asyncio.get_running_loop()
        if self._sender is not None and self._loop is loop and not self._sender.done():
            return
        self._loop = loop
        self._wake, self._empty = asyncio.Event(), asyncio.Event()
        if self._waiting:
            self._wake.set()
        self._sender = loop.create_task(self._send_all(), name=f"agentfield notes of {self._agent}")

    async def aclose(self, within: float = _FLUSH) -> None:
        """Send what waits, for at most ``within`` seconds, and stop; what is left is logged at WARNING. Idempotent."""
        if self._waiting:
            self.start()
        self._closed = True
        sender, self._sender = self._sender, None
        if sender is None or self._loop is not asyncio.get_running_loop():
            return
        try:
            async with asyncio.timeout(within):
                while not sender.done() and self._waiting:
                    self._empty.clear()
                    empty = asyncio.ensure_future(self._empty.wait())
                    await asyncio.wait({sender, empty}, return_when=asyncio.FIRST_COMPLETED)
                    empty.cancel()
        except TimeoutError:
            logger.debug("notes of %s were not all sent within %g s", self._agent, within)
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)

    def _nudge(self) -> None:
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not None and (self._loop is None or self._loop.is_closed() or self._loop is running):
            self.start()
            self._wake.set()
        elif self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self._wake.set)
            except RuntimeError:
                logger.debug("the loop of %s has just ended; the note waits for the next", self._agent)

    async def _send_all(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    await self._send([*self._waiting][:_BATCH], self._fabric)
                self._empty.set()
        finally:
            if self._waiting and not self._closed:
                await self._send_last()
            with self._lock:
                left = [*self._waiting]
                self._waiting.clear()
            self._lose(left, "the agent ended before the server confirmed it")

    async def _send_last(self) -> None:
        """Send what waits when asyncio.run() ends the loop, having cancelled the connection's own tasks as well."""
        try:
            async with asyncio.timeout(_FLUSH_AT_END):
                fabric = await self._connect()
                try:

                    async def source() -> Fabric:
                        return fabric

                    await self._send([*self._waiting], source)
                finally:
                    await fabric.aclose()
        except (AgentFieldError, TimeoutError) as error:
            logger.debug("the last notes of %s: %s", self._agent, error)

    async def _send(self, batch: list[Note], source: Callable[[], Awaitable[Fabric]]) -> None:
        """Send until each is stored or hopeless; only then a note leaves the queue, so a cancellation hides none."""
        pause = _FIRST_PAUSE
        pending = batch
        while pending:
            try:
                fabric = await source()
            except ClosedError:
                raise
            except AgentFieldError as error:  # whatever keeps us from connecting may be mended meanwhile
                outcomes: list[BaseException | None] = [UnavailableError(str(error))] * len(pending)
            else:
                outcomes = await asyncio.gather(
                    *(self._append(fabric, note) for note in pending), return_exceptions=True
                )
            again: list[Note] = []
            for note, outcome in zip(pending, outcomes, strict=True):
                if outcome is None:
                    self.delivered += 1
                elif isinstance(outcome, ClosedError) or not isinstance(outcome, Exception):
                    raise outcome
                elif isinstance(outcome, (UnavailableError, OutcomeUnknownError)):
                    again.append(note)
                    continue
                else:
                    self._lose([note], str(outcome))
                with self._lock:
                    self._waiting.remove(note)
            pending = again
            if pending:
                logger.info("%s of %s waiting for the server", number_of(len(self._waiting), "note"), self._agent)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def _append(self, fabric: Fabric, note: Note) -> None:
        headers = {EVENT_ID: note.id, **(to_headers(note.execution) if note.execution is not None else {})}
        payload = encode_value({"text": note.text, "tags": note.tags, "agent": self._agent, "time": note.time})
        await fabric.log.append(f"{fabric.connection.namespace}.notes.{self._agent}", payload, headers)

    def _lose(self, notes: Sequence[Note], reason: str) -> None:
        self.lost += len(notes)
        for note in notes:
            logger.warning("a note of %s was not stored (%s): %s", self._agent, reason, note.text)
