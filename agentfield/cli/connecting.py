"""From a command to the server and back: running its coroutine, and the fabric that most of them need.

Owns: which server and namespace a command means (its options, else the environment, else the embedded server), and the
one event loop of the process. Must not know: what the command does there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from agentfield.cli.invocation import Invocation
from agentfield.errors import InvalidInputError
from agentfield.fabric.fabric import Fabric
from agentfield.local import ensure_server
from agentfield.settings import Settings
from agentfield.subject import check_namespace

T = TypeVar("T")

CLIENT_NAME = "agentfield-cli"
"""What the server's tools show for a connection of ours."""


class Place(NamedTuple):
    """A server, by its URL, or None for the embedded one; and a namespace."""

    url: str | None
    namespace: str


def wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a command's coroutine to its end. Of errors that came together, the first is raised.

    What the library logs while a command of seconds runs would only repeat the command's own outcome; those that
    run for long configure logging for themselves.
    """
    logging.getLogger("agentfield").addHandler(logging.NullHandler())
    try:
        return asyncio.run(coroutine)
    except BaseExceptionGroup as group:
        raise _first(group) from None


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
    )
    try:
        yield fabric
    finally:
        await fabric.aclose()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
