"""From a value back to what led to it, through handlers and calls of several agents; and loops, which are stopped."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import nats
import pytest

from agentfield import Agent, Event, Memory
from agentfield.event import Writer
from agentfield.execution import new_id
from agentfield.fabric.fabric import Fabric
from agentfield.memory.causes import Origin, chain
from agentfield.testing import settled
from tests.support import NatsServer, eventually
from tests.support.events import subject

Make = Callable[[str], Agent]


@pytest.fixture
def agent(server: NatsServer, namespace: str) -> Make:
    """Return a function that makes an agent in this test's namespace."""
    return lambda name: Agent(name, nats_url=server.url, namespace=namespace)


async def last(memory: Memory, key: str) -> Event:
    """The last event of a key, in whatever scope."""
    (event,) = [event async for event in memory.history(key, reverse=True, limit=1)]
    return event


async def links(fabric: Fabric, revision: int) -> list[Event | Origin]:
    """The chain behind an event."""
    record = await fabric.log.at(revision)
    assert record is not None
    return [link async for link in chain(fabric, record)]


# -- what a write says of its cause -----------------------------------------------------------------------------------


async def test_the_chain_goes_through_handlers_and_calls_of_several_agents_back_to_the_root(
    agent: Make, memory: Memory, fabric: Fabric
) -> None:
    support, billing = agent("support"), agent("billing")

    @support.reasoner()
    async def intake() -> None:
        await support.memory.set("urgency", "high")

    @support.memory.on_change("urgency")
    async def escalate(_: Event) -> None:
        await support.call("billing.open_case")

    @billing.reasoner()
    async def open_case() -> None:
        await billing.call("billing.write_case")

    @billing.reasoner()
    async def write_case() -> None:
        await billing.memory.set("case", 1)

    @billing.memory.on_change("case")
    async def mail(_: Event) -> None:
        await billing.memory.set("mail", "sent")

    async with support, billing:
        async with support.session("ada"):
            await support.call("support.intake")
        await settled(support, billing)
        sent = await last(memory, "mail")
    first, second, third, origin = await links(fabric, sent.revision)
    assert isinstance(first, Event)
    assert isinstance(second, Event)
    assert isinstance(third, Event)
    assert [each.key for each in (first, second, third)] == ["mail", "case", "urgency"]
    assert [each.data for each in (first, second, third)] == ["sent", 1, "high"]
    assert [each.writer.depth for each in (first, second, third)] == [2, 1, 0]
    assert (first.writer.cause, first.writer.cause_revision) == (second.id, second.revision)
    assert (second.writer.cause, second.writer.cause_revision) == (third.id, third.revision)
    assert (first.writer.agent, first.writer.function, first.writer.path) == ("billing", "mail", ())
    assert (second.writer.agent, second.writer.function) == ("billing", "write_case")
    assert [called.partition("/")[0] for called in second.writer.path] == ["support.escalate", "billing.open_case"]
    assert {each.writer.session_id for each in (first, second, third)} == {"ada"}
    assert {each.writer.workflow_id for each in (first, second, third)} == {third.scope_id}
    assert isinstance(origin, Origin)
    assert (origin.end, origin.text) == ("root", "support made its calls outside any handler")


WRITES: dict[str, Callable[[Memory], Awaitable[Any]]] = {
    "set": lambda memory: memory.set("x", 1),
    "large set": lambda memory: memory.set("x", "x" * 300_000),
    "create": lambda memory: memory.create("x", 1),
    "delete": lambda memory: memory.delete("here"),
    "update": lambda memory: memory.update("x", lambda _: 1),
    "increment": lambda memory: memory.increment("x"),
    "set_many": lambda memory: memory.set_many({"x": 1, "y": 2}),
    "transaction": lambda memory: _in_transaction(memory),
    "clear": lambda memory: memory.global_scope.clear(),
    "fenced": lambda memory: _fenced(memory),
    "offline": lambda memory: _offline(memory),
    "another memory's": lambda memory: memory.session("s").set("x", 1),
}


async def _in_transaction(memory: Memory) -> None:
    async with memory.transaction() as tx:
        tx.set("x", 1)
        tx.delete("here")


async def _fenced(memory: Memory) -> None:
    async with memory.lock("door") as lock:
        await memory.set("x", 1, fence=lock)


async def _offline(memory: Memory) -> None:
    async with memory.offline() as buffer:
        buffer.set("x", 1)


