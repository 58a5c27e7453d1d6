"""From a command to the server: the fabric that most of them need.

Owns: which server and namespace a command means: its options, else the environment, else the embedded server. Must not
know: what the command does there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import NamedTuple

from agentfield.cli.invocation import Invocation
from agentfield.errors import InvalidInputError
from agentfield.fabric.fabric import Fabric
from agentfield.local import ensure_server, recorded_server
from agentfield.memory import Memory
from agentfield.settings import Settings
from agentfield.subject import check_namespace

CLIENT_NAME = "agentfield-cli"
"""What the server's tools show for a connection of ours."""


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


@asynccontextmanager
async def connected(invocation: Invocation) -> AsyncIterator[Fabric]:
    """The open fabric for a command. Raises what opening one raises."""
    url, namespace = place(invocation)
    fabric = await Fabric.open(
        await server_url(invocation, url),
        namespace=namespace,
        name=CLIENT_NAME,
        connect_timeout=invocation.connect_patience,
        timeout=invocation.patience,
        find=partial(recorded_server, Settings.load().home) if url is None else None,
    )
    try:
        yield fabric
    finally:
        await fabric.aclose()


@asynccontextmanager
async def remembering(invocation: Invocation) -> AsyncIterator[Memory]:
    """Memory that connects with its first operation, once that has found nothing wrong with what it is asked to do."""
    async with AsyncExitStack() as stack:
        opened: list[Fabric] = []

        async def fabric() -> Fabric:
            if not opened:
                opened.append(await stack.enter_async_context(connected(invocation)))
            return opened[0]

        yield Memory(fabric)
