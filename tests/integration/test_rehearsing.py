"""Handlers of today, run on what was recorded: where memory stands, which writes are compared, what is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from agentfield import Agent, Event, Memory, connect
from agentfield.execution import Execution, current
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.removal import remove
from agentfield.memory.history import Slice
from agentfield.pattern import Pattern
from agentfield.replay.excerpt import Excerpt
from agentfield.replay.pacing import AtOnce
from agentfield.replay.rehearsing import Chosen, Rehearsing, Run
from agentfield.replay.staging import EVERYWHERE, Stage
from agentfield.testing import Agents, settled
from tests.support import NatsServer


@pytest.fixture
def agent(server: NatsServer, namespace: str) -> Agent:
    """Return an agent whose handlers a test declares, records, and then changes."""
    return Agent("shop", nats_url=server.url, namespace=namespace)


@pytest.fixture
async def stage(server: NatsServer, namespace: str) -> AsyncIterator[Memory]:
    """Return the memory of the namespace in which handlers are rehearsed."""
    async with connect(server.url, namespace=f"{namespace}stage") as memory:
        yield memory


class Rehearse:
    """Runs the agent's handlers on the record, and gives the runs."""

    def __init__(self, url: str, memory: Memory, stage: Memory, agent: Agent) -> None:
        self._url = url
        self._memory = memory
        self._stage = stage
        self._agent = agent
        self.unknown: dict[str, int] = {}

    async def __call__(
        self, *patterns: str, start: int = 1, stop: int | None = None, ignored: Sequence[str] = ()
    ) -> list[Run]:
        source, there = await self._memory._fabric(), await self._stage._fabric()
        last = await end(self._memory) if stop is None else stop
        excerpt = Excerpt([Pattern.parse(text) for text in patterns or ["*"]], EVERYWHERE, Slice(start, last))
        declared = list(self._agent.memory.registrations)
        chosen = [Chosen(self._agent.name, self._agent.actor_id, each) for each in declared]
        rehearsing = Rehearsing(
            source,
            there,
            excerpt,
            chosen,
            known=[each.name for each in chosen],
            ignored=[Pattern.parse(text) for text in ignored],
            pace=AtOnce(),
        )
        self._agent.memory.registrations.clear()
        try:
            async with Agents(self._url, there.topology.namespace, model).run(self._agent):
                async for _ in rehearsing.look():
                    pass
                async for _ in rehearsing.load():
                    pass
                return [each async for each in rehearsing.runs(lambda revision: None)]
        finally:
            self._agent.memory.registrations[:] = declared
            self.unknown = dict(rehearsing.unknown)


@pytest.fixture
def rehearse(server: NatsServer, memory: Memory, stage: Memory, agent: Agent) -> Rehearse:
    """Return what runs the agent's handlers on the record of this test."""
    return Rehearse(server.url, memory, stage, agent)


async def model(messages: Any, *, schema: Any = None) -> str:
    return "an answer"


async def record(agent: Agent, *writes: Any) -> None:
    """Serve the agent while these are written, and until they are handled; it can be changed afterwards."""
    async with agent.elsewhere(), agent:
        for write in writes:
            await write()
        await settled(agent)


def forget(agent: Agent) -> None:
    """What is declared from here on is tomorrow's code."""
    agent.memory.registrations.clear()


def verdicts(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, str]]]]:
    return [(run.event.key, [(write.event.key, write.verdict) for write in run.writes]) for run in runs]


async def end(memory: Memory) -> int:
    return int((await (await memory._fabric()).log.state())["last_seq"])


