"""Seals on a real server: made as the log grows, by one of many sealers, and exact over every kind of end."""

import asyncio
import base64
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from agentfield import DecodeError, InvalidInputError, Memory
from agentfield.audit.chain import Stored
from agentfield.audit.checking import check_live
from agentfield.audit.nkey import Signer
from agentfield.audit.seal import Seal
from agentfield.audit.sealing import Sealer
from agentfield.audit.source import Live
from agentfield.audit.verifying import Verdict
from agentfield.fabric.batch import BatchItem, append_batch
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.faults import ServerFault
from agentfield.fabric.jetstream import api
from agentfield.fabric.records import nanoseconds_of
from tests.support import NatsServer, eventually
from tests.support.events import headers, subject, write, write_many

OpenFabric = Callable[..., Awaitable[Fabric]]
SIGNER = Signer.generate()


async def seal_all(fabric: Fabric, *, every: int = 10, signer: Signer = SIGNER) -> list[Seal]:
    async with aclosing(Sealer(fabric, signer, every=every).seal_all()) as seals:
        return [seal async for seal in seals]


async def verdict(fabric: Fabric, trusted: Sequence[str] = (SIGNER.public,), **options: Any) -> Verdict:
    return (await check_live(fabric, trusted=trusted, **options)).verdict


@asynccontextmanager
async def following(fabric: Fabric, **options: Any) -> AsyncIterator[list[Seal]]:
    """A sealer that follows the log in a task, and the seals it has made."""
    made: list[Seal] = []

    async def follow() -> None:
        async with aclosing(Sealer(fabric, SIGNER, **options).follow()) as seals:
            async for seal in seals:
                made.append(seal)

    task = asyncio.create_task(follow())
    try:
        yield made
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.smoke
async def test_everything_the_log_holds_is_sealed_and_verified(fabric: Fabric, memory: Memory) -> None:
    await memory.set("key", {"text": "né"})
    await memory.set_many({f"key_{number}": number for number in range(20)})
    await memory.delete("key")
    async with memory.lock("work", ttl=5):
        await memory.set("key", 1)
    last = (await fabric.log.state())["last_seq"]
    seals = await seal_all(fabric)
    assert [(seal.number, seal.first, seal.last) for seal in seals][:2] == [(1, 1, 10), (2, 11, 20)]
    assert seals[-1].last == last
    result = await verdict(fabric)
    assert (result.intact, result.first, result.last, result.events, result.unsealed) == (True, 1, last, last, 0)
    assert (result.seals, result.keys, result.facts) == (len(seals), [SIGNER.public], [])
    await memory.set("key", 2)
    assert await verdict(fabric) == result.__class__(
        **{name: getattr(result, name) for name in result.__slots__}
        | {"unsealed": 1, "unsealed_since": (await verdict(fabric)).unsealed_since}
    )


async def test_what_is_verified_is_what_the_server_stores_to_the_byte(fabric: Fabric, namespace: str) -> None:
    """Header blocks and subjects that no parser would give back the same."""
    odd = f"{namespace}.memory.global.global."
    blocks = [
        b"NATS/1.0\r\nA: 1\r\nA: 2\r\n  Spaced  :   x  \r\n\r\n",
        b"NATS/1.0\r\nNot-UTF-8: \xff\xfe\r\n\r\n",
        b"NATS/1.0\r\nStatus: 404\r\nDescription: Consumer Deleted\r\n\r\n",
        b"NATS/1.0\r\nno header at all\r\n\r\n",
    ]
    connection = fabric.connection.client
    for number, block in enumerate(blocks):
        size = len(block) + 2
        line = f"HPUB {odd}k{number} {len(block)} {size}\r\n".encode()
        await connection._send_command(line + block + b"\x00\xff\r\n")
    await connection._send_command(b"PUB " + odd.encode() + b"\xff 1\r\nx\r\n")
    await connection._flush_pending()
    last = await write(fabric, "end")
    assert last == len(blocks) + 2
    live = Live(fabric)
    async with aclosing(live.read(1, last)) as messages:
        found = [stored async for stored in messages]
    assert [stored.headers for stored in found[: len(blocks)]] == blocks
    for stored in found:
        answer = await api(fabric.connection, f"STREAM.MSG.GET.{fabric.log.stream}", {"seq": stored.sequence})
        assert base64.b64decode(answer["message"].get("hdrs", "")) == stored.headers
        assert base64.b64decode(answer["message"]["data"]) == stored.payload
        assert nanoseconds_of(answer["message"]["time"]) == stored.timestamp
    assert {stored.payload for stored in found[: len(blocks)]} == {b"\x00\xff"}
    assert found[len(blocks)].subject.encode("utf-8", "surrogateescape") == odd.encode() + b"\xff"
    await seal_all(fabric)
    assert (await verdict(fabric)).events == last


