"""A part of the past, written again into another namespace: the same events, once, whatever comes in between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from agentfield import ConflictError, Event, InvalidInputError, Memory, ReplayedFrom, connect
from agentfield.codec import Record, encrypted_by
from agentfield.event import Writer
from agentfield.execution import Execution, current, new_id
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import api
from agentfield.header import EVENT_ID, encode_event
from agentfield.memory.addressing import AnyScope
from agentfield.memory.causes import Origin, chain
from agentfield.memory.history import Slice
from agentfield.memory.writing import store_together
from agentfield.pattern import Pattern
from agentfield.replay import republishing
from agentfield.replay.copying import time_left
from agentfield.replay.excerpt import Excerpt
from agentfield.replay.pacing import AsRecorded, AtOnce, Pace
from agentfield.replay.republishing import Republishing
from agentfield.scope import GLOBAL, RESOLUTION
from tests.support import NatsServer, eventually
from tests.support.events import write_many
from tests.support.objects import LARGE
from tests.support.trimming import trim

EVERYWHERE: tuple[AnyScope, ...] = tuple((kind, None) for kind in RESOLUTION)
SECRET = "ada@example.org"


@pytest.fixture
async def copy(server: NatsServer, namespace: str) -> AsyncIterator[Memory]:
    """Return the memory of the namespace that events are replayed into."""
    async with connect(server.url, namespace=f"{namespace}copy") as memory:
        yield memory


def excerpt(*patterns: str, start: int = 1, stop: int, writer: str | None = None) -> Excerpt:
    return Excerpt([Pattern.parse(text) for text in patterns or ["*"]], EVERYWHERE, Slice(start, stop), writer)


async def end_of(memory: Memory) -> int:
    return int((await (await memory._fabric()).log.state())["last_seq"])


async def replayed(
    memory: Memory,
    copy: Memory,
    *patterns: str,
    start: int = 1,
    stop: int | None = None,
    append: bool = False,
    writer: str | None = None,
    pace: Pace | None = None,
) -> Republishing:
    """Replay from one memory's namespace into the other's, to the end."""
    meant = excerpt(*patterns, start=start, stop=await end_of(memory) if stop is None else stop, writer=writer)
    source, target = await memory._fabric(), await copy._fabric()
    replay = Republishing(source, target, meant, append=append, pace=pace or AtOnce())
    await replay.begin()
    async for _ in replay.run():
        pass
    return replay


async def events(memory: Memory, *keys: str) -> list[Event]:
    """All events there are, those of the actor Ada included; or those of some keys."""
    found = [event async for event in memory.history()] + [event async for event in memory.history("*", "actor", "ada")]
    return sorted((each for each in found if not keys or each.key in keys), key=lambda event: event.revision)


def substance(found: Sequence[Event]) -> list[dict[str, Any]]:
    """What an event says, without where and when it is stored."""
    places = {"revision", "previous_revision", "timestamp", "replayed_from", "ttl"}
    dumps = [event.model_dump(exclude=places) for event in found]
    for dump in dumps:
        dump["writer"].pop("cause_revision")
    return dumps


async def write_at_random(memory: Memory, number: int, *, seed: int) -> None:
    chance = random.Random(seed)
    views = [memory.global_scope, memory.workflow("w"), memory.session("s"), memory.actor("ada")]
    for each in range(number):
        view, key = chance.choice(views), f"key_{chance.randrange(7)}"
        match chance.randrange(8):
            case 0:
                await view.delete(key)
            case 1:
                await view.set(key, each, ttl=chance.choice([0.001, 3600.0]))
            case 2:
                await view.set_many({"key_1": each, "key_2": [each]})
            case _:
                await view.set(key, {"n": each})
    await views[1].clear()


async def test_every_event_is_there_once_in_its_order_with_what_it_was(memory: Memory, copy: Memory) -> None:
    await write_at_random(memory, 120, seed=1)
    await memory.set("large", LARGE)
    replay = await replayed(memory, copy)
    there = await events(copy)
    recorded = await events(memory)
    assert substance(there) == substance(recorded)
    assert [event.replayed_from for event in there] == [
        ReplayedFrom(
            namespace=(await memory._fabric()).topology.namespace,
            revision=event.revision,
            timestamp=event.timestamp,
            ttl=event.ttl,
        )
        for event in recorded
    ]
    assert replay.stood.events == len(recorded)
    assert replay.stood.revision == await end_of(memory)


async def test_a_part_is_what_its_patterns_times_and_writers_say(memory: Memory, copy: Memory) -> None:
    await write_at_random(memory, 60, seed=2)
    token = current.set(Execution("exec-1", "flow-1", "chat-1", "ada", None))
    await memory.set("key_1", "hers", scope="global")
    current.reset(token)
    await memory.set("key_1", "last")
    await replayed(memory, copy, "key_1", "key_3", start=20, stop=55)
    expected = [event.id for event in await events(memory, "key_1", "key_3") if 20 <= event.revision <= 55]
    assert len(expected) > 5
    assert [event.id for event in await events(copy)] == expected
    for name in ("ada", "exec-1", "flow-1", "chat-1"):
        async with connect((await copy._fabric()).connection.url, namespace=f"by{new_id()[:20]}") as by:
            await replayed(memory, by, writer=name)
            assert [event.data for event in await events(by)] == ["hers"]


async def test_five_thousand_events_interrupted_wherever_go_on_to_the_same_end(
    memory: Memory, copy: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric = await memory._fabric()
    await write_many(fabric, [f"key.{number % 50}" for number in range(5_000)])
    monkeypatch.setattr(republishing, "_BATCH", 150)
    chance, runs = random.Random(5), 0
    target = await copy._fabric()
    while True:
        runs += 1
        replay = Republishing(fabric, target, excerpt(stop=5_000), append=False, pace=AtOnce())
        await replay.begin()
        left = chance.randrange(1, 9)
        work = asyncio.create_task(_some(replay, left))
        await asyncio.wait({work}, timeout=chance.random() / 2)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        if replay.stood.revision == 5_000:
            break
    assert runs > 3
    ids = [event.id for event in await events(memory)]
    assert [event.id for event in await events(copy)] == ids
    origins = [event.replayed_from for event in await events(copy)]
    assert [each.revision for each in origins if each is not None] == list(range(1, 5_001))


async def _some(replay: Republishing, batches: int) -> None:
    async for _ in replay.run():
        batches -= 1
        if not batches:
            return


async def test_the_same_replay_again_adds_what_has_come_since(memory: Memory, copy: Memory) -> None:
    await memory.set("a", 1)
    await replayed(memory, copy)
    assert (await replayed(memory, copy)).stood.events == 1
    await memory.set("a", 2)
    again = await replayed(memory, copy)
    assert again.stood.events == 2
    assert [event.data for event in await events(copy)] == [1, 2]


async def test_causes_lead_to_the_events_that_were_replayed(memory: Memory, copy: Memory) -> None:
    await copy._fabric()
    revision = await memory.set("order", 1)
    cause = (await events(memory))[-1]
    for step in range(5):
        cause = (await events(memory))[-1]
        token = current.set(Execution(f"e{step}", None, None, "a", None, cause=cause.id, cause_revision=revision))
        revision = await memory.set(f"step_{step}", step)
        current.reset(token)
    await memory.set("between", 1)
    token = current.set(Execution("last", None, None, "a", None, cause=cause.id, cause_revision=cause.revision))
    await memory.set("late", 1)
    current.reset(token)
    await replayed(memory, copy, stop=4)
    await replayed(memory, copy)
    target = await copy._fabric()
    (last,) = await target.log.last([target.subjects.memory(GLOBAL, "step_4")])
    assert last is not None
    links = [link async for link in chain(target, last)]
    assert [link.key for link in links if isinstance(link, Event)] == [*(f"step_{n}" for n in (4, 3, 2, 1, 0)), "order"]
    assert isinstance(links[-1], Origin)
    assert links[-1].end == "root"
    late = (await events(copy))[-1]
    assert late.writer.cause == cause.id
    assert late.writer.cause_revision == next(each.revision for each in await events(copy) if each.id == cause.id)


async def test_causes_are_right_when_others_write_into_the_target_meanwhile(
    memory: Memory, copy: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that reacts to what is replayed moves every place that was counted on."""
    for number in range(6):
        revision = await memory.set(f"order_{number}", number)
        id = (await events(memory))[-1].id
        token = current.set(Execution("e", None, None, "a", None, cause=id, cause_revision=revision))
        await memory.set(f"paid_{number}", number)
        current.reset(token)
    intruded = 0

    async def intruding(*args: Any, **options: Any) -> int:
        nonlocal intruded
        if options.get("after") is not None:
            intruded += 1
            await copy.set("intruder", intruded)
        return await store_together(*args, **options)

    monkeypatch.setattr("agentfield.replay.republishing.store_together", intruding)
    await replayed(memory, copy)
    assert intruded > 3
    there = {event.id: event for event in await events(copy)}
    paid = [event for event in there.values() if event.key.startswith("paid")]
    assert len(paid) == 6
    for event in paid:
        assert event.writer.cause is not None
        assert there[event.writer.cause].revision == event.writer.cause_revision


