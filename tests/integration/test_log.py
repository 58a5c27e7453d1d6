"""The log stores an event once or says that it cannot tell, and its reads are never behind an acknowledgement."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from agentfield import AccessDeniedError, ClosedError, InvalidInputError, OutcomeUnknownError, UnavailableError
from agentfield.codec import Record
from agentfield.execution import new_id
from agentfield.fabric.appending import Conflict
from agentfield.fabric.fabric import Fabric
from agentfield.header import EVENT_ID
from tests.support import NatsServer, eventually
from tests.support.events import headers, subject, write, write_many

OpenFabric = Callable[..., Awaitable[Fabric]]

LIMITED = """
authorization {
    users: [
        {user: all, password: secret}
        {user: reader, password: secret, permissions: {publish: {deny: ["*.memory.>"]}}}
        {user: writer, password: secret, permissions: {publish: {deny: ["$JS.API.DIRECT.GET.>"]}}}
    ]
}
"""


async def stored(fabric: Fabric, tokens: str) -> list[Record]:
    return [record async for record in fabric.log.read([subject(fabric, tokens)])]


# -- appending --------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
async def test_an_event_is_read_back_as_it_was_appended(fabric: Fabric) -> None:
    id = new_id()
    before = fabric.log.now()
    ack = await fabric.log.append(subject(fabric, "a.b"), b'{"x":1}', headers(id))
    (record,) = await fabric.log.last([subject(fabric, "a.b")])
    assert record is not None
    assert (record.subject, record.sequence, record.payload) == (subject(fabric, "a.b"), ack.sequence, b'{"x":1}')
    assert record.headers[EVENT_ID] == id
    assert abs(record.timestamp - before) < 1_000_000_000
    assert not ack.duplicate


async def test_every_way_to_read_gives_the_same_record(fabric: Fabric) -> None:
    sequence = await write(fabric, "key", b'"v\xc3\xa4lue"')
    await write(fabric, "other")
    name = subject(fabric, "key")
    ways: list[Record | None] = [
        (await fabric.log.last([name]))[0],
        (await fabric.log.last([name, subject(fabric, "absent")]))[0],
        await fabric.log.at(sequence),
        *(await fabric.log.as_of([name], sequence) or ()),
        (await stored(fabric, "key"))[0],
        *[record async for record in fabric.log.current([name])],
    ]
    plain = [
        (record.subject, record.sequence, record.timestamp, record.payload, record.headers[EVENT_ID])
        for record in ways
        if record is not None
    ]
    assert len(plain) == len(ways) == 6
    assert len(set(plain)) == 1


async def test_an_id_is_stored_once_however_often_it_comes(fabric: Fabric) -> None:
    id = new_id()
    acks = [await fabric.log.append(subject(fabric, "key"), b"1", headers(id)) for _ in range(3)]
    assert [(ack.sequence, ack.duplicate) for ack in acks] == [(1, False), (1, True), (1, True)]
    assert len(await stored(fabric, "key")) == 1


async def test_of_many_who_expect_the_same_one_wins(fabric: Fabric) -> None:
    first = await write(fabric, "key")
    outcomes = await asyncio.gather(
        *(
            fabric.log.append(subject(fabric, "key"), str(number).encode(), headers(), expected=first)
            for number in range(50)
        ),
        return_exceptions=True,
    )
    won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    lost = [outcome for outcome in outcomes if isinstance(outcome, Conflict)]
    assert (len(won), len(lost)) == (1, 49)
    assert {conflict.actual for conflict in lost} <= {won[0].sequence, None}


@pytest.mark.parametrize("expected", [0, 7])
async def test_a_wrong_expectation_stores_nothing_and_says_what_is_there(fabric: Fabric, expected: int) -> None:
    actual = await write(fabric, "key")
    with pytest.raises(Conflict) as conflict:
        await fabric.log.append(subject(fabric, "key"), b"2", headers(), expected=expected)
    assert conflict.value.actual == actual
    assert len(await stored(fabric, "key")) == 1


async def test_what_one_message_can_hold_is_stored_and_read_in_every_way(fabric: Fabric) -> None:
    payload = b'"' + b"x" * (fabric.connection.max_payload - 2_000) + b'"'
    sequence = await write(fabric, "large", payload)
    name = subject(fabric, "large")
    for record in (
        (await fabric.log.last([name]))[0],
        (await fabric.log.last([name, subject(fabric, "absent")]))[0],
        await fabric.log.at(sequence),
        (await stored(fabric, "large"))[0],
    ):
        assert record is not None
        assert record.payload == payload


async def test_more_than_one_message_can_hold_is_refused_before_it_is_sent(fabric: Fabric) -> None:
    with pytest.raises(InvalidInputError, match="nothing was written"):
        await write(fabric, "large", bytes(fabric.connection.max_payload - 500))
    assert await fabric.log.last([subject(fabric, "large")]) == [None]
    assert await write(fabric, "small") == 1


# -- appending in bad weather -----------------------------------------------------------------------------------------


async def test_with_the_server_away_nothing_is_stored_and_that_is_what_is_said(
    fresh_server: NatsServer, open_fabric: OpenFabric
) -> None:
    fabric = await open_fabric(fresh_server, timeout=1.0)
    await fresh_server.kill()
    # Until this end has seen the connection close, a write is still sent, and then its outcome is truly open.
    await eventually(lambda: fabric.connection.state == "reconnecting", what="the loss of the server is noticed")
    started = asyncio.get_running_loop().time()
    with pytest.raises(UnavailableError, match="away"):
        await write(fabric, "key")
    assert 0.5 < asyncio.get_running_loop().time() - started < 3
    await fresh_server.start()
    await fabric.connection.wait_connected(10)
    assert await fabric.log.last([subject(fabric, "key")]) == [None]


async def test_a_write_that_was_sent_and_not_confirmed_is_open_and_can_be_repeated(
    fresh_server: NatsServer, open_fabric: OpenFabric
) -> None:
    fabric = await open_fabric(fresh_server, timeout=1.0)
    first = await write(fabric, "checked")
    await fresh_server.pause()
    plain, checked = new_id(), new_id()
    outcomes = await asyncio.gather(
        fabric.log.append(subject(fabric, "plain"), b"1", headers(plain)),
        fabric.log.append(subject(fabric, "checked"), b"2", headers(checked), expected=first),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknownError] * 2
    assert [getattr(outcome, "event_id", None) for outcome in outcomes] == [plain, checked]
    await fresh_server.resume()
    await eventually(lambda: fabric.connection.state == "connected")

    again = await fabric.log.append(subject(fabric, "plain"), b"1", headers(plain))
    assert len(await stored(fabric, "plain")) == 1
    checked_again = await fabric.log.append(
        subject(fabric, "checked"), b"2", headers(checked), expected=first, repeated=True
    )
    assert [record.sequence for record in await stored(fabric, "checked")] == [first, checked_again.sequence]
    assert (await stored(fabric, "plain"))[0].sequence == again.sequence
    # The same expectation of somebody else is still a conflict.
    with pytest.raises(Conflict):
        await fabric.log.append(subject(fabric, "checked"), b"3", headers(), expected=first, repeated=True)


async def test_a_write_whose_first_try_went_unanswered_recognises_its_own_success(
    fresh_server: NatsServer, open_fabric: OpenFabric
) -> None:
    fabric = await open_fabric(fresh_server)
    first = await write(fabric, "checked")
    await fresh_server.pause()
    attempts = fabric.connection._requests.made
    writing = asyncio.gather(
        fabric.log.append(subject(fabric, "plain"), b"1", headers()),
        fabric.log.append(subject(fabric, "checked"), b"2", headers(), expected=first),
    )
    await eventually(
        lambda: fabric.connection._requests.made >= attempts + 4, within=15, what="both have been sent twice"
    )
    await fresh_server.resume()
    plain, checked = await writing
    assert [record.sequence for record in await stored(fabric, "plain")] == [plain.sequence]
    assert [record.sequence for record in await stored(fabric, "checked")] == [first, checked.sequence]


async def test_a_write_waits_for_a_server_that_comes_back(fresh_server: NatsServer, open_fabric: OpenFabric) -> None:
    fabric = await open_fabric(fresh_server)
    await fresh_server.kill()
    writing = [asyncio.create_task(write(fabric, f"key.{number}")) for number in range(20)]
    await fresh_server.start()
    assert sorted(await asyncio.gather(*writing)) == list(range(1, 21))


async def test_a_write_in_flight_when_its_connection_is_closed_is_open(
    fresh_server: NatsServer, open_fabric: OpenFabric
) -> None:
    fabric = await open_fabric(fresh_server)
    await fresh_server.pause()
    id = new_id()
    writing = asyncio.create_task(fabric.log.append(subject(fabric, "key"), b"1", headers(id)))
    await eventually(lambda: fabric.connection._requests.in_flight)
    closing = asyncio.create_task(fabric.aclose())
    with pytest.raises(OutcomeUnknownError) as unknown:
        await writing
    assert unknown.value.event_id == id
    await closing
    with pytest.raises(ClosedError):
        await write(fabric, "key")


# -- reading ----------------------------------------------------------------------------------------------------------


async def test_the_last_of_many_subjects_comes_in_their_order_with_none_for_the_absent(fabric: Fabric) -> None:
    names = [f"k.{number}" for number in range(1500)]
    await write_many(fabric, names)
    await write_many(fabric, names[::3], b"2")
    asked = [subject(fabric, name) for name in names] + [subject(fabric, f"absent.{number}") for number in range(700)]
    random.Random(1).shuffle(asked)
    found = await fabric.log.last(asked)
    assert [record.subject if record else None for record in found] == [
        name if ".k." in name else None for name in asked
    ]
    twos = {record.subject for record in found if record is not None and record.payload == b"2"}
    assert twos == {subject(fabric, name) for name in names[::3]}


@pytest.mark.parametrize("count", [0, 1, 512, 513, 1024, 1025, 3000])
async def test_current_state_is_every_subject_once_with_its_last_event(fabric: Fabric, count: int) -> None:
    names = [f"k.{number}" for number in range(count)]
    if names:
        await write_many(fabric, names)
        await write_many(fabric, names[::7], b"2")
        await write_many(fabric, ["other.key"])
    found = [record async for record in fabric.log.current([subject(fabric, "k.>")])]
    assert sorted(record.subject for record in found) == sorted(subject(fabric, name) for name in names)
    assert [record.sequence for record in found] == sorted(record.sequence for record in found)
    assert {record.subject for record in found if record.payload == b"2"} == {
        subject(fabric, name) for name in names[::7]
    }


async def test_current_state_misses_nothing_while_everything_is_being_rewritten(
    fabric: Fabric, server: NatsServer, open_fabric: OpenFabric
) -> None:
    names = [f"k.{number}" for number in range(1200)]
    await write_many(fabric, names)
    other = await open_fabric(server)
    enough = False

    async def rewrite() -> None:
        shuffled = random.Random(2)
        while not enough:
            await write_many(other, shuffled.sample(names, 100))

    expected = {subject(fabric, name) for name in names}
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(rewrite())
        for _ in range(12):
            before = int((await fabric.log.state())["last_seq"])
            found = [record async for record in fabric.log.current([subject(fabric, "k.>")])]
            assert {record.subject for record in found} == expected
            assert len(found) == len(expected), "a subject came twice"
            known = await fabric.log.as_of([subject(fabric, names[0])], before)
            assert known is not None
            assert next(record for record in found if record.subject == known[0].subject).sequence >= known[0].sequence
        enough = True


async def test_the_state_as_of_any_sequence_is_the_fold_up_to_it(fabric: Fabric) -> None:
    choose = random.Random(3)
    names = [f"k.{choose.randrange(20)}" for _ in range(200)]
    await write_many(fabric, names)
    for sequence in (1, 2, 17, 100, 199, 200):
        fold = {subject(fabric, name): number for number, name in enumerate(names[:sequence], 1)}
        found = await fabric.log.as_of([subject(fabric, "k.>")], sequence)
        assert found is not None
        assert {record.subject: record.sequence for record in found} == fold
    assert await fabric.log.as_of([subject(fabric, "k.>")], 0) == []
    assert await fabric.log.as_of([subject(fabric, "absent")], 100) == []


async def test_a_slice_of_the_log_comes_whole_and_in_order(fabric: Fabric) -> None:
    names = [("even" if number % 2 else "odd") + f".{number}" for number in range(1, 3001)]
    await write_many(fabric, names)

    async def sequences(start: int, stop: int | None) -> list[int]:
        events = fabric.log.read([subject(fabric, "even.>")], start=start, stop=stop)
        return [record.sequence async for record in events]

    assert await sequences(1, None) == list(range(1, 3001, 2))
    assert await sequences(100, 200) == list(range(101, 200, 2))
    assert await sequences(3000, 3000) == []
    assert await sequences(2999, 2999) == [2999]
    assert await sequences(3001, None) == []
    assert [record.sequence async for record in fabric.log.read([subject(fabric, "none")])] == []


async def test_a_moment_is_found_in_the_log(fabric: Fabric) -> None:
    for number in range(3):
        await write(fabric, f"k.{number}")
    second = await fabric.log.at(2)
    assert second is not None
    at = datetime.fromtimestamp(second.timestamp / 1e9, UTC)
    assert await fabric.log.sequence_at(at - timedelta(days=1)) == 1
    assert await fabric.log.sequence_at(at - timedelta(microseconds=2)) == 2
    assert await fabric.log.sequence_at(at + timedelta(days=1)) == 4


async def test_reads_say_unavailable_at_their_timeout_and_never_absent(
    fresh_server: NatsServer, open_fabric: OpenFabric
) -> None:
    fabric = await open_fabric(fresh_server, timeout=1.0)
    await write(fabric, "key")
    name = subject(fabric, "key")
    for hurt, heal in ((fresh_server.kill, fresh_server.start), (fresh_server.pause, fresh_server.resume)):
        await hurt()
        started = asyncio.get_running_loop().time()
        outcomes = await asyncio.gather(
            fabric.log.last([name]),
            fabric.log.last([name, subject(fabric, "other")]),
            fabric.log.at(1),
            fabric.log.as_of([name], 1),
            fabric.log.state(),
            fabric.log.sequence_at(datetime.now(UTC)),
            anext(aiter(fabric.log.current([name]))),
            anext(aiter(fabric.log.read([name]))),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [UnavailableError] * len(outcomes)
        assert asyncio.get_running_loop().time() - started < 3
        await heal()
        assert (await eventually(lambda: fabric.log.last([name]), within=10))[0] is not None


async def test_reads_wait_for_a_server_that_comes_back(fresh_server: NatsServer, open_fabric: OpenFabric) -> None:
    fabric = await open_fabric(fresh_server)
    await write(fabric, "key")
    name = subject(fabric, "key")
    await fresh_server.kill()
    reading = asyncio.gather(
        fabric.log.last([name]),
        fabric.log.last([name, subject(fabric, "other")]),
        fabric.log.at(1),
        fabric.log.state(),
        anext(aiter(fabric.log.read([name]))),
    )
    await asyncio.wait({reading}, timeout=4.0)  # longer than a single try may take
    assert not reading.done()
    await fresh_server.start()
    last, both, at, state, first = await reading
    assert last[0] is not None
    assert (last[0].sequence, both[1], at is not None, state["last_seq"], first.sequence) == (1, None, True, 1, 1)


# -- permissions ------------------------------------------------------------------------------------------------------


async def test_who_may_not_write_or_read_is_told_at_once(
    start_server: Callable[..., NatsServer], open_fabric: OpenFabric, namespace: str
) -> None:
    server = start_server(extra=LIMITED)
    url = server.url
    first = await Fabric.open(url.replace("//", "//all:secret@"), namespace=namespace, name="first")
    await first.aclose()
    reader = await Fabric.open(url.replace("//", "//reader:secret@"), namespace=namespace, name="reader")
    writer = await Fabric.open(url.replace("//", "//writer:secret@"), namespace=namespace, name="writer")
    try:
        async with asyncio.timeout(3):
            with pytest.raises(AccessDeniedError) as denied:
                await write(reader, "key")
            assert denied.value.subject == subject(reader, "key")
            assert await write(writer, "key") == 1
            with pytest.raises(AccessDeniedError):
                await writer.log.last([subject(writer, "key"), subject(writer, "other")])
            assert (await reader.log.last([subject(reader, "key")]))[0] is not None
    finally:
        await reader.aclose()
        await writer.aclose()