async def test_the_same_code_does_the_same(agent: Agent, memory: Memory, stage: Memory, rehearse: Rehearse) -> None:
    """Counters, chains of handlers, transactions that are stored once, deletes, other scopes, large values."""

    @agent.memory.on_change("order_*_placed")
    async def price(event: Event) -> None:
        number = event.key.split("_")[1]
        async with agent.memory.transaction(once=True) as tx:
            total = await tx.get("total", 0, "global")
            tx.set("total", total + event.data, "global")
            tx.set(f"order_{number}_price", {"net": event.data, "was": event.previous_data})
        await agent.memory.increment("orders", scope="session", scope_id="s")
        await agent.memory.delete(f"order_{number}_draft")
        await agent.memory.actor().set("large", ["x" * 200_000, event.data])

    @agent.memory.on_change("order_*_price")
    def bill(event: Event) -> None:
        asyncio.run(asyncio.sleep(0))  # a plain function runs in a thread

    @agent.memory.on_change("order_*_price", name="mark")
    async def mark(event: Event) -> None:
        if (await agent.memory.entry(event.key)).revision == event.revision:  # type: ignore[union-attr]
            await agent.memory.set(event.key.replace("price", "marked"), True, if_revision=0, ttl=60)

    flows = [memory.workflow(f"w{number % 2}") for number in range(6)]
    writes = [lambda n=n, flow=flow: flow.set(f"order_{n}_draft", 1) for n, flow in enumerate(flows)]
    writes += [lambda n=n, flow=flow: flow.set(f"order_{n}_placed", n) for n, flow in enumerate(flows)]
    await record(agent, *writes)
    before = await end(memory)
    runs = await rehearse()
    assert [run.error for run in runs] == [None] * len(runs)
    assert {write.verdict for run in runs for write in run.writes} == {"same"}
    assert sorted({run.handler for run in runs}) == ["shop.bill", "shop.mark", "shop.price"]
    assert len(runs) == 18
    assert not any(run.differs for run in runs)
    assert await end(memory) == before


async def test_changed_code_differs_in_exactly_what_it_changes(
    agent: Agent, memory: Memory, rehearse: Rehearse
) -> None:
    @agent.memory.on_change("order_*")
    async def price(event: Event) -> None:
        await agent.memory.set(f"price_{event.data}", event.data * 2)
        await agent.memory.set(f"log_{event.data}", "priced")

    await record(agent, *(lambda n=n: memory.set(f"order_{n}", n) for n in (1, 2, 3, 4)))
    forget(agent)

    @agent.memory.on_change("order_*", name="price")
    async def changed(event: Event) -> None:
        if event.data == 4:
            raise ValueError("four is too much")
        await agent.memory.set(f"price_{event.data}", event.data * (2 if event.data != 2 else 3))
        if event.data != 3:
            await agent.memory.set(f"log_{event.data}", "priced")
        else:
            await agent.memory.set("audit", event.data)

    runs = await rehearse()
    assert verdicts(runs) == [
        ("order_1", [("price_1", "same"), ("log_1", "same")]),
        ("order_2", [("price_2", "different"), ("log_2", "same")]),
        ("order_3", [("price_3", "same"), ("log_3", "missing"), ("audit", "extra")]),
        ("order_4", [("price_4", "missing"), ("log_4", "missing")]),
    ]
    (different,) = [write for run in runs for write in run.writes if write.verdict == "different"]
    assert different.recorded is not None
    assert different.replayed is not None
    assert (different.recorded.data, different.replayed.data) == (4, 6)
    assert [(type(run.error), str(run.error)) for run in runs if run.error] == [(ValueError, "four is too much")]
    assert [run.differs for run in runs] == [False, True, True, True]
    assert verdicts(await rehearse(ignored=["price_*", "audit"]))[1:3] == [
        ("order_2", [("log_2", "same")]),
        ("order_3", [("log_3", "missing")]),
    ]


async def test_a_run_is_judged_alone_on_memory_as_it_was_recorded(
    agent: Agent, memory: Memory, rehearse: Rehearse
) -> None:
    """What changed code has written for one event is not there for the next."""

    @agent.memory.on_change("add")
    async def count(event: Event) -> None:
        await agent.memory.increment("sum", event.data)

    await record(agent, *(lambda n=n: memory.set("add", n) for n in (1, 10, 100)))
    forget(agent)

    @agent.memory.on_change("add", name="count")
    async def changed(event: Event) -> None:
        await agent.memory.increment("sum", event.data + 1)
        await agent.memory.increment("extra")

    runs = await rehearse()
    made = [{write.event.key: write.replayed.data for write in run.writes if write.replayed} for run in runs]
    assert made == [{"sum": 2, "extra": 1}, {"sum": 12, "extra": 1}, {"sum": 112, "extra": 1}]


