"""Connecting: from nothing configured to an open fabric, and memory for programs that are not agents."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agentfield.archive.reading import Archive
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import PATIENCE
from agentfield.local import ensure_server
from agentfield.memory.lifetime import Lifetimes, Periods
from agentfield.memory.memory import Memory
from agentfield.settings import Settings
from agentfield.subject import check_namespace


async def open_fabric(
    url: str | None,
    namespace: str | None,
    *,
    name: str,
    settings: Settings,
    archive: str | os.PathLike[str] | None = None,
    timeout: float = PATIENCE,
) -> Fabric:
    """The fabric at ``url``, else where the settings say, else on the local embedded server, started if need be.

    Raises what opening a fabric and ensuring the embedded server raise; nothing is left open then.
    """
    chosen = settings.namespace if namespace is None else namespace
    check_namespace(chosen)
    where = url or settings.nats_url or (await ensure_server(settings.home)).url
    fabric = await Fabric.open(where, namespace=chosen, name=name, timeout=timeout)
    fabric.log.earlier = archive_for(chosen, settings, archive)
    return fabric


def archive_for(namespace: str, settings: Settings, archive: str | os.PathLike[str] | None = None) -> Archive | None:
    """The archive of what was trimmed off a log: the one named, or that of the default place, if there is one.

    It is looked at when something is asked for that the log does not hold.
    """
    if archive is not None:
        return Archive(Path(archive).expanduser().absolute())
    chosen = settings.archive_of(namespace)
    return Archive(chosen) if settings.archive is not None or chosen.is_dir() else None


@asynccontextmanager
async def connect(
    nats_url: str | None = None,
    *,
    namespace: str | None = None,
    actor_id: str | None = None,
    archive: str | os.PathLike[str] | None = None,
    name: str = "agentfield",
    timeout: float = PATIENCE,
) -> AsyncIterator[Memory]:
    """Shared memory for a program that is not an agent: ``async with agentfield.connect() as memory``.

    ``nats_url`` and ``namespace`` default as for an agent. ``actor_id`` gives it an actor scope of its own; ``name`` is
    what the server's tools show; ``archive`` is the directory in which what was trimmed off the log is kept, by default
    ``AGENTFIELD_ARCHIVE``; ``timeout`` is how long one operation may take, in seconds, an outage included. Raises
    :class:`UnavailableError`, :class:`AccessDeniedError`, :class:`IncompatibleServerError`, :class:`InvalidInputError`.
    """
    settings = Settings.load()
    fabric = await open_fabric(nats_url, namespace, name=name, settings=settings, archive=archive, timeout=timeout)
    lifetimes = Lifetimes(Periods(workflow=settings.workflow_grace, session=settings.session_idle))

    async def source() -> Fabric:
        return fabric

    try:
        yield Memory(source, actor_id=actor_id, lifetimes=lifetimes)
    finally:
        await fabric.aclose()
