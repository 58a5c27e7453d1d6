"""A value with a ttl is there until its time and gone from then on, and its end is an event like any other."""

import asyncio
import itertools
import random
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import timedelta
from typing import NamedTuple

import pytest

from agentfield import Agent, ConflictError, Event, InvalidInputError, Memory, connect
from agentfield.codec import expires_at_ns
from agentfield.fabric.fabric import Fabric
from agentfield.header import MAX_TTL
from agentfield.key import key_tokens
from agentfield.memory.lifetime import Periods
from agentfield.memory.lifetimes.expiry import ExpiryWorker
from agentfield.memory.timing import KEYS_A_TIMER, set_timers
from agentfield.scope import GLOBAL
from tests.support import NatsServer, eventually
from tests.support.buckets import contents
from tests.support.running import program

OpenFabric = Callable[..., Awaitable[Fabric]]
NEVER = Periods(workflow=None, session=None)

CLOCKS = 0.05
"""Seconds by which our knowledge of the server's clock may be off on a busy machine."""
LATE = 1e-6
"""The ttl of a value that was stored past the end that it had to keep."""


async def events(memory: Memory, pattern: str = "*") -> list[Event]:
    return [event async for event in memory.history(pattern)]


async def operations(memory: Memory, key: str = "key") -> list[tuple[str, str | None, object]]:
    return [(event.operation, event.reason, event.previous_data) for event in await events(memory, key)]


@pytest.fixture
async def worker(server: NatsServer, open_fabric: OpenFabric) -> AsyncIterator[None]:
    """An expiry worker, such as every agent runs, over a connection of its own."""
    async with ExpiryWorker(await open_fabric(server), NEVER):
        yield


# -- one key ----------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
@pytest.mark.usefixtures("worker")
async def test_an_expired_value_is_absent_at_once_and_its_delete_follows(memory: Memory) -> None:
    revision = await memory.set("key", "value", ttl=0.3)
    entry = await memory.entry("key")
    assert entry is not None
    assert entry.expires_at is not None
    assert abs((entry.expires_at - entry.timestamp).total_seconds() - 0.3) < 1e-5
    assert await memory.get("key") == "value"
    await eventually(lambda: _is_deleted(memory, "key"))
    assert not await memory.exists("key")
    (_, delete) = await events(memory, "key")
    assert (delete.operation, delete.reason, delete.data, delete.previous_data) == ("delete", "expired", None, "value")
    assert delete.previous_revision == revision
    assert delete.timestamp >= entry.expires_at


async def test_without_any_worker_an_expired_value_is_absent_all_the_same(memory: Memory) -> None:
    await memory.set_many({"key": 1, "other": 2}, ttl=0.3)
    await memory.set("stays", 3)
    assert len([key async for key in memory.keys()]) == 3
    await eventually(lambda: _absent(memory, "key"))
    assert await memory.get("key", "default") == "default"
    assert await memory.entry("key") is None
    assert await memory.get_many(["key", "other", "stays"]) == {"stays": 3}
    assert [entry.key async for entry in memory.items()] == ["stays"]
    assert await operations(memory) == [("set", None, None)]


async def test_a_value_that_had_run_out_is_nothing_that_its_key_held_before(
    memory: Memory, server: NatsServer, namespace: str
) -> None:
    await memory.set_many({"small": 1, "large": "x" * 70_000}, ttl=0.3)
    await eventually(lambda: _absent(memory, "large"))
    for key in ("small", "large"):  # nobody has made an event of the end so far
        assert await operations(memory, key) == [("set", None, None)]
        await memory.set(key, "paid")
        forward = await events(memory, key)
        backward = [event async for event in memory.history(key, reverse=True)]
        assert backward == forward[::-1]
        assert (forward[1].previous_data, forward[1].previous_revision) == (None, forward[0].revision)
        async with aclosing(memory.watch(key, start=forward[1].revision)) as watch:
            assert await anext(watch) == forward[1]

    app = Agent("listener", nats_url=server.url, namespace=namespace)
    heard: list[Event] = []
    app.memory.on_change("*", start="all")(heard.append)
    async with app:
        await eventually(lambda: len(heard) == 4)
    assert [event.previous_data for event in heard] == [None] * 4


