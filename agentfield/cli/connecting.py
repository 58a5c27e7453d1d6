"""From a command to the server: the fabric that most of them need.

Owns: which server and namespace a command means: its options, else the environment, else the embedded server. Must not
know: what the command does there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

from agentfield.cli.invocation import Invocation
from agentfield.errors import InvalidInputError
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.faults import ServerFault, Verdict
from agentfield.fabric.jetstream import api
from agentfield.fabric.wire.connection import Connection
from agentfield.local import Server, TroubleError, ensure_server, find_server, recorded_server
from agentfield.memory import Memory
from agentfield.memory.connecting import archive_for
from agentfield.settings import Settings
from agentfield.subject import check_namespace

CLIENT_NAME = "agentfield-cli"
"""What the server's tools show for a connection of ours."""
UNWELL = "look into its log, make room on its disk, then `agentfield down` and `agentfield up`"
"""What to do about a server that finds something wrong with itself."""


class Place(NamedTuple):
    """A server, by its URL, or None for the embedded one; and a namespace."""

    url: str | None
    namespace: str


def place(invocation: Invocation) -> Place:
    """Where a command is to look. Raises InvalidInputError for an illegal namespace or an empty URL."""
    settings = Settings.load()
    namespace = settings.namespace if invocation.namespace is None else invocation.namespace
    check_namespace(namespace)
    if invocation.url is not None and not invocation.url.strip():
        raise InvalidInputError("--url is empty: give one such as nats://127.0.0.1:4222, or leave it out")
    return Place(invocation.url or settings.nats_url, namespace)


async def server_url(invocation: Invocation, url: str | None) -> str:
    """That URL, or the embedded server's, which is started if need be; people are told so."""
    if url is not None:
        return url
    server = await ensure_server(Settings.load().home)
    if server.started:
        invocation.output.note(f"started the embedded server at {server.url}; `agentfield down` stops it")
    return server.url


async def running_server() -> Server:
    """The embedded server, which is not started. Raises :class:`TroubleError` if it is not running."""
    home = Settings.load().home
    server = await asyncio.to_thread(find_server, home)
    if server is None:
        raise TroubleError(f"no embedded server is running on {home}", "`agentfield up` starts it")
    return server


async def stream_info(connection: Connection, name: str, patience: float) -> dict[str, Any] | None:
    """The server's word on a stream; None if there is no such."""
    try:
        return await api(connection, f"STREAM.INFO.{name}", patience=patience)
    except ServerFault as fault:
        if fault.verdict is Verdict.ABSENT:
            return None
        raise


@asynccontextmanager
async def connected(
    invocation: Invocation, *, namespace: str | None = None, founds: bool = False
) -> AsyncIterator[Fabric]:
    """The open fabric for a command, or that of another namespace on its server. Raises what opening one raises.

    Of commands, only those that ``founds`` is said of make a namespace that is not there yet: whoever looks, and has
    mistyped its name, must not leave it behind. NotFoundError for the others.
    """
    url, own = place(invocation)
    chosen, archive = (own, invocation.archive) if namespace is None else (namespace, None)
    fabric = await Fabric.open(
        await server_url(invocation, url),
        namespace=chosen,
        name=CLIENT_NAME,
        connect_timeout=invocation.connect_patience,
        timeout=invocation.patience,
        found=founds,
        find=partial(recorded_server, Settings.load().home) if url is None else None,
    )
    fabric.log.earlier = archive_for(chosen, Settings.load(), archive)
    try:
        yield fabric
    finally:
        await fabric.aclose()


def without_beginning(revision: int) -> str:
    """What is to be said where the past is told from a revision on, though nobody has asked for a beginning."""
    return (
        f"what was before revision {revision} is left out: it was trimmed off the log; --archive names where it is kept"
    )


@asynccontextmanager
async def remembering(invocation: Invocation, *, founds: bool = False) -> AsyncIterator[Memory]:
    """Memory that connects with its first operation, once that has found nothing wrong with what it is asked to do.

    ``founds`` as for :func:`connected`.
    """
    async with AsyncExitStack() as stack:
        opened: list[Fabric] = []

        async def fabric() -> Fabric:
            if not opened:
                opened.append(await stack.enter_async_context(connected(invocation, founds=founds)))
            return opened[0]

        yield Memory(fabric)