@pytest.mark.parametrize("operation", WRITES)
async def test_every_way_to_write_in_a_handler_names_the_event_behind_it(
    agent: Make, memory: Memory, operation: str
) -> None:
    tester = agent("tester")

    @tester.memory.on_change("start", scope="session")
    async def react(_: Event) -> None:
        await WRITES[operation](tester.memory)

    await memory.set("here", 0)
    await memory.session("s").set("here", 0)
    async with tester:
        begun = await memory.session("s").set("start", 1)
        await settled(tester)
    cause = await last(memory, "start")
    written = [event async for event in memory.history("*", since=begun + 1)]
    assert written
    for event in written:
        assert event.writer.cause == cause.id
        assert (event.writer.cause_revision, event.writer.depth) == (begun, 1)
        assert (event.writer.agent, event.writer.function) == ("tester", "react")


async def test_a_lock_taken_in_a_handler_names_the_event_behind_it(
    agent: Make, memory: Memory, fabric: Fabric, namespace: str
) -> None:
    tester = agent("tester")

    @tester.memory.on_change("start")
    async def react(_: Event) -> None:
        async with tester.memory.lock("door"):
            pass

    async with tester:
        begun = await memory.set("start", 1)
        await settled(tester)
    record = await fabric.log.last_of(f"{namespace}.locks.>")
    assert record is not None
    assert json.loads(record.headers["Agentfield-Event"])["cause_revision"] == begun


async def test_what_has_expired_was_caused_by_the_write_that_said_when_and_begins_anew(
    agent: Make, memory: Memory, fabric: Fabric
) -> None:
    tester = agent("tester")

    @tester.memory.on_change("start")
    async def react(_: Event) -> None:
        await tester.memory.set("code", 4711, ttl=0.3)

    async with tester:
        await memory.set("start", 1)

        async def expired() -> bool:
            return (await last(memory, "code")).reason == "expired"

        await eventually(lambda: memory.exists("code"))
        await eventually(expired)
    gone = await last(memory, "code")
    assert gone.writer.depth == 0
    found = await links(fabric, gone.revision)
    assert [link.key if isinstance(link, Event) else link.end for link in found] == ["code", "code", "start", "root"]


async def test_a_plain_program_writes_no_more_than_before(memory: Memory, fabric: Fabric) -> None:
    revision = await memory.set("k", 1)
    record = await fabric.log.at(revision)
    assert record is not None
    assert record.headers["Agentfield-Event"] == '{"v":1,"type":"set"}'


# -- where a chain ends -----------------------------------------------------------------------------------------------


async def write(fabric: Fabric, key: str, writer: Writer) -> int:
    """Append an event by that writer."""
    from agentfield.header import encode_event

    headers = encode_event(event_id=new_id(), operation="set", writer=writer)
    return (await fabric.log.append(subject(fabric, key), b"1", headers)).sequence


async def origin_of(fabric: Fabric, **writer: Any) -> Origin:
    """Where the chain behind a write of that writer ends."""
    (*_, origin) = await links(fabric, await write(fabric, "k", Writer(**writer)))
    assert isinstance(origin, Origin)
    return origin


async def test_it_is_said_who_began_it(fabric: Fabric) -> None:
    texts = [
        (await origin_of(fabric, **writer)).text
        for writer in (
            {},
            {"agent": "a"},
            {"agent": "a", "function": "f"},
            {"agent": "a", "function": "g", "path": ("a.f/e1", "a.h/e2")},
            {"agent": "a", "function": "g", "path": ("/e1",)},
        )
    ]
    assert texts == [
        "a program that is no agent wrote it",
        "code of agent a wrote it outside any handler and reasoner",
        "a.f was called from outside any handler",
        "a.f made its calls outside any handler",
        "a program made its calls outside any handler",
    ]


async def test_it_is_said_if_the_cause_is_not_where_it_should_be(fabric: Fabric) -> None:
    revision = await write(fabric, "k", Writer())
    assert (await origin_of(fabric, cause="e")).end == "unknown"
    assert (await origin_of(fabric, cause="e", cause_revision=revision)).end == "missing"
    later = await origin_of(fabric, cause="e", cause_revision=10**9)
    assert (later.end, later.revision) == ("missing", 10**9)


async def test_it_is_said_if_something_else_wrote_it(fabric: Fabric) -> None:
    async def foreign(id: str) -> int:
        return (await fabric.log.append(subject(fabric, "k"), b"1", {"Nats-Msg-Id": id})).sequence

    origin = await origin_of(fabric, cause="x", cause_revision=await foreign("x"))
    assert origin.end == "foreign"
    assert "something other than agentfield wrote it" in origin.text


