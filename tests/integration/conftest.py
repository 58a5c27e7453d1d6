"""For every test beside this file: what is open at its start is closed at its end."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from agentfield import Memory, connect
from agentfield.fabric.fabric import Fabric
from tests.support import NatsServer
from tests.support.loose_ends import no_loose_ends

__all__ = ["no_loose_ends"]


@pytest.fixture
async def open_fabric(namespace: str) -> AsyncIterator[Callable[..., Awaitable[Fabric]]]:
    """Return a function that opens a fabric in this test's namespace, to be closed with the test."""
    async with AsyncExitStack() as stack:

        async def open(server: NatsServer, **options: Any) -> Fabric:
            fabric = await Fabric.open(server.url, **{"namespace": namespace, "name": "test", **options})
            stack.push_async_callback(fabric.aclose)
            return fabric

        yield open


@pytest.fixture
async def fabric(server: NatsServer, open_fabric: Callable[..., Awaitable[Fabric]]) -> Fabric:
    """Return a fabric in this test's namespace on the shared server."""
    return await open_fabric(server)


@pytest.fixture
async def memory(server: NatsServer, namespace: str) -> AsyncIterator[Memory]:
    """Return the memory of a plain program in this test's namespace on the shared server."""
    async with connect(server.url, namespace=namespace) as memory:
        yield memory
