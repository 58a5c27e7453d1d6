"""Handlers that misbehave: whatever they raise, however long they take, no other event suffers and none is lost."""

import asyncio
import contextlib
import functools
import itertools
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import nats
import orjson
import pytest

from agentfield import Agent, Event, InvalidInputError, Memory
from agentfield.fabric.consumers.consumer import PIN_TIMEOUT
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import api
from agentfield.header import EVENT_ID
from tests.support import NatsServer, eventually
from tests.support.events import subject, write


@pytest.fixture
def agent(server: NatsServer, namespace: str) -> Agent:
    """An agent on the shared server, not yet served."""
    return Agent("tester", nats_url=server.url, namespace=namespace)


@pytest.fixture
def letters(fabric: Fabric) -> Callable[[], Awaitable[list[dict[str, Any]]]]:
    """Return a function that gives the dead letters."""

    async def read() -> list[dict[str, Any]]:
        stream = fabric.topology.deadletters.name
        last = (await api(fabric.connection, f"STREAM.INFO.{stream}"))["state"]["last_seq"]
        client = await nats.connect(fabric.connection.url)
        try:
            found = [await client.jetstream().get_msg(stream, sequence) for sequence in range(1, last + 1)]
        finally:
            await client.close()
        return [orjson.loads(message.data or b"") for message in found]

    return read


class UnspeakableError(Exception):
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


