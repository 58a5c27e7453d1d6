"""Keys bound to Pydantic models: nothing else is stored under them, and every read gives models."""

import asyncio
import json
from typing import Any, Literal

import pytest
from pydantic import BaseModel, RootModel

from agentfield import Agent, DecodeError, Event, InvalidInputError, Memory, connect
from agentfield.fabric.reader import Reader
from agentfield.header import EVENT_HEADER
from agentfield.memory.watch import CaughtUp
from tests.support import NatsServer, eventually
from tests.support.objects import fabric_of, last_record, object_of

KEY = "ticket_7_sentiment"
PATTERN = "ticket_*_sentiment"


class Sentiment(BaseModel):
    mood: str
    urgency: Literal["low", "high"] = "low"


class Tally(RootModel[int]):
    pass


ANGRY, CALM = Sentiment(mood="angry", urgency="high"), Sentiment(mood="calm")


@pytest.fixture
def typed(memory: Memory) -> Memory:
    """The test's memory, with the keys of sentiments bound."""
    memory.schema(PATTERN, Sentiment)
    return memory


async def written(memory: Memory) -> int:
    """How many events there are."""
    return int((await (await fabric_of(memory)).log.state())["messages"])


@pytest.mark.smoke
async def test_every_read_gives_the_model(typed: Memory) -> None:
    await typed.set(KEY, ANGRY)
    await typed.set("free", {"mood": "whatever"})
    assert await typed.get(KEY) == await typed.get(KEY, consistency="cached") == ANGRY
    entry = await typed.entry(KEY)
    assert entry is not None
    assert (entry.value, entry.schema_name, entry.schema_version) == (ANGRY, "Sentiment", 1)
    assert await typed.get_many([KEY, "free"]) == {KEY: ANGRY, "free": {"mood": "whatever"}}
    assert {each.key: each.value async for each in typed.items()} == {KEY: ANGRY, "free": {"mood": "whatever"}}
    async with typed.transaction() as tx:
        assert await tx.get(KEY) == ANGRY
        tx.set(KEY, {"mood": "calm"})
        assert await tx.get(KEY) == CALM
    assert await typed.get(KEY) == CALM
    assert await typed.get("ticket_8_sentiment", "default") == "default"


async def test_events_hold_models_before_and_after(typed: Memory) -> None:
    await typed.set(KEY, ANGRY)
    await typed.set(KEY, CALM)
    await typed.delete(KEY)
    expected = [(ANGRY, None, "Sentiment"), (CALM, ANGRY, "Sentiment"), (None, CALM, None)]
    history = [(event.data, event.previous_data, event.schema_name) async for event in typed.history(KEY)]
    assert history == expected
    watched = []
    async for item in typed.watch(KEY, start="all"):
        if isinstance(item, CaughtUp):
            break
        watched.append((item.data, item.previous_data, item.schema_name))
    assert watched == expected
    dumped = [event.model_dump(mode="json")["data"] async for event in typed.history(KEY)]
    assert dumped == [{"mood": "angry", "urgency": "high"}, {"mood": "calm", "urgency": "low"}, None]


async def test_handlers_get_models_wherever_the_schema_is_bound(server: NatsServer, namespace: str) -> None:
    agent = Agent("reader", nats_url=server.url, namespace=namespace)
    heard: list[tuple[Any, Any]] = []

    @agent.memory.on_change(PATTERN)
    async def react(event: Event) -> None:
        heard.append((event.data, event.previous_data))

    agent.memory.session("s").schema(PATTERN, Sentiment)  # at import time, after the handler, on a view
    async with agent:
        await agent.memory.set(KEY, {"mood": "calm"})
        await agent.memory.global_scope.set(KEY, ANGRY)
        await eventually(lambda: len(heard) == 2)
        assert await agent.memory.workflow("w").get(KEY, scope="workflow") is None
    assert heard == [(CALM, None), (ANGRY, CALM)]


async def test_what_is_stored_is_the_models_plain_json_and_the_event_says_whose(typed: Memory) -> None:
    await typed.set(KEY, {"mood": "calm", "noise": [1, 2, 3]})
    record = await last_record(typed, KEY)
    assert record.payload == b'{"mood":"calm","urgency":"low"}'
    header = json.loads(record.headers[EVENT_HEADER])
    assert (header["schema"], header["schema_version"]) == ("Sentiment", 1)


async def test_every_way_to_write_names_the_schema(typed: Memory) -> None:
    async def named() -> bool:
        entry = await typed.entry(KEY)
        assert entry is not None
        return (entry.value, entry.schema_name, entry.schema_version) == (CALM, "Sentiment", 1)

    await typed.create(KEY, CALM)
    assert await named()
    await typed.update(KEY, lambda value: value)
    assert await named()
    await typed.set_many({KEY: {"mood": "calm"}})
    assert await named()
    async with typed.transaction() as tx:
        tx.set(KEY, CALM)
    assert await named()
    async with typed.lock("writing") as lock:
        await typed.set(KEY, CALM, fence=lock)
    assert await named()


