"""Trimming takes out of the log what an archive holds, and nothing that anybody still needs; whoever dies meanwhile."""

import asyncio
from collections import Counter
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agentfield import (
    Agent,
    CaughtUp,
    Event,
    HistoryTruncatedError,
    Memory,
    NotFoundError,
    ProjectionError,
    ResyncRequired,
)
from agentfield.audit.nkey import Signer
from agentfield.fabric import trimmed
from agentfield.fabric import trimming as steps
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import api
from agentfield.memory import views
from projections import Projection, Runner, Source, open_store, trimming
from projections.stores import Stores
from projections.timeline import Timeline
from tests.support import NatsServer, eventually
from tests.support.archiving import archive, archived, live, rewritten, state_of, trim, write
from tests.support.events import shorten
from tests.support.sealing import seal_all


async def subjects_of(fabric: Fabric) -> dict[str, int]:
    stored: dict[str, int] = {}
    for each in await live(fabric):
        stored[each.subject] = stored.get(each.subject, 0) + 1
    return stored


async def config_of(fabric: Fabric) -> dict[str, Any]:
    config: dict[str, Any] = (await api(fabric.connection, f"STREAM.INFO.{fabric.log.stream}"))["config"]
    return config


def plain(config: dict[str, Any]) -> dict[str, Any]:
    ours = ("metadata", "discard_new_per_subject")
    return {name: value for name, value in config.items() if name not in ours and value}


async def test_what_is_archived_goes_and_what_every_key_holds_stays(
    fabric: Fabric, memory: Memory, tmp_path: Path
) -> None:
    await write(memory, 10)
    before = {entry.key: (entry.value, entry.revision) async for entry in memory.items("*")}
    config = plain(await config_of(fabric))
    await archive(fabric, tmp_path)
    everything = await live(fabric)
    assert await trim(fabric, tmp_path) == len(everything) - len({each.subject for each in everything})
    *left, _ = await live(fabric)  # behind it comes what is noted of it
    last = {each.subject: each for each in everything}
    assert left[: len(last)] == sorted(last.values(), key=lambda e: e.sequence)
    assert {entry.key: (entry.value, entry.revision) async for entry in memory.items("*")} == before
    assert plain(await config_of(fabric)) == config, "the log is not as it was before"
    assert fabric.log.held.complete == left[-1].sequence + 1
    assert (await archived(tmp_path / "archive"))[: len(everything)] == everything
    assert await memory.set("quiet", 2, if_revision=before["quiet"][1]) == left[-1].sequence + 2


async def test_it_can_be_done_again_and_again(fabric: Fabric, memory: Memory, tmp_path: Path) -> None:
    for number in range(3):
        everything = await write(memory, 3 + number)
        await archive(fabric, tmp_path)
        await trim(fabric, tmp_path)
        assert set((await subjects_of(fabric)).values()) == {1}
        assert await trim(fabric, tmp_path) == 0
        assert [e.revision for e in everything][-1] <= fabric.log.held.complete