FAILURES: dict[str, Callable[[], BaseException]] = {
    "cancelled": lambda: asyncio.CancelledError(),
    "huge": lambda: ValueError("x" * 3_000_000),
    "no unicode": lambda: ValueError("\ud800 \x00 ünïcode"),
    "unspeakable": lambda: UnspeakableError(),
    "empty": lambda: ValueError(),
    "stop": lambda: StopAsyncIteration(),
    "group": lambda: ExceptionGroup("several", [ValueError("one"), TypeError("two")]),
    "timeout": lambda: TimeoutError(),
    "assertion": lambda: AssertionError(),
    "exit": lambda: SystemExit(3),
    "interrupt": lambda: KeyboardInterrupt(),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_whatever_a_handler_raises_ends_in_the_dead_letters_and_the_next_event_is_handled(
    agent: Agent, memory: Memory, letters: Any, failure: str
) -> None:
    heard: list[int] = []

    @agent.memory.on_change("k_*", retries=0)
    async def react(event: Event) -> None:
        heard.append(event.data)
        if event.data == 1:
            raise FAILURES[failure]()

    async with agent:
        for number in (1, 2, 3):
            await memory.set(f"k_{number}", number)
        await eventually(lambda: heard == [1, 2, 3], within=10)
        (letter,) = await eventually(letters)
    assert letter["key"] == "k_1"
    assert letter["error"]["type"] == type(FAILURES[failure]()).__name__
    assert isinstance(letter["error"]["message"], str)
    assert "react" in letter["error"]["traceback"]


@pytest.mark.parametrize(("failure", "shown"), [(SystemExit, "SystemExit"), (StopIteration, "RuntimeError")])
async def test_whatever_a_plain_function_raises_ends_its_try(
    agent: Agent, memory: Memory, letters: Any, failure: type[BaseException], shown: str
) -> None:
    heard: list[int] = []

    @agent.memory.on_change("k_*", retries=0)
    def react(event: Event) -> None:
        heard.append(event.data)
        if event.data == 1:
            raise failure(3)

    async with agent:
        for number in (1, 2):
            await memory.set(f"k_{number}", number)
        await eventually(lambda: heard == [1, 2], within=10)
        (letter,) = await eventually(letters)
    assert letter["error"]["type"] == shown
    assert "StopIteration" in letter["error"]["traceback"] or failure is SystemExit


async def test_a_handler_that_took_too_long_is_told_from_one_that_met_a_timeout(
    agent: Agent, memory: Memory, letters: Any
) -> None:
    @agent.memory.on_change("k", retries=0, timeout=0.2)
    async def react(_: Event) -> None:
        await asyncio.Event().wait()

    async with agent:
        await memory.set("k", 1)
        (letter,) = await eventually(letters, within=10)
    assert letter["error"]["message"] == "it took longer than its timeout=0.2 s"


async def test_a_task_that_a_handler_awaits_and_somebody_cancels_is_a_failure_of_that_try(
    agent: Agent, memory: Memory
) -> None:
    tries = 0
    done = asyncio.Event()

    @agent.memory.on_change("k")
    async def react(_: Event) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            helper = asyncio.create_task(asyncio.Event().wait())
            await asyncio.sleep(0)
            helper.cancel()
            await helper
        done.set()

    async with agent:
        await memory.set("k", 1)
        async with asyncio.timeout(10):
            await done.wait()
    assert tries == 2


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_stopping_in_the_middle_of_a_handler_waits_for_it_and_acknowledges_it(
    server: NatsServer, namespace: str, memory: Memory, concurrency: int
) -> None:
    heard: list[int] = []
    begun, go_on = asyncio.Event(), asyncio.Event()

    def version() -> Agent:
        agent = Agent("tester", nats_url=server.url, namespace=namespace)

        @agent.memory.on_change("k", concurrency=concurrency)
        async def react(event: Event) -> None:
            begun.set()
            await go_on.wait()
            heard.append(event.data)

        return agent

    first = version()
    await first.__aenter__()
    await memory.set("k", 1)
    await begun.wait()
    stopping = asyncio.create_task(first.aclose())
    await memory.set("k", 2)
    assert not stopping.done()
    go_on.set()
    await stopping
    async with version():
        await memory.set("k", 3)
        await eventually(lambda: heard[-1:] == [3])
    assert heard == [1, 2, 3]


async def test_stopping_hands_over_what_has_not_begun_and_each_handler_by_itself(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    heard: list[tuple[str, Any]] = []
    begun, failed, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def instance(label: str) -> Agent:
        agent = Agent("tester", nats_url=server.url, namespace=namespace)

        @agent.memory.on_change("slow", concurrency=2)
        async def slow(event: Event) -> None:
            begun.set()
            await go_on.wait()
            heard.append((label, event.data))

        @agent.memory.on_change("failing", retries=20)
        async def failing(event: Event) -> None:
            if label == "first":
                failed.set()
                raise ValueError("not here")
            heard.append((label, event.data))

        @agent.memory.on_change("quick")
        async def quick(event: Event) -> None:
            heard.append((label, event.data))

        return agent

    first, second = instance("first"), instance("second")
    await first.__aenter__()
    for number in range(20):
        await memory.set("slow", number)
    await memory.set("failing", "f")
    await begun.wait()
    await failed.wait()
    async with second:
        stopping = asyncio.create_task(first.aclose())
        await memory.set("quick", "q")

        def handed_over() -> bool:
            assert {data for _, data in heard} == {"f", "q"}
            return True

        await eventually(handed_over, within=10)
        assert not stopping.done()
        go_on.set()
        await stopping
        await eventually(lambda: heard[-1:] == [("second", 19)])
    assert [(label, data) for label, data in heard if isinstance(data, int)] == [
        ("first" if number == 0 else "second", number) for number in range(20)
    ]


async def test_a_plain_function_past_its_timeout_is_over_before_the_next_try(agent: Agent, memory: Memory) -> None:
    running = most = 0
    tried: list[int] = []

    @agent.memory.on_change("k", timeout=0.1, retries=2)
    def react(event: Event) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        tried.append(event.data)
        time.sleep(0.6)
        running -= 1

    async with agent:
        await memory.set("k", 1)
        await memory.set("k", 2)
        await eventually(lambda: len(tried) == 6, within=15)
    assert tried == [1, 1, 1, 2, 2, 2]
    assert most == 1


async def test_a_handler_that_blocks_the_loop_past_the_pin_costs_no_event_and_no_order(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    heard: list[tuple[str, int]] = []

    def instance(label: str) -> Agent:
        agent = Agent("tester", nats_url=server.url, namespace=namespace)

        @agent.memory.on_change("k_*")
        async def react(event: Event) -> None:
            if event.data == 5 and not any(number == 5 for _, number in heard):
                time.sleep(PIN_TIMEOUT + 2)  # noqa: ASYNC251  # what a careless handler does
            heard.append((event.key, event.data))

        return agent

    async with instance("one"), instance("other"):
        for number in range(20):
            await memory.set(f"k_{number % 2}", number)
        await eventually(lambda: {number for _, number in heard} >= set(range(20)), within=20)
    for key in ("k_0", "k_1"):
        firsts = list(dict.fromkeys(number for name, number in heard if name == key))
        assert firsts == sorted(firsts)


async def test_a_foreign_message_in_the_log_is_skipped_and_reported(
    agent: Agent, memory: Memory, fabric: Fabric, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Any] = []

    @agent.memory.on_change("*", scope="global")
    async def react(event: Event) -> None:
        heard.append(event.data)

    async with agent:
        await memory.set("a", 1)
        connection = fabric.connection
        await connection.request(subject(fabric, "b"), b"not json", {EVENT_ID: "1"}, timeout=5)
        await connection.request(subject(fabric, "c"), b"{}", timeout=5)
        await connection.request(subject(fabric, "d=zz"), b"{}", timeout=5)
        await connection.request(subject(fabric, "a"), b"[]", {EVENT_ID: "2", "Agentfield-Event": "{"}, timeout=5)
        await memory.set("b", 2)
        await eventually(lambda: heard[-1:] == [2], within=10)
    assert heard == [1, 2]
    assert caplog.text.count("foreign") >= 4


async def test_a_log_with_more_keys_than_one_answer_holds_still_gives_the_right_previous_data(
    agent: Agent, memory: Memory, fabric: Fabric
) -> None:
    for begin in range(0, 2000, 500):
        await memory.set_many({f"k_{number}": number for number in range(begin, begin + 500)})
    seen: dict[str, tuple[Any, Any]] = {}

    @agent.memory.on_change("k_*")
    async def react(event: Event) -> None:
        seen[event.key] = (event.previous_data, event.data)

    async with agent:
        for number in range(0, 2100, 100):
            await memory.set(f"k_{number}", "new")
        await eventually(lambda: len(seen) == 21)
    assert seen == {f"k_{number}": (number if number < 2000 else None, "new") for number in range(0, 2100, 100)}


async def test_a_large_previous_value_is_given_whole(agent: Agent, memory: Memory) -> None:
    heard: list[Any] = []
    large = ["x" * 200_000, "y" * 200_000, None, "z"]

    @agent.memory.on_change("k")
    async def react(event: Event) -> None:
        heard.append((event.previous_data, event.data))

    async with agent:
        for value in large:
            await memory.set("k", value)
        await memory.delete("k")
        await memory.set("k", "again")
        await eventually(lambda: len(heard) == 6)
    assert heard == list(itertools.pairwise([None, *large, None, "again"]))


async def test_a_dead_letter_waits_for_a_server_that_is_away(
    fresh_server: NatsServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    agent = Agent("tester", nats_url=fresh_server.url, namespace=namespace)
    failing, away = asyncio.Event(), asyncio.Event()
    heard: list[int] = []

    @agent.memory.on_change("k", retries=0)
    async def react(event: Event) -> None:
        if event.data == 1:
            failing.set()
            await away.wait()
            raise ValueError("poison")
        heard.append(event.data)

    async with agent:
        await agent.memory.set("k", 1)
        await failing.wait()
        await fresh_server.kill()
        away.set()
        await eventually(lambda: "gives up" in caplog.text)
        await fresh_server.start()
        await agent.memory.set("k", 2)
        await eventually(lambda: heard == [2], within=20)
        fabric = await agent.memory._fabric()
        state = (await api(fabric.connection, f"STREAM.INFO.{fabric.topology.deadletters.name}"))["state"]
    assert state["messages"] == 1


async def test_any_callable_that_takes_an_event_will_do(agent: Agent, memory: Memory) -> None:
    heard: list[Any] = []
    here = threading.get_ident()

    async def with_more(tag: str, event: Event) -> None:
        heard.append((tag, event.data))

    class Handler:
        async def method(self, event: Event) -> None:
            heard.append(("method", event.data))

        async def __call__(self, event: Event) -> None:
            heard.append(("call", event.data))

    agent.memory.on_change("k", name="partial")(functools.partial(with_more, "partial"))
    agent.memory.on_change("k")(Handler().method)
    agent.memory.on_change("k", name="object")(Handler())
    agent.memory.on_change("k", name="lambda")(lambda event: heard.append((threading.get_ident() != here, event.data)))
    async with agent:
        await memory.set("k", 1)
        await eventually(lambda: len(heard) == 4)
    assert sorted(map(str, heard)) == ["('call', 1)", "('method', 1)", "('partial', 1)", "(True, 1)"]


async def test_a_declaration_of_the_wrong_types_is_refused(agent: Agent) -> None:
    memory: Any = agent.memory

    async def react(event: Event) -> None: ...

    for wrong in (
        {"patterns": 7},
        {"patterns": [7]},
        {"patterns": ["fine", ""]},
        {"patterns": "k", "concurrency": "2"},
        {"patterns": "k", "concurrency": True},
        {"patterns": "k", "concurrency": 1.5},
        {"patterns": "k", "retries": None},
        {"patterns": "k", "timeout": "soon"},
        {"patterns": "k", "timeout": float("nan")},
        {"patterns": "k", "timeout": 0},
        {"patterns": "k", "timeout": 10**400},
        {"patterns": "k", "start": 2**64},
        {"patterns": "k", "start": "yesterday"},
        {"patterns": "k", "start": -1},
        {"patterns": "k", "start": []},
        {"patterns": "k", "delivery": "both"},
        {"patterns": "k", "delivery": None},
        {"patterns": "k", "delivery": ["agent"]},
        {"patterns": "k", "start": True},
        {"patterns": "k", "start": datetime(2026, 1, 1)},  # noqa: DTZ001
        {"patterns": "k", "name": "two words"},
        {"patterns": "k", "name": 7},
        {"patterns": "k", "scope": "session", "scope_id": ""},
        {"patterns": "k", "scope_id": "x"},
    ):
        with pytest.raises(InvalidInputError):
            memory.on_change(wrong.pop("patterns"), **wrong)(react)
    with pytest.raises(InvalidInputError, match="yield"):
        memory.on_change("k", name="generator")(lambda event: (yield event))
    with pytest.raises(InvalidInputError, match="name"):
        memory.on_change("k")(functools.partial(react))
    with pytest.raises(InvalidInputError, match="belongs to an agent"):
        Memory(agent.memory._fabric).on_change("k")
    assert agent.memory.registrations == []


async def test_an_event_in_flight_while_the_connection_is_lost_comes_again_without_a_new_one(
    fresh_server: NatsServer, namespace: str
) -> None:
    agent = Agent("tester", nats_url=fresh_server.url, namespace=namespace)
    tries: list[int] = []

    @agent.memory.on_change("k_*")
    async def react(event: Event) -> None:
        tries.append(event.data)
        if len(tries) == 1:
            await fresh_server.restart(gracefully=False)

    async with agent:
        await agent.memory.set_many({f"k_{number}": number for number in range(10)})
        # Nothing is written from here on: what was received and not handled must come back by itself.
        await eventually(lambda: set(tries) == set(range(10)), within=15)
    assert len(tries) == 10, "the instance knew that it had handled the first"


async def test_nothing_is_written_by_hearing(agent: Agent, memory: Memory, fabric: Fabric) -> None:
    @agent.memory.on_change("k")
    async def react(_: Event) -> None: ...

    async with agent:
        await write(fabric, "k")
        await eventually(lambda: handled(fabric, 1))
    assert (await fabric.log.state())["messages"] == 1


async def handled(fabric: Fabric, sequence: int) -> bool:
    info = await api(fabric.connection, f"CONSUMER.INFO.{fabric.log.stream}.handler-tester-react")
    return bool(info["ack_floor"]["stream_seq"] == sequence)


async def test_a_handler_that_catches_its_cancellation_and_returns_late_has_failed(
    agent: Agent, memory: Memory, letters: Any
) -> None:
    @agent.memory.on_change("k", timeout=0.1, retries=0)
    async def stubborn(event: Event) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await agent.memory.set("came", "through")

    async with agent:
        await memory.set("k", 1)
        await eventually(letters, within=10)
    (letter,) = await letters()
    assert letter["error"]["type"] == "TimeoutError"
    assert await memory.get("came") == "through"


async def test_a_handler_that_goes_on_after_its_timeout_is_reported(
    agent: Agent, memory: Memory, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentfield.memory.reacting.calling._OVERDUE", 0.1)
    enough = asyncio.Event()

    @agent.memory.on_change("k", timeout=0.1, retries=0)
    async def stubborn(event: Event) -> None:
        while not enough.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await enough.wait()

    async with agent:
        await memory.set("k", 1)
        await eventually(lambda: "still runs on k" in caplog.text, within=10)
        enough.set()


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_a_handler_that_catches_its_cancellation_once_does_not_keep_its_agent_from_stopping(
    agent: Agent, memory: Memory, concurrency: int
) -> None:
    begun = asyncio.Event()

    @agent.memory.on_change("k", concurrency=concurrency)
    async def stubborn(event: Event) -> None:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)

    await agent.__aenter__()
    await memory.set("k", 1)
    await begun.wait()
    async with asyncio.timeout(4):
        await agent.aclose(grace=0.1)


async def test_a_handler_that_catches_every_cancellation_is_left_behind_and_named(
    agent: Agent, memory: Memory, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentfield.ending.CLEANING", 0.1)
    monkeypatch.setattr("agentfield.ending._AGAIN", 0.1)
    begun, enough = asyncio.Event(), asyncio.Event()

    @agent.memory.on_change("k")
    async def stubborn(event: Event) -> None:
        begun.set()
        while not enough.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await enough.wait()

    await agent.__aenter__()
    await memory.set("k", 1)
    await begun.wait()
    try:
        async with asyncio.timeout(4):
            await agent.aclose(grace=0.1)
        assert "handler stubborn catches its cancellation and goes on" in caplog.text
    finally:
        enough.set()


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_a_handler_that_cancels_its_own_task_has_failed_and_the_next_event_is_handled(
    agent: Agent, memory: Memory, letters: Any, concurrency: int
) -> None:
    heard: list[int] = []

    @agent.memory.on_change("k_*", retries=1, concurrency=concurrency)
    async def react(event: Event) -> None:
        heard.append(event.data)
        if event.data == 1:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)  # a timeout as people write it themselves
            await asyncio.sleep(60)

    async with agent:
        await memory.set("k_1", 1)
        await eventually(letters, within=10)
        await memory.set("k_2", 2)
        await eventually(lambda: 2 in heard, within=10)
    assert heard == [1, 1, 2]
    (letter,) = await letters()
    assert letter["error"]["type"] == "CancelledError"
