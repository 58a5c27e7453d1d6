"""Whoever connects first provides the streams; what exists differently is reported and left alone."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from agentfield import AccessDeniedError, IncompatibleServerError, UnavailableError, connect
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import api
from agentfield.fabric.topology import Drift, Topology, provision
from agentfield.fabric.wire.connection import Connection
from tests.support import NatsServer
from tests.support.asking import reading_process

OpenFabric = Callable[..., Awaitable[Fabric]]


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    connection = await Connection.open(url, namespace="test", name="test")
    try:
        yield connection
    finally:
        await connection.aclose()


async def streams(connection: Connection, topology: Topology) -> dict[str, dict[str, Any]]:
    """The server's word on every stream whose name could belong to the namespace."""
    found: dict[str, dict[str, Any]] = {}
    while True:
        answer = await api(connection, "STREAM.LIST", {"offset": len(found)})
        found |= {stream["config"]["name"]: stream for stream in answer["streams"] or ()}
        if len(found) >= answer["total"]:
            return {name: stream for name, stream in found.items() if topology.namespace in name.lower()}


@pytest.mark.smoke
async def test_the_server_holds_what_the_table_says_and_nothing_else(fabric: Fabric) -> None:
    found = await streams(fabric.connection, fabric.topology)
    assert found.keys() == {spec.name for spec in fabric.topology.streams}
    for spec in fabric.topology.streams:
        config = found[spec.name]["config"]
        assert config["description"] == spec.purpose
        assert config["num_replicas"] == 1
        for name, wanted in spec.config.items():
            if name != "sources":
                assert config.get(name) == wanted, f"{spec.name}: {name}"
    log = found[fabric.topology.log.name]["config"]
    assert (log["deny_delete"], log["deny_purge"], log.get("allow_rollup_hdrs", False)) == (True, True, False)
    assert not log.get("allow_msg_ttl")
    assert (log["max_age"], log["max_bytes"], log["max_msgs"], log["max_msgs_per_subject"]) == (0, -1, -1, -1)
    assert fabric.drifts == ()


async def test_whoever_comes_later_changes_nothing(server: NatsServer, fabric: Fabric, open_fabric: OpenFabric) -> None:
    before = await streams(fabric.connection, fabric.topology)
    later = await open_fabric(server)
    after = await streams(later.connection, later.topology)
    assert later.drifts == ()
    for name, stream in before.items():
        assert (after[name]["created"], after[name]["config"]) == (stream["created"], stream["config"])


async def test_twenty_who_come_at_once_agree(server: NatsServer, namespace: str) -> None:
    topology = Topology(namespace)
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connected(server.url)) for _ in range(20)]
        drifts = await asyncio.gather(*(provision(connection, topology) for connection in connections))
        assert drifts == [[]] * 20
        assert (await streams(connections[0], topology)).keys() == {spec.name for spec in topology.streams}


async def test_processes_that_start_at_once_share_what_they_made(server: NatsServer, namespace: str) -> None:
    async with AsyncExitStack() as stack:
        asked = await asyncio.gather(
            *(stack.enter_async_context(reading_process(server.url, namespace)) for _ in range(4))
        )
        async with connect(server.url, namespace=namespace) as memory:
            await memory.set("key", "shared")
        assert [await ask("key") for ask in asked] == ["shared"] * 4


async def test_namespaces_do_not_meet(server: NatsServer, namespace: str) -> None:
    async with (
        connect(server.url, namespace=namespace) as one,
        connect(server.url, namespace=f"{namespace}-x") as other,
    ):
        await one.set("key", 1)
        assert await other.get("key") is None
        assert [event async for event in other.history()] == []


async def test_drift_is_reported_and_left_as_it_is(
    fabric: Fabric, server: NatsServer, open_fabric: OpenFabric, caplog: pytest.LogCaptureFixture
) -> None:
    notes, bucket = fabric.topology.notes, fabric.topology.buckets[3]
    for spec, change in ((notes, {"max_age": 3600_000_000_000}), (bucket, {"compression": "none"})):
        config = (await api(fabric.connection, f"STREAM.INFO.{spec.name}"))["config"]
        await api(fabric.connection, f"STREAM.UPDATE.{spec.name}", {**config, **change})
    later = await open_fabric(server)
    assert set(later.drifts) == {
        Drift(notes.name, "max_age", 3600_000_000_000, notes.config["max_age"]),
        Drift(bucket.name, "compression", "none", "s2"),
    }
    assert f"stream {notes.name}: max_age is 3600000000000" in caplog.text
    found = await streams(later.connection, later.topology)
    assert found[notes.name]["config"]["max_age"] == 3600_000_000_000


async def test_a_stream_of_somebody_else_under_our_name_is_reported(server: NatsServer, namespace: str) -> None:
    topology = Topology(namespace)
    async with connected(server.url) as connection:
        theirs = {"name": topology.deadletters.name, "subjects": [f"{namespace}.theirs"], "storage": "memory"}
        await api(connection, f"STREAM.CREATE.{topology.deadletters.name}", theirs)
        drifts = await provision(connection, topology)
        assert {drift.field for drift in drifts} >= {"subjects", "storage"}
        assert {drift.stream for drift in drifts} == {topology.deadletters.name}


async def test_a_stream_of_somebody_else_over_our_subjects_is_named(server: NatsServer, namespace: str) -> None:
    async with connected(server.url) as connection:
        theirs = {"name": f"THEIRS-{namespace}", "subjects": [f"{namespace}.>"]}
        await api(connection, f"STREAM.CREATE.THEIRS-{namespace}", theirs)
        with pytest.raises(UnavailableError, match="overlap"):
            await provision(connection, Topology(namespace))


async def test_without_jetstream_the_server_will_not_do(
    start_server: Callable[..., NatsServer], namespace: str
) -> None:
    server = start_server(extra="accounts { plain { users: [{user: plain, password: secret}] } }\n")
    async with asyncio.timeout(10):
        with pytest.raises(IncompatibleServerError, match="enable it in the server's configuration") as refused:
            await Fabric.open(server.url.replace("//", "//plain:secret@"), namespace=namespace, name="test")
    assert refused.value.needed == "JetStream"
    assert "version" not in str(refused.value)


async def test_an_agent_that_may_not_create_streams_uses_those_there_are(
    start_server: Callable[..., NatsServer], namespace: str
) -> None:
    server = start_server(
        extra="""
        authorization { users: [
            {user: operator, password: secret}
            {user: agent, password: secret, permissions: {publish: {
                deny: ["$JS.API.STREAM.CREATE.>", "$JS.API.STREAM.UPDATE.>", "$JS.API.STREAM.DELETE.>"]}}}
        ]}
        """
    )
    as_agent = server.url.replace("//", "//agent:secret@")
    async with asyncio.timeout(5):
        with pytest.raises(AccessDeniedError) as denied:
            await Fabric.open(as_agent, namespace=namespace, name="test")
    assert denied.value.subject == f"$JS.API.STREAM.CREATE.{namespace.upper()}_MEMORY"
    async with connect(server.url.replace("//", "//operator:secret@"), namespace=namespace):
        pass
    async with connect(as_agent, namespace=namespace) as memory:
        await memory.set("key", 1)
        assert await memory.get("key") == 1