async def test_a_handler_runs_where_its_write_is_recorded(agent: Agent, memory: Memory, rehearse: Rehearse) -> None:
    """It handled the event long after that was written, and read what had been written by then."""
    turn = asyncio.Event()

    @agent.memory.on_change("ask")
    async def answer(event: Event) -> None:
        await turn.wait()
        await agent.memory.set("answer", await agent.memory.get("fact"))

    async with agent:
        await memory.set("fact", "early")
        await memory.set("ask", 1)
        await memory.set("fact", "late")
        turn.set()
        await settled(agent)
    assert verdicts(await rehearse()) == [("ask", [("answer", "same")])]
    assert verdicts(await rehearse(stop=2)) == [("ask", [("answer", "same")])]  # its write lies after the part


async def test_a_handler_finds_what_was_there_before_the_part(
    agent: Agent, memory: Memory, stage: Memory, rehearse: Rehearse
) -> None:
    await memory.set("rate", 3)
    await memory.set("gone", 1)
    await memory.delete("gone")
    await memory.session("s").set("name", "Ada")

    @agent.memory.on_change("order")
    async def price(event: Event) -> None:
        found = [event.data, event.previous_data, await agent.memory.get("rate"), await agent.memory.exists("gone")]
        await agent.memory.set("price", [*found, await agent.memory.get("name", None, "session", "s")])

    await record(agent, lambda: memory.set("order", 1), lambda: memory.set("order", 2))
    second = [event async for event in memory.history("order")][1]
    (run,) = await rehearse(start=second.revision)
    assert verdicts([run]) == [("order", [("price", "same")])]
    assert run.writes[0].event.data == [2, 1, 3, False, "Ada"]
    assert sorted([key async for key in stage.keys()]) == ["order", "price", "rate"]


async def test_a_value_that_had_expired_by_then_is_absent(memory: Memory, stage: Memory) -> None:
    """Nobody had deleted it: for a reader it was over all the same."""
    await memory.set("short", 1, ttl=5)
    await memory.set("now", 1)
    source, there = await memory._fabric(), await stage._fabric()
    records = [each async for each in source.log.read([source.subjects.all_memory])]
    standing = Stage(source, there)
    for each in records:
        await standing.add(each)
    await standing.stand(records[0].timestamp + 4 * 10**9)
    assert await stage.get("short") == 1
    await standing.stand(records[0].timestamp + 6 * 10**9)
    assert not await stage.exists("short")
    await standing.add(records[0])
    await standing.stand(records[0].timestamp)
    await stage.set("short", "changed")
    await stage.set("new", 1)
    assert [each.payload for each in await standing.written()] == [b'"changed"', b"1"]
    assert await standing.written() == []
    await standing.stand(records[0].timestamp)
    assert [(await stage.get("short")), (await stage.exists("new"))] == [1, False]


async def test_what_is_not_heard_any_more_is_missing_and_what_is_new_is_extra(
    agent: Agent, memory: Memory, rehearse: Rehearse
) -> None:
    @agent.memory.on_change("old_*")
    async def react(event: Event) -> None:
        await agent.memory.set(f"done_{event.key}", 1)

    @agent.memory.on_change("old_*")
    async def retired(event: Event) -> None:
        await agent.memory.set(f"also_{event.key}", 1)

    await record(agent, lambda: memory.set("old_a", 1), lambda: memory.set("new_a", 1))
    forget(agent)

    @agent.memory.on_change("new_*", name="react")
    async def changed(event: Event) -> None:
        await agent.memory.set(f"done_{event.key}", 1)

    runs = sorted(await rehearse(), key=lambda run: run.event.revision)
    assert verdicts(runs) == [("old_a", [("done_old_a", "missing")]), ("new_a", [("done_new_a", "extra")])]
    assert [run.heard for run in runs] == [False, True]
    assert rehearse.unknown == {"shop.retired": 1}


@pytest.mark.parametrize("failure", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, ValueError])
async def test_whatever_a_handler_raises_is_its_own_and_the_next_one_runs(
    agent: Agent, memory: Memory, rehearse: Rehearse, failure: type[BaseException]
) -> None:
    @agent.memory.on_change("k_*")
    async def fails(event: Event) -> None:
        raise failure

    @agent.memory.on_change("k_*")
    async def writes(event: Event) -> None:
        await agent.memory.set("done", 1)

    await memory.set("k_1", 1)
    one, other = sorted(await rehearse(), key=lambda run: run.handler)
    assert (one.handler, type(one.error)) == ("shop.fails", failure)
    assert (other.error, [write.verdict for write in other.writes]) == (None, ["extra"])


