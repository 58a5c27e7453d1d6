"""A call outlives the loss of the server that either side of it is connected to."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from agentfield.execution import Execution, root
from agentfield.fabric.calling.calls import Calls
from agentfield.fabric.calling.micro import Endpoint
from agentfield.fabric.calling.protocol import call_subject
from agentfield.fabric.calling.service import Service
from agentfield.fabric.wire.connection import Connection
from tests.support import Cluster, Node, eventually


@asynccontextmanager
async def connected(node: Node, namespace: str) -> AsyncIterator[Connection]:
    """A connection to one node, which learns of the others from it."""
    connection = await Connection.open(node.url, namespace=namespace, name="test")
    try:
        yield connection
    finally:
        await connection.aclose()


@asynccontextmanager
async def serving(connection: Connection, runner: Callable[[], Awaitable[bytes]]) -> AsyncIterator[Service]:
    async def run(name: str, payload: bytes, execution: Execution | None) -> bytes:
        return await runner()

    subject = call_subject(connection.namespace, "stock", "check")
    service = Service(
        connection,
        name="stock",
        version="1.0.0",
        description="",
        endpoints=[Endpoint("check", subject)],
        runner=run,
    )
    await service.start()
    try:
        yield service
    finally:
        await service.drain(0.0)


@pytest.mark.parametrize("lost", ["the caller's node", "the callee's node"])
async def test_a_result_arrives_although_one_side_loses_its_node(cluster: Cluster, namespace: str, lost: str) -> None:
    caller_node, callee_node, _ = cluster.nodes
    entered, release = asyncio.Event(), asyncio.Event()

    async def check() -> bytes:
        entered.set()
        await release.wait()
        return b"7"

    async with (
        connected(callee_node, namespace) as callee,
        connected(caller_node, namespace) as caller,
        serving(callee, check),
    ):
        calls = Calls(caller)
        execution = root("stock", None)
        pending = asyncio.create_task(calls.call("stock", "check", b"{}", execution=execution, timeout=60))
        await entered.wait()
        side, node = (caller, caller_node) if lost == "the caller's node" else (callee, callee_node)
        states: list[str] = []
        side.on_state(states.append)
        await node.kill()
        await eventually(lambda: "reconnecting" in states, within=20)
        release.set()
        assert await asyncio.wait_for(pending, 30) == b"7"
        await calls.aclose()