@pytest.mark.usefixtures("worker")
async def test_a_handler_receives_the_delete_of_an_expired_value(server: NatsServer, namespace: str) -> None:
    app = Agent("listener", nats_url=server.url, namespace=namespace)
    heard: list[Event] = []

    @app.memory.on_change("key_*")
    async def react(event: Event) -> None:
        heard.append(event)

    async with app:
        async with app.session("s"):
            await app.memory.set("key_1", "value", ttl=0.2)
        await eventually(lambda: len(heard) == 2)
    assert [(event.operation, event.reason, event.data, event.previous_data) for event in heard] == [
        ("set", None, "value", None),
        ("delete", "expired", None, "value"),
    ]
    assert {(event.scope, event.scope_id, event.writer.session_id) for event in heard} == {("session", "s", "s")}
    assert heard[1].writer.agent is None, "nobody wrote it: its time was over"


@pytest.mark.usefixtures("worker")
async def test_every_kind_of_write_takes_a_ttl(memory: Memory) -> None:
    await memory.create("create", 1, ttl=0.3)
    await memory.update("update", lambda value: 1, ttl=0.3)
    await memory.increment("increment", ttl=0.3)
    await memory.set_many({"many_1": 1, "many_2": 1}, ttl=0.3)
    async with memory.transaction() as tx:
        tx.set("tx", 1, ttl=0.3)
        tx.set("elsewhere", 1, scope="session", scope_id="a b.c", ttl=0.3)
        tx.set("odd key_.*"[:-1] + "ü/=", 1, ttl=0.3)

    async def all_gone() -> bool:
        found = await events(memory)
        return sum(event.reason == "expired" for event in found) == len(found) / 2 == 8

    await eventually(all_gone)


async def test_updates_leave_the_end_of_a_value_where_it_is(memory: Memory) -> None:
    await memory.create("requests", 1, ttl=100)
    first = await memory.entry("requests")
    assert first is not None
    for _ in range(20):
        await memory.increment("requests")
    await memory.update("requests", lambda value: value + 1)
    last = await memory.entry("requests")
    assert last is not None
    assert (last.value, last.expires_at) == (22, first.expires_at)
    (newest,) = [event async for event in memory.history("requests", reverse=True, limit=1)]
    assert newest.expires_at == first.expires_at
    assert await memory.increment("requests", ttl=200) == 23
    renewed = await memory.entry("requests")
    assert renewed is not None
    assert renewed.expires_at == renewed.timestamp + timedelta(seconds=200)
    await memory.set("requests", 0)
    await memory.increment("requests")
    kept = await memory.entry("requests")
    assert kept is not None
    assert kept.expires_at is None


@pytest.mark.usefixtures("worker")
async def test_a_value_that_is_updated_all_the_time_expires_all_the_same(memory: Memory) -> None:
    await memory.set("key", 1, ttl=0.5)
    counted: list[int] = []
    async with asyncio.timeout(10):
        while not counted or counted[-1] != 0:
            counted.append(await memory.update("key", lambda value: value and value + 1, 0))
    entry = await memory.entry("key")
    assert entry is not None
    assert entry.expires_at is None, "what begins anew does not expire"
    found = await events(memory, "key")
    ends = {event.expires_at for event in found if event.ttl is not None and event.ttl > LATE}
    assert len(ends) == 1
    assert all(event.data != 0 for event in found if event.ttl is not None)


async def test_what_expires_while_an_update_computes_is_not_revived(memory: Memory) -> None:
    seen: list[object] = []

    async def slowly(value: object) -> object:
        seen.append(value)
        await eventually(lambda: _absent(memory, "key"))
        return f"after {value}"

    await memory.set("key", "old", ttl=0.3)
    assert await memory.update("key", slowly, "nothing") == "after nothing"
    assert seen == ["old", "nothing"]


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), "1", True, MAX_TTL * 2])
async def test_a_ttl_that_is_none_is_refused_before_anything_is_sent(memory: Memory, wrong: float) -> None:
    with pytest.raises(InvalidInputError, match="ttl"):
        await memory.set("key", 1, ttl=wrong)
    with pytest.raises(InvalidInputError, match="ttl"):
        await memory.set_many({"key": 1}, ttl=wrong)
    assert not await events(memory)


@pytest.mark.parametrize("ttl", [1e-9, 0.001, 59.9, 60.0, 3600.0, MAX_TTL])
async def test_any_ttl_can_be_stored_and_has_a_timer(memory: Memory, fabric: Fabric, ttl: float) -> None:
    await memory.set("key", 1, ttl=ttl)
    (event,) = await events(memory, "key")
    assert event.ttl == ttl
    assert 1 <= len(await fabric.timers.names("key")) <= 2  # one more, if storing it took longer than its ttl


