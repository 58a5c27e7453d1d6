"""The command line on a real server, in a namespace of each test's own."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import agentfield
from agentfield import Memory
from tests.cli.command import Cli
from tests.support import NatsServer
from tests.support.homes import end_servers_on

Remember = Callable[[Callable[[Memory], Awaitable[Any]]], Any]


@pytest.fixture
def cli(server: NatsServer, namespace: str) -> Iterator[Cli]:
    """Return the command line, told by its environment which server and namespace to use."""
    cli = Cli({"AGENTFIELD_NATS_URL": server.url, "AGENTFIELD_NAMESPACE": namespace})
    yield cli
    cli.dispose()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Return the path of a home that does not exist yet."""
    home = tmp_path / "home"
    yield home
    end_servers_on(home)


@pytest.fixture
def local_cli(home: Path) -> Iterator[Cli]:
    """Return the command line as it is with nothing configured, on a home of the test's own."""
    cli = Cli({"AGENTFIELD_HOME": str(home)})
    yield cli
    cli.dispose()


@pytest.fixture
def remember(server: NatsServer, namespace: str) -> Remember:
    """Return a function that runs a coroutine on the library's memory, in the command line's namespace."""

    def run(use: Callable[[Memory], Awaitable[Any]]) -> Any:
        async def connected() -> Any:
            async with agentfield.connect(server.url, namespace=namespace) as memory:
                return await use(memory)

        return asyncio.run(connected())

    return run
