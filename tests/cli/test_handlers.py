"""handlers: which there are, how they get on, which are orphans, and forgetting one."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from agentfield import Agent, Event
from agentfield.cli.surveying import orphaned
from agentfield.fabric.consumers.durables import Durable
from agentfield.fabric.jetstream import api
from tests.cli.command import Cli, Result
from tests.cli.conftest import Inside
from tests.support import NatsServer, eventually

Patterns = dict[str, list[str]]
Shop = Callable[[Patterns], Any]


async def nothing(_: Event) -> None:
    """Handle an event."""


@pytest.fixture
def shop(server: NatsServer, namespace: str) -> Shop:
    """Return a context in which an agent `shop` is served, with these handlers."""

    @asynccontextmanager
    async def served(handlers: Patterns) -> AsyncIterator[Agent]:
        agent = Agent("shop", nats_url=server.url, namespace=namespace)
        for name, patterns in handlers.items():
            agent.memory.on_change(patterns, name=name)(nothing)
        async with agent:
            yield agent

    return served


async def run(inside: Inside, *args: str) -> Result:
    """Run a command beside what is served in this loop."""
    return await asyncio.to_thread(inside, *args)


async def test_list_tells_who_is_served_and_how_far_behind_the_others_are(inside: Inside, shop: Shop) -> None:
    pack = {"pack": ["order_*_status", "stock_*"]}
    async with shop({**pack, "send-out": ["order_*"]}), shop(pack):
        both = (await run(inside, "handlers", "list", "--json")).objects
    assert [(each["agent"], each["handler"]) for each in both] == [("shop", "pack"), ("shop", "send-out")]
    assert [(each["served"], each["instances"], each["lag"], each["orphan"]) for each in both] == [
        (True, 2, 0, None), (True, 1, 0, None),
    ]  # fmt: skip
    assert both[0]["patterns"] == ["order_*_status", "stock_*"]
    assert both[0]["last_active"] is None
    await run(inside, "set", "order_1_status", "paid")
    await run(inside, "set", "order_2", "1")

    async def listed() -> bool:
        done = await run(inside, "handlers", "list")
        return [line.split() for line in done.lines] == [
            ["handler", "patterns", "served", "behind", "last", "dead"],
            ["shop.pack", "order_*_status", "stock_*", "0", "1", "never", "0"],
            ["shop.send-out", "order_*", "0", "2", "never", "0"],
        ]

    await eventually(listed, within=10)  # for a moment the server may still count on an instance that has left


async def test_the_table_fits_a_terminal(cli: Cli, shop: Shop) -> None:
    async with shop({"a_handler_with_a_long_name": [f"a_rather_long_pattern_{n}_*" for n in range(5)]}):
        pass
    shown = await asyncio.to_thread(cli.on_terminal, "handlers", "list")
    assert all(len(line) <= 80 + line.count("\x1b") * 5 for line in shown.splitlines())
    assert "shop.a_handler_with_a_long_name" in shown
    name = "a_handler_with_a_name_that_is_as_long_as_names_may_be_" + "x" * 10
    async with shop({name: [f"a_rather_long_pattern_{n}_*" for n in range(5)]}):
        pass
    shown = re.sub(r"\x1b\[[0-9;]*m", "", await asyncio.to_thread(cli.on_terminal, "handlers", "list"))
    assert f"shop.{name}" in shown.splitlines()
    assert all(f"a_rather_long_pattern_{n}_*" in shown for n in range(5)), "what is folded is not cut"
    assert all(len(line) <= 80 for line in shown.splitlines() if "handlers remove" not in line)


async def test_a_renamed_handler_is_an_orphan_and_can_be_removed(inside: Inside, shop: Shop) -> None:
    async with shop({"pack": ["order_*"]}):
        pass
    assert (await run(inside, "handlers", "list", "--json")).object["orphan"] is None, "its agent may come back"
    await run(inside, "set", "order_1", "1")
    async with shop({"wrap": ["order_*"]}):
        done = await run(inside, "handlers", "list")
        assert done.lines[3:] == [
            "orphan: shop.pack: agent shop is running, and has no such handler",
            "        `agentfield handlers remove shop.pack` forgets it",
        ]
        asked = await run(inside, "handlers", "remove", "shop.pack")
        assert (asked.code, "add --yes" in asked.error) == (2, True)
        removed = await run(inside, "handlers", "remove", "shop.pack", "--yes")
        assert (removed.code, removed.out) == (
            0, "forgot shop.pack: 1 event that it has not handled will never be\n",
        )  # fmt: skip
        (left,) = (await run(inside, "handlers", "list", "--json")).objects
    assert (left["handler"], left["served"]) == ("wrap", True)


async def test_a_handler_that_is_served_is_removed_by_force_alone_and_made_again(inside: Inside, shop: Shop) -> None:
    async with shop({"pack": ["order_*"]}) as agent:
        refused = await run(inside, "handlers", "remove", "shop.pack", "--yes")
        assert (refused.code, "shop.pack is served" in refused.error) == (1, True)
        forced = await run(inside, "handlers", "remove", "shop.pack", "--yes", "--force", "--json")
        assert forced.object == {"agent": "shop", "handler": "pack", "removed": True, "unhandled": 0}
        assert agent.handlers


async def test_what_nobody_has_served_for_long_is_an_orphan(
    shop: Shop,
) -> None:
    async with shop({"pack": ["order_*"]}) as agent:
        fabric = await agent.memory._fabric()
        info = await api(fabric.connection, f"CONSUMER.INFO.{fabric.log.stream}.handler-shop-pack")
    durable = Durable.of({**info, "created": "2020-01-01T00:00:00Z"})
    assert durable is not None
    now = datetime(2020, 1, 8, tzinfo=UTC)
    assert orphaned(durable, [], now) == "nobody serves it, and nothing has happened to it for 7 days"
    assert orphaned(durable, [], now.replace(day=7)) is None


@pytest.mark.parametrize(
    ("args", "said", "code"),
    [
        (("remove", "shop"), "AGENT.HANDLER", 2),
        (("remove", "a b.c"), "agent name", 2),
        (("remove", "a.b c"), "handler name", 2),
        (("remove", "a.b"), "there is no handler a.b", 3),
    ],
)
@pytest.mark.usefixtures("used")
def test_a_handler_that_is_none_is_refused(inside: Inside, args: tuple[str, ...], said: str, code: int) -> None:
    done = inside("handlers", *args)
    assert (done.code, said in done.error) == (code, True)


@pytest.mark.usefixtures("used")
def test_without_handlers_it_says_so(inside: Inside) -> None:
    done = inside("handlers", "list")
    assert (done.code, done.out, done.err) == (0, "", "no handlers yet\n")


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize("name", ["handlers", "deadletters"])
def test_a_group_alone_shows_its_help_and_takes_options_anywhere(inside: Inside, name: str) -> None:
    done = inside(name)
    assert (done.code, done.out) == (2, "")
    assert "Commands:" in done.err
    for args in (("--json", name, "list"), (name, "--json", "list"), (name, "list", "--json")):
        assert (inside(*args).code, inside(*args).out) == (0, "")
