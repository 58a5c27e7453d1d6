"""Removing a namespace with all that it holds: for those that were made for a while, and are known by name.

Owns: the deletion of streams, which nothing else in agentfield does. Must not know: whose namespace it is.
"""

from __future__ import annotations

from agentfield.fabric.faults import Fault, ServerFault, Verdict, error_of
from agentfield.fabric.jetstream import api
from agentfield.fabric.topology import Topology
from agentfield.fabric.wire.connection import Connection


async def remove(connection: Connection, namespace: str) -> None:
    """Remove every stream of the namespace, and so all that was ever written there. Idempotent.

    Raises :class:`UnavailableError` and its kin; some of it may be left then, and this can be repeated.
    """
    try:
        # The log last: the buckets source it.
        for stream in reversed(Topology(namespace).streams):
            await _delete(connection, stream.name)
    except Fault as fault:
        raise error_of(fault, f"removing namespace {namespace!r}") from None


async def _delete(connection: Connection, stream: str) -> None:
    try:
        await api(connection, f"STREAM.DELETE.{stream}")
    except ServerFault as fault:
        if fault.verdict is not Verdict.ABSENT:
            raise