async def test_calls_between_the_agents_that_are_there_count_as_the_handlers(
    agent: Agent, memory: Memory, rehearse: Rehearse
) -> None:
    @agent.reasoner()
    async def settle(amount: int) -> int:
        await agent.memory.set("settled", amount)
        return amount

    @agent.memory.on_change("order")
    async def react(event: Event) -> None:
        await agent.call("shop.settle", amount=event.data)

    await record(agent, lambda: memory.set("order", 7))
    (run,) = await rehearse()
    assert (run.error, verdicts([run])) == (None, [("order", [("settled", "same")])])
    forget(agent)

    @agent.memory.on_change("order", name="react")
    async def changed(event: Event) -> None:
        await agent.call("elsewhere.settle", amount=event.data)

    (run,) = await rehearse()
    assert type(run.error).__name__ == "AgentUnavailableError"
    assert verdicts([run]) == [("order", [("settled", "missing")])]


async def test_an_event_that_too_many_handlers_led_to_starts_none(
    agent: Agent, memory: Memory, rehearse: Rehearse
) -> None:
    @agent.memory.on_change("order")
    async def react(event: Event) -> None:
        await agent.memory.set("done", event.data)

    for depth in (99, 100):
        token = current.set(Execution("e", None, None, "other", None, depth=depth))
        await memory.set("order", depth)
        current.reset(token)
    assert [run.event.data for run in await rehearse()] == [99]


async def test_personal_values_are_personal_on_the_stage(
    agent: Agent, memory: Memory, stage: Memory, rehearse: Rehearse
) -> None:
    await memory.set_personal(["session"])

    @agent.memory.on_change("email")
    async def greet(event: Event) -> None:
        await agent.memory.set("greeting", f"Dear {event.data}")

    await record(agent, lambda: memory.session("ada").set("email", "ada@example.org"))
    await stage.set_personal(["session"])
    (run,) = await rehearse()
    assert verdicts([run]) == [("email", [("greeting", "same")])]
    there = await stage._fabric()
    payloads = [each.payload async for each in there.log.read([there.subjects.all_memory])]
    assert payloads
    assert not any(b"ada@example.org" in payload for payload in payloads)
    await memory.erase(scope="session", scope_id="ada")
    assert verdicts(await rehearse(stop=run.event.revision)) == [("email", [("greeting", "erased")])]


async def test_no_handler_is_run_on_a_value_that_is_erased(agent: Agent, memory: Memory, rehearse: Rehearse) -> None:
    await memory.set_personal(patterns=["email"])

    @agent.memory.on_change("email", retries=0)
    async def count(event: Event) -> None:
        await agent.memory.set("length", len(event.data))

    @agent.memory.on_change("length", retries=0)
    async def note(event: Event) -> None:
        await agent.memory.set("email_length", event.data)

    await record(agent, lambda: memory.set("email", "ada@example.org"))
    stop = await end(memory)
    await memory.erase(pattern="email")
    runs = await rehearse(stop=stop)
    assert verdicts(runs) == [("email", [("length", "erased")]), ("length", [("email_length", "same")])]
    assert not any(run.differs for run in runs)


async def test_what_was_written_and_is_erased_counts_as_neither(
    agent: Agent, memory: Memory, rehearse: Rehearse
) -> None:
    await memory.set_personal(patterns=["secret"])

    @agent.memory.on_change("order")
    async def keep(event: Event) -> None:
        await agent.memory.set("secret", event.data)

    await record(agent, lambda: memory.set("order", 1))
    stop = await end(memory)
    await memory.erase(pattern="secret")
    assert verdicts(await rehearse(stop=stop)) == [("order", [("secret", "erased")])]


async def test_a_namespace_is_removed_with_all_its_streams(fabric: Fabric, memory: Memory) -> None:
    await memory.set("a", "x" * 300_000)
    await remove(fabric.connection, fabric.topology.namespace)
    await remove(fabric.connection, fabric.topology.namespace)
    answer = await fabric.connection.request("$JS.API.STREAM.NAMES", b"{}", timeout=5)
    assert fabric.topology.namespace.upper().encode() not in answer.payload.upper()