async def test_what_has_waited_long_enough_is_sealed_though_it_is_not_much(fabric: Fabric) -> None:
    async with following(fabric, every=1000, within=0.3) as made:
        await write_many(fabric, [f"k.{number}" for number in range(1, 12)])
        await eventually(lambda: made and made[-1].last == 11, within=10, what="everything is sealed")
        await write(fabric, "k.12")
        await eventually(lambda: made[-1].last == 12, within=10, what="the last event is sealed")
    assert (await verdict(fabric)).last == 12


async def test_an_event_is_not_sealed_before_its_time(fabric: Fabric) -> None:
    await write(fabric, "k.1")
    async with following(fabric, every=3, within=3600) as made:
        await eventually(lambda: made, what="what was there at the start is sealed")
        await write_many(fabric, ["k.2", "k.3"])
        await write_many(fabric, ["k.4", "k.5"])
        await eventually(lambda: made[-1].last == 4, within=10, what="three are sealed")
    assert [(seal.first, seal.last) for seal in made] == [(1, 1), (2, 4)]


async def test_sealing_goes_on_where_it_ended(fabric: Fabric) -> None:
    for count in (7, 3, 11):
        await write_many(fabric, [f"k.{number}" for number in range(count)])
        await seal_all(fabric, every=4)
    assert await seal_all(fabric) == []
    result = await verdict(fabric)
    assert (result.intact, result.last, result.unsealed) == (True, 21, 0)


async def test_sealers_that_race_make_one_chain(server: NatsServer, open_fabric: OpenFabric) -> None:
    fabrics = [await open_fabric(server) for _ in range(3)]
    writer = fabrics[0]
    async with (
        following(fabrics[0], every=3, within=0.2) as one,
        following(fabrics[1], every=3, within=0.2) as other,
        following(fabrics[2], every=2, within=0.2) as third,
    ):
        for number in range(15):
            await write_many(writer, [f"k.{number}.{place}" for place in range(10)])
        made = (one, other, third)
        await eventually(
            lambda: max((seals[-1].last for seals in made if seals), default=0) == 150, within=15, what="all is sealed"
        )
    result = await verdict(writer)
    assert (result.intact, result.last, result.events) == (True, 150, 150)
    numbers = sorted(seal.number for seals in made for seal in seals)
    assert numbers == list(range(1, result.seals + 1))


async def test_two_that_seal_the_same_at_once_store_one_seal(server: NatsServer, open_fabric: OpenFabric) -> None:
    one, other = await open_fabric(server), await open_fabric(server)
    await write_many(one, [f"k.{number}" for number in range(200)])
    made = await asyncio.gather(seal_all(one, every=10), seal_all(other, every=10))
    assert sorted(seal.number for seals in made for seal in seals) == list(range(1, sum(map(len, made)) + 1))
    assert (await verdict(one)).last == 200


async def test_a_sealer_that_is_killed_over_and_over_leaves_one_whole_chain(
    server: NatsServer, fabric: Fabric, namespace: str
) -> None:
    """kill -9 at any moment, while the log grows; the next one goes on."""
    program = [sys.executable, "-m", "tests.support.programs.sealer", server.url, namespace, SIGNER.seed]
    written = 0
    for kill in range(8):
        process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(30):
                for _ in range(1 + kill % 3):
                    await write_many(fabric, [f"k.{number}" for number in range(60)])
                    written += 60
                    await process.stdout.readline()
        finally:
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
    await seal_all(fabric)
    result = await verdict(fabric)
    assert (result.intact, result.last, result.events, result.unsealed) == (True, written, written, 0)


async def test_a_restart_of_the_server_is_not_seen_in_the_seals(
    fresh_server: NatsServer, open_fabric: OpenFabric
) -> None:
    writer, fabric = await open_fabric(fresh_server), await open_fabric(fresh_server)
    async with following(fabric, every=5, within=0.2) as made:
        await write_many(writer, [f"k.{number}" for number in range(12)])
        await eventually(lambda: made, what="a seal")
        await fresh_server.restart(gracefully=False)
        await write_many(writer, [f"k.{number}" for number in range(12)])
        await eventually(lambda: made[-1].last == 24, within=20, what="everything is sealed")
    assert (await verdict(fabric)).events == 24


