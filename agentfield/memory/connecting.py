"""Connecting: from nothing configured to an open fabric, and memory for programs that are not agents."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, NoReturn

from agentfield.amount import check_span
from agentfield.errors import InvalidInputError
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import PATIENCE
from agentfield.local import ensure_server, recorded_server
from agentfield.memory.lifetime import Lifetimes, Periods
from agentfield.memory.memory import Memory
from agentfield.naming import check_text, shown
from agentfield.settings import Settings
from agentfield.subject import check_namespace

if TYPE_CHECKING:
    from agentfield.archive.reading import Archive

_ENTER: Final = "write `async with agentfield.connect() as memory:` and use memory inside the block"


_NEWCOMER: Final = 5.0
"""Seconds within which a server that is there answers a newcomer."""


async def open_fabric(
    url: str | None,
    namespace: str | None,
    *,
    name: str,
    settings: Settings,
    archive: str | os.PathLike[str] | None = None,
    connect_timeout: float = _NEWCOMER,
    timeout: float = PATIENCE,
) -> Fabric:
    """The fabric at ``url``, else where the settings say, else on the local embedded server, started if need be.

    Raises what opening a fabric and ensuring the embedded server raise; nothing is left open then.
    """
    chosen = settings.namespace if namespace is None else namespace
    check_namespace(chosen)
    check_url(url)
    where = url or settings.nats_url
    find = None
    if not where:
        where = (await ensure_server(settings.home)).url
        find = partial(recorded_server, settings.home)
    fabric = await Fabric.open(
        where, namespace=chosen, name=name, connect_timeout=connect_timeout, timeout=timeout, find=find
    )
    fabric.log.earlier = archive_for(chosen, settings, archive)
    return fabric


def archive_for(namespace: str, settings: Settings, archive: str | os.PathLike[str] | None = None) -> Archive | None:
    """The archive of what was trimmed off a log: the one named, or that of the default place, if there is one.

    It is looked at when something is asked for that the log does not hold.
    """
    chosen = settings.archive_of(namespace) if archive is None else Path(archive).expanduser().absolute()
    if archive is None and settings.archive is None and not chosen.is_dir():
        return None
    from agentfield.archive.reading import Archive  # most have none, and what it needs takes time to load

    return Archive(chosen)


def check_url(url: object) -> None:
    """Raises InvalidInputError unless this is None or text; whether it is a URL is found out where it is used."""
    if url is not None and not isinstance(url, str):
        raise InvalidInputError(
            f"nats_url={shown(url)}: a text such as 'nats://127.0.0.1:4222', with a comma between several servers"
        )


class Connecting(AbstractAsyncContextManager[Memory, None]):
    """Memory as soon as it is entered: ``async with agentfield.connect() as memory``.

    Taken for the memory itself, it says so: ``InvalidInputError`` for whatever memory has and this has not.
    """

    def __init__(self, connected: AbstractAsyncContextManager[Memory, bool | None]) -> None:
        self._connected = connected

    async def __aenter__(self) -> Memory:
        """Connect, and give the memory."""
        return await self._connected.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        await self._connected.__aexit__(kind, error, trace)

    if not TYPE_CHECKING:  # a type checker finds these mistakes by itself, unless it saw that something answers

        def __getattr__(self, name: str) -> NoReturn:
            """Say how to come by what memory has."""
            if name.startswith("_") or not hasattr(Memory, name):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise InvalidInputError(f"connect() is not the memory yet, so it has no {name}(): {_ENTER}")

        def __await__(self) -> NoReturn:
            """Say that this is not how to enter it."""
            raise InvalidInputError(f"connect() is entered, not awaited: {_ENTER}")

        def __enter__(self) -> NoReturn:
            """Say that this is not how to enter it."""
            raise InvalidInputError(f"connect() takes `async with`, not `with`: {_ENTER}")

        def __exit__(self, *_: object) -> None:
            """Nothing was entered."""


def connect(
    nats_url: str | None = None,
    *,
    namespace: str | None = None,
    actor_id: str | None = None,
    archive: str | os.PathLike[str] | None = None,
    name: str = "agentfield",
    timeout: float = PATIENCE,
) -> Connecting:
    """Shared memory for a program that is not an agent: ``async with agentfield.connect() as memory``.

    ``nats_url`` and ``namespace`` default as for an agent. ``actor_id`` gives it an actor scope of its own; ``name`` is
    what the server's tools show; ``archive`` is the directory in which what was trimmed off the log is kept, by default
    ``AGENTFIELD_ARCHIVE``; ``timeout`` is how long one operation may take, in seconds, an outage included, and how long
    entering waits for a server to answer. Entering it raises :class:`UnavailableError`, :class:`AccessDeniedError`,
    :class:`IncompatibleServerError`, :class:`InvalidInputError`.
    """
    return Connecting(_connected(nats_url, namespace, actor_id, archive, name, timeout))


@asynccontextmanager
async def _connected(
    nats_url: str | None,
    namespace: str | None,
    actor_id: str | None,
    archive: str | os.PathLike[str] | None,
    name: str,
    timeout: float,
) -> AsyncIterator[Memory]:
    check_text(name, "name")
    seconds = check_span(timeout, "timeout")
    settings = Settings.load()
    fabric = await open_fabric(
        nats_url,
        namespace,
        name=name,
        settings=settings,
        archive=archive,
        connect_timeout=seconds,
        timeout=seconds,
    )
    lifetimes = Lifetimes(Periods(workflow=settings.workflow_grace, session=settings.session_idle))

    async def source() -> Fabric:
        return fabric

    try:
        yield Memory(source, actor_id=actor_id, lifetimes=lifetimes)
    finally:
        await fabric.aclose()
