"""A reader gives every matching event once, in order, whatever happens to its consumer, connection or server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from agentfield import AccessDeniedError, ClosedError
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import api
from agentfield.fabric.reader import Reader
from tests.support import NatsServer, eventually
from tests.support.events import subject, write, write_many

OpenFabric = Callable[..., Awaitable[Fabric]]


@asynccontextmanager
async def reading(fabric: Fabric, *filters: str, start: int = 1) -> AsyncIterator[Reader]:
    names = [subject(fabric, name) for name in filters or (">",)]
    async with Reader(fabric.connection, fabric.log.stream, names, start=start) as reader:
        yield reader


async def consumers(fabric: Fabric) -> list[str]:
    answer = await api(fabric.connection, f"CONSUMER.NAMES.{fabric.log.stream}", {})
    return list(answer["consumers"] or [])


class Following:
    """What a reader has given so far, taken by a task."""

    def __init__(self, reader: Reader) -> None:
        self.sequences: list[int] = []
        self.task = asyncio.create_task(self._take(reader))

    async def _take(self, reader: Reader) -> None:
        async for record in reader.follow():
            self.sequences.append(record.sequence)

    async def reached(self, sequence: int, within: float = 15) -> None:
        await eventually(lambda: self.sequences[-1:] == [sequence], within=within, what=f"read up to {sequence}")


async def test_reading_to_a_target_and_then_following_misses_nothing_between(fabric: Fabric) -> None:
    target = await write_many(fabric, [f"k.{number}" for number in range(1, 1201)])
    async with reading(fabric) as reader:
        await write_many(fabric, [f"k.{number}" for number in range(1201, 1301)])
        past = [record.sequence async for record in reader.until(target)]
        following = Following(reader)
        await following.reached(1300)
        await write(fabric, "k.last")
        await following.reached(1301)
    assert past == list(range(1, 1201))
    assert following.sequences == list(range(1201, 1302))
    await following.task  # closing the reader ends it


async def test_only_what_matches_one_of_the_filters_comes(fabric: Fabric) -> None:
    target = await write_many(fabric, ["a.1", "b.1", "c.1", "a.2", "b.2", "c.2"])
    async with reading(fabric, "a.*", "c.*", start=2) as reader:
        assert [record.sequence async for record in reader.until(target)] == [3, 4, 6]
    async with reading(fabric, "d.*") as reader:
        assert [record.sequence async for record in reader.until(target)] == []


async def test_nothing_is_left_on_the_server(fabric: Fabric) -> None:
    await write(fabric, "key")
    async with reading(fabric) as reader:
        assert len(await consumers(fabric)) == 1
        async with aclosing(reader.follow()) as events:
            await anext(events)
    assert await consumers(fabric) == []
    with pytest.raises(ClosedError):
        await anext(reader.until(1))


async def test_a_slow_taker_loses_nothing_and_holds_little(fabric: Fabric) -> None:
    await write_many(fabric, [f"k.{number}" for number in range(3000)])
    async with reading(fabric) as reader, aclosing(reader.follow()) as events:
        assert (await anext(events)).sequence == 1
        await eventually(lambda: len(reader._arrived) > 400)
        assert len(reader._arrived) < 600
        assert [(await anext(events)).sequence for _ in range(2999)] == list(range(2, 3001))


async def test_an_event_larger_than_a_batch_may_be_comes_through(
    start_server: Callable[..., NatsServer], open_fabric: OpenFabric
) -> None:
    fabric = await open_fabric(start_server(extra="max_payload: 8388608\n"))
    large = b'"' + b"x" * (6 * 1024 * 1024) + b'"'
    await write(fabric, "k.1")
    await write(fabric, "k.2", large)
    target = await write(fabric, "k.3")
    async with reading(fabric) as reader:
        assert [len(record.payload) async for record in reader.until(target)] == [1, len(large), 1]


@pytest.mark.parametrize("start", [1, 500])
async def test_a_consumer_that_an_operator_deletes_is_replaced_without_a_gap(fabric: Fabric, start: int) -> None:
    await write_many(fabric, [f"k.{number}" for number in range(1, 1001)])
    async with reading(fabric, start=start) as reader, aclosing(reader.follow()) as events:
        taken = [(await anext(events)).sequence for _ in range(10)]
        for _ in range(2):
            for name in await consumers(fabric):
                await api(fabric.connection, f"CONSUMER.DELETE.{fabric.log.stream}.{name}")
            await write(fabric, "k.more")
            taken += [(await anext(events)).sequence for _ in range(100)]
        taken += [(await anext(events)).sequence for _ in range(1002 - taken[-1])]
    assert taken == list(range(start, 1003))


@pytest.mark.parametrize("gracefully", [True, False])
async def test_a_restart_of_the_server_in_the_midst_is_not_seen(
    fresh_server: NatsServer, open_fabric: OpenFabric, gracefully: bool
) -> None:
    writer, fabric = await open_fabric(fresh_server), await open_fabric(fresh_server)
    await write_many(writer, [f"k.{number}" for number in range(1, 2001)])
    async with reading(fabric) as reader:
        following = Following(reader)
        await eventually(lambda: following.sequences)
        await fresh_server.restart(gracefully=gracefully)
        await write(writer, "k.after")
        await following.reached(2001)
        await fresh_server.restart(gracefully=gracefully)
        await write(writer, "k.later")
        await following.reached(2002)
    assert following.sequences == list(range(1, 2003))


async def test_a_server_that_was_paused_is_followed_on(fresh_server: NatsServer, open_fabric: OpenFabric) -> None:
    fabric = await open_fabric(fresh_server)
    await write(fabric, "k.1")
    async with reading(fabric) as reader:
        following = Following(reader)
        await following.reached(1)
        await fresh_server.pause()
        lost = asyncio.Event()
        fabric.connection.on_state(lambda state: lost.set())
        async with asyncio.timeout(15):
            await lost.wait()  # found dead by unanswered pings
        await fresh_server.resume()
        await write(fabric, "k.2")
        await following.reached(2)


async def test_a_client_that_is_replaced_in_the_midst_is_not_seen(fabric: Fabric) -> None:
    await write_many(fabric, [f"k.{number}" for number in range(1, 2001)])
    async with reading(fabric) as reader:
        following = Following(reader)
        await eventually(lambda: following.sequences)
        transport = fabric.connection.client._transport
        assert transport is not None
        transport.write(b"NONSENSE\r\n")
        await write(fabric, "k.after")
        await following.reached(2001)
    assert following.sequences == list(range(1, 2002))


async def test_messages_of_a_consumer_that_was_given_up_are_not_taken_for_the_new_ones(fabric: Fabric) -> None:
    await write_many(fabric, [f"k.{number}" for number in range(1, 21)])
    async with reading(fabric) as reader, aclosing(reader.follow()) as events:
        assert [(await anext(events)).sequence for _ in range(5)] == [1, 2, 3, 4, 5]
        late = list(reader._arrived)  # what the first consumer had sent and nobody had taken yet
        for name in await consumers(fabric):
            await api(fabric.connection, f"CONSUMER.DELETE.{fabric.log.stream}.{name}")
        await reader._recover()
        reader._arrived.extend(late)
        assert [(await anext(events)).sequence for _ in range(15)] == list(range(6, 21))


async def test_who_may_not_read_is_told(
    start_server: Callable[..., NatsServer], namespace: str, open_fabric: OpenFabric
) -> None:
    server = start_server(
        extra="""
        authorization { users: [
            {user: all, password: secret}
            {user: some, password: secret, permissions: {publish: {deny: ["$JS.API.CONSUMER.CREATE.>"]}}}
        ]}
        """
    )
    whole = await Fabric.open(server.url.replace("//", "//all:secret@"), namespace=namespace, name="all")
    some = await Fabric.open(server.url.replace("//", "//some:secret@"), namespace=namespace, name="some")
    try:
        await write(whole, "key")
        async with asyncio.timeout(2):
            with pytest.raises(AccessDeniedError):
                async with reading(some):
                    pass
    finally:
        await whole.aclose()
        await some.aclose()


async def test_what_is_deleted_before_it_was_read_is_not_waited_for(fabric: Fabric) -> None:
    stream = fabric.deadletters.stream
    number = await fabric.deadletters.store("agent", "handler", b"{}", letter_id="letter-1")
    async with Reader(fabric.connection, stream, [], patience=10) as reader:
        await fabric.deadletters.remove(number)
        async with asyncio.timeout(8):
            assert [record async for record in reader.until(number)] == []
