"""The archive holds the log, message by message, whoever writes it and whatever happens to them."""

import asyncio
import os
import random
import shutil
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from agentfield import InvalidInputError, Memory, ProjectionError, connect
from agentfield.archive.directory import Directory
from agentfield.fabric.fabric import Fabric
from projections import Source, open_store
from projections.archive import Archive, Archiver
from projections.stores import Stores
from tests.support import NatsServer, eventually
from tests.support.archiving import add, archive, archived, archiver, live, trim, write
from tests.support.running import program

KILLS = int(os.environ.get("AGENTFIELD_TEST_KILLS", "5"))


async def test_it_holds_every_message_byte_for_byte(fabric: Fabric, memory: Memory, tmp_path: Path) -> None:
    await write(memory, 5)
    async with memory.lock("tidy", ttl=5):
        await memory.set("large", "x" * 300_000)
    await fabric.connection.publish(f"{fabric.topology.namespace}.memory.global.global.foreign", b"\xff\0", {"A": "1"})
    await memory.set("after", 1)
    path = await archive(fabric, tmp_path)
    assert await archived(path) == await live(fabric)
    verdict = await archiver(fabric, tmp_path).verify()
    assert (verdict.equal, verdict.rows) == (True, len(await archived(path)))


async def test_it_goes_on_where_it_is(fabric: Fabric, memory: Memory, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    for _ in range(4):
        await write(memory, 2)
        assert await archive(fabric, tmp_path) == path
    assert await archived(path) == await live(fabric)
    assert len(list(path.rglob("*.parquet"))) <= 2, "small files pile up"  # two, where midnight passes


async def test_duckdb_reads_it_by_day_and_meaning(fabric: Fabric, memory: Memory, tmp_path: Path) -> None:
    begun = f"{datetime.now(UTC):%Y-%m-%d}"
    await write(memory, 3)
    path = await archive(fabric, tmp_path)
    question = f"""
        SELECT key, scope, scope_id, operation, json_extract_string(nullif(decode(payload), ''), '$.name'), day::VARCHAR
        FROM read_parquet('{path}/*/*.parquet', hive_partitioning = true)
        WHERE key IN ('order_7', 'order_0', 'cart') ORDER BY revision
    """
    with duckdb.connect() as connection:
        rows = connection.execute(question).fetchall()
        everything = f"SELECT time FROM read_parquet('{path}/*/*.parquet') WHERE revision = 1"
        ((stored,),) = connection.execute(everything).fetchall()
    assert stored == (await anext(aiter(memory.history("*", until=1)))).timestamp
    first = [("order_0", "set", "né"), ("order_7", "set", "né"), ("order_0", "delete", None)]
    assert [(row[0], row[3], row[4]) for row in rows[:3]] == first
    assert rows[-1][:3] == ("cart", "session", "a/b")
    assert {row[-1] for row in rows} <= {begun, f"{datetime.now(UTC):%Y-%m-%d}"}


async def test_one_that_is_run_keeps_up_and_can_be_paused(
    server: NatsServer, namespace: str, memory: Memory, fabric: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.archive.WITHIN", 0.05)
    monkeypatch.setattr("projections.archive._CALM", 0)
    async with Source.open(server.url, namespace=namespace) as source:
        running = Archiver(source, Archive(), tmp_path / "archive")
        task = asyncio.create_task(running.run())
        try:
            last = await memory.set("a", 1)

            def stands() -> int:
                segments = Directory(running.path).segments()
                return segments[-1].last if segments else 0

            await eventually(lambda: stands() >= last, within=20)
            await running.pause(True)
            await asyncio.sleep(0)
            before = stands()
            await memory.set("b", 1)
            assert (await running.catch_up()) == before
            await running.pause(False)
            await eventually(lambda: stands() > before, within=20)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.mark.timeout(60 + 10 * KILLS)
async def test_an_archiver_killed_at_random_moments_leaves_every_message_once(
    server: NatsServer, namespace: str, fabric: Fabric, tmp_path: Path
) -> None:
    randomly = random.Random(7)
    path = tmp_path / "archive"
    async with connect(server.url, namespace=namespace) as memory:
        for number in range(KILLS):
            await memory.set_many({f"item_{key}": number for key in range(900)})
            async with program("archiver", server.url, namespace, tmp_path) as running:
                await asyncio.sleep(0.25 * randomly.random())
                await running.kill()
            Directory(path).segments()  # whole, whenever one looks
        assert await archive(fabric, tmp_path) == path
    assert await archived(path) == await live(fabric)
    assert not list(path.rglob(".draft*"))


async def test_of_two_that_write_at_once_one_wins_and_nothing_is_twice(
    fabric: Fabric, memory: Memory, tmp_path: Path
) -> None:
    for _ in range(3):
        await write(memory, 3)
        await asyncio.gather(*(archive(fabric, tmp_path) for _ in range(3)))
    assert await archived(tmp_path / "archive") == await live(fabric)


async def test_a_full_disk_is_one_sentence_and_nothing_is_lost(
    fabric: Fabric, memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(memory, 1)
    await archive(fabric, tmp_path)
    await memory.set("more", 1)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("pyarrow.parquet.write_table", full)
        with pytest.raises(ProjectionError, match=r"No space left on device; what it holds stays as it is"):
            await archive(fabric, tmp_path)
    await archive(fabric, tmp_path)
    assert await archived(tmp_path / "archive") == await live(fabric)


async def test_an_archive_of_another_log_is_not_added_to(
    memory: Memory, fabric: Fabric, server: NatsServer, namespace: str, tmp_path: Path
) -> None:
    await memory.set("a", 1)
    await archive(fabric, tmp_path)
    async with (
        connect(server.url, namespace=f"{namespace}b") as other,
        Source.open(server.url, namespace=f"{namespace}b") as source,
    ):
        await other.set("a", 1)
        with pytest.raises(ProjectionError, match="is of another log"):
            await Archiver(source, Archive(), tmp_path / "archive").catch_up()


async def test_one_that_fell_behind_a_log_trimmed_by_another_says_what_is_between_them(
    fabric: Fabric, memory: Memory, tmp_path: Path
) -> None:
    await write(memory, 3)
    await archive(fabric, tmp_path / "behind")
    last = (await write(memory, 3))[-1].revision
    await archive(fabric, tmp_path / "other")
    assert await trim(fabric, tmp_path / "other") > 0
    with pytest.raises(ProjectionError, match=rf"the log was trimmed up to {last + 2}: put the files of the archive"):
        await archive(fabric, tmp_path / "behind")
    for file in (tmp_path / "other").rglob("*.parquet"):
        shutil.copy(file, next((tmp_path / "behind").rglob(file.name)))
    await archive(fabric, tmp_path / "behind")
    assert await archived(tmp_path / "behind" / "archive") == await archived(tmp_path / "other" / "archive")


async def test_one_of_a_log_that_was_restored_is_not_gone_on_with(
    fabric: Fabric, memory: Memory, tmp_path: Path
) -> None:
    """The archive holds more than the log, and then something else."""
    await write(memory, 2)
    path = await archive(fabric, tmp_path)
    [segment], *_, last = Directory(path).segments(), *await archived(path)
    add(path, [last._replace(sequence=last.sequence + 1, timestamp=last.timestamp + 1)], log=segment.log)
    for _ in range(2):
        with pytest.raises(ProjectionError, match="restored from an older copy"):
            await archive(fabric, tmp_path)
        with pytest.raises(ProjectionError, match="restored from an older copy"):
            await trim(fabric, tmp_path)
        await write(memory, 1)


async def test_it_is_neither_rebuilt_nor_removed(fabric: Fabric, memory: Memory, tmp_path: Path) -> None:
    await memory.set("a", 1)
    running = archiver(fabric, tmp_path)
    await running.catch_up()
    with pytest.raises(InvalidInputError, match="not made anew"):
        await running.rebuild()
    with pytest.raises(InvalidInputError, match="not made anew"):
        await Stores(Source(fabric), open_store(tmp_path)).remove("archive")
    assert len(await archived(running.path)) == 1