async def test_nothing_is_built_on_a_seal_that_is_forged(fabric: Fabric, namespace: str) -> None:
    await write(fabric, "k.1")
    await seal_all(fabric)
    await fabric.connection.request(f"{namespace}.seals.seal", b"{}", timeout=5)
    await write(fabric, "k.2")
    with pytest.raises(DecodeError, match="seal 2 is forged"):
        await seal_all(fabric)
    result = await verdict(fabric)
    assert result.seal_fault is not None
    assert "seal 2 is forged" in result.seal_fault
    assert result.last == 1


async def test_the_server_refuses_to_change_the_seals(fabric: Fabric) -> None:
    await write(fabric, "k.1")
    await seal_all(fabric)
    name = fabric.topology.seals.name
    for request, body in ((f"STREAM.MSG.DELETE.{name}", {"seq": 1}), (f"STREAM.PURGE.{name}", {})):
        with pytest.raises(ServerFault, match=r"deny|not permitted|not allowed"):
            await api(fabric.connection, request, body)


async def test_a_log_that_was_made_anew_is_not_sealed_on_and_is_found(fabric: Fabric, open_fabric: OpenFabric) -> None:
    await write_many(fabric, [f"k.{number}" for number in range(12)])
    await seal_all(fabric)
    config = (await api(fabric.connection, f"STREAM.INFO.{fabric.log.stream}"))["config"]
    await api(fabric.connection, f"STREAM.DELETE.{fabric.log.stream}")
    await api(fabric.connection, f"STREAM.CREATE.{fabric.log.stream}", config)
    await write_many(fabric, ["k.1", "k.2"])
    with pytest.raises(DecodeError, match="made anew"):
        await seal_all(fabric)
    result = await verdict(fabric)
    assert result.finding is not None
    assert (result.finding.kind, result.finding.sequence) == ("changed", 1)
    assert any("made anew" in fact for fact in result.facts)


async def test_a_log_trimmed_at_its_front_is_verified_from_there_and_sealed_on(fabric: Fabric) -> None:
    await write_many(fabric, [f"k.{number}" for number in range(25)])
    await seal_all(fabric)
    stream = fabric.log.stream
    config = (await api(fabric.connection, f"STREAM.INFO.{stream}"))["config"]
    await api(fabric.connection, f"STREAM.UPDATE.{stream}", {**config, "max_msgs": 12, "discard": "old"})
    await write_many(fabric, ["k.26", "k.27"])
    await seal_all(fabric)
    result = await verdict(fabric)
    assert (result.intact, result.first, result.last, result.events) == (True, 16, 27, 12)
    assert result.begins_at == 16


async def test_an_event_that_the_storage_lost_is_named(fresh_server: NatsServer, open_fabric: OpenFabric) -> None:
    """One flipped bit on the disk: the server itself cannot read the event any more, and says nothing of it."""
    fabric = await open_fabric(fresh_server)
    await write_many(fabric, [f"k.{number}" for number in range(9)], b'"needle-0"')
    items = [BatchItem(subject(fabric, f"k.{n}"), b'"needle-%d"' % n, headers()) for n in range(1, 6)]
    await append_batch(fabric.log, items)
    await write(fabric, "k.last")
    await seal_all(fabric)
    fresh_server.stop_now()
    (block,) = (fresh_server.store / "jetstream").glob(f"**/{fabric.log.stream}/msgs/1.blk")
    content = bytearray(block.read_bytes())
    at = content.index(b'"needle-3"')
    content[at + 3] ^= 1
    block.write_bytes(content)
    fresh_server.start_now()
    await fabric.connection.wait_connected(20)
    result = await verdict(fabric)
    assert result.finding is not None
    assert (result.finding.kind, result.finding.sequence) == ("removed", 12)


def test_a_sealer_that_could_never_work_is_refused(namespace: str) -> None:
    for options in ({"every": 0}, {"every": 20_001}, {"within": 0}, {"within": float("nan")}):
        with pytest.raises(InvalidInputError):
            Sealer(None, SIGNER, **options)  # type: ignore[arg-type]  # refused before it is looked at


async def test_messages_between_two_sequences_are_read_as_they_stand(fabric: Fabric) -> None:
    await write_many(fabric, ["a", "b", "c", "d"])
    async with aclosing(Live(fabric).read(2, 3)) as messages:
        found: list[Stored] = [stored async for stored in messages]
    assert [stored.sequence for stored in found] == [2, 3]
