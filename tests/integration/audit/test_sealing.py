"""Seals on a real server: made as the log grows, by one of many sealers, and exact over every kind of end."""

import asyncio
import base64
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentfield import InvalidInputError, Memory, OutcomeUnknownError, ProjectionError
from agentfield.audit.chain import Stored
from agentfield.audit.checking import check_live
from agentfield.audit.nkey import Signer
from agentfield.audit.seal import Seal, SignedSeal, signed
from agentfield.audit.source import Live
from agentfield.audit.verifying import Verdict
from agentfield.fabric.batch import BatchItem, append_batch
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.faults import ServerFault
from agentfield.fabric.jetstream import api
from agentfield.fabric.records import nanoseconds_of
from projections import Source
from projections.seals import Sealer, Seals
from projections.stores import Stores, open_store
from projections.stores.seals import SealStore
from tests.support import NatsServer, eventually, sealing
from tests.support.events import headers, subject, write, write_many
from tests.support.sealing import following

OpenFabric = Callable[..., Awaitable[Fabric]]
SIGNER = Signer.generate()


async def seal_all(fabric: Fabric, *, every: int = 10, signer: Signer = SIGNER) -> list[Seal]:
    return await sealing.seal_all(fabric, signer, every=every)


async def verdict(fabric: Fabric, trusted: Sequence[str] = (SIGNER.public,), **options: Any) -> Verdict:
    return (await check_live(fabric, trusted=trusted, **options)).verdict


class Process:
    """A program that seals."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def readline(self) -> bytes:
        assert self._process.stdout is not None
        return await self._process.stdout.readline()

    def kill(self) -> None:
        if self._process.returncode is None:
            os.kill(self._process.pid, signal.SIGKILL)


@asynccontextmanager
async def sealer(server: NatsServer, namespace: str, how: str) -> AsyncIterator[Process]:
    """A program that seals, and is killed at the end of the block."""
    program = [sys.executable, "-m", "tests.support.programs.sealer", server.url, namespace, SIGNER.seed, how]
    process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
    try:
        yield Process(process)
    finally:
        Process(process).kill()
        await process.wait()


async def last_of(fabric: Fabric) -> int:
    return int((await fabric.log.state())["last_seq"])


def whole(made: Sequence[Seal], last: int) -> bool:
    """Whether these seals go up to a revision."""
    return bool(made) and made[-1].last == last


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
    async with following(fabric, SIGNER, every=1000, within=0.3) as made:
        await write_many(fabric, [f"k.{number}" for number in range(1, 12)])
        last = await write(fabric, "k.12")
        await eventually(lambda: made and made[-1].last >= last, within=10, what="everything is sealed")
        last = await write(fabric, "k.13")
        await eventually(lambda: whole(made, last), within=10, what="the last event is sealed")
    assert (await verdict(fabric)).last == last


async def test_an_event_is_not_sealed_before_its_time(fabric: Fabric) -> None:
    await write(fabric, "k.1")
    async with following(fabric, SIGNER, every=4, within=3600) as made:

        async def runs() -> bool:
            return await last_of(fabric) == 2  # the runner's lease is an event of the log as well

        await eventually(runs, what="the sealer runs")
        await write_many(fabric, ["k.2", "k.3", "k.4"])
        await write_many(fabric, ["k.5", "k.6"])
        await eventually(lambda: whole(made, 4), within=10, what="four are sealed")
    assert [(seal.first, seal.last) for seal in made] == [(1, 4)]
    assert await last_of(fabric) == 7


async def test_sealing_goes_on_where_it_ended(fabric: Fabric) -> None:
    for count in (7, 3, 11):
        await write_many(fabric, [f"k.{number}" for number in range(count)])
        await seal_all(fabric, every=4)
    assert await seal_all(fabric) == []
    result = await verdict(fabric)
    assert (result.intact, result.last, result.unsealed) == (True, 21, 0)


async def test_of_several_sealers_one_works_and_there_is_one_chain(server: NatsServer, open_fabric: OpenFabric) -> None:
    fabrics = [await open_fabric(server) for _ in range(3)]
    writer = fabrics[0]
    async with (
        following(fabrics[0], SIGNER, every=3, within=0.2) as one,
        following(fabrics[1], SIGNER, every=3, within=0.2) as other,
        following(fabrics[2], SIGNER, every=2, within=0.2) as third,
    ):
        for number in range(15):
            await write_many(writer, [f"k.{number}.{place}" for place in range(10)])
        last = await last_of(writer)
        made = (one, other, third)
        await eventually(lambda: any(whole(seals, last) for seals in made), within=15, what="all is sealed")
    result = await verdict(writer)
    assert (result.intact, result.last, result.events) == (True, last, last)
    assert sorted(map(len, made)) == [0, 0, result.seals]


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
    written = 0
    for kill in range(8):
        async with sealer(server, namespace, "all") as process:
            async with asyncio.timeout(30):
                for _ in range(1 + kill % 3):
                    await write_many(fabric, [f"k.{number}" for number in range(60)])
                    written += 60
                    await process.readline()
    await seal_all(fabric)
    result = await verdict(fabric)
    assert (result.intact, result.last, result.events, result.unsealed) == (True, written, written, 0)


async def test_when_the_one_that_seals_is_killed_another_takes_over(
    server: NatsServer, fabric: Fabric, namespace: str
) -> None:
    await write(fabric, "k.1")
    async with sealer(server, namespace, "run") as one:
        await asyncio.wait_for(one.readline(), 20)
        async with following(fabric, SIGNER, every=7, within=0.1) as made:
            await write_many(fabric, [f"k.{number}" for number in range(20)])
            await asyncio.wait_for(one.readline(), 20)
            assert not made
            one.kill()
            await write_many(fabric, [f"k.{number}" for number in range(20)])
            last = await last_of(fabric)
            await eventually(lambda: whole(made, last), within=20, what="the other one goes on")
    result = await verdict(fabric)
    assert (result.intact, result.events) == (True, last)


async def test_a_seal_that_was_stored_though_nobody_was_told_is_gone_on_from(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the sealer died between the seal and whatever it does next: there is no checkpoint besides the seal."""
    await write_many(fabric, [f"k.{number}" for number in range(5)])
    store = Live.store
    silent = 2

    async def stores(self: Live, seal: SignedSeal) -> bool:
        nonlocal silent
        stored = await store(self, seal)
        silent -= 1
        if silent >= 0:
            raise OutcomeUnknownError("there was no answer")
        return stored

    monkeypatch.setattr(Live, "store", stores)
    async with following(fabric, SIGNER, every=3, within=0.1) as made:
        await write_many(fabric, [f"k.{number}" for number in range(9)])
        last = await last_of(fabric)
        await eventually(lambda: made and made[-1].last >= last, within=20, what="sealing goes on")
    result = await verdict(fabric)
    assert (result.intact, result.events) == (True, await last_of(fabric))
    assert result.seals == len(made) + 2