# -- timers that a later write could spoil ----------------------------------------------------------------------------


@pytest.mark.usefixtures("worker")
async def test_a_write_that_fails_moves_no_timer(memory: Memory) -> None:
    async def transact(ttl: float) -> None:
        async with memory.transaction() as tx:
            await tx.get("other")
            tx.set("key", "other", ttl=ttl)
            await memory.increment("other")

    await memory.set("key", "value", ttl=0.5)
    for ttl in (1000.0, 10.0, 0.05):
        with pytest.raises(ConflictError):
            await memory.set("key", "other", ttl=ttl, if_revision=0)
        with pytest.raises(ConflictError):
            await transact(ttl)
    assert await memory.get("key") == "value"
    await eventually(lambda: _is_deleted(memory, "key"))
    assert await operations(memory) == [("set", None, None), ("delete", "expired", "value")]


@pytest.mark.usefixtures("worker")
async def test_of_writers_that_race_with_different_ttls_the_one_stored_last_decides(
    server: NatsServer, namespace: str
) -> None:
    """Whatever the order in which their timers were set."""
    async with AsyncExitStack() as stack:
        writers = [await stack.enter_async_context(connect(server.url, namespace=namespace)) for _ in range(3)]
        keys = [f"key_{number}" for number in range(100)]
        for number, key in enumerate(keys):
            ttls = deque((0.4, 1000.0, 0.4))
            ttls.rotate(number)  # else the one that begins last may be stored last every time
            await asyncio.gather(*(writer.set(key, ttl, ttl=ttl) for writer, ttl in zip(writers, ttls, strict=True)))
        memory = writers[0]
        last: dict[str, Event] = {}

        async def settled() -> bool:
            for event in await events(memory, "key_*"):
                last[event.key] = event
            return all(event.operation == "delete" or event.ttl == 1000.0 for event in last.values())

        await eventually(settled, within=10)
        assert {event.operation for event in last.values()} == {"set", "delete"}, "both outcomes have been seen"


async def test_a_value_stored_later_than_its_ttl_is_deleted_all_the_same(
    fresh_server: NatsServer, namespace: str, open_fabric: OpenFabric
) -> None:
    """The write waits for a server that is away for longer than the value shall live."""
    async with connect(fresh_server.url, namespace=namespace) as memory:
        fabric = await memory._fabric()
        async with ExpiryWorker(await open_fabric(fresh_server), NEVER):
            append, waiting, ready = fabric.log.append, asyncio.Event(), asyncio.Event()

            async def late(*args: object, **kwargs: object) -> object:
                waiting.set()
                await ready.wait()
                return await append(*args, **kwargs)  # type: ignore[arg-type]

            fabric.log.append = late  # type: ignore[method-assign,assignment]
            writing = asyncio.create_task(memory.set("key", "value", ttl=0.2))
            await waiting.wait()
            await eventually(lambda: _no_timers(fabric), what="the timer has fired for nothing")
            ready.set()
            await writing
            await eventually(lambda: _is_deleted(memory, "key"), within=10)


@pytest.mark.usefixtures("worker")
async def test_a_key_written_again_and_again_has_a_few_timers_at_most(memory: Memory, fabric: Fabric) -> None:
    for ttl in (1.0, 3600.0):
        for number in range(300):
            await memory.set("key", number, ttl=ttl)
        assert len(await fabric.timers.names("key")) < 150
    await memory.delete("key")
    await eventually(lambda: _absent(memory, "key"))


@pytest.mark.usefixtures("worker")
async def test_a_long_ttl_is_kept_to_the_second(memory: Memory, fabric: Fabric) -> None:
    """Its first timer fires early, and asks again at the very time."""
    revision = await memory.set("key", "value", ttl=60.0)
    (name,) = await fabric.timers.names("key")
    fires = int(name.rpartition(".")[2])
    entry = await memory.entry("key")
    assert entry is not None
    assert entry.expires_at is not None
    early = entry.expires_at.timestamp() - fires / 1e9
    assert 0 < early < 60 / 8
    # The same timer, now: the value is not due yet.
    await fabric.timers.schedule(name, fabric.log.now())
    await eventually(lambda: _timer_at(fabric, entry.expires_at.timestamp()))  # type: ignore[union-attr]
    assert (await memory.entry("key")).revision == revision  # type: ignore[union-attr]


