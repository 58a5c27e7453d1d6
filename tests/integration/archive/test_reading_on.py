"""What was trimmed off the log is read on from its archive, as if it had never been trimmed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agentfield import Agent, Event, HistoryTruncatedError, InvalidInputError, Memory, connect
from agentfield.archive.reading import Archive
from agentfield.fabric.consumers.durables import consumers
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import api
from agentfield.memory.causes import chain
from agentfield.scope import GLOBAL
from projections import Runner, Source, open_store
from tests.support import NatsServer, eventually
from tests.support.archiving import archive, events_of, live, state_of, trim, write
from tests.support.projecting import Chain, chains_in, checkpoint_in, folded


class Before(NamedTuple):
    """What memory said of the past when the log held all of it."""

    events: list[Event]
    states: dict[int, list[tuple[str, Any, int]]]
    archive: Path
    seam: int


@pytest.fixture
async def before(fabric: Fabric, memory: Memory, tmp_path: Path) -> Before:
    """Return what was, of a log that is trimmed now, and has been written to since."""
    events = await write(memory, 12)
    points = [1, 2, events[40].revision, events[-2].revision, events[-1].revision]
    states = {point: await state_of(memory, point) for point in points}
    path = await archive(fabric, tmp_path)
    assert await trim(fabric, tmp_path) > 100
    await memory.set("order_3", "after")
    await memory.set_many({"new_1": 1, "new_2": 2})
    return Before(events, states, path, fabric.log.held.complete)


@pytest.fixture
async def whole(server: NatsServer, namespace: str, before: Before) -> AsyncIterator[Memory]:
    """Return memory that knows of the archive."""
    async with connect(server.url, namespace=namespace, archive=before.archive) as memory:
        yield memory


async def test_history_is_the_same_in_both_directions_and_across_the_seam(before: Before, whole: Memory) -> None:
    wanted = [event.model_dump() for event in before.events]
    everything = await events_of(whole)
    assert everything[: len(wanted)] == wanted
    assert [event["key"] for event in everything[len(wanted) :]] == ["order_3", "new_1", "new_2"]
    assert everything[len(wanted)]["previous_data"] == {"round": 11, "name": "né"}
    assert await events_of(whole, reverse=True) == everything[::-1]
    assert len({event["revision"] for event in everything}) == len(everything)
    assert await events_of(whole, since=0) == everything


async def test_pages_and_parts_of_it_are_the_same(before: Before, whole: Memory) -> None:
    some = [event.model_dump() for event in before.events if event.key == "order_5"]
    assert await events_of(whole, "order_5") == some
    assert await events_of(whole, "order_5", reverse=True, limit=3) == some[::-1][:3]
    assert await events_of(whole, "order_5", since=some[4]["revision"], limit=2) == some[4:6]
    assert await events_of(whole, "order_5", until=some[4]["revision"]) == some[:5]
    assert await events_of(whole, "order_5", since=some[4]["timestamp"]) == some[4:]
    assert await events_of(whole, "order_5", until=some[4]["timestamp"]) == some[:4]
    assert await events_of(whole, "cart", scope="session", scope_id="a/b") == [before.events[-1].model_dump()]


async def test_every_state_is_the_same(before: Before, whole: Memory) -> None:
    for point, state in before.states.items():
        assert await state_of(whole, point) == state, point
    at = before.events[40]
    assert await state_of(whole, at.timestamp) == before.states[at.revision]
    assert await whole.as_of(at.revision).get("nobody", default="absent") == "absent"
    assert await whole.as_of(at.revision).get_many(["quiet", "order_1", "nobody"]) == {
        key: value for key, value, _ in before.states[at.revision] if key in ("quiet", "order_1")
    }


async def test_differences_and_reverts_go_back_behind_the_seam(before: Before, whole: Memory) -> None:
    revision = before.events[40].revision
    diff = await whole.diff("order_*", revision, scope="global")
    then = {key: value for key, value, _ in before.states[revision] if key.startswith("order_")}
    assert {change.key: change.before.value for change in diff.changed if change.before} == {
        key: value for key, value in then.items() if value != await whole.get(key) and await whole.get(key) is not None
    }
    assert await whole.revert("order_*", revision, scope="global")
    assert {entry.key: entry.value async for entry in whole.items("order_*")} == then


async def test_why_goes_back_behind_the_seam(
    server: NatsServer, namespace: str, fabric: Fabric, memory: Memory, tmp_path: Path
) -> None:
    agent = Agent("auditor", nats_url=server.url, namespace=namespace)

    heard: list[Any] = []

    @agent.memory.on_change("order_1")
    async def react(event: Event) -> None:
        if event.data == "paid":
            await agent.memory.set("copy", event.data, scope="global")
        heard.append(event.data)

    async with agent:
        cause = await memory.set("order_1", "paid")
        await memory.set("order_1", "later")
        await eventually(lambda: heard == ["paid", "later"], within=20)
    path = await archive(fabric, tmp_path)
    await trim(fabric, tmp_path)
    assert cause not in [each.sequence for each in await live(fabric)]
    (record,) = await fabric.log.last([fabric.subjects.memory(GLOBAL, "copy")])
    assert record is not None
    assert [getattr(link, "end", None) for link in [each async for each in chain(fabric, record)]][-1] == "trimmed"
    async with connect(server.url, namespace=namespace, archive=path) as whole:
        knowing = await whole._fabric()
        links = [each async for each in chain(knowing, record)]
    assert [getattr(link, "revision", None) for link in links[:2]] == [record.sequence, cause]
    assert getattr(links[-1], "end", None) == "root"


async def test_a_projection_is_made_of_all_there_ever_was(
    server: NatsServer, namespace: str, fabric: Fabric, memory: Memory, tmp_path: Path
) -> None:
    for number in range(30):
        await memory.set_many({f"item_{key}": number for key in range(9)})
    wanted = await folded(memory.history("item_*"))
    path = await archive(fabric, tmp_path)
    await trim(fabric, tmp_path)
    async with Source.open(server.url, namespace=namespace) as source:
        with pytest.raises(HistoryTruncatedError):
            await Runner(source, Chain(), open_store(tmp_path / "a")).catch_up()
        source.fabric.log.earlier = Archive(path)
        await Runner(source, Chain(), open_store(tmp_path / "b")).catch_up()
    assert chains_in(tmp_path / "b" / "chain.sqlite") == wanted


async def test_a_log_that_is_trimmed_under_a_reader_that_lost_its_place_is_read_on(
    server: NatsServer, namespace: str, fabric: Fabric, memory: Memory, tmp_path: Path
) -> None:
    for number in range(8):
        await memory.set_many({f"item_{key}": number for key in range(500)})
    wanted = [event.revision async for event in memory.history("*")]
    path = await archive(fabric, tmp_path)
    async with connect(server.url, namespace=namespace, archive=path) as whole:
        found = []
        async for event in whole.history("*", until=wanted[-1]):
            found.append(event.revision)
            if len(found) == 10:  # as after an outage; otherwise, trimming leaves what it has still to be given
                for name in [each["name"] async for each in consumers(fabric.connection, fabric.log.stream)]:
                    await api(fabric.connection, f"CONSUMER.DELETE.{fabric.log.stream}.{name}")
                assert await trim(fabric, tmp_path)
    assert found == wanted


@pytest.mark.parametrize("how", ["catch_up", "run"])
async def test_a_log_that_is_trimmed_under_a_projection_that_lost_its_place_leaves_no_gap_in_its_view(
    server: NatsServer, namespace: str, fabric: Fabric, memory: Memory, tmp_path: Path, how: str
) -> None:
    class Losing(Chain):
        lost = False

        async def apply(self, event: Event, view: Any) -> None:  # type: ignore[override]
            super().apply(event, view)
            if not self.lost:  # as after an outage
                self.lost = True
                for name in [each["name"] async for each in consumers(fabric.connection, fabric.log.stream)]:
                    if name.startswith("reader-"):
                        await api(fabric.connection, f"CONSUMER.DELETE.{fabric.log.stream}.{name}")
                assert await trim(fabric, tmp_path)

    for number in range(8):
        await memory.set_many({f"item_{key}": number for key in range(500)})
    wanted = await folded(memory.history("item_*"))
    path = await archive(fabric, tmp_path)
    view = tmp_path / "elsewhere" / "chain.sqlite"
    async with Source.open(server.url, namespace=namespace) as source:
        source.fabric.log.earlier = Archive(path)
        runner = Runner(source, Losing(), open_store(view.parent))
        task = asyncio.create_task(runner.run() if how == "run" else runner.catch_up())
        try:
            await eventually(lambda: checkpoint_in(view) >= 4000, within=20)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert chains_in(view) == wanted


async def test_the_environment_names_it_too(
    server: NatsServer, namespace: str, before: Before, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTFIELD_ARCHIVE", str(before.archive))
    async with connect(server.url, namespace=namespace) as memory:
        assert len(await events_of(memory, until=before.events[-1].revision)) == len(before.events)


async def test_without_one_the_remedy_is_named(memory: Memory, before: Before) -> None:
    with pytest.raises(HistoryTruncatedError, match="AGENTFIELD_ARCHIVE") as caught:
        await events_of(memory, since=1)
    assert (caught.value.requested, caught.value.first_available) == (1, before.seam)
    assert [event["key"] for event in await events_of(memory)] == ["order_3", "new_1", "new_2"]


async def test_one_of_another_log_is_refused_by_name(
    server: NatsServer, namespace: str, before: Before, tmp_path: Path, memory: Memory
) -> None:
    async with (
        connect(server.url, namespace=f"{namespace}b") as other,
        Source.open(server.url, namespace=f"{namespace}b") as source,
    ):
        await other.set("a", 1)
        path = await archive(source.fabric, tmp_path / "other")
    async with connect(server.url, namespace=namespace, archive=path) as wrong:
        with pytest.raises(InvalidInputError, match=r"other/archive.* is of another log"):
            await events_of(wrong)
        assert await events_of(wrong, since=before.seam)  # what the log holds does not need it
    async with connect(server.url, namespace=namespace, archive=tmp_path / "none") as wrong:
        with pytest.raises(InvalidInputError, match="there is no archive in"):
            await events_of(wrong)


async def test_one_with_a_gap_is_refused_by_name(
    server: NatsServer, namespace: str, fabric: Fabric, memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentfield.archive.directory.MOST_ROWS", 1)
    path = tmp_path / "archive"
    for number in range(3):
        await memory.set("a", number)
        await archive(fabric, tmp_path)
    await trim(fabric, tmp_path)
    next(path.glob("day=*/000000000002.parquet")).unlink()
    async with connect(server.url, namespace=namespace, archive=path) as broken:
        with pytest.raises(InvalidInputError, match="revisions 2 to 2 are missing"):
            await events_of(broken)