async def test_with_a_lost_key_sealing_goes_on_under_another_that_is_named(
    fabric: Fabric, caplog: pytest.LogCaptureFixture
) -> None:
    await write_many(fabric, [f"k.{number}" for number in range(10)])
    await seal_all(fabric, every=5)
    other = Signer.generate()
    await write(fabric, "k.10")
    with caplog.at_level(logging.WARNING, "agentfield.projections"):
        await seal_all(fabric, signer=other)
    assert f"seal 2 is signed by {SIGNER.public}; sealing goes on with {other.public}" in caplog.text
    both = await verdict(fabric, trusted=[SIGNER.public, other.public])
    assert (both.intact, both.last, both.keys) == (True, 11, [SIGNER.public, other.public])
    lost = await verdict(fabric)
    assert (lost.last, lost.seal_fault) == (
        10,
        f"seal 3 is signed by {other.public}, which is none of the keys that are trusted",
    )


async def test_one_that_was_given_other_events_than_the_other_seals_nothing_and_says_so(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write_many(fabric, ["k.1", "k.2", "k.3"])
    store = Live.store

    async def beaten(self: Live, seal: SignedSeal) -> bool:
        monkeypatch.setattr(Live, "store", store)
        lies = Seal.of(seal.body)
        lies = replace(lies, digests=lies.digests[:16] + bytes(16) + lies.digests[32:])
        assert await store(self, signed(lies, SIGNER))
        return await store(self, seal)

    monkeypatch.setattr(Live, "store", beaten)
    with pytest.raises(ProjectionError, match="seal 1 says something else of revision 2"):
        await seal_all(fabric)


async def test_a_restart_of_the_server_is_not_seen_in_the_seals(
    fresh_server: NatsServer, open_fabric: OpenFabric
) -> None:
    writer, fabric = await open_fabric(fresh_server), await open_fabric(fresh_server)
    async with following(fabric, SIGNER, every=5, within=0.2) as made:
        await write_many(writer, [f"k.{number}" for number in range(12)])
        await eventually(lambda: made, what="a seal")
        await fresh_server.restart(gracefully=False)
        await write_many(writer, [f"k.{number}" for number in range(12)])
        await eventually(lambda: whole(made, 25), within=20, what="everything is sealed, the runner's lease included")
    assert (await verdict(fabric)).events == 25


async def test_nothing_is_built_on_a_seal_that_is_forged(fabric: Fabric, namespace: str) -> None:
    await write(fabric, "k.1")
    await seal_all(fabric)
    await fabric.connection.request(f"{namespace}.seals.seal", b"{}", timeout=5)
    await write(fabric, "k.2")
    with pytest.raises(ProjectionError, match="seal 2 is forged"):
        await seal_all(fabric)
    view = await SealStore(Source(fabric)).live("seals")
    assert view is not None
    error = (await view.head()).error
    assert error is not None
    assert "seal 2 is forged" in error
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
    with pytest.raises(ProjectionError, match="made anew"):
        await seal_all(fabric)
    result = await verdict(fabric)
    assert result.finding is not None
    assert (result.finding.kind, result.finding.sequence) == ("changed", 1)
    assert any("made anew" in fact for fact in result.facts)


async def test_a_log_whose_front_was_cut_off_is_sealed_on_and_what_is_gone_is_named(fabric: Fabric) -> None:
    await write_many(fabric, [f"k.{number}" for number in range(25)])
    await seal_all(fabric)
    stream = fabric.log.stream
    config = (await api(fabric.connection, f"STREAM.INFO.{stream}"))["config"]
    await api(fabric.connection, f"STREAM.UPDATE.{stream}", {**config, "max_msgs": 12, "discard": "old"})
    await write_many(fabric, ["k.26", "k.27"])
    await seal_all(fabric)
    result = await verdict(fabric)
    assert (result.first, result.last, result.events, result.begins_at) == (16, 27, 12, 16)
    assert result.finding is not None
    assert (result.finding.kind, result.finding.sequence) == ("removed", 1)
    assert "nothing in the log says that it was trimmed" in result.finding.detail
    result = (await check_live(fabric, trusted=[SIGNER.public], start=16)).verdict
    assert (result.intact, result.first, result.last, result.whole) == (True, 16, 27, False)


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
            Seals(SIGNER, **options)
    with pytest.raises(InvalidInputError, match="--key"):
        Sealer(None, Seals())  # type: ignore[arg-type]  # refused before it is looked at


async def test_seals_stand_among_the_views_and_can_be_paused(fabric: Fabric, tmp_path: Path) -> None:
    source = Source(fabric)
    stores = Stores(source, open_store(tmp_path))
    assert await stores.names() == []
    await write_many(fabric, [f"k.{number}" for number in range(7)])
    await seal_all(fabric, every=3)
    assert await stores.names() == ["seals"]
    view = await stores.live("seals")
    assert view is not None
    head = await view.head()
    assert (head.checkpoint, head.events, head.paused, head.error) == (7, 7, False, None)
    await write_many(fabric, ["k.7", "k.8"])
    assert await source.lag(head.selection, head.checkpoint) == 2
    await view.pause(True)
    assert await seal_all(fabric) == []
    async with following(fabric, SIGNER, every=1, within=0.1) as made:
        await view.pause(False)
        last = await write(fabric, "k.9")
        await eventually(lambda: made and made[-1].last >= last, within=10, what="it goes on")
        await view.pause(True)
        later = await write(fabric, "k.10")

        async def paused() -> bool:
            return (await view.head()).paused

        await eventually(paused)
    assert made[-1].last < later


async def test_why_sealing_stopped_is_noted_until_it_goes_on(fabric: Fabric) -> None:
    await write(fabric, "k.1")
    await seal_all(fabric)
    source = Source(fabric)
    view = await SealStore(source).live("seals")
    assert view is not None
    await view.stop("the key was stolen", 2)
    head = await view.head()
    assert (head.error, head.failed_at) == ("the key was stolen", 2)
    await write(fabric, "k.2")
    await seal_all(fabric)
    head = await view.head()
    assert (head.error, head.failed_at, head.checkpoint) == (None, None, 2)


async def test_seals_are_never_made_anew_or_taken_away(fabric: Fabric, tmp_path: Path) -> None:
    await write(fabric, "k.1")
    await seal_all(fabric)
    source = Source(fabric)
    with pytest.raises(InvalidInputError, match="evidence of its time"):
        await Sealer(source, Seals(SIGNER)).rebuild()
    with pytest.raises(InvalidInputError, match="evidence of its time"):
        await Stores(source, open_store(tmp_path)).remove("seals")
    verified = await Sealer(source, Seals(SIGNER)).verify()
    assert (verified.equal, verified.checkpoint, verified.rows) == (True, 1, 1)
    await fabric.connection.request(f"{source.namespace}.seals.seal", b"{}", timeout=5)
    assert not (await Sealer(source, Seals(SIGNER)).verify()).equal


async def test_messages_between_two_sequences_are_read_as_they_stand(fabric: Fabric) -> None:
    await write_many(fabric, ["a", "b", "c", "d"])
    async with aclosing(Live(fabric).read(2, 3)) as messages:
        found: list[Stored] = [stored async for stored in messages]
    assert [stored.sequence for stored in found] == [2, 3]
