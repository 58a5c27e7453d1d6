"""Connecting: from nothing configured to an open fabric, and memory for programs that are not agents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, NoReturn

from agentfield.errors import InvalidInputError
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import PATIENCE
from agentfield.local import ensure_server, recorded_server
from agentfield.memory.lifetime import Lifetimes, Periods
from agentfield.memory.memory import Memory
from agentfield.settings import Settings
from agentfield.subject import check_namespace

_ENTER: Final = "write `async with agentfield.connect() as memory:` and use memory inside the block"


async def open_fabric(
    url: str | None, namespace: str | None, *, name: str, settings: Settings, timeout: float = PATIENCE
) -> Fabric:
    """The fabric at ``url``, else where the settings say, else on the local embedded server, started if need be.

    Raises what opening a fabric and ensuring the embedded server raise; nothing is left open then.
    """
    chosen = settings.namespace if namespace is None else namespace
    check_namespace(chosen)
    where = url or settings.nats_url
    if where:
        return await Fabric.open(where, namespace=chosen, name=name, timeout=timeout)
    server = await ensure_server(settings.home)
    find = partial(recorded_server, settings.home)
    return await Fabric.open(server.url, namespace=chosen, name=name, timeout=timeout, find=find)


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
    name: str = "agentfield",
    timeout: float = PATIENCE,
) -> Connecting:
    """Shared memory for a program that is not an agent: ``async with agentfield.connect() as memory``.

    ``nats_url`` and ``namespace`` default as for an agent. ``actor_id`` gives it an actor scope of its own; ``name`` is
    what the server's tools show; ``timeout`` is how long one operation may take, in seconds, an outage included.
    Entering it raises :class:`UnavailableError`, :class:`AccessDeniedError`, :class:`IncompatibleServerError`,
    :class:`InvalidInputError`.
    """
    return Connecting(_connected(nats_url, namespace, actor_id, name, timeout))


@asynccontextmanager
async def _connected(
    nats_url: str | None, namespace: str | None, actor_id: str | None, name: str, timeout: float
) -> AsyncIterator[Memory]:
    settings = Settings.load()
    fabric = await open_fabric(nats_url, namespace, name=name, settings=settings, timeout=timeout)
    lifetimes = Lifetimes(Periods(workflow=settings.workflow_grace, session=settings.session_idle))

    async def source() -> Fabric:
        return fabric

    try:
        yield Memory(source, actor_id=actor_id, lifetimes=lifetimes)
    finally:
        await fabric.aclose()