async def test_others_read_plain_data(server: NatsServer, namespace: str, typed: Memory) -> None:
    await typed.set(KEY, ANGRY)
    async with connect(server.url, namespace=namespace) as other:
        assert await other.get(KEY) == {"mood": "angry", "urgency": "high"}
        assert await other.get(KEY, as_type=Sentiment) == ANGRY
        (event,) = [event async for event in other.history(KEY)]
        assert (event.data, event.schema_name, event.schema_version) == (ANGRY.model_dump(), "Sentiment", 1)


async def test_as_type_takes_the_place_of_the_schema(typed: Memory) -> None:
    await typed.set(KEY, ANGRY)
    assert await typed.get(KEY, as_type=dict) == ANGRY.model_dump()
    assert await typed.get(KEY, as_type=Sentiment) == ANGRY
    async with typed.transaction() as tx:
        assert await tx.get(KEY, as_type=dict) == ANGRY.model_dump()


@pytest.mark.parametrize("wrong", [{"urgency": "high"}, {"mood": "x", "urgency": "sometimes"}, "angry", None, Tally(3)])
async def test_an_invalid_write_is_refused_before_anything_is_sent(typed: Memory, wrong: Any) -> None:
    async def in_a_transaction() -> None:
        async with typed.transaction() as tx:
            tx.set("fine", 1)
            tx.set(KEY, wrong)

    async def offline() -> None:
        async with typed.offline() as buffer:
            buffer.set(KEY, wrong)

    for write in (
        lambda: typed.set(KEY, wrong),
        lambda: typed.create(KEY, wrong),
        lambda: typed.update(KEY, lambda _: wrong),
        lambda: typed.set_many({"fine": 1, KEY: wrong}),
        in_a_transaction,
        offline,
    ):
        with pytest.raises(InvalidInputError, match=f"'{KEY}' is not a valid Sentiment"):
            await write()
    assert await written(typed) == 0


async def test_update_gets_the_model_and_returns_it(typed: Memory) -> None:
    def calm_down(sentiment: Sentiment | None) -> Sentiment:
        return CALM if sentiment is None else sentiment.model_copy(update={"urgency": "low"})

    assert await typed.update(KEY, calm_down) == CALM
    await typed.set(KEY, ANGRY)
    assert await typed.update(KEY, calm_down) == Sentiment(mood="angry")
    assert await typed.update(KEY, lambda _: {"mood": "calm"}) == CALM


async def test_numbers_in_root_models_can_be_incremented(typed: Memory) -> None:
    typed.schema("tally_*", Tally)
    assert await typed.increment("tally_a") == 1
    assert await asyncio.gather(*(typed.increment("tally_b") for _ in range(5))) != []
    assert await typed.get("tally_b") == Tally(5)
    with pytest.raises(InvalidInputError, match="not a valid Tally"):
        await typed.increment("tally_a", 0.5)
    await typed.set(KEY, CALM)
    with pytest.raises(InvalidInputError, match="holds Sentiment, not a number"):
        await typed.increment(KEY)


async def test_writes_that_wait_are_stored_under_their_schema(typed: Memory) -> None:
    async with typed.offline() as buffer:
        buffer.set(KEY, {"mood": "calm"})
    entry = await typed.entry(KEY)
    assert entry is not None
    assert (entry.value, entry.schema_name) == (CALM, "Sentiment")


async def test_large_values_have_schemas_too(typed: Memory) -> None:
    loud = Sentiment(mood="a" + "h" * 400_000)
    await typed.set(KEY, loud)
    assert await object_of(typed, KEY)
    assert await typed.get(KEY) == loud
    await typed.set(KEY, CALM)
    assert [(event.data, event.previous_data) async for event in typed.history(KEY)] == [(loud, None), (CALM, loud)]


# -- versions ---------------------------------------------------------------------------------------------------------


class SentimentV3(BaseModel):
    mood: str
    urgency: int
    language: str


def with_numbers(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "urgency": 9 if data.get("urgency") == "high" else 1}


def with_language(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "language": "en"}


@pytest.fixture
async def newer(server: NatsServer, namespace: str) -> Any:
    """Another program's memory, which has the same keys bound to the third version."""
    async with connect(server.url, namespace=namespace) as memory:
        upcast = {1: with_numbers, 2: with_language}
        memory.schema(PATTERN, SentimentV3, name="Sentiment", version=3, upcast=upcast)
        yield memory


