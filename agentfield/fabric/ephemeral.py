"""A consumer for one reader: made on demand, in memory, on one server, and deleted at the end.

Owns: making it, also where a cluster has put it on a server that is gone, and deleting it. Must not know: what it
delivers, who pulls. Invariant: none stays: each that may have been made is deleted, or forgotten by the server after
30 s in which nobody pulled.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping
from typing import Any

from agentfield.errors import ClosedError, UnavailableError
from agentfield.fabric.faults import Fault
from agentfield.fabric.jetstream import API
from agentfield.fabric.slice import Slice

logger = logging.getLogger("agentfield.reader")

_MOMENT = 2.0
"""Seconds that whoever is being cancelled may take for what must not be left half done."""
_PLACED = 6.0
"""Seconds in which a cluster that has a leader has made a consumer."""
_INACTIVE = 30_000_000_000
"""Nanoseconds after which the server removes a consumer nobody pulls from."""


class Ephemeral:
    """The consumer of the moment, on the way through a slice."""

    def __init__(self, of: Slice) -> None:
        self._slice = of
        self.name = ""
        """What it is called; empty while there is none."""

    async def create(self, start: int | None) -> dict[str, Any]:
        """Make one that begins at ``start``, or gives the last event of every subject; return what the server says.

        Raises :class:`UnavailableError`; then one may have been made, and is to be deleted.
        """
        config: dict[str, Any] = {
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _INACTIVE,
        }
        if self._slice.filters:
            config["filter_subjects"] = self._slice.filters
        if start is None:
            config["deliver_policy"] = "last_per_subject"
        else:
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": start}
        return await self._placed(config)

    async def _placed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to the request that makes the consumer.

        A cluster may put it on a server that is gone, and then never answers: another one is asked for after a while.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._slice.patience
        while True:
            name = f"reader-{uuid.uuid4().hex}"
            body = {"stream_name": self._slice.stream, "config": {**config, "name": name}, "action": "create"}
            left = max(0.001, deadline - loop.time())
            patience = min(_PLACED, left) if self._slice.connection.clustered else left
            self.name = name  # from here on it may exist, whether or not the answer is waited for
            try:
                return await self._created(f"CONSUMER.CREATE.{self._slice.stream}.{name}", body, patience)
            except UnavailableError as error:
                if patience == left:
                    raise
                logger.debug("reader of %s: %s; asking for another consumer", self._slice.stream, error)

    async def _created(self, subject: str, body: Mapping[str, Any], patience: float) -> dict[str, Any]:
        """The answer to one such request; whoever is cancelled meanwhile waits for it for a moment.

        A deletion that was sent right after it might be worked on before it, and the consumer would stay.
        """
        asking = asyncio.ensure_future(self._slice.ask(subject, body, patience))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            await asyncio.wait({asking}, timeout=_MOMENT)
            raise
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def delete(self) -> None:
        """See that it goes; if the server is away, it forgets by itself."""
        name, self.name = self.name, ""
        if not name or self._slice.connection.state != "connected":
            return
        subject = f"{API}.CONSUMER.DELETE.{self._slice.stream}.{name}"
        try:
            if self._slice.connection.hears:
                await self._slice.connection.request(subject, timeout=2.0)
            else:
                await self._slice.connection.publish(subject)  # it goes out before the connection closes
        except (Fault, UnavailableError, ClosedError) as error:
            logger.debug("deleting consumer %s: %s", name, error)