async def test_nobody_has_to_wait_where_nothing_could_go(
    fabric: Fabric, memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(memory, 3)
    await archive(fabric, tmp_path)
    await trim(fabric, tmp_path)
    updates: list[Any] = []
    monkeypatch.setattr(steps, "_update", updates.append)
    await memory.set("another", 1)
    assert (await trim(fabric, tmp_path), updates) == (0, [])


async def test_what_is_held_back_is_counted_before_the_log_is_frozen(
    fabric: Fabric, memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = await write(memory, 5)
    runner = Runner(Source(fabric), Timeline(), open_store(tmp_path))
    await runner.catch_up()
    await write(memory, 20)
    await archive(fabric, tmp_path)
    most, read = steps._Recent.most, []

    async def recorded(recent: Any, start: int, stop: int) -> int:
        before = recent._stop
        found = await most(recent, start, stop)
        read.append((trimmed.is_frozen(await config_of(fabric)), recent._stop - max(before, start - 1)))
        return found

    monkeypatch.setattr(steps._Recent, "most", recorded)
    assert await trim(fabric, tmp_path) > 0
    (frozen, count), then = read[:2]
    assert (frozen, count > 400, then) == (False, True, (True, 1))  # the note that the log is trimmed
    held = everything[-1].revision + 1
    counts = Counter(each.subject for each in await live(fabric, held))
    assert max((await subjects_of(fabric)).values()) <= max(counts.values()) + 1


async def test_writers_meanwhile_notice_nothing_and_lose_nothing(
    fabric: Fabric, memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_STEP", 200)
    monkeypatch.setattr(steps, "_PAUSE", 0.0)
    await write(memory, 40)
    await archive(fabric, tmp_path)
    over = asyncio.Event()
    written: list[int] = []

    async def writes() -> None:
        while not over.is_set():
            written.append(await memory.set(f"order_{len(written) % 7}", len(written)))

    task = asyncio.create_task(writes())
    await eventually(lambda: len(written) > 20, within=10)
    removed = await trim(fabric, tmp_path)
    seen = len(written)
    await eventually(lambda: len(written) > seen, within=20)
    over.set()
    await task
    assert removed > 500
    complete = fabric.log.held.complete
    left = {each.sequence: each for each in await live(fabric)}
    assert all(revision in left for revision in written if revision >= complete)
    kept = {each.sequence for each in await archived(tmp_path / "archive")}
    assert all(revision in kept for revision in written if revision < complete)
    assert {await memory.get(f"order_{key}") for key in range(7)} == {*range(len(written) - 7, len(written))}


async def test_however_many_steps_it_takes_no_key_keeps_more_than_is_needed(
    fabric: Fabric, memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(memory, 12)
    await seal_all(fabric, Signer.generate())
    await archive(fabric, tmp_path)
    monkeypatch.setattr(steps, "_limit", lambda totals, least, _: max(least, max(totals.values()) - 2))
    stores = Stores(Source(fabric), open_store(tmp_path))
    taken = [step.messages async for step in trimming.trim(Source(fabric), stores)]
    assert len(taken) > 4
    assert max((await subjects_of(fabric)).values()) <= 2, "what is noted of trimming holds trimming back"


async def test_what_a_handler_has_still_to_hear_stays(
    server: NatsServer, namespace: str, fabric: Fabric, memory: Memory, tmp_path: Path
) -> None:
    heard: list[tuple[int, Any]] = []

    def late() -> Agent:
        agent = Agent("late", nats_url=server.url, namespace=namespace)

        @agent.memory.on_change("order_*", start="all")
        async def hear(event: Event) -> None:
            heard.append((event.revision, event.previous_data))

        return agent

    async with late():
        await memory.set("order_1", 0)
        await eventually(lambda: len(heard) == 1, within=20)
    wanted = [(await memory.set("order_1", number), number - 1) for number in range(1, 6)]
    await archive(fabric, tmp_path)
    stores = Stores(Source(fabric), open_store(tmp_path))
    outlook = await trimming.outlook(Source(fabric), stores)
    assert outlook.held_by is not None
    assert "late-hear" in outlook.held_by.name
    assert outlook.complete <= wanted[0][0]
    await trim(fabric, tmp_path)
    async with late():
        await eventually(lambda: heard[-5:] == wanted, within=20)
    await trim(fabric, tmp_path)
    assert (await subjects_of(fabric))[f"{namespace}.memory.global.global.order.1"] == 1


class Counting(Projection):
    name = "counting"

    def prepare(self, view: Any) -> None:
        view.execute("CREATE TABLE counts (revision INTEGER)")

    def apply(self, event: Event, view: Any) -> None:
        view.execute("INSERT INTO counts VALUES (?)", (event.revision,))


async def test_what_a_view_or_the_seals_lack_stays(fabric: Fabric, memory: Memory, tmp_path: Path) -> None:
    signer = Signer.generate()
    source, store = Source(fabric), open_store(tmp_path)
    await memory.set("a", 1)
    last = await memory.set("a", 2)
    await Runner(source, Counting(), store).catch_up()
    await memory.set("a", 3)
    await memory.set("a", 4)
    await archive(fabric, tmp_path)
    stores = Stores(source, store)
    held_by = (await trimming.outlook(source, stores)).held_by
    assert held_by == steps.Need("the projection counting", last + 1)
    await seal_all(fabric, signer)
    sealed = (await fabric.log.state())["last_seq"]
    await memory.set("a", 5)
    await Runner(source, Counting(), store).catch_up()
    await archive(fabric, tmp_path)
    assert (await trimming.outlook(source, stores)).held_by == steps.Need("the projection seals", sealed + 1)


async def test_nothing_goes_where_the_archive_is_not_what_the_log_says(
    fabric: Fabric, memory: Memory, tmp_path: Path
) -> None:
    await write(memory, 3)
    path = await archive(fabric, tmp_path)
    async with rewritten(path) as messages:
        messages[6] = messages[6]._replace(payload=b'"forged"')
    before = await live(fabric)
    with pytest.raises(ProjectionError, match=r"revision 7 .* nothing more was trimmed"):
        await trim(fabric, tmp_path)
    assert (await live(fabric))[: len(before)] == before


async def test_without_an_archive_nothing_goes(fabric: Fabric, memory: Memory, tmp_path: Path) -> None:
    await write(memory, 2)
    with pytest.raises(NotFoundError, match="projections run archive"):
        await trim(fabric, tmp_path)


@pytest.mark.parametrize("at", ["frozen", "limited"])
async def test_a_log_left_frozen_by_one_who_died_is_thawed_and_nothing_is_lost(
    fabric: Fabric, memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    await write(memory, 5)
    await archive(fabric, tmp_path)
    everything = await live(fabric)

    class Died(BaseException):
        pass

    update = steps._update

    async def dies(*_: object) -> None:
        raise Died

    async def dies_limiting(log: Any, config: Any) -> None:
        await update(log, config)
        if config.get("max_msgs_per_subject", -1) > 0:
            raise Died

    with monkeypatch.context() as broken:
        broken.setattr(steps, "_thaw", dies)
        broken.setattr(steps, "_update", dies_limiting) if at == "limited" else broken.setattr(steps, "_drained", dies)
        with pytest.raises(Died):
            await trim(fabric, tmp_path)
    assert trimmed.is_frozen(await config_of(fabric))
    with monkeypatch.context() as later:
        later.setattr("agentfield.fabric.topology.LEFT_FROZEN", timedelta(0))
        await fabric.log.state()  # as every process does every few seconds
    assert await memory.set("order_1", "after") > everything[-1].sequence, "it does not take writes again"
    left = await live(fabric)
    archive_holds = await archived(tmp_path / "archive")
    assert {each.sequence for each in everything} <= {each.sequence for each in [*left, *archive_holds]}
    config = await config_of(fabric)
    assert not trimmed.is_frozen(config)
    assert config["max_msgs_per_subject"] == -1
    await trim(fabric, tmp_path)
    assert set((await subjects_of(fabric)).values()) == {1}


async def test_a_watch_and_a_history_of_what_is_gone_are_told_so(
    fabric: Fabric, memory: Memory, tmp_path: Path
) -> None:
    events = await write(memory, 3)
    await archive(fabric, tmp_path)
    await trim(fabric, tmp_path)
    with pytest.raises(ResyncRequired):
        await anext(memory.watch("*", start=1))
    with pytest.raises(HistoryTruncatedError, match="AGENTFIELD_ARCHIVE"):
        await anext(memory.history("*", since=1))
    with pytest.raises(HistoryTruncatedError):
        await state_of(memory, events[10].revision)
    assert [event async for event in memory.history("*")] == []
    new = await memory.set("order_3", "new")
    async with aclosing(memory.watch("order_3", start=new)) as items:
        event = await anext(items)
        assert isinstance(event, Event)
        assert (event.revision, event.previous_data) == (new, {"round": 2, "name": "né"})


async def test_who_was_idle_meanwhile_is_not_disturbed(
    server: NatsServer,
    namespace: str,
    fabric: Fabric,
    memory: Memory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agentfield.fabric.reader._EXPIRES", 0.2)  # the watch has not asked for more for a while
    agent = Agent("idle", nats_url=server.url, namespace=namespace)
    heard: list[int] = []

    @agent.memory.on_change(["rare", "rare_*"])
    async def hear(event: Event) -> None:
        heard.append(event.revision)

    async with agent, aclosing(memory.watch("rare")) as items:
        assert isinstance(await anext(items), CaughtUp)
        first = await memory.set("rare", 1)
        assert getattr(await anext(items), "revision", 0) == first
        await eventually(lambda: heard == [first], within=20)
        await write(memory, 3)
        await archive(fabric, tmp_path)
        assert await trim(fabric, tmp_path)
        later = await memory.set_many({"rare": 2, **{f"rare_{number}": 1 for number in range(600)}})
        assert getattr(await anext(items), "revision", 0) == later - 600
        await eventually(lambda: heard[-1] == later, within=20)
        assert len(heard) == 602
    letters = await api(fabric.connection, f"STREAM.INFO.{fabric.topology.deadletters.name}")
    assert letters["state"]["messages"] == 0


async def test_who_was_away_and_is_far_behind_after_it_hears_everything_and_of_no_gap(
    server: NatsServer, namespace: str, fabric: Fabric, memory: Memory, tmp_path: Path
) -> None:
    heard: list[int] = []

    def instance() -> Agent:
        agent = Agent("away", nats_url=server.url, namespace=namespace)

        @agent.memory.on_change(["rare", "rare_*"])
        async def hear(event: Event) -> None:
            heard.append(event.revision)

        return agent

    async with instance():
        await memory.set("rare", 1)
        await eventually(lambda: len(heard) == 1, within=20)
    await write(memory, 3)
    await archive(fabric, tmp_path)
    assert await trim(fabric, tmp_path)
    for block in range(3):
        last = await memory.set_many({f"rare_{block}_{number}": 1 for number in range(900)})
    async with instance():
        await eventually(lambda: heard[-1] == last, within=30)
    assert (len(heard), len(set(heard))) == (2701, 2701)
    letters = await api(fabric.connection, f"STREAM.INFO.{fabric.topology.deadletters.name}")
    assert letters["state"]["messages"] == 0


async def test_an_operator_who_shortens_a_trimmed_log_is_found_out(
    fabric: Fabric, memory: Memory, tmp_path: Path
) -> None:
    await write(memory, 3)
    await archive(fabric, tmp_path)
    await trim(fabric, tmp_path)
    assert fabric.log.held.known == fabric.log.held.complete - 1
    await shorten(fabric, keep=3)
    assert fabric.log.held.known == trimmed.NEVER


async def test_the_notice_of_every_erasure_stays_for_views_that_were_away(
    fabric: Fabric, memory: Memory, tmp_path: Path
) -> None:
    await memory.set_personal(["session"])
    receipts = []
    for user in ("ada", "eve", "joe"):
        await memory.session(user).set("mail", f"{user}@example.org")
        receipts.append(await memory.erase(scope="session", scope_id=user))
    await archive(fabric, tmp_path)
    assert await trim(fabric, tmp_path) > 0
    fabric.log.earlier = None
    assert [erasure.id for erasure in await views.notices(fabric, 0)] == [receipt.id for receipt in receipts]