async def test_a_newer_program_lifts_what_older_ones_wrote(typed: Memory, newer: Memory, memory: Memory) -> None:
    lifted = SentimentV3(mood="angry", urgency=9, language="en")
    await typed.set(KEY, ANGRY)
    assert await newer.get(KEY) == lifted
    await newer.set(KEY, SentimentV3(mood="calm", urgency=2, language="fr"))
    history = [event async for event in newer.history(KEY)]
    assert [event.schema_version for event in history] == [1, 3]
    assert (history[0].data, history[1].previous_data) == (lifted, lifted)
    assert await newer.update(KEY, lambda value: value.model_copy(update={"urgency": 3})) == SentimentV3(
        mood="calm", urgency=3, language="fr"
    )


async def test_data_without_a_schema_counts_as_the_first_version(
    server: NatsServer, namespace: str, newer: Memory
) -> None:
    async with connect(server.url, namespace=namespace) as plain:
        await plain.set(KEY, {"mood": "angry", "urgency": "high"})
    assert await newer.get(KEY) == SentimentV3(mood="angry", urgency=9, language="en")


async def test_an_older_program_is_told_to_upgrade_and_can_still_look(typed: Memory, newer: Memory) -> None:
    revision = await newer.set(KEY, {"mood": "calm", "urgency": 2, "language": "fr"})

    async def items() -> None:
        assert [entry async for entry in typed.items()]

    for read in (lambda: typed.get(KEY), lambda: typed.entry(KEY), lambda: typed.get_many([KEY]), items):
        with pytest.raises(
            DecodeError, match=r"Sentiment of version 3, but this program knows .* 1: upgrade"
        ) as caught:
            await read()
        assert caught.value.revision == revision
    assert await typed.exists(KEY)
    assert [key async for key in typed.keys("*")] == [KEY]
    assert await typed.get(KEY, as_type=dict) == {"mood": "calm", "urgency": 2, "language": "fr"}


async def test_a_handler_that_is_too_old_puts_the_event_aside_for_its_successor(
    server: NatsServer, namespace: str, newer: Memory
) -> None:
    agent = Agent("older", nats_url=server.url, namespace=namespace)
    agent.memory.schema(PATTERN, Sentiment)
    heard: list[Any] = []

    @agent.memory.on_change(PATTERN, retries=0)
    async def react(event: Event) -> None:
        heard.append(event.data)

    async with agent:
        await newer.set(KEY, {"mood": "calm", "urgency": 2, "language": "fr"})
        await agent.memory.global_scope.set("ticket_8_sentiment", CALM)
        await eventually(lambda: heard == [CALM])
        fabric = await fabric_of(agent.memory)
        subject = f"{namespace}.deadletters.older.react"
        async with Reader(fabric.connection, fabric.topology.deadletters.name, [subject]) as reader:
            letter = json.loads((await anext(reader.follow())).payload)
    assert letter["key"] == KEY
    assert letter["tries"] == 0
    assert "upgrade" in letter["error"]["message"]


async def test_stored_data_that_does_not_fit_is_a_decode_error_with_the_fields(
    server: NatsServer, namespace: str, typed: Memory
) -> None:
    async with connect(server.url, namespace=namespace) as plain:
        revision = await plain.set(KEY, {"urgency": "sometimes"})
    with pytest.raises(DecodeError, match=r"value\['mood'\]: field required; value\['urgency'\]") as caught:
        await typed.get(KEY)
    assert caught.value.revision == revision
    with pytest.raises(DecodeError):
        await typed.update(KEY, lambda value: value)
    await typed.set(KEY, CALM)
    assert await typed.get(KEY) == CALM


# -- bindings ---------------------------------------------------------------------------------------------------------


async def test_a_key_with_several_schemas_cannot_be_used_until_they_are_told_apart(
    server: NatsServer, namespace: str, typed: Memory
) -> None:
    typed.schema("*_sentiment", Tally)
    for use in (lambda: typed.set(KEY, CALM), lambda: typed.update(KEY, lambda _: CALM)):
        with pytest.raises(InvalidInputError, match="several schemas"):
            await use()
    assert await typed.get(KEY, "absent") == "absent"
    async with connect(server.url, namespace=namespace) as plain:
        await plain.set(KEY, CALM)
    with pytest.raises(InvalidInputError, match="several schemas"):
        await typed.get(KEY)
    typed.schema(KEY, Sentiment)
    assert await typed.get(KEY) == CALM
    assert await typed.set("other_sentiment", 3) > 0
    assert await typed.get("other_sentiment") == Tally(3)


async def test_schemas_are_shared_by_views_and_by_nobody_else(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    view = memory.session("s")
    view.schema(PATTERN, Sentiment)
    for shared in (memory, view, memory.global_scope, memory.workflow("w")):
        with pytest.raises(InvalidInputError):
            await shared.set(KEY, 1)
    with pytest.raises(InvalidInputError, match="bound to Sentiment already"):
        memory.schema(PATTERN, Tally)
    async with connect(server.url, namespace=namespace) as other:
        await other.set(KEY, 1)