async def test_of_two_that_replay_at_once_one_is_refused_and_nothing_comes_twice(
    memory: Memory, copy: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(republishing, "_BATCH", 2)
    for number in range(8):
        await memory.set("a", number)
    source, target = await memory._fabric(), await copy._fabric()
    replays = [Republishing(source, target, excerpt(stop=8), append=False, pace=AtOnce()) for _ in range(2)]
    for replay in replays:
        await replay.begin()
    first = replays[0].run()
    await anext(first)
    with pytest.raises(ConflictError, match="somebody else replays into namespace"):
        async for _ in replays[1].run():
            pass
    async for _ in first:
        pass
    assert [event.data for event in await events(copy)] == list(range(8))


async def test_a_namespace_that_holds_something_else_is_refused_unless_told(memory: Memory, copy: Memory) -> None:
    await memory.set("a", 1)
    await memory.set("b", 1)
    await copy.set("mine", 1)
    with pytest.raises(InvalidInputError, match="holds events already, and these would come after them"):
        await replayed(memory, copy, "a")
    assert [event.key for event in await events(copy)] == ["mine"]
    await replayed(memory, copy, "a", append=True)
    with pytest.raises(InvalidInputError, match="the last of them replayed from"):
        await replayed(memory, copy)
    both = await replayed(memory, copy, append=True)
    assert (both.stood.events, both.left_out) == (1, 1)
    assert [event.key for event in await events(copy)] == ["mine", "a", "b"]
    await memory.set("a", 2)
    assert (await replayed(memory, copy)).stood.events == 2  # goes on, and still knows that it began with --append
    assert [event.data for event in await events(copy, "a")] == [1, 2]


async def test_an_interrupted_append_still_knows_what_was_there(
    memory: Memory, copy: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(republishing, "_BATCH", 2)
    for number in range(4):
        await memory.set("a", number)
        await memory.set("b", number)
    await replayed(memory, copy, "a")
    replay = Republishing(await memory._fabric(), await copy._fabric(), excerpt(stop=8), append=True, pace=AtOnce())
    await replay.begin()
    await _some(replay, 1)
    assert (replay.stood.revision, replay.stood.events) == (4, 2)
    rest = await replayed(memory, copy)
    assert (rest.stood.events, rest.left_out) == (4, 2)
    assert [event.data for event in await events(copy)] == [0, 1, 2, 3, 0, 1, 2, 3]


async def test_an_append_is_refused_where_nobody_can_say_what_the_target_holds(memory: Memory, copy: Memory) -> None:
    await memory.set("a", 1)
    await memory.set("b", 1)
    await replayed(memory, copy, "a")
    for number in range(3):
        await copy.set("mine", number)
    await trim(await copy._fabric(), await end_of(copy))
    with pytest.raises(InvalidInputError, match="its log was trimmed and begins at revision 5"):
        await replayed(memory, copy, append=True)
    assert await end_of(copy) == 5


@pytest.mark.parametrize("other", ["b", "*"], ids=["other events", "the same events"])
async def test_the_server_refuses_what_comes_after_another_replays_word(
    memory: Memory, copy: Memory, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """Both have looked, and then both store: the second one's word is about what is not so any more."""
    await memory.set("a", 1)
    await memory.set("b", 1)
    source, target = await memory._fabric(), await copy._fabric()
    one = Republishing(source, target, excerpt("a", stop=2), append=False, pace=AtOnce())
    two = Republishing(source, target, excerpt(other, stop=2), append=False, pace=AtOnce())
    await one.begin()
    await two.begin()

    async def overtaken(*args: Any, **options: Any) -> int:
        monkeypatch.undo()
        await _some(one, 99)
        return await store_together(*args, **options)

    monkeypatch.setattr("agentfield.replay.republishing.store_together", overtaken)
    with pytest.raises(ConflictError, match="somebody else replays into namespace"):
        await _some(two, 99)
    assert [event.key for event in await events(copy)] == ["a"]


async def test_a_log_that_was_made_anew_is_another_one(memory: Memory, copy: Memory) -> None:
    await memory.set("a", 1)
    done = await replayed(memory, copy)
    other = replace(done.stood, created=done.stood.created + 1)
    assert not other.is_of(done.stood)
    assert replace(done.stood, start=2).is_of(done.stood)
    assert not replace(done.stood, start=3).is_of(done.stood)
    assert not done.stood.is_of(replace(done.stood, start=2))


async def test_a_value_ends_when_the_recorded_one_does_or_by_its_recorded_end(memory: Memory, copy: Memory) -> None:
    await memory.set("long", 1, ttl=3600)
    await memory.set("short", 1, ttl=0.01)
    await memory.set("ended", 1, ttl=0.01)
    fabric = await memory._fabric()
    headers = encode_event(event_id=new_id(), operation="delete", writer=Writer(), reason="expired")
    await eventually(lambda: _gone(memory, "short"))
    await fabric.log.append(fabric.subjects.memory(GLOBAL, "ended"), b"", headers)
    replay = await replayed(memory, copy)
    assert replay.stood.untimed == 2
    recorded, there = await memory.entry("long"), await copy.entry("long")
    assert recorded is not None
    assert there is not None
    assert recorded.expires_at is not None
    assert there.expires_at is not None
    assert abs((recorded.expires_at - there.expires_at).total_seconds()) < 2
    assert await copy.get("short") == 1
    assert not await copy.exists("ended")
    assert [(event.operation, event.reason) for event in await events(copy, "ended")][-1] == ("delete", "expired")
    (short,) = [event for event in await events(copy) if event.key == "short"]
    assert short.ttl is None
    assert short.replayed_from is not None
    assert short.replayed_from.ttl == 0.01


async def _gone(memory: Memory, key: str) -> bool:
    return not await memory.exists(key)


async def test_what_was_encrypted_is_encrypted_with_keys_of_the_target(memory: Memory, copy: Memory) -> None:
    await memory.set_personal(["session"])
    session = memory.session("ada")
    await session.set("email", SECRET)
    await session.set("large", LARGE)
    await memory.set_personal([], [])
    await memory.set("public", 1)
    await replayed(memory, copy)
    there = copy.session("ada")
    assert await there.get("email") == SECRET
    assert await there.get("large") == LARGE
    assert await copy.get("public") == 1
    target, source = await copy._fabric(), await memory._fabric()
    filters = [target.subjects.all_memory]
    copies = {record.headers[EVENT_ID]: record async for record in target.log.read(filters)}
    for record in [record async for record in source.log.read([source.subjects.all_memory])]:
        encryption, of_copy = encrypted_by(record), encrypted_by(copies[record.headers[EVENT_ID]])
        assert (encryption is None) == (of_copy is None)
        assert encryption is None or encryption != of_copy
        assert SECRET.encode() not in copies[record.headers[EVENT_ID]].payload
    await Memory(memory._fabric).erase(scope="session", scope_id="ada")
    assert await there.get("email") == SECRET  # it is another copy: it is erased where it is
    await copy.erase(scope="session", scope_id="ada")
    assert not await there.exists("email")


async def test_an_empty_target_takes_over_what_is_personal(memory: Memory, copy: Memory) -> None:
    await memory.set_personal(["session"], ["*_email"])
    await memory.set("a", 1)
    await replayed(memory, copy)
    assert await copy.personal() == await memory.personal()


async def test_what_is_erased_stays_erased(memory: Memory, copy: Memory) -> None:
    await memory.set_personal(["session"])
    session = memory.session("ada")
    await session.set("email", SECRET)
    await session.set("large", LARGE)
    await memory.erase(scope="session", scope_id="ada")
    await replayed(memory, copy)
    erased = [event async for event in copy.history("*", "session", "ada") if event.operation == "set"]
    assert [(event.key, event.data, event.erased) for event in erased] == [("email", None, True), ("large", None, True)]
    assert not await copy.session("ada").exists("email")


async def test_replayed_scopes_stay_until_somebody_uses_them(memory: Memory, copy: Memory) -> None:
    await memory.workflow("old").set("a", 1)
    await memory.session("older").set("a", 1)
    await replayed(memory, copy)
    target = await copy._fabric()
    state = await _timers(target)
    assert state == 0
    await copy.workflow("old").set("b", 1)
    assert await _timers(target) == 1


async def _timers(fabric: Fabric) -> int:
    info = await api(fabric.connection, f"STREAM.INFO.{fabric.topology.timers.name}")
    return int(info["state"]["messages"])


async def test_at_a_pace_nothing_waits_that_has_had_its_turn(memory: Memory, copy: Memory) -> None:
    """Whatever ends a replay while it waits, what came before the pause is in the target."""
    await memory.set("a", 1)
    await memory.set("a", 2)
    asleep = asyncio.Event()

    async def sleep(seconds: float) -> None:
        asleep.set()
        await asyncio.Event().wait()

    source, target = await memory._fabric(), await copy._fabric()
    pace = AsRecorded(clock=lambda: 0.0, sleep=sleep)
    replay = Republishing(source, target, excerpt(stop=2), append=False, pace=pace)
    await replay.begin()
    work = asyncio.create_task(_some(replay, 99))
    await asyncio.wait_for(asleep.wait(), 10)
    assert [event.data for event in await events(copy)] == [1]
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert (await replayed(memory, copy)).stood.events == 2
    assert [event.data for event in await events(copy)] == [1, 2]


async def test_what_others_put_into_the_log_is_left_out(memory: Memory, copy: Memory) -> None:
    await memory.set("a", 1)
    fabric = await memory._fabric()
    await fabric.log.append(fabric.subjects.memory(GLOBAL, "foreign"), b"1", {EVENT_ID: new_id()})
    await memory.set("b", 1)
    await replayed(memory, copy)
    assert [event.key for event in await events(copy)] == ["a", "b"]


def test_a_time_left_is_none_for_what_is_over() -> None:
    at = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1e9)
    record = Record("a", 1, at, encode_event(event_id="i", operation="set", writer=Writer(), ttl=10), b"1")
    assert time_left(record, at + 4 * 10**9) == 6
    assert time_left(record, at + 10 * 10**9) is None
