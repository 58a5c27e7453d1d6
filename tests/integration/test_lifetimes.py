"""Workflows and sessions end by themselves, by delete events, and leave nothing behind but history."""

import asyncio
import base64
import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from agentfield import Agent, Event, InvalidInputError, Memory, connect
from agentfield.codec import is_delete
from agentfield.execution import current
from agentfield.fabric.bucket import Bucket
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.faults import NO_MESSAGE, ServerFault
from agentfield.fabric.jetstream import api
from agentfield.memory.lifetime import Periods
from agentfield.memory.lifetimes.clearing import delete_all
from agentfield.memory.lifetimes.expiry import ExpiryWorker
from agentfield.memory.lifetimes.sweeping import ensure_sweeps, sweep
from agentfield.scope import RESOLUTION
from tests.support import NatsServer, eventually
from tests.support.buckets import contents, markers
from tests.support.events import subject, write
from tests.support.running import program

OpenFabric = Callable[..., Awaitable[Fabric]]
MakeAgent = Callable[[str], Agent]

NOW = timedelta(0)
EARLY = 1.0
"""Seconds by which a scope may end early, counted from the end of its execution: its timer is not moved more often."""
CLOCKS = 0.05


@pytest.fixture
def grace(monkeypatch: pytest.MonkeyPatch) -> float:
    """Let workflows end two seconds after their root execution."""
    monkeypatch.setenv("AGENTFIELD_WORKFLOW_GRACE", "2")
    return 2.0


@pytest.fixture
def make(server: NatsServer, namespace: str) -> MakeAgent:
    """Return a function that makes agents of this test's namespace."""
    return lambda name: Agent(name, nats_url=server.url, namespace=namespace)


async def events(memory: Memory, pattern: str = "*") -> list[Event]:
    return [event async for event in memory.history(pattern)]


async def cleared(memory: Memory) -> list[Event]:
    return [event for event in await events(memory) if event.reason == "cleared"]


# -- workflows --------------------------------------------------------------------------------------------------------


async def test_a_workflow_is_cleared_when_its_grace_period_is_over_and_not_before(
    make: MakeAgent, memory: Memory, grace: float
) -> None:
    app = make("app")
    heard: list[Event] = []

    @app.reasoner()
    async def work() -> str | None:
        await app.memory.set_many({"a": 1, "b": {"x": 2}})
        await app.memory.set("gone", 1)
        await app.memory.delete("gone")
        await app.memory.set("kept", 1, scope="global")
        return (await app.memory.entry("a")).scope_id  # type: ignore[union-attr]

    @app.memory.on_change(["a", "b"])
    async def react(event: Event) -> None:
        heard.append(event)

    async with app:
        workflow = await app.call("app.work")
        ended = datetime.now(UTC)
        view = memory.workflow(workflow)
        assert await view.get_many(["a", "b"]) == {"a": 1, "b": {"x": 2}}
        await eventually(lambda: _count(cleared(memory), 2), within=grace + 5)
        await eventually(lambda: len(heard) == 4)
    for event in await cleared(memory):
        assert grace - EARLY - CLOCKS <= (event.timestamp - ended).total_seconds() <= grace + 2
        assert (event.scope, event.scope_id, event.writer.agent) == ("workflow", workflow, None)
    assert {event.key: event.previous_data for event in heard if event.reason == "cleared"} == {"a": 1, "b": {"x": 2}}
    assert [key async for key in view.keys()] == []
    assert await memory.get("kept") == 1


@pytest.mark.parametrize("who", ["the root itself", "a callee"])
async def test_a_running_execution_keeps_its_workflow(make: MakeAgent, memory: Memory, grace: float, who: str) -> None:
    root, callee = make("root"), make("callee")
    runs = 2 * grace

    @callee.reasoner()
    async def write_it() -> None:
        await callee.memory.set("state", "here")

    @root.reasoner()
    async def work() -> bool:
        if who == "a callee":
            await root.call("callee.write_it")
        else:
            await root.memory.set("state", "here")
        loop = asyncio.get_running_loop()
        ends = loop.time() + runs
        while loop.time() < ends:
            assert await memory.workflow(_workflow()).exists("state")
            await asyncio.sleep(0.1)  # it works for longer than the grace period, and writes nothing
        return True

    async with root, callee:
        assert await root.call("root.work")
        ended = datetime.now(UTC)
        assert not await cleared(memory)
        await eventually(lambda: _count(cleared(memory), 1), within=grace + 5)
    (event,) = await cleared(memory)
    assert (event.timestamp - ended).total_seconds() >= grace - EARLY - CLOCKS


