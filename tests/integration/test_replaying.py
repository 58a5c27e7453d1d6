"""Dead letters: an event that cannot be handled stands in nobody's way, is kept with the error, and comes again."""

import asyncio
import functools
import logging
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agentfield import Agent, Event, Memory, Writer, connect
from agentfield.execution import new_id
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import api
from agentfield.header import encode_event
from agentfield.memory.reacting import letters as forms
from agentfield.memory.reacting.letters import Letter, request
from tests.support import NatsServer, eventually
from tests.support.recording import recorded, recorder

NewAgent = Callable[..., Agent]
Handler = Callable[[Event], Awaitable[Any]]


@pytest.fixture
def new_agent(server: NatsServer, namespace: str) -> NewAgent:
    """Return a function that makes a version of the agent with a handler of `k_*` called `react`."""

    def make(handler: Handler, **options: Any) -> Agent:
        agent = Agent("tester", nats_url=server.url, namespace=namespace)
        agent.memory.on_change("k_*", name="react", **{"retries": 0, **options})(handler)
        return agent

    return make


async def letters(fabric: Fabric) -> list[Letter]:
    """The dead letters there are."""
    return [Letter.of(record) async for record in fabric.deadletters.all()]


async def one_letter(fabric: Fabric) -> Letter:
    """The one dead letter, as soon as it is there."""
    (found,) = await eventually(lambda: letters(fabric))
    return found


async def replay(fabric: Fabric, letter: Letter) -> int:
    """Ask for a letter's event again."""
    return await fabric.deadletters.ask_again(letter.agent, letter.handler, request(letter))


async def failing(event: Event) -> None:
    """Fail on one key."""
    if event.key == "k_poison":
        raise ValueError(f"cannot bear {event.data!r}")


