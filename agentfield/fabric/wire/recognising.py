"""Recognising the server: what answers at a reconnect has to be what was used before, and is asked before it is used.

Owns: where the server is by now, if somebody keeps a record of that, and the two questions: by what name a server
greets us, and which log it has. Must not know: the protocol of a connection, what a log holds. Invariant: a stranger is
sent nothing that was meant for another: one with a wrong name not even our credentials.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from nats import errors as nats_errors

from agentfield.errors import AgentFieldError

logger = logging.getLogger("agentfield.connection")

Find = Callable[[], Awaitable[tuple[str, str] | None]]
"""Gives the URL at which a server is to be found now, and the name it answers with; None if that is not known."""
Ask = Callable[[str], Awaitable[bytes | None]]
"""Asks the server on a subject, and gives the answer; None if none came in time."""


class StrangerError(nats_errors.Error):
    """What answers is not the server that was used before. An error of nats-py's kind, so that it tries again."""


class Proof(NamedTuple):
    """A question that only the right server answers rightly."""

    subject: str
    is_right: Callable[[bytes], bool | None]
    """Whether the answer is the right one; None if it leaves that open."""


class Recognition:
    """What one connection knows of its server, beyond the life of any client."""

    def __init__(self, find: Find | None = None) -> None:
        self._find = find
        self._name: str | None = None
        self._proof: Proof | None = None
        self._proven = ""
        self.url: str | None = None
        """Where the server was last said to be; None if nobody keeps a record of that."""

    async def locate(self) -> str | None:
        """Where to connect now; None: to any of the addresses that were configured."""
        if self._find is None:
            return None
        try:
            found = await self._find()
        except AgentFieldError as error:
            logger.debug("looking where the server is: %s", error)
            found = None
        if found is not None:
            self.url, self._name = found
        return self.url

    def know_by(self, proof: Proof, info: Mapping[str, Any]) -> None:
        """From now on, ask for this proof; the server with this INFO is the right one."""
        self._proof = proof
        self._proven = _place_of(info)

    def check_name(self, info: Mapping[str, Any]) -> None:
        """Look at a server's greeting. Raises :class:`StrangerError` if it is to have another name."""
        if self._name is not None and info.get("server_name") != self._name:
            raise StrangerError("another server answers there, which is not the one that this program uses")

    async def check_proof(self, ask: Ask, info: Mapping[str, Any]) -> None:
        """Have a server prove itself. Raises :class:`StrangerError` if it is another one.

        While it cannot say (a cluster without a leader, storage that is switched off), its name counts, or its
        cluster's.
        """
        if self._proof is None:
            return
        answer = await ask(self._proof.subject)
        right = None if answer is None else self._proof.is_right(answer)
        place = _place_of(info)
        if right is None and self._find is None and place != self._proven:
            raise StrangerError("the server there does not say yet whether it has the log that this program uses")
        if right is False:
            raise StrangerError(
                "the server there has another log than the one that this program uses, or none: start the right one "
                "again, or restart this program if the log was begun anew"
            )
        if right:
            self._proven = place


def _place_of(info: Mapping[str, Any]) -> str:
    """The name of a server's cluster, or of a server that stands alone; the latter may be new at every start."""
    return str(info.get("cluster") or info.get("server_name") or "")
