"""``on_change``: what it hears, in which order, in whose place, and what becomes of failures."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import nats
import pytest

from agentfield import Agent, Event, InvalidInputError, Memory
from agentfield.execution import current
from agentfield.memory.reacting import superseding
from tests.support import NatsServer, eventually


@pytest.fixture
def agent(server: NatsServer, namespace: str) -> Agent:
    """An agent on the shared server, not yet served."""
    return Agent("tester", nats_url=server.url, namespace=namespace)


async def test_a_handler_hears_each_change_in_order_with_what_was_there_before(agent: Agent, memory: Memory) -> None:
    heard: list[Event] = []

    @agent.memory.on_change("order_*_status")
    async def react(event: Event) -> None:
        heard.append(event)

    await memory.set("order_1_status", "before the agent came")
    async with agent:
        revisions = [await memory.set("order_1_status", value) for value in ("processing", None, "paid")]
        await memory.delete("order_1_status")
        await memory.set("order__status", "no match: a star stands for at least one character")
        await memory.set("order_1_statuses", "no match")
        last = await memory.set("order_a_b_status", "match")
        await eventually(lambda: len(heard) == 5)
    assert [event.data for event in heard] == ["processing", None, "paid", None, "match"]
    assert [event.previous_data for event in heard] == ["before the agent came", "processing", None, "paid", None]
    assert [event.operation for event in heard] == ["set", "set", "set", "delete", "set"]
    assert [event.revision for event in heard[:3]] == revisions
    assert heard[-1].revision == last
    assert heard[-1].previous_revision is None
    assert heard[1].previous_revision == revisions[0]
    shape = heard[0].model_dump(mode="json")
    assert {"key", "data", "previous_data", "scope", "timestamp"} <= shape.keys()
    assert shape["timestamp"].endswith("Z")
    assert heard[0].timestamp.tzinfo is not None


async def test_without_a_scope_it_hears_workflows_sessions_global_and_its_own_actor_scope_alone(
    agent: Agent, memory: Memory
) -> None:
    heard: list[tuple[str, str]] = []

    @agent.memory.on_change("k")
    async def react(event: Event) -> None:
        heard.append((event.scope, event.scope_id))

    async with agent:
        await memory.workflow("w").set("k", 1)
        await memory.session("s").set("k", 1)
        await memory.actor("somebody-else").set("k", 1)
        await memory.actor("tester").set("k", 1)
        await memory.global_scope.set("k", 1)
        await eventually(lambda: len(heard) == 4)
    assert heard == [("workflow", "w"), ("session", "s"), ("actor", "tester"), ("global", "global")]


async def test_with_a_scope_and_an_id_it_hears_just_that(agent: Agent, memory: Memory) -> None:
    heard: list[str] = []

    @agent.memory.on_change("*", scope="session", scope_id="a.b")
    async def exactly(event: Event) -> None:
        heard.append(event.scope_id)

    @agent.memory.on_change("*", scope="session", name="any_session")
    async def any_session(event: Event) -> None:
        heard.append(f"any {event.scope_id}")

    async with agent:
        await memory.session("a").set("k", 1)
        await memory.session("a.b").set("k", 1)
        await memory.set("k", 1)
        await eventually(lambda: len(heard) == 3)
    assert sorted(heard) == ["a.b", "any a", "any a.b"]


async def test_a_handler_runs_in_the_workflow_and_session_of_its_event(agent: Agent, memory: Memory) -> None:
    seen: list[Any] = []

    @agent.memory.on_change("question")
    async def answer(event: Event) -> None:
        execution = current.get()
        assert execution is not None
        seen.append((execution.workflow_id, execution.session_id, execution.cause, await agent.memory.get("hint")))
        await agent.memory.set("answer", event.data)

    async with agent:
        async with agent.workflow("w-7"), agent.session("s-7"):
            await agent.memory.set("hint", "in the workflow")
            await agent.memory.set("question", 42)
        await eventually(lambda: memory.workflow("w-7").exists("answer"))
        entry = await memory.workflow("w-7").entry("answer")
        asked = [event async for event in memory.history("question")]
        await memory.set("question", "from a plain script")
        await eventually(lambda: memory.global_scope.exists("answer"))
    assert seen[0] == ("w-7", "s-7", asked[0].id, "in the workflow")
    assert entry is not None
    assert entry.writer.agent == "tester"
    assert entry.writer.workflow_id == "w-7"
    assert entry.writer.session_id == "s-7"
    assert entry.writer.cause == asked[0].id
    assert seen[1][:2] == (None, None)


@pytest.mark.parametrize("start", ["new", "all", "datetime", "revision"])
async def test_a_handler_that_never_ran_begins_where_start_says(agent: Agent, memory: Memory, start: str) -> None:
    heard: list[int] = []
    await memory.set("k", 0)
    moment = datetime.now(UTC)
    revision = await memory.set("k", 1)
    begin: Any = {"datetime": moment, "revision": revision}.get(start, start)

    @agent.memory.on_change("k", start=begin)
    async def react(event: Event) -> None:
        heard.append(event.data)

    async with agent:
        await memory.set("k", 2)
        await eventually(lambda: bool(heard) and heard[-1] == 2)
    assert heard == {"new": [2], "all": [0, 1, 2], "datetime": [1, 2], "revision": [1, 2]}[start]


async def test_after_a_restart_it_goes_on_where_it_was(server: NatsServer, namespace: str, memory: Memory) -> None:
    heard: list[tuple[int, int | None]] = []
    for round in range(3):
        agent = Agent("tester", nats_url=server.url, namespace=namespace)

        @agent.memory.on_change("k")
        async def react(event: Event) -> None:
            heard.append((event.data, event.previous_data))

        async with agent:
            await memory.set("k", 2 * round)
            await eventually(lambda: heard[-1:] and heard[-1][0] >= 2 * round)  # noqa: B023
        await memory.set("k", 2 * round + 1)
    assert heard == [(number, number - 1 if number else None) for number in range(5)]


async def test_two_instances_of_an_agent_share_its_events(server: NatsServer, namespace: str, memory: Memory) -> None:
    heard: list[tuple[str, int]] = []

    def instance(label: str) -> Agent:
        agent = Agent("tester", nats_url=server.url, namespace=namespace)

        @agent.memory.on_change("k_*")
        async def react(event: Event) -> None:
            heard.append((label, event.data))

        return agent

    async with instance("a"), instance("b"):
        for number in range(200):
            await memory.set(f"k_{number % 7}", number)
        await eventually(lambda: len(heard) >= 200)
    assert sorted(number for _, number in heard) == list(range(200))


async def test_one_key_stays_in_order_while_others_go_on_in_parallel(agent: Agent, memory: Memory) -> None:
    running, most = 0, 0
    handled: dict[str, list[int]] = {}

    @agent.memory.on_change("k_*", concurrency=8)
    async def react(event: Event) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002 * (event.data % 3))
        handled.setdefault(event.key, []).append(event.data)
        running -= 1

    async with agent:
        for number in range(300):
            await memory.set(f"k_{number % 10}", number)
        await eventually(lambda: sum(map(len, handled.values())) == 300, within=15)
    assert 1 < most <= 8
    assert all(numbers == sorted(numbers) for numbers in handled.values())


async def test_by_default_one_event_at_a_time(agent: Agent, memory: Memory) -> None:
    running, most, count = 0, 0, 0

    @agent.memory.on_change("k_*")
    async def react(_: Event) -> None:
        nonlocal running, most, count
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        count += 1

    async with agent:
        await asyncio.gather(*(memory.set(f"k_{number}", number) for number in range(100)))
        await eventually(lambda: count == 100)
    assert most == 1


async def test_handlers_that_never_wait_leave_the_loop_its_turns(agent: Agent, memory: Memory) -> None:
    count, most, before = 0, 0, 0

    @agent.memory.on_change("k_*", start="all")
    async def react(_: Event) -> None:
        nonlocal count
        count += 1

    async def watch() -> None:
        nonlocal most, before
        before = count  # some were handled before this began
        while True:
            most, before = max(most, count - before), count
            await asyncio.sleep(0)

    for _ in range(3):
        await memory.set_many({f"k_{number}": number for number in range(1000)})
    async with agent:
        watching = asyncio.create_task(watch())
        await eventually(lambda: count == 3000, within=15)
        watching.cancel()
    assert most < 200, "so many were handled before anything else had its turn"


async def test_a_handler_that_raises_is_tried_again_and_other_keys_do_not_wait(agent: Agent, memory: Memory) -> None:
    tries: list[int] = []
    others: list[int] = []

    @agent.memory.on_change(["bad", "good_*"])
    async def react(event: Event) -> None:
        if event.key == "bad":
            tries.append(event.data)
            if len(tries) < 4:
                raise RuntimeError("not yet")
        else:
            others.append(len(tries))

    async with agent:
        await memory.set("bad", 1)
        await memory.set("bad", 2)
        for number in range(20):
            await memory.set(f"good_{number}", number)
        await eventually(lambda: len(tries) == 5 and len(others) == 20, within=15)
    assert tries == [1, 1, 1, 1, 2]
    assert others[0] < 4, "the other keys waited for the failing one"


@pytest.fixture
async def deadletters(server: NatsServer, namespace: str) -> AsyncIterator[Any]:
    """A function that reads the dead letters as stock NATS shows them."""
    client = await nats.connect(server.url)

    async def read() -> list[dict[str, Any]]:
        js = client.jetstream()
        stream = f"{namespace.upper()}_DEADLETTERS"
        info = await js.stream_info(stream)
        letters = []
        for sequence in range(info.state.first_seq, info.state.last_seq + 1):
            message = await js.get_msg(stream, sequence)
            assert message.data is not None
            letters.append({"subject": message.subject, **json.loads(message.data)})
        return letters

    yield read
    await client.close()


async def test_an_event_that_fails_for_good_goes_to_the_dead_letters_with_the_reason(
    agent: Agent, memory: Memory, namespace: str, deadletters: Any
) -> None:
    heard: list[int] = []

    @agent.memory.on_change("k", retries=1)
    async def react(event: Event) -> None:
        if event.data == 1:
            raise ValueError("poison")
        heard.append(event.data)

    async with agent:
        revision = await memory.set("k", 1)
        await memory.set("k", 2)
        await eventually(lambda: heard == [2])
        (letter,) = await deadletters()
    assert letter["subject"] == f"{namespace}.deadletters.tester.react"
    assert letter["key"] == "k"
    assert letter["revision"] == revision
    assert letter["tries"] == 2
    assert letter["error"]["type"] == "ValueError"
    assert letter["error"]["message"] == "poison"
    assert "poison" in letter["error"]["traceback"]


async def test_a_handler_past_its_timeout_is_stopped_and_tried_again(agent: Agent, memory: Memory) -> None:
    tries = 0
    done = asyncio.Event()

    @agent.memory.on_change("k", timeout=0.2)
    async def react(_: Event) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            await asyncio.Event().wait()
        done.set()

    async with agent:
        await memory.set("k", 1)
        async with asyncio.timeout(10):
            await done.wait()
    assert tries == 2


async def test_a_plain_function_can_be_a_handler_and_does_not_block_the_loop(agent: Agent, memory: Memory) -> None:
    import threading

    loop_thread = threading.get_ident()
    ran: list[tuple[bool, Any]] = []

    @agent.memory.on_change("k")
    def react(event: Event) -> None:
        execution = current.get()
        ran.append((threading.get_ident() != loop_thread, execution and execution.cause == event.id))

    async with agent:
        await memory.set("k", 1)
        await eventually(lambda: len(ran) == 1)
    assert ran == [(True, True)]


async def test_a_handler_slower_than_the_pin_keeps_its_place_and_repeats_nothing(agent: Agent, memory: Memory) -> None:
    heard: list[int] = []

    @agent.memory.on_change("k")
    async def react(event: Event) -> None:
        heard.append(event.data)
        await asyncio.sleep(5 if event.data == 0 else 0)

    async with agent:
        for number in range(50):
            await memory.set("k", number)
        await eventually(lambda: len(heard) >= 50, within=20)
    assert heard == list(range(50))


async def test_what_can_never_work_is_refused_at_the_declaration(agent: Agent) -> None:
    memory = agent.memory

    async def react(event: Event) -> None: ...

    async def no_argument() -> None: ...

    for wrong, fact in (
        (lambda: memory.on_change("a>b")(react), ">"),
        (lambda: memory.on_change([])(react), "at least one pattern"),
        (lambda: memory.on_change("k", scope="planet")(react), "planet"),
        (lambda: memory.on_change("k", concurrency=0)(react), "concurrency=0"),
        (lambda: memory.on_change("k", retries=-1)(react), "retries=-1"),
        (lambda: memory.on_change("k", timeout=-1)(react), "timeout=-1"),
        (lambda: memory.on_change("k", start=datetime(2026, 1, 1))(react), "aware"),  # noqa: DTZ001
        (lambda: memory.on_change("k")(no_argument), "one argument"),  # type: ignore[type-var]
    ):
        with pytest.raises(InvalidInputError, match=fact):
            wrong()
    memory.on_change("k")(react)
    with pytest.raises(InvalidInputError, match="already"):
        memory.on_change("other")(react)


async def test_a_changed_pattern_takes_effect_and_progress_is_kept(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    heard: list[Any] = []

    def version(pattern: str) -> Agent:
        agent = Agent("tester", nats_url=server.url, namespace=namespace)

        @agent.memory.on_change(pattern)
        async def react(event: Event) -> None:
            heard.append((event.key, event.data, event.previous_data))

        return agent

    async with version("old"):
        await memory.set("old", 1)
        await eventually(lambda: len(heard) == 1)
    await memory.set("new", 1)
    async with version("new"):
        await memory.set("old", 2)
        await memory.set("new", 2)
        await eventually(lambda: ("new", 2, 1) in heard)
    assert [item for item in heard if item[0] == "old"] == [("old", 1, None)]


async def test_while_an_older_version_still_runs_nothing_is_lost_that_the_newer_one_wants(
    server: NatsServer, namespace: str, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superseding, "_LOOK", 0.1)
    heard: list[tuple[str, Any]] = []
    holding, go_on = asyncio.Event(), asyncio.Event()

    def version(label: str, *patterns: str) -> Agent:
        agent = Agent("tester", nats_url=server.url, namespace=namespace)

        @agent.memory.on_change(list(patterns))
        async def react(event: Event) -> None:
            if event.data == "hold" and label == "old":
                holding.set()
                await go_on.wait()
            heard.append((label, event.data))

        return agent

    older = version("old", "a_*")
    async with older:
        await memory.set("a_1", "hold")
        await holding.wait()
        async with version("new", "a_*", "b_*"):
            for number in range(10):
                await memory.set_many({"a_1": f"a{number}", "b_1": f"b{number}"})
            assert heard == []
            go_on.set()
            await eventually(lambda: [data for _, data in heard if str(data)[0] == "b"] == [f"b{n}" for n in range(10)])
            await eventually(lambda: len(heard) == 21)
            assert heard[0] == ("old", "hold")
            assert {label for label, data in heard if str(data)[0] == "b"} == {"new"}
            assert [data for _, data in heard if str(data)[0] == "a"] == [f"a{number}" for number in range(10)]
        # The newer version is withdrawn; the older one goes on.
        await memory.set("a_1", "after")
        await eventually(lambda: heard[-1] == ("old", "after"), within=25)