class Heard:
    """A handler that remembers what it was given."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def __call__(self, event: Event) -> None:
        self.events.append(event)


async def test_a_poison_event_blocks_no_other_key_and_is_handled_after_the_fix(
    new_agent: NewAgent, memory: Memory, fabric: Fabric
) -> None:
    async with new_agent(failing, retries=1) as agent:
        await memory.set("k_poison", {"a": 1})
        for number in range(20):
            last = await memory.set(f"k_{number}", number)
        letter = await one_letter(fabric)
        await eventually(lambda: reached(fabric, last))
        assert agent.handlers
    assert (letter.agent, letter.handler, letter.key, letter.tries) == ("tester", "react", "k_poison", 2)
    assert (letter.error_type, letter.message) == ("ValueError", "cannot bear {'a': 1}")
    assert "in failing" in letter.traceback
    await replay(fabric, letter)  # nobody runs: it waits
    heard = Heard()
    async with new_agent(heard):
        await eventually(lambda: [event.data for event in heard.events] == [{"a": 1}])
        await eventually(lambda: no_letters(fabric))


async def reached(fabric: Fabric, sequence: int, consumer: str = "handler-tester-react") -> bool:
    """Whether the handler has handled everything up to that sequence."""
    info = await api(fabric.connection, f"CONSUMER.INFO.{fabric.log.stream}.{consumer}")
    return int(info["ack_floor"]["stream_seq"]) >= sequence


async def no_letters(fabric: Fabric) -> bool:
    return not await letters(fabric)


async def test_a_replayed_event_is_the_one_that_it_was(new_agent: NewAgent, memory: Memory, fabric: Fabric) -> None:
    given: list[Event] = []

    async def react(event: Event) -> None:
        given.append(event)
        if len(given) == 2:
            raise ValueError("not yet")
        if len(given) > 2:
            await agent.memory.set("answer", event.data)  # unscoped: where the event's writer would write

    agent = new_agent(react)
    async with agent:
        writing = Agent("writer", nats_url=fabric.connection.url, namespace=fabric.topology.namespace)
        try:
            async with writing.session("s"), writing.workflow("w"):
                await writing.memory.set("k_1", "old")
                await writing.memory.set("k_1", "poison")
                letter = await one_letter(fabric)
                await memory.set("other", 1)
        finally:
            await writing.aclose()
        await fabric.log.append(  # the key goes on, unseen by the handler's memory of what was before
            f"{fabric.topology.namespace}.memory.workflow.w.k.1", b"", delete_headers()
        )
        await eventually(lambda: len(given) == 3)
        await replay(fabric, letter)
        await eventually(lambda: len(given) == 4)
    original, again = given[1], given[3]
    assert again == original
    assert (again.data, again.previous_data, again.scope_id, again.writer.session_id) == ("poison", "old", "w", "s")
    entry = await memory.entry("answer", scope="workflow", scope_id="w")
    assert entry is not None
    assert (entry.value, entry.writer.cause, entry.writer.session_id) == ("poison", original.id, "s")


def delete_headers() -> dict[str, str]:
    return encode_event(event_id=new_id(), operation="delete", writer=Writer())


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_replay_waits_its_turn_among_the_events_of_its_key(
    new_agent: NewAgent, memory: Memory, fabric: Fabric, concurrency: int
) -> None:
    log: list[tuple[str, Any]] = []
    go_on = asyncio.Event()
    busy = 0

    async def react(event: Event) -> None:
        nonlocal busy
        if event.data == "poison" and not log:
            log.append(("failed", "poison"))
            raise ValueError
        busy += 1
        assert busy == 1, "two events of one key at once"
        log.append(("begun", event.data))
        if event.data == "slow":
            await go_on.wait()
        log.append(("done", event.data))
        busy -= 1

    async with new_agent(react, concurrency=concurrency):
        await memory.set("k_1", "poison")
        letter = await one_letter(fabric)
        await memory.set("k_1", "slow")
        await eventually(lambda: ("begun", "slow") in log)
        await replay(fabric, letter)
        last = await memory.set("k_1", "last")
        await eventually(lambda: letters_delivered(fabric, last))
        assert log[-1] == ("begun", "slow")
        go_on.set()
        await eventually(lambda: ("done", "last") in log)
    assert log[1:] == [(what, data) for data in ("slow", "poison", "last") for what in ("begun", "done")]


async def letters_delivered(fabric: Fabric, sequence: int) -> bool:
    info = await api(fabric.connection, f"CONSUMER.INFO.{fabric.log.stream}.handler-tester-react")
    return bool(info["delivered"]["stream_seq"] >= sequence)


async def test_what_fails_again_is_a_new_letter_that_counts(
    new_agent: NewAgent, memory: Memory, fabric: Fabric
) -> None:
    async with new_agent(failing):
        await memory.set("k_poison", 1)
        letter = await one_letter(fabric)
        for replays in (1, 2):
            await replay(fabric, letter)
            newer = await eventually(functools.partial(newer_than, fabric, letter))
            assert (newer.replays, newer.tries, newer.event_id) == (replays, 1, letter.event_id)
            letter = newer
    assert await letters(fabric) == [letter]


async def newer_than(fabric: Fabric, letter: Letter) -> Letter | None:
    found = await letters(fabric)
    return found[0] if len(found) == 1 and found[0].number > letter.number else None


async def test_a_replay_that_is_cut_off_is_done_by_the_next_instance_and_its_letter_stays_till_then(
    new_agent: NewAgent, memory: Memory, fabric: Fabric
) -> None:
    begun = asyncio.Event()

    async def hanging(event: Event) -> None:
        if begun.is_set():
            return
        if (await letters(fabric)) == []:
            raise ValueError("the first time")
        begun.set()
        await asyncio.Event().wait()

    agent = new_agent(hanging)
    await agent.__aenter__()
    await memory.set("k_1", 1)
    letter = await one_letter(fabric)
    await replay(fabric, letter)
    await begun.wait()
    await agent.aclose(grace=0.1)
    assert await letters(fabric) == [letter]
    heard = Heard()
    async with new_agent(heard):
        await eventually(lambda: [event.data for event in heard.events] == [1], within=10)
        await eventually(lambda: no_letters(fabric))


async def test_asking_twice_or_for_a_letter_that_was_dropped_does_nothing_more(
    new_agent: NewAgent, memory: Memory, fabric: Fabric
) -> None:
    async with new_agent(failing):
        await memory.set("k_poison", 1)
        letter = await one_letter(fabric)
    await replay(fabric, letter)
    await replay(fabric, letter)
    heard = Heard()
    async with new_agent(heard):
        asked = await replay(fabric, letter)
        await eventually(lambda: reached(fabric, asked))
        assert [event.data for event in heard.events] == [1]
    assert await fabric.deadletters.remove(letter.number) is False


async def test_what_is_no_request_stops_nobody(
    new_agent: NewAgent, memory: Memory, fabric: Fabric, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()
    async with new_agent(heard):
        for payload in (b"", b"{}", b"[]", b'{"letter": "x"}', b'{"letter": 77}', b'{"letter": -1}'):
            await fabric.deadletters.ask_again("tester", "react", payload)
        await fabric.deadletters.store("tester", "react", b"not json", letter_id="1")
        await fabric.deadletters.ask_again("tester", "react", b'{"letter": 1}')
        await memory.set("k_1", 1)
        await eventually(lambda: [event.data for event in heard.events] == [1])
    assert caplog.text.count("cannot replay") == 5


async def test_handlers_whose_names_run_together_have_a_consumer_each(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    heard: list[tuple[str, Any]] = []

    def served(agent: str, handler: str) -> Agent:
        made = Agent(agent, nats_url=server.url, namespace=namespace)

        @made.memory.on_change("k", name=handler)
        async def react(event: Event) -> None:
            heard.append((agent, event.data))

        return made

    async with served("a-b", "c"), served("a", "b-c"):
        await memory.set("k", 1)
        await eventually(lambda: sorted(heard) == [("a", 1), ("a-b", 1)])


async def test_an_agent_warns_of_handlers_that_it_has_no_more_and_leaves_them_alone(
    server: NatsServer, namespace: str, fabric: Fabric, caplog: pytest.LogCaptureFixture
) -> None:
    def version(*names: str) -> Agent:
        agent = Agent("tester", nats_url=server.url, namespace=namespace)
        for name in names:
            agent.memory.on_change("k", name=name)(Heard())
        return agent

    caplog.set_level(logging.WARNING, "agentfield.handlers")
    async with version("old", "kept"):
        assert caplog.text == ""
    async with version("new", "kept"):
        (warning,) = caplog.messages
    assert "agent tester has no handler old any more" in warning
    assert "`agentfield handlers remove tester.old`" in warning
    names = (await api(fabric.connection, f"CONSUMER.NAMES.{fabric.log.stream}"))["consumers"]
    assert sorted(names) == ["handler-tester-kept", "handler-tester-new", "handler-tester-old"]


async def test_an_agent_that_may_not_remove_letters_replays_each_once_and_says_so(
    start_server: Callable[..., NatsServer], namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_server(
        extra="""
        authorization { users: [
            {user: operator, password: secret}
            {user: agent, password: secret, permissions: {publish: {deny: "$JS.API.STREAM.MSG.DELETE.>"}}}
        ]}
        """
    )
    as_operator, as_agent = (server.url.replace("//", f"//{user}:secret@") for user in ("operator", "agent"))
    heard: list[Any] = []
    async with connect(as_operator, namespace=namespace) as memory:
        fabric = await memory._fabric()
        agent = Agent("tester", nats_url=as_agent, namespace=namespace)

        @agent.memory.on_change("k_*", retries=0)
        async def react(event: Event) -> None:
            heard.append(event.data)
            if len(heard) == 1:
                raise ValueError

        async with agent:
            await memory.set("k_1", 1)
            letter = await one_letter(fabric)
            await replay(fabric, letter)
            await memory.set("k_2", 2)
            await eventually(lambda: heard == [1, 1, 2], within=10)
        assert await letters(fabric) == [letter]
    assert f"handled the event of dead letter {letter.number}" in caplog.text


async def test_replays_survive_the_death_of_the_process_that_works_on_them(
    server: NatsServer, namespace: str, memory: Memory, fabric: Fabric, tmp_path: Path
) -> None:
    out, total = tmp_path / "handled", 20
    revisions = [await memory.set(f"item_{number % 4}", number) for number in range(total)]
    async with recorder(server.url, namespace, out, "item_*"):
        await eventually(lambda: len(recorded(out)) == total)
        await eventually(lambda: reached(fabric, revisions[-1], "handler-recorder-record"))
    async for event in memory.history("item_*"):
        payload = forms.letter(event, ValueError(), agent="recorder", handler="record", tries=1, replays=0)
        await fabric.deadletters.store("recorder", "record", payload, letter_id=event.id)
    for each in await letters(fabric):
        await replay(fabric, each)
    again = tmp_path / "again"

    def replayed() -> list[int]:
        return list(dict.fromkeys(line["revision"] for line in recorded(again)))

    def has_replayed(number: int) -> bool:
        return len(replayed()) >= number

    for enough in (4, 8):
        async with recorder(server.url, namespace, again, "item_*", 0.2) as process:
            await eventually(functools.partial(has_replayed, enough), within=20)
            await asyncio.sleep(0.12)  # into the midst of the next one
            await process.end(signal.SIGKILL)
        left = {each.revision for each in await letters(fabric)}
        assert set(revisions) - set(replayed()) <= left, "a letter went before its event was handled"
    async with recorder(server.url, namespace, again, "item_*"):
        await eventually(lambda: no_letters(fabric), within=20)
    assert replayed() == revisions
    handled = {line["revision"]: (line["data"], line["previous"]) for line in recorded(again)}
    assert handled == {line["revision"]: (line["data"], line["previous"]) for line in recorded(out)}


async def test_an_event_whose_value_was_erased_since_is_replayed_as_erased(
    memory: Memory, fabric: Fabric, new_agent: NewAgent
) -> None:
    await memory.set_personal(["session"])
    user = memory.session("user-1")
    await user.set("k_poison", "before")

    async def fails(event: Event) -> None:
        if event.data == "secret":
            raise ValueError("not today")

    async with new_agent(fails, scope="session"):
        await user.set("k_poison", "secret")
        letter = await one_letter(fabric)
    await memory.erase(scope="session", scope_id="user-1")
    heard = Heard()
    async with new_agent(heard, scope="session"):
        await replay(fabric, letter)

        async def gone() -> bool:
            return not await letters(fabric)

        await eventually(gone, within=20)
    (again,) = [event for event in heard.events if event.revision == letter.revision]
    assert (again.data, again.previous_data, again.erased) == (None, None, True)