async def test_a_callee_that_works_for_long_keeps_the_workflow_its_caller_bound(
    make: MakeAgent, memory: Memory, grace: float
) -> None:
    caller, callee = make("caller"), make("callee")

    @callee.reasoner()
    async def work() -> bool:
        await asyncio.sleep(2 * grace)  # as a model would take
        return await callee.memory.exists("state")

    async with caller, callee, caller.workflow("wf 1.x"):
        await caller.memory.set("state", "here")
        assert await caller.call("callee.work")
        await eventually(lambda: _count(cleared(memory), 1), within=grace + 5)


async def test_every_write_into_a_workflow_counts_as_use(
    server: NatsServer, namespace: str, open_fabric: OpenFabric
) -> None:
    """Also where the timer has been set long ago, or by a program that knows another period."""
    periods = Periods(workflow=1.0, session=None)
    async with connect(server.url, namespace=namespace) as memory, ExpiryWorker(await open_fabric(server), periods):
        fabric = await memory._fabric()
        view = memory.workflow("wf")
        for number in range(6):
            await view.set("state", number)
            await fabric.timers.schedule("scope.workflow.wf", fabric.log.now() + 400_000_000)
            await asyncio.sleep(0.5)
            assert await view.get("state") == number
        last = (await events(memory))[-1]
        await eventually(lambda: _count(cleared(memory), 1))
        assert 1.0 <= ((await cleared(memory))[0].timestamp - last.timestamp).total_seconds() < 2.5


async def test_a_program_outside_agents_goes_by_the_same_periods(
    make: MakeAgent, server: NatsServer, namespace: str, grace: float
) -> None:
    async with make("app"), connect(server.url, namespace=namespace) as memory:
        await memory.workflow("wf").set("state", 1)
        await eventually(lambda: _count(cleared(memory), 1), within=grace + 5)