async def _timer_at(fabric: Fabric, moment: float) -> bool:
    times = [int(name.rpartition(".")[2]) / 1e9 for name in await fabric.timers.names("key")]
    return any(0 <= at - moment < 0.1 for at in times)


# -- workers ----------------------------------------------------------------------------------------------------------


async def test_a_worker_killed_in_the_middle_of_a_burst_leaves_the_rest_to_another(
    server: NatsServer, namespace: str, memory: Memory, fabric: Fabric
) -> None:
    async with AsyncExitStack() as stack:
        doomed = await stack.enter_async_context(program("agent", server.url, namespace))
        await memory.set("first", 1, ttl=0.1)
        await eventually(lambda: _is_deleted(memory, "first"))
        names = [f"key_{number}" for number in range(3000)]
        for begin in range(0, 3000, 1000):
            await memory.set_many(dict.fromkeys(names[begin : begin + 1000], 1), ttl=2.0)
        await eventually(lambda: _length(fabric, 3002 + 300), within=10)
        await doomed.kill()
        before = await _count_expired(memory)
        assert 300 < before < 3001, "it was killed in the middle"
        await stack.enter_async_context(program("agent", server.url, namespace))
        await eventually(lambda: _expired(memory, 3001), within=30, what="another worker took over what it had taken")
        found = await events(memory, "key_*")
    deleted = [event.key for event in found if event.reason == "expired"]
    assert sorted(deleted) == sorted(names), "each exactly once"
    assert all(event.previous_data == 1 for event in found if event.operation == "delete")


async def test_workers_that_are_asked_twice_delete_once(
    server: NatsServer, open_fabric: OpenFabric, memory: Memory, fabric: Fabric
) -> None:
    keys = [f"key_{number}" for number in range(200)]
    await asyncio.gather(*(memory.set(key, 1, ttl=0.5) for key in keys))
    for name in await fabric.timers.names("key"):  # each once more, under another name
        await fabric.timers.schedule(f"{name[:-1]}x", fabric.log.now() + 600_000_000)
    async with AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(ExpiryWorker(await open_fabric(server), NEVER))
        await eventually(lambda: _expired(memory, 200), within=10)
        await eventually(lambda: _no_timers(fabric), within=10)
    assert await _count_expired(memory) == 200


async def test_keys_written_together_share_their_timers_and_expire_each(
    server: NatsServer, open_fabric: OpenFabric, memory: Memory, fabric: Fabric
) -> None:
    keys = [f"key_{number}" for number in range(1000)]
    await memory.set_many(dict.fromkeys(keys, 1), ttl=1.5)
    assert len(await fabric.timers.names("key")) == 1000 / KEYS_A_TIMER
    await memory.set(keys[0], "renewed")
    await memory.set(keys[1], "renewed", ttl=3600.0)
    async with ExpiryWorker(await open_fabric(server), NEVER):
        await eventually(lambda: _expired(memory, 998), within=10)
        await eventually(lambda: _no_timers_but_of(fabric, keys[1]), within=10)
    deleted = [event.key for event in await events(memory, "key_*") if event.reason == "expired"]
    assert sorted(deleted) == sorted(keys[2:]), "each exactly once, and what was renewed not at all"


async def test_timers_that_fire_early_ask_again_together(
    server: NatsServer, open_fabric: OpenFabric, memory: Memory, fabric: Fabric
) -> None:
    await memory.set_many({f"key_{number}": number for number in range(1000)}, ttl=600.0)
    before = await fabric.timers.names("key")
    subjects = [fabric.subjects.memory(GLOBAL, f"key_{number}") for number in range(1000)]
    now = fabric.log.now()
    await set_timers(fabric, [(subject, now) for subject in subjects])
    entry = await memory.entry("key_0")
    assert entry is not None
    assert entry.expires_at is not None
    ends = entry.expires_at.timestamp()
    async with ExpiryWorker(await open_fabric(server), NEVER):

        async def asked_again() -> bool:
            again = await fabric.timers.names("key") - before
            times = [int(name.rpartition(".")[2]) / 1e9 for name in again]
            return bool(times) and len(times) <= 20 and all(ends <= at < ends + 2 for at in times)

        await eventually(asked_again, within=10)
    assert await memory.get("key_999") == 999


