"""The buckets are the server's own work, and the log's rules are the server's to enforce."""

import asyncio
import random

import nats
import pytest
from nats.js import JetStreamContext
from nats.js.errors import APIError, KeyNotFoundError, NoKeysError

from agentfield import Agent, Memory, connect
from agentfield.key import key_tokens
from agentfield.scope import scope_token
from tests.support import NatsServer, eventually


async def _bucket(js: JetStreamContext, name: str) -> dict[str, bytes]:
    """What a stock KV client sees."""
    kv = await js.key_value(name)
    try:
        keys = await kv.keys()
    except NoKeysError:
        return {}
    found = {}
    for key in keys:
        try:
            entry = await kv.get(key)
        except KeyNotFoundError:
            continue
        assert entry.value is not None
        found[key] = entry.value
    return found


async def _fold(memory: Memory, scope: str) -> dict[str, bytes]:
    """The state that the log's events of one kind of scope add up to, under the keys of a bucket."""
    state: dict[str, bytes] = {}
    fabric = await memory._fabric()
    async for event in memory.history("*", scope=scope):
        prefix = "" if scope == "global" else f"{scope_token(event.scope_id)}."
        key = prefix + key_tokens(event.key)
        if event.operation == "delete":
            state.pop(key, None)
        else:
            record = await fabric.log.at(event.revision)
            assert record is not None
            state[key] = record.payload
    return state


async def test_what_a_stock_kv_client_reads_equals_the_fold_of_the_log(server: NatsServer, namespace: str) -> None:
    chance = random.Random(7)
    agent = Agent("writer", nats_url=server.url, namespace=namespace)
    client = await nats.connect(server.url)
    try:
        async with agent:
            views = [
                agent.memory.workflow("wf.1"),
                agent.memory.workflow("wf 2"),
                agent.memory.session("user>42"),
                agent.memory.actor(),
                agent.memory.global_scope,
            ]

            async def churn(view: Memory) -> None:
                for _ in range(60):
                    key = chance.choice(["plain", "order_1_status", "odd key.ü", "__", "a=b"])
                    if chance.random() < 0.25:
                        await view.delete(key)
                    else:
                        await view.set(key, {"number": chance.randrange(100)})

            await asyncio.gather(*(churn(view) for view in views))
            for kind in ("workflow", "session", "actor", "global"):
                expected = await _fold(agent.memory, kind)

                async def same(kind: str = kind, expected: dict[str, bytes] = expected) -> bool:
                    return await _bucket(client.jetstream(), f"{namespace}-{kind}") == expected

                await eventually(same, what=f"bucket of {kind} equals the log")
    finally:
        await client.close()


async def test_the_global_bucket_prints_the_value_itself_under_the_key(server: NatsServer, namespace: str) -> None:
    client = await nats.connect(server.url)
    try:
        async with connect(server.url, namespace=namespace) as memory:
            await memory.set("feature_flags", {"dark": True})
            kv = await client.jetstream().key_value(f"{namespace}-global")

            async def value() -> bytes | None:
                try:
                    return (await kv.get("feature.flags")).value
                except KeyNotFoundError:
                    return None

            assert await eventually(value) == b'{"dark":true}'
    finally:
        await client.close()


async def test_nobody_can_put_into_a_bucket_and_bypass_the_log(server: NatsServer, namespace: str) -> None:
    client = await nats.connect(server.url)
    try:
        async with connect(server.url, namespace=namespace) as memory:
            await memory.set("k", 1)
            kv = await client.jetstream().key_value(f"{namespace}-global")
            with pytest.raises(nats.errors.Error):
                await kv.put("k", b"2")
            with pytest.raises(nats.errors.Error):
                await kv.delete("k")
            assert await memory.get("k") == 1
    finally:
        await client.close()


async def test_the_server_refuses_to_delete_purge_or_roll_up_the_log(server: NatsServer, namespace: str) -> None:
    client = await nats.connect(server.url)
    js = client.jetstream()
    stream = f"{namespace.upper()}_MEMORY"
    try:
        async with connect(server.url, namespace=namespace) as memory:
            revision = await memory.set("k", 1)
            subject = f"{namespace}.memory.global.global.k"
            for code, attempt in (
                (10057, js.delete_msg(stream, revision)),
                (10110, js.purge_stream(stream)),
                (10111, js.publish(subject, b"2", headers={"Nats-Rollup": "sub"})),
                (10111, js.publish(subject, b"2", headers={"Nats-Rollup": "all"})),
                (10166, js.publish(subject, b"2", headers={"Nats-TTL": "1s"})),
            ):
                with pytest.raises(APIError) as refused:
                    await attempt
                assert refused.value.err_code == code
            assert await memory.get("k") == 1
            assert [event.data async for event in memory.history("k")] == [1]
    finally:
        await client.close()