async def test_without_a_period_nothing_is_cleared_and_no_timer_is_set(
    make: MakeAgent, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTFIELD_WORKFLOW_GRACE", "off")
    monkeypatch.setenv("AGENTFIELD_SESSION_IDLE", "off")
    async with make("app") as app:
        await app.memory.workflow("wf").set("state", 1)
        await app.memory.session("s").set("state", 1)
    assert not await fabric.timers.names("scope")


async def test_an_execution_that_writes_nothing_leaves_no_timer(make: MakeAgent, fabric: Fabric, grace: float) -> None:
    app = make("app")

    @app.reasoner()
    async def idle() -> None:
        return

    @app.reasoner()
    async def calls() -> None:
        await app.call("app.idle")

    async with app:
        await app.call("app.calls")
    assert not await fabric.timers.names("scope")


# -- sessions ---------------------------------------------------------------------------------------------------------


async def test_a_session_is_cleared_when_it_is_idle(
    make: MakeAgent, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTFIELD_SESSION_IDLE", "1")
    async with make("app") as app, app.session("user > 42"):
        for number in range(5):
            await app.memory.set("last", number)
            await asyncio.sleep(0.4)  # a session in use, for longer than it may be idle
            assert await app.memory.get("last") == number
        await app.memory.set("other", 1, scope="global")
        last = (await events(memory, "last"))[-1]
        await eventually(lambda: _count(cleared(memory), 1))
        (event,) = await cleared(memory)
        assert (event.scope, event.scope_id, event.previous_data) == ("session", "user > 42", 4)
        assert 1.0 <= (event.timestamp - last.timestamp).total_seconds() < 3
        assert await app.memory.get("last") is None
        assert await app.memory.get("other") == 1
        await app.memory.set("last", "again")
        await eventually(lambda: _count(cleared(memory), 2))


# -- clear() ----------------------------------------------------------------------------------------------------------


async def test_clear_takes_every_key_of_that_scope_and_no_other(memory: Memory) -> None:
    for where in ("s", "s2"):
        await memory.set_many({f"key_{number}": number for number in range(700)}, scope="session", scope_id=where)
    await memory.session("s").set_many({f"more_{number}": number for number in range(700)})
    await memory.session("s").set("short", 1, ttl=0.05)
    await memory.session("s").delete("key_0")
    await memory.set("key_1", 1, scope="global")
    await eventually(lambda: _absent(memory.session("s"), "short"))
    assert await memory.clear(scope="session", scope_id="s") == 1399
    assert [key async for key in memory.session("s").keys()] == []
    assert len([key async for key in memory.session("s2").keys()]) == 700
    assert await memory.get("key_1") == 1
    found = await cleared(memory)
    assert len({event.key for event in found}) == len(found) == 1399
    assert all(event.previous_data == int(event.key.split("_")[1]) for event in found)
    assert await memory.session("s").clear() == 0
    assert len(await cleared(memory)) == 1399


async def test_clear_wants_to_be_told_which_scope(memory: Memory) -> None:
    with pytest.raises(InvalidInputError, match="scope"):
        await memory.clear()
    with pytest.raises(InvalidInputError):
        await memory.clear(scope="session")


@pytest.mark.parametrize("mode", ["strong", "session", "cached", "linearizable"])
async def test_after_clear_no_read_of_the_same_program_finds_anything(memory: Memory, mode: str) -> None:
    for number in range(20):
        await memory.set("key", number)
        assert await memory.get("key", consistency=mode) == number  # type: ignore[call-overload]
        assert await memory.clear(scope="global") == 1
        assert await memory.get("key", consistency=mode) is None  # type: ignore[call-overload]


async def test_what_is_written_while_a_scope_is_cleared_stays(server: NatsServer, namespace: str) -> None:
    async with (
        connect(server.url, namespace=namespace) as clearing,
        connect(server.url, namespace=namespace) as writing,
    ):
        revisions: dict[str, int] = {}
        stop = asyncio.Event()

        async def write_on(key: str) -> None:
            while not stop.is_set():
                revisions[key] = await writing.set(key, 1)

        async with asyncio.TaskGroup() as tasks:
            for number in range(20):
                tasks.create_task(write_on(f"key_{number}"))
            for _ in range(20):
                await writing.set("calm", 1)
                await clearing.clear(scope="global")
            stop.set()
        found = await events(clearing)
    previous: dict[str, Event] = {}
    for event in found:
        if event.reason == "cleared":
            assert event.previous_data == 1
            assert previous[event.key].operation == "set", "a delete ends a value"
        previous[event.key] = event
    assert {key: event.revision for key, event in previous.items() if event.operation == "set"} == {
        key: revision for key, revision in revisions.items() if previous[key].operation == "set"
    }
    assert [event.operation for event in found if event.key == "calm"] == ["set", "delete"] * 20


async def test_a_delete_ends_the_very_value_that_was_looked_at_and_no_newer_one(memory: Memory, fabric: Fabric) -> None:
    names = [f"key_{number}" for number in range(20)]
    await memory.set_many(dict.fromkeys(names, "old"))
    looked_at = [record async for record in fabric.log.current([fabric.subjects.all_memory])]
    for name in names[:5]:
        await memory.set(name, "new")
    await memory.delete(names[5])
    assert (await delete_all(fabric, looked_at, None, "cleared")).number == 14
    assert (await delete_all(fabric, looked_at, None, "cleared")).number == 0
    assert await memory.get_many(names) == dict.fromkeys(names[:5], "new")
    assert sorted(event.key for event in await cleared(memory)) == sorted(names[6:])


async def test_what_something_else_put_into_a_scope_is_cleared_too(memory: Memory, fabric: Fabric) -> None:
    await memory.set("ours", 1)
    for tokens, headers in (("plain", {}), ("strange", {"Agentfield-Event": "no JSON"})):
        await fabric.connection.request(subject(fabric, tokens), b"no JSON", dict(headers), timeout=5)
    await fabric.connection.request(subject(fabric, "no=key"), b"1", {}, timeout=5)
    assert await memory.clear(scope="global") == 3
    left = [record.subject async for record in fabric.log.current([fabric.subjects.all_memory]) if record.payload]
    assert left == [subject(fabric, "no=key")], "that is nobody's key"


# -- what is abandoned ------------------------------------------------------------------------------------------------


async def test_the_workflows_of_an_agent_that_was_killed_are_cleared_by_another_one(
    make: MakeAgent, server: NatsServer, namespace: str, memory: Memory, grace: float
) -> None:
    async with program("abandoner", server.url, namespace, 30) as doomed:
        assert len([key async for key in memory.workflow(await _one_of(memory)).keys()]) == 2
        await doomed.kill()
    killed = datetime.now(UTC)
    async with make("other"):
        await eventually(lambda: _count(cleared(memory), 60), within=grace + 15)
    found = await cleared(memory)
    assert len({(event.scope_id, event.key) for event in found}) == len(found) == 60
    for event in found:
        assert (event.timestamp - killed).total_seconds() >= grace - EARLY - CLOCKS


@pytest.mark.slow
async def test_two_thousand_abandoned_workflows_leave_nothing_but_history(
    server: NatsServer, namespace: str, memory: Memory, fabric: Fabric, open_fabric: OpenFabric
) -> None:
    count = 2000
    views = [memory.workflow(f"wf {number}") for number in range(count)]
    for begin in range(0, count, 500):
        await asyncio.gather(*(view.set("state", "working") for view in views[begin : begin + 500]))
    await asyncio.gather(*(view.set("more", [1, 2], ttl=5) for view in views[::10]))
    keys = count + count // 10
    await eventually(lambda: _has(server.url, f"{namespace}-workflow", keys), within=20)
    timers = sorted(await fabric.timers.names("scope"))
    assert len(timers) == count
    for begin in range(0, count, 500):  # a day is over
        now = fabric.log.now()
        await asyncio.gather(*(fabric.timers.schedule(name, now) for name in timers[begin : begin + 500]))
    async with ExpiryWorker(await open_fabric(server), Periods(workflow=0.5, session=None)):
        await eventually(lambda: _messages(fabric, 2 * keys), within=30)
        await eventually(lambda: _no_timers(fabric), within=20)
    found = await events(memory)
    assert len({(event.scope_id, event.key) for event in found if event.reason}) == keys
    assert len(found) == 2 * keys
    assert {event.reason for event in found if event.key == "state"} == {None, "cleared"}
    assert all([is_delete(record) async for record in fabric.log.current([fabric.subjects.all_memory])])

    async def bucket_follows() -> bool:
        return not await contents(server.url, f"{namespace}-workflow")

    await eventually(bucket_follows, within=20)
    assert await sweep(fabric, "workflow", b"0", NOW) == keys
    assert not await markers(server.url, f"{namespace}-workflow")
    assert await _messages(fabric, 2 * keys), "the log keeps everything"


# -- sweeping ---------------------------------------------------------------------------------------------------------


async def test_a_sweep_takes_old_markers_and_no_value(server: NatsServer, namespace: str, fabric: Fabric) -> None:
    bucket = f"{namespace}-global"
    async with connect(server.url, namespace=namespace) as memory:
        for number in range(300):
            await memory.set(f"key_{number}", number)
        for number in range(0, 300, 2):
            await memory.delete(f"key_{number}")
        for number in range(0, 300, 4):
            await memory.set(f"key_{number}", "again")
        await eventually(lambda: _has(server.url, bucket, 225))
        assert await sweep(fabric, "global", b"0", timedelta(hours=1)) == 0, "young markers stay, for those who watch"
        assert await sweep(fabric, "global", b"0", NOW) == 75
        held = await contents(server.url, bucket)
        assert held == {
            f"key.{number}": b'"again"' if number % 4 == 0 else str(number).encode()
            for number in range(300)
            if number % 2 or number % 4 == 0
        }
        assert not await markers(server.url, bucket)
        await memory.delete("key_1")
        await eventually(lambda: _has(server.url, bucket, 224))
        payload = await eventually(lambda: _due_sweep(fabric, "global"), within=10)
        assert int(payload) > 0
        assert await sweep(fabric, "global", payload, NOW) == 1, "it goes on where it was"
        assert await sweep(fabric, "global", b"9999999", NOW) == 0, "a checkpoint of a bucket that was made anew"


async def test_a_marker_that_has_become_a_value_again_is_not_purged(
    server: NatsServer, namespace: str, memory: Memory, fabric: Fabric
) -> None:
    bucket = Bucket(fabric.connection, f"{namespace}-global")
    await memory.set("key", 1)
    await memory.delete("key")
    await eventually(lambda: _has_markers(server.url, bucket.name, 1))
    (marker,) = [record async for record in bucket.read()]
    await memory.set("key", 2)
    await eventually(lambda: _has(server.url, bucket.name, 1))
    await bucket.purge(marker.subject, marker.sequence)
    assert await contents(server.url, bucket.name) == {"key": b"2"}


async def test_while_a_bucket_is_swept_values_come_and_none_is_lost(
    server: NatsServer, namespace: str, fabric: Fabric
) -> None:
    stop = asyncio.Event()
    async with connect(server.url, namespace=namespace) as memory:

        async def churn(key: str) -> None:
            for number in itertools.count():
                await memory.set(key, number)
                if stop.is_set():
                    return
                await memory.delete(key)
                await asyncio.sleep(0.01)  # or no marker is ever old enough for a sweep

        async with asyncio.TaskGroup() as tasks:
            for number in range(10):
                tasks.create_task(churn(f"key_{number}"))
            purged = 0

            async def swept() -> bool:
                nonlocal purged
                purged += await sweep(fabric, "global", b"0", NOW)
                return purged > 20

            await eventually(swept, within=20)
            stop.set()
        state = {entry.key.replace("_", "."): str(entry.value).encode() async for entry in memory.items()}
        assert len(state) == 10

        async def agrees() -> bool:
            return await contents(server.url, f"{namespace}-global") == state

        await eventually(agrees)


async def test_sweeps_go_on_for_ever_by_themselves(
    server: NatsServer, fabric: Fabric, open_fabric: OpenFabric, memory: Memory
) -> None:
    await asyncio.gather(*(ensure_sweeps(fabric) for _ in range(5)))
    before = await fabric.timers.names("sweep")
    assert before >= {f"sweep.{kind}" for kind in RESOLUTION}
    await memory.set("key", 1)
    await memory.delete("key")
    await fabric.timers.schedule("sweep.global", fabric.log.now(), b"0")
    async with ExpiryWorker(await open_fabric(server), Periods()):
        await eventually(lambda: _no_due_sweep(fabric))
    assert await fabric.timers.names("sweep") == before


async def test_a_sweep_finds_a_value_that_lost_its_timer(
    server: NatsServer, memory: Memory, fabric: Fabric, open_fabric: OpenFabric
) -> None:
    """Its writer died between a write that took too long and setting the timer once more."""
    for view in (memory.global_scope, memory.session("s")):
        await view.set("key", 1, ttl=0.2)
    await write(fabric, "other")
    await fabric.timers.ensure_worker()
    worker = fabric.timers.worker()
    lost = 0
    while lost < 2:
        due = await worker.next()
        lost += len(due)
        await worker.done(due)
    await worker.aclose()
    async with ExpiryWorker(await open_fabric(server), Periods()):
        for kind in ("global", "session"):
            await sweep(fabric, kind, b"0", NOW)
        await eventually(lambda: _count(_expired(memory), 2))


async def _expired(memory: Memory) -> list[Event]:
    return [event for event in await events(memory, "key") if event.reason == "expired"]


async def _count(found: Awaitable[list[Event]], count: int) -> bool:
    return len(await found) >= count


async def _absent(memory: Memory, key: str) -> bool:
    return not await memory.exists(key)


async def _messages(fabric: Fabric, count: int) -> bool:
    return int((await fabric.log.state())["messages"]) >= count


async def _no_timers(fabric: Fabric) -> bool:
    return not await fabric.timers.names("key") and not await fabric.timers.names("scope")


async def _one_of(memory: Memory) -> str:
    """The id of some workflow."""
    return (await events(memory))[0].scope_id


async def _has_markers(url: str, bucket: str, count: int) -> bool:
    return len(await markers(url, bucket)) == count


async def _has(url: str, bucket: str, count: int) -> bool:
    return len(await contents(url, bucket)) == count


async def _due_sweep(fabric: Fabric, kind: str) -> bytes:
    """What a sweep that has come due is to go on with; empty if none has yet."""
    body = {"last_by_subj": f"{fabric.topology.namespace}.timers.due.sweep.{kind}"}
    try:
        answer = await api(fabric.connection, f"STREAM.MSG.GET.{fabric.topology.timers.name}", body)
    except ServerFault as fault:
        if fault.err_code == NO_MESSAGE:
            return b""
        raise
    return base64.b64decode(answer["message"]["data"])


async def _no_due_sweep(fabric: Fabric) -> bool:
    body = {"subjects_filter": f"{fabric.topology.namespace}.timers.due.sweep.>"}
    info = await api(fabric.connection, f"STREAM.INFO.{fabric.topology.timers.name}", body)
    return not info["state"].get("subjects")


def _workflow() -> str:
    running = current.get()
    assert running is not None
    assert running.workflow_id is not None
    return running.workflow_id