async def test_a_worker_that_stops_gives_back_what_it_had_taken(
    server: NatsServer, open_fabric: OpenFabric, memory: Memory, fabric: Fabric
) -> None:
    await fabric.timers.ensure_worker()
    await memory.set("key", 1, ttl=0.05)
    taken = fabric.timers.worker()
    assert len(await taken.next()) == 1
    await taken.aclose()
    async with ExpiryWorker(await open_fabric(server), NEVER):
        await eventually(lambda: _is_deleted(memory, "key"), within=3)


async def test_timers_that_mean_nothing_stop_no_worker(
    server: NatsServer, open_fabric: OpenFabric, memory: Memory, fabric: Fabric, caplog: pytest.LogCaptureFixture
) -> None:
    now = fabric.log.now()
    names = ("bogus.x", "key.x", "key.global", "scope.bogus.x.1", "scope.workflow", "scope.workflow.=ZZ", "sweep.x")
    for name in names:
        await fabric.timers.schedule(name, now)
    await fabric.timers.schedule("sweep.global", now, b"no number")
    await fabric.timers.schedule("key.many.nothing.1", now)
    await fabric.timers.schedule("key.many.nonsense.1", now, b"global.global.a b\nglobal.global.>\n\xff\nbogus")
    for tokens, header in (("foreign", {}), ("broken", {"Agentfield-Event": "no JSON", "Nats-Msg-Id": "x"})):
        await fabric.log.append(
            f"{fabric.subjects.namespace}.memory.global.global.{tokens}", b"no JSON", {"Nats-Msg-Id": tokens} | header
        )
        await fabric.timers.schedule(f"key.global.global.{tokens}.1", now)
    async with ExpiryWorker(await open_fabric(server), NEVER):
        await memory.set("key", 1, ttl=0.2)
        await eventually(lambda: _is_deleted(memory, "key"))
        await eventually(lambda: _no_timers(fabric))
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_worker_outlives_the_server(fresh_server: NatsServer, namespace: str, open_fabric: OpenFabric) -> None:
    async with (
        connect(fresh_server.url, namespace=namespace) as memory,
        ExpiryWorker(await open_fabric(fresh_server), NEVER),
    ):
        await memory.set("before", 1, ttl=0.2)
        await eventually(lambda: _is_deleted(memory, "before"))
        await memory.set("during", 1, ttl=0.5)
        await fresh_server.kill()
        await fresh_server.start()
        await memory.set("after", 1, ttl=0.2)
        await eventually(lambda: _is_deleted(memory, "during"), within=8)
        await eventually(lambda: _is_deleted(memory, "after"), within=8)


# -- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [-7200.0, 7200.0])
async def test_our_own_clock_may_be_wrong_by_hours(
    server: NatsServer, namespace: str, open_fabric: OpenFabric, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    true_time, true_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: true_time() + skew)
    monkeypatch.setattr(time, "time_ns", lambda: true_ns() + int(skew * 1e9))
    async with (
        connect(server.url, namespace=namespace) as memory,
        ExpiryWorker(await open_fabric(server), NEVER),
    ):
        await memory.set("long", 1, ttl=3600.0)
        began = asyncio.get_running_loop().time()
        await memory.set("short", 1, ttl=0.5)
        assert await memory.get("short") == 1
        await eventually(lambda: _is_deleted(memory, "short"))
        assert 0.5 <= asyncio.get_running_loop().time() - began < 3
        assert await memory.get("long") == 1
        entry = await memory.entry("long")
        assert entry is not None
        assert abs(entry.timestamp.timestamp() - true_time()) < 60


# -- everything in every order ----------------------------------------------------------------------------------------

SHORT, LONG = 0.9, 1.8
PAUSE = 1.0


class Look(NamedTuple):
    """What a reader saw: between which times of the server's clock, and which revision (None: absent)."""

    began: float
    ended: float
    revision: int | None


class Tried(NamedTuple):
    """An operation that said whether there was a value: between which times, and what it said."""

    operation: str
    began: float
    ended: float
    found: bool


async def _set(memory: Memory, key: str, ttl: float | None) -> None:
    await memory.set(key, "value", ttl=ttl)


async def _failing(memory: Memory, key: str, ttl: float) -> None:
    with pytest.raises(ConflictError):
        await memory.set(key, "lost", ttl=ttl, if_revision=2**40)