async def test_it_is_said_if_the_log_does_not_go_back_so_far(
    fresh_server: NatsServer, open_fabric: Callable[..., Awaitable[Fabric]]
) -> None:
    fabric = await open_fabric(fresh_server)
    client = await nats.connect(fresh_server.url)
    js = client.jetstream()
    try:
        first = await write(fabric, "k", Writer())
        name = fabric.log.stream
        config = (await js.stream_info(name)).config
        await js.delete_stream(name)
        config.first_seq = first + 10
        await js.add_stream(config)
        origin = await origin_of(fabric, cause="e", cause_revision=first)
    finally:
        await client.close()
    assert (origin.end, origin.text) == (
        "trimmed",
        f"its cause, r{first}, is gone: the log begins at r{first + 10} now",
    )


# -- loops ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def deadletters(server: NatsServer, namespace: str) -> AsyncIterator[Any]:
    """A function that reads the dead letters as stock NATS shows them."""
    client = await nats.connect(server.url)

    async def read() -> list[dict[str, Any]]:
        js = client.jetstream()
        stream = f"{namespace.upper()}_DEADLETTERS"
        state = (await js.stream_info(stream)).state
        messages = [await js.get_msg(stream, each) for each in range(state.first_seq, state.last_seq + 1)]
        return [json.loads(message.data or b"") for message in messages]

    yield read
    await client.close()


async def test_two_agents_that_start_each_other_are_stopped_and_go_on_with_the_rest(
    agent: Make, memory: Memory, deadletters: Any, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = agent("one"), agent("other")

    @one.memory.on_change(["ping", "hello_*"])
    async def on_ping(event: Event) -> None:
        await one.memory.set("pong" if event.key == "ping" else f"heard_{event.key}", event.data)

    @other.memory.on_change(["pong", "hello_*"])
    async def on_pong(event: Event) -> None:
        await other.call("other.answer", key=event.key)

    @other.reasoner()
    async def answer(key: str) -> None:
        await other.memory.set("ping" if key == "pong" else f"noted_{key}", 1, scope="global")

    caplog.set_level(logging.ERROR)
    async with one, other:
        await memory.set("ping", 1)
        await settled(one, other)
        await memory.set("hello_1", 1)
        await settled(one, other)
        (letter,) = await deadletters()
    written = [event async for event in memory.history("p*ng")]
    assert [event.writer.depth for event in written] == list(range(101))
    assert (letter["handler"], letter["key"], letter["tries"]) == ("on_ping", "ping", 0)
    assert letter["error"]["type"] == "LoopDetected"
    assert letter["error"]["message"] == (
        "100 handlers have started one another, each with what it wrote, and at most 100 may: over and over, "
        "one.on_ping wrote pong, other.on_pong wrote ping"
    )
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "handler on_ping is not run for ping (revision 101), which goes to the dead letters"
    ]
    assert await memory.exists("heard_hello_1")
    assert await memory.exists("noted_hello_1")


async def test_a_call_is_no_step_towards_the_limit(
    agent: Make, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTFIELD_MAX_DEPTH", "1")
    tester = agent("tester")

    @tester.reasoner()
    async def down(level: int) -> None:
        await (tester.call("tester.down", level=level - 1) if level else tester.memory.set("bottom", 1))

    @tester.memory.on_change("bottom")
    async def on_bottom(_: Event) -> None:
        await tester.memory.set("reached", 1)

    async with tester:
        await tester.call("tester.down", level=20)
        await settled(tester)
    bottom = await last(memory, "bottom")
    assert (bottom.writer.depth, len(bottom.writer.path)) == (0, 16)
    assert (await last(memory, "reached")).writer.depth == 1


async def test_many_loops_at_once_are_one_line_in_the_log(
    agent: Make, memory: Memory, deadletters: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTFIELD_MAX_DEPTH", "3")
    tester = agent("tester")

    @tester.memory.on_change("k_*")
    async def react(event: Event) -> None:
        await tester.memory.set(event.key, event.data)

    caplog.set_level(logging.ERROR)
    async with tester:
        await asyncio.gather(*(memory.set(f"k_{number}", 1) for number in range(50)))
        await settled(tester)
        letters = await deadletters()
    assert len(letters) == 50
    assert {letter["error"]["message"].partition(": ")[2] for letter in letters} == {
        f"over and over, tester.react wrote k_{number}" for number in range(50)
    }
    assert len(caplog.records) == 1
