"""The wire between a client and a server, in a test's hands: cut it, part the two, or lose what one side says.

A relay on a port of its own. What it has passed on it has passed on whole and in order, as TCP does; a cut ends both
sides of every connection, and a client may connect again at once.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_CHUNK = 64 * 1024


class Wire:
    """A relay to a server's port. Make one with `wire`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._url = ""
        self._left: int | None = None
        self._answers = True
        self._refuses = False
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.cuts = 0
        """How often a planned cut has happened."""

    @property
    def url(self) -> str:
        """Where to connect instead of to the server."""
        return self._url

    def cut(self) -> None:
        """End every connection now."""
        for writer in self._writers:
            writer.transport.abort()

    def refuse(self, refuse: bool = True) -> None:
        """End every connection, and let nobody connect until told otherwise."""
        self._refuses = refuse
        if refuse:
            self.cut()

    def stall(self, stall: bool = True) -> None:
        """Pass nothing on in either direction, and end nothing; what is held comes through afterwards, as with TCP."""
        if stall:
            self._flows.clear()
        else:
            self._flows.set()

    def cut_after(self, size: int) -> None:
        """Pass on exactly so many more bytes of what clients send; then cut, once."""
        self._left = size

    def lose_answers(self, lose: bool = True) -> None:
        """Keep what the server says from the clients, without cutting; what is lost stays lost."""
        self._answers = not lose

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, back}
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass(reader, back, sent=True))
                tasks.create_task(self._pass(there, writer, sent=False))
        except* (OSError, EOFError):
            pass
        finally:
            for end in (writer, back):
                self._writers.discard(end)
                end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, sent: bool) -> None:
        while data := await reader.read(_CHUNK):
            if sent and self._left is not None:
                data, self._left = data[: self._left], self._left - len(data)
            await self._flows.wait()
            if sent or self._answers:
                writer.write(data)
                await writer.drain()
            if sent and self._left is not None and self._left <= 0:
                self._left = None
                self.cuts += 1
                break
        raise EOFError  # which ends the other direction, too

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(OSError):  # nobody listens there at present
                await self._serve(reader, writer)
        except asyncio.CancelledError:
            return  # at the end of the test; a stream's own task may not end cancelled
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def close(self) -> None:
        """End every connection and forget them."""
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


@asynccontextmanager
async def wire(port: int) -> AsyncIterator[Wire]:
    """A wire to the server on that port."""
    relay = Wire(port)
    server = await asyncio.start_server(relay._accept, "127.0.0.1", 0)
    relay._url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield relay
    finally:
        server.close()
        await relay.close()