STEPS: dict[str, Callable[[Memory, str], Awaitable[object]]] = {
    "keep": lambda memory, key: _set(memory, key, None),
    "short": lambda memory, key: _set(memory, key, SHORT),
    "long": lambda memory, key: _set(memory, key, LONG),
    "delete": lambda memory, key: memory.delete(key),
    "create": lambda memory, key: memory.create(key, "created", ttl=SHORT),
    "update": lambda memory, key: memory.update(key, lambda value: "updated"),
    "fail": lambda memory, key: _failing(memory, key, 1000.0),
    "pause": lambda memory, key: asyncio.sleep(PAUSE),
}


@pytest.mark.slow
async def test_every_sequence_of_writes_and_pauses_ends_as_the_log_says(server: NatsServer, namespace: str) -> None:
    """All sequences of up to four steps, with one update at most, each on a key of its own, all at once.

    Meanwhile workers come and go.
    """
    sequences = [
        each
        for size in range(1, 5)
        for each in itertools.product(STEPS, repeat=size)
        if each[0] not in ("pause", "update") and each.count("update") < 2
    ]
    looks: dict[str, list[Look]] = defaultdict(list)
    tried: dict[str, list[Tried]] = defaultdict(list)
    running = asyncio.Semaphore(400)
    async with AsyncExitStack() as stack:
        writers = [await stack.enter_async_context(connect(server.url, namespace=namespace)) for _ in range(2)]
        reader = await stack.enter_async_context(connect(server.url, namespace=namespace))

        async def walk(number: int, steps: tuple[str, ...]) -> None:
            memory, key = writers[number % 2], f"key_{number}"
            for step in steps:
                if step == "pause":
                    await asyncio.sleep(PAUSE)
                    continue
                async with running:
                    began = time.time()
                    try:
                        found = await STEPS[step](memory, key)
                    except ConflictError:
                        found = True  # create: there was a value
                    ended = time.time()
                if step in ("create", "delete"):
                    tried[key].append(Tried(step, began, ended, found is True))

        async def read() -> None:
            while True:
                keys = random.sample(range(len(sequences)), 40)
                for number in keys:
                    began = time.time()
                    entry = await reader.entry(f"key_{number}")
                    looks[f"key_{number}"].append(Look(began, time.time(), entry.revision if entry else None))
                await asyncio.sleep(0.01)

        reading = asyncio.create_task(read())
        async with _workers_that_come_and_go(server, namespace):
            await asyncio.gather(*(walk(number, steps) for number, steps in enumerate(sequences)))
            fabric = await reader._fabric()
            await eventually(lambda: _settled(fabric), within=40, what="everything that expires is deleted")
            found = await events(reader)
            reading.cancel()
            await asyncio.wait({reading})
            assert reading.cancelled(), reading.exception()
            heard = await _heard(server, namespace, len(found))
        last = {event.key: event for event in found}
        state = {key: event.data for key, event in last.items() if event.operation == "set"}

        async def bucket_agrees() -> bool:
            held = await contents(server.url, f"{namespace}-global")
            return held == {key.replace("_", "."): b'"%s"' % data.encode() for key, data in state.items()}

        await eventually(bucket_agrees, within=10)
        assert {entry.key: entry.value async for entry in reader.items()} == state
    assert [(event.revision, event.previous_data) for event in heard] == [
        (event.revision, event.previous_data) for event in found
    ]
    by_key: dict[str, list[Event]] = defaultdict(list)
    for event in found:
        by_key[event.key].append(event)
    for number, steps in enumerate(sequences):
        key = f"key_{number}"
        try:
            _check_history(by_key[key])
            for look in looks[key]:
                _check_look(look, by_key[key])
            for attempt in tried[key]:
                _check_tried(attempt, by_key[key])
        except AssertionError as error:
            lines = "\n".join(f"  {event.timestamp.timestamp():.3f} {event}" for event in by_key[key])
            raise AssertionError(f"{' · '.join(steps)}: {error}\n{lines}") from error
    assert sum(map(len, looks.values())) > 500  # or nothing was looked at
    assert sum(event.reason == "expired" for event in found) > 1500


@asynccontextmanager
async def _workers_that_come_and_go(server: NatsServer, namespace: str) -> AsyncIterator[None]:
    async def churn() -> None:
        async with AsyncExitStack() as stack:
            first, second = [await stack.enter_async_context(program("agent", server.url, namespace)) for _ in range(2)]
            await asyncio.sleep(1.5)
            await first.kill()
            await asyncio.sleep(0.7)
            second.pause()  # for a while there is no worker at all
            await asyncio.sleep(1.5)
            second.resume()
            await stack.enter_async_context(program("agent", server.url, namespace))
            await asyncio.Event().wait()

    churning = asyncio.create_task(churn())
    try:
        yield
    finally:
        churning.cancel()
        await asyncio.wait({churning})
        assert churning.cancelled(), churning.exception()


