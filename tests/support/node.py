"""One server of a test, whatever runs it: what a test may do to it, and what it can be asked."""

import abc
import asyncio

from tests.support import monitor
from tests.support.waiting import wait_until

START_DEADLINE = 30.0


class Node(abc.ABC):
    """A NATS server with its whole life in a test's hands.

    Tests use the async methods; each returns when its effect is there, and changes nothing but this server. The data
    directory, the ports and the name stay the same for as long as the node exists. The `…_now` methods do the same
    while blocking, for fixtures.
    """

    def __init__(self, name: str, client_port: int, monitor_port: int) -> None:
        self.name = name
        self.client_port = client_port
        self.monitor_port = monitor_port
        self.running = False
        self.paused = False

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.client_port}"

    @property
    def answers(self) -> bool:
        """Whether it can be expected to answer: started, and not paused."""
        return self.running and not self.paused

    # What each kind of node does in its own way.

    @abc.abstractmethod
    def launch(self) -> None:
        """Start the server process. Raises PortTakenError if its ports are somebody else's."""

    @abc.abstractmethod
    def end(self, *, gracefully: bool) -> None:
        """Make the server process end, and return when it has."""

    @abc.abstractmethod
    def freeze(self) -> None:
        """Keep the server process from running; its sockets stay open."""

    @abc.abstractmethod
    def thaw(self) -> None:
        """Let the server process go on."""

    @abc.abstractmethod
    def check_alive(self) -> None:
        """Raise, with the end of the server's log, if the process has ended by itself."""

    @abc.abstractmethod
    def log(self) -> str:
        """Return what the server has logged so far."""

    @abc.abstractmethod
    def dispose(self) -> None:
        """End the server, in whatever state it is, and give back what it held. Doing it twice is harmless."""

    # What follows from that.

    def start_now(self, *, ready: bool = True) -> None:
        """Start it; with `ready`, return when it serves clients."""
        if self.running:
            return
        self.launch()
        self.running = True
        if ready:
            self.wait_ready_now()

    def wait_ready_now(self) -> None:
        """Return when it serves clients and its JetStream has caught up."""

        def ready() -> bool:
            self.check_alive()
            return monitor.is_healthy(self.monitor_port)

        wait_until(ready, within=START_DEADLINE, what=f"{self.name} is ready")

    def stop_now(self) -> None:
        """End it as an operator would (SIGTERM): it hands over what it leads and closes its files."""
        self._end_now(gracefully=True)

    def kill_now(self) -> None:
        """End it as a crash would (SIGKILL)."""
        self._end_now(gracefully=False)

    def _end_now(self, *, gracefully: bool) -> None:
        if not self.running:
            return
        if gracefully:
            self.resume_now()
        self.end(gracefully=gracefully)
        self.running = self.paused = False

    def pause_now(self) -> None:
        """Freeze it (SIGSTOP): to everybody else it is a server that no longer answers."""
        if not self.answers:
            return
        self.freeze()
        self.paused = True

    def resume_now(self) -> None:
        """Let it go on after a pause."""
        if not self.paused:
            return
        self.thaw()
        self.paused = False

    async def start(self, *, ready: bool = True) -> None:
        """Start it after `stop` or `kill`, on the same ports and data."""
        await asyncio.to_thread(self.start_now, ready=ready)

    async def stop(self) -> None:
        """End it as an operator would."""
        await asyncio.to_thread(self.stop_now)

    async def kill(self) -> None:
        """End it as a crash would."""
        await asyncio.to_thread(self.kill_now)

    async def pause(self) -> None:
        """Freeze it."""
        await asyncio.to_thread(self.pause_now)

    async def resume(self) -> None:
        """Let it go on after a pause."""
        await asyncio.to_thread(self.resume_now)

    async def restart(self, *, gracefully: bool = True) -> None:
        """End it and start it again, on the same ports and data."""
        await (self.stop() if gracefully else self.kill())
        await self.start()
