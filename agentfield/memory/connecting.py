"""Connecting: from nothing configured to an open fabric, and memory for programs that are not agents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import PATIENCE
from agentfield.local import ensure_server
from agentfield.memory.lifetime import Lifetimes, Periods
from agentfield.memory.memory import Memory
from agentfield.settings import Settings
from agentfield.subject import check_namespace


async def open_fabric(
    url: str | None, namespace: str | None, *, name: str, settings: Settings, timeout: float = PATIENCE
) -> Fabric:
    """The fabric at ``url``, else where the settings say, else on the local embedded server, started if need be.

    Raises what opening a fabric and ensuring the embedded server raise; nothing is left open then.
    """
    chosen = settings.namespace if namespace is None else namespace
    check_namespace(chosen)
    where = url or settings.nats_url or (await ensure_server(settings.home)).url
    return await Fabric.open(where, namespace=chosen, name=name, timeout=timeout)


@asynccontextmanager
async def connect(
    nats_url: str | None = None,
    *,
    namespace: str | None = None,
    actor_id: str | None = None,
    name: str = "agentfield",
    timeout: float = PATIENCE,
) -> AsyncIterator[Memory]:
    """Shared memory for a program that is not an agent: ``async with agentfield.connect() as memory``.

    ``nats_url`` and ``namespace`` default as for an agent. ``actor_id`` gives it an actor scope of its own; ``name`` is
    what the server's tools show; ``timeout`` is how long one operation may take, in seconds, an outage included. Raises
    :class:`UnavailableError`, :class:`AccessDeniedError`, :class:`IncompatibleServerError`, :class:`InvalidInputError`.
    """
    settings = Settings.load()
    fabric = await open_fabric(nats_url, namespace, name=name, settings=settings, timeout=timeout)
    lifetimes = Lifetimes(Periods(workflow=settings.workflow_grace, session=settings.session_idle))

    async def source() -> Fabric:
        return fabric

    try:
        yield Memory(source, actor_id=actor_id, lifetimes=lifetimes)
    finally:
        await fabric.aclose()