async def _settled(fabric: Fabric) -> bool:
    """Whether nothing is left that has a ttl and is not deleted."""
    async for record in fabric.log.current([fabric.subjects.all_memory]):
        if expires_at_ns(record) is not None:
            return False
    return True


async def _heard(server: NatsServer, namespace: str, count: int) -> list[Event]:
    """Every event of the log, as a handler gets them."""
    app = Agent("listener", nats_url=server.url, namespace=namespace)
    heard: list[Event] = []

    @app.memory.on_change("*", start="all")
    async def react(event: Event) -> None:
        heard.append(event)

    async with app:
        await eventually(lambda: len(heard) >= count, within=20)
    return sorted(heard, key=lambda event: event.revision)


def _expires(event: Event) -> float:
    return event.expires_at.timestamp() if event.expires_at else float("inf")


def _check_history(found: list[Event]) -> None:
    """Every delete for expiry ends, once, the very value that ran out; no value that ran out is left."""
    previous: Event | None = None
    for event in found:
        assert event.previous_revision == (previous.revision if previous else None)
        gone = previous is None or (event.reason != "expired" and _expires(previous) <= event.timestamp.timestamp())
        assert event.previous_data == (None if previous is None or gone else previous.data)
        assert event.data != "lost", "a write that failed stored something"
        if event.reason == "expired":
            assert previous is not None
            assert previous.operation == "set"
            assert event.timestamp.timestamp() >= _expires(previous), "deleted before its time"
        if event.data == "updated":
            held = previous is not None and previous.operation == "set"
            kept = previous is not None and held and _expires(event) == _expires(previous)
            kept = kept or (event.ttl is not None and event.ttl <= LATE)
            began = previous is None or not held or _expires(previous) <= event.timestamp.timestamp() + CLOCKS
            assert kept or (began and event.ttl is None), "an update has moved the end"
        previous = event
    assert previous is None or previous.ttl is None, "expired and never deleted"


def _present(found: list[Event], moment: float) -> tuple[int | None, float]:
    """Which revision a reader finds at a moment, and since when that has been so."""
    current: Event | None = None
    for event in found:
        if event.timestamp.timestamp() <= moment:
            current = event
    if current is None:
        return None, 0.0
    if current.operation == "delete":
        return None, current.timestamp.timestamp()
    if _expires(current) <= moment:
        return None, _expires(current)
    return current.revision, current.timestamp.timestamp()


def _possible(found: list[Event], began: float, ended: float) -> set[int | None]:
    """What a reader may find that looks some time between these."""
    edges = [event.timestamp.timestamp() for event in found] + [_expires(event) for event in found]
    moments = [began - CLOCKS, ended + CLOCKS, *(edge for edge in edges if began - CLOCKS <= edge <= ended + CLOCKS)]
    return {_present(found, moment)[0] for moment in moments}


def _check_look(look: Look, found: list[Event]) -> None:
    possible = _possible(found, look.began, look.ended)
    assert look.revision in possible, f"{look}, possible: {possible}"


def _check_tried(tried: Tried, found: list[Event]) -> None:
    possible = {revision is not None for revision in _possible(found, tried.began, tried.ended)}
    assert tried.found in possible, f"{tried}"


async def _absent(memory: Memory, key: str) -> bool:
    return not await memory.exists(key)


async def _is_deleted(memory: Memory, key: str) -> bool:
    return (await events(memory, key))[-1].reason == "expired"


async def _count_expired(memory: Memory) -> int:
    return sum(event.reason == "expired" for event in await events(memory))


async def _expired(memory: Memory, count: int) -> bool:
    return await _count_expired(memory) >= count


async def _length(fabric: Fabric, count: int) -> bool:
    return int((await fabric.log.state())["messages"]) >= count


async def _no_timers_but_of(fabric: Fabric, key: str) -> bool:
    return all(key_tokens(key) in name for name in await fabric.timers.names("key"))


async def _no_timers(fabric: Fabric) -> bool:
    return not await fabric.timers.names("key") and not await fabric.timers.names("scope")
