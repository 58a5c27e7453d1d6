"""Acknowledging floors: few acknowledgements for many events, and none that could mislead the server.

Must not know: which events are done. Invariant: an acknowledgement is sent only while the pin is surely ours: after a
takeover the consumer counts anew, and one from before would mislead it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from agentfield.errors import ClosedError, UnavailableError
from agentfield.fabric.consumers.progress import Advance
from agentfield.fabric.wire.connection import Connection

logger = logging.getLogger("agentfield.consumer")

_EVERY = 250
"""Events after which a floor is acknowledged at once."""
_DELAY = 0.05
"""Seconds until a floor is acknowledged at the latest: what a kill -9 can make come again."""


class Acknowledging:
    """The acknowledgements of one instance of a consumer. ``may`` says whether the pin is surely ours at the moment."""

    def __init__(self, connection: Connection, name: str, may: Callable[[], bool]) -> None:
        self._connection = connection
        self._name = name
        self._may = may
        self._reply = ""
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()

    @property
    def said(self) -> bool:
        """Whether nothing is left to be said."""
        return not self._reply and not self._sending

    def floor(self, advance: Advance) -> None:
        """The floor has moved: say so soon."""
        if not advance.reply:
            return
        self._reply = advance.reply
        self._waiting += advance.events
        if self._waiting >= _EVERY and self._may():
            self.now()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_DELAY, self._later)

    def _later(self) -> None:
        self._timer = None
        if not self._reply:
            return
        if self._may():
            self.now()
        else:
            self._timer = asyncio.get_running_loop().call_later(_DELAY, self._later)

    def now(self) -> None:
        """Say it now, if that is permitted; else it is said once it is."""
        if not self._may():
            return
        self._stop_timer()
        reply, self._reply, self._waiting = self._reply, "", 0
        if reply:
            task = asyncio.ensure_future(self._send(reply))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    def forget(self) -> None:
        """What was to be said counts no more: another instance may be active."""
        self._reply, self._waiting = "", 0
        self._stop_timer()

    async def sent(self) -> None:
        """Return when everything that was said is on its way."""
        if self._sending:
            await asyncio.gather(*self._sending)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _send(self, reply: str) -> None:
        try:
            await self._connection.publish(reply, b"+ACK")
        except (UnavailableError, ClosedError) as error:
            logger.debug("consumer %s: %s; what is handled is skipped should it come again", self._name, error)
