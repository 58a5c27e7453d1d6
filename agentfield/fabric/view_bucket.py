"""Buckets that hold the view of a projection: made, read, and written in transactions.

Owns: their configuration, and what a transaction on one is: an atomic batch under the expectation that its first
subject is where it was. Unlike the buckets of memory they are written by us, and by nobody but the one who holds that
expectation. Must not know: what a view holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agentfield.amount import number_of
from agentfield.fabric.appending import Conflict
from agentfield.fabric.batch import MAX_BATCH, BatchItem, send_together
from agentfield.fabric.bucket import Bucket
from agentfield.fabric.facts import as_metadata, describe, facts_in
from agentfield.fabric.faults import Fault, ServerFault, Verdict, error_of
from agentfield.fabric.jetstream import ATTEMPT, api
from agentfield.fabric.topology import REPLICAS
from agentfield.fabric.wire.connection import Connection

__all__ = ["MAX_BATCH", "BatchItem", "Conflict", "Described", "ViewBucket", "described"]

_SUBJECTS = "$KV.>"


class Described(NamedTuple):
    """A bucket, and the facts that it was described by."""

    name: str
    facts: Mapping[str, str]


class ViewBucket(Bucket):
    """One bucket of a view."""

    @property
    def prefix(self) -> str:
        """What the subjects of its keys begin with."""
        return f"$KV.{self.name}."

    async def create(self, facts: Mapping[str, str], *, lasting: bool = True) -> None:
        """Make it, empty; nothing happens if it is there. One that is not ``lasting`` is lost with the server."""
        config = {
            "name": self._stream,
            "description": "the view of a projection",
            "subjects": [f"{self.prefix}>"],
            "metadata": as_metadata(facts),
            "storage": "file" if lasting else "memory",
            "max_msgs_per_subject": 1,
            "discard": "new",
            "deny_delete": True,
            "allow_rollup_hdrs": True,  # as stock clients expect of a bucket
            "allow_direct": True,
            "allow_atomic": True,
        }
        for replicas in (REPLICAS, 1) if lasting and self._connection.clustered else (1,):
            try:
                await api(self._connection, f"STREAM.CREATE.{self._stream}", {**config, "num_replicas": replicas})
            except Fault as fault:
                verdict = fault.verdict if isinstance(fault, ServerFault) else None
                if verdict is Verdict.NO_PEERS and replicas > 1:
                    continue
                if verdict is not Verdict.EXISTS:
                    raise error_of(fault, f"making bucket {self.name}") from None
            return

    async def describe(self, facts: Mapping[str, str]) -> None:
        """Change the facts it is described by, at once and as a whole."""
        await describe(self._connection, self._stream, facts)

    async def write(self, items: Sequence[BatchItem]) -> int:
        """Store all items or none; return the sequence of the last.

        Raises :class:`~agentfield.fabric.appending.Conflict` if an expectation does not hold, and
        UnavailableError if there was no answer: then the items may be stored, or not.
        """
        try:
            return await send_together(self._connection, items, ATTEMPT)
        except Fault as fault:
            if isinstance(fault, ServerFault) and fault.verdict is Verdict.CONFLICT:
                raise Conflict(fault.actual_sequence) from None
            if isinstance(fault, ServerFault) and fault.verdict is Verdict.ABSENT:
                raise Conflict(None) from None
            raise error_of(fault, f"writing {number_of(len(items), 'key')} into bucket {self.name}") from None


async def described(connection: Connection) -> list[Described]:
    """Every bucket that is described by facts of ours."""
    found: list[Described] = []
    offset, total = 0, 1
    while offset < total:
        try:
            page = await api(connection, "STREAM.LIST", {"subject": _SUBJECTS, "offset": offset})
        except Fault as fault:
            raise error_of(fault, "listing the views on the server") from None
        streams = page.get("streams") or []
        for stream in streams:
            facts = facts_in(stream["config"])
            if facts:
                found.append(Described(stream["config"]["name"].removeprefix("KV_"), facts))
        total = int(page.get("total", 0))
        offset += max(1, len(streams))
    return found
