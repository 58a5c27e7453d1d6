"""Erasure: what was personal can be read by nobody any more, in no copy there is; everything else goes on."""

from __future__ import annotations

import asyncio
import json
import secrets
from base64 import b64decode, b64encode
from contextlib import AsyncExitStack
from typing import Any

import pytest

from agentfield import Agent, ErasureReceipt, Event, InvalidInputError, Memory, UnavailableError, connect
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.faults import NO_MESSAGE, ServerFault
from agentfield.fabric.jetstream import api
from agentfield.fabric.personal.keys import Keys
from agentfield.fabric.personal.policies import Policies
from agentfield.memory.encrypting import condemnations
from agentfield.memory.personal import erasing
from agentfield.memory.watch import CaughtUp
from tests.support import NatsServer, eventually
from tests.support.searching import files_with

SECRET = "ada@example.org"


@pytest.fixture
async def user(memory: Memory) -> Memory:
    """Return the memory of one user's session, in a namespace where sessions and e-mail addresses are personal."""
    await memory.set_personal(["session"], ["user_*_email"])
    return memory.session("user-1")


def fates(receipt: ErasureReceipt) -> dict[str, int]:
    return {tally.fate: tally.events for tally in receipt.tallies}


# -- nothing is left --------------------------------------------------------------------------------------------------


async def messages_with(fabric: Fabric, needles: list[bytes]) -> list[str]:
    """Every message of every stream of the server, unpacked by the server itself, that holds one of these bytes."""
    found = []
    for name in (await api(fabric.connection, "STREAM.NAMES"))["streams"]:
        start = 1
        while (message := await next_message(fabric, name, start)) is not None:
            start = message["seq"] + 1
            held = b64decode(message.get("data", "")) + b64decode(message.get("hdrs", "")) + message["subject"].encode()
            found += [f"{name} {message['subject']}" for needle in needles if needle in held]
    return found


async def next_message(fabric: Fabric, stream: str, start: int) -> dict[str, Any] | None:
    try:
        answer = await api(fabric.connection, f"STREAM.MSG.GET.{stream}", {"seq": start, "next_by_subj": ">"})
    except ServerFault as fault:
        if fault.err_code != NO_MESSAGE:
            raise
        return None
    message: dict[str, Any] = answer["message"]
    return message


async def test_after_an_erasure_no_file_of_the_server_holds_the_value_or_its_key(
    fresh_server: NatsServer, namespace: str
) -> None:
    """Values that do not repeat lie in a compressed block as they are; the control shows that they can be found."""
    personal, large, plain = secrets.token_hex(64), secrets.token_hex(300_000), secrets.token_hex(64)
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(connect(fresh_server.url, namespace=namespace)) for _ in range(2)]
        await one.set_personal(["session"])
        await eventually(_knows(two), what="the other process knows the policy")
        await one.session("user-1").set("token", personal)
        await two.session("user-1").set("token", personal + "!")
        await two.session("user-1").set("report", large)
        await two.session("user-1").set("gone", personal, ttl=0.2)
        await one.set("control", plain, scope="global")
        assert await one.session("user-1").get("report", consistency="cached") == large
        fabric = await one._fabric()
        (stored,) = await fabric.keys.stored(["session.user-1"])
        secret = stored.key.secret
        assert files_with(fresh_server.store, b64encode(secret))
        receipt = await one.erase(scope="session", scope_id="user-1")
        assert (fates(receipt), receipt.complete, receipt.keys) == ({"erased": 4}, True, [stored.key.fingerprint])
        for memory in (one, two):
            assert await memory.session("user-1").get("token", "absent", consistency="cached") == "absent"
            assert not (await memory._fabric()).keys._remembered
    needles = [personal[:32].encode(), large[:32].encode(), large[-32:].encode(), secret, b64encode(secret)]
    control = plain[:32].encode()
    for round in ("running", "stopped", "restarted"):
        if round == "stopped":
            await fresh_server.stop()
        elif round == "restarted":
            await fresh_server.start()
            async with connect(fresh_server.url, namespace=namespace) as memory:
                fabric = await memory._fabric()
                assert await messages_with(fabric, needles) == []
                assert await messages_with(fabric, [control])
        assert files_with(fresh_server.store, control), round
        assert [files_with(fresh_server.store, needle) for needle in needles] == [[]] * len(needles), round


def _knows(memory: Memory) -> Any:
    async def knows() -> bool:
        return bool((await memory._fabric()).keys.policies.known)

    return knows


async def test_the_chain_of_the_log_holds_since_no_byte_of_it_changes(user: Memory) -> None:
    await user.set("email", SECRET)
    fabric = await user._fabric()
    last = int((await fabric.log.state())["last_seq"])
    before = [record async for record in fabric.log.read([">"], stop=last)]
    await Memory(user._fabric).erase(scope="session", scope_id="user-1")
    assert [record async for record in fabric.log.read([">"], stop=last)] == before


# -- what users meet --------------------------------------------------------------------------------------------------


async def test_every_read_says_absent_and_history_says_erased(user: Memory) -> None:
    await user.set("email", "old")
    await user.set("email", SECRET)
    await Memory(user._fabric).erase(scope="session", scope_id="user-1")
    assert await user.get("email", "absent") == "absent"
    assert await user.entry("email") is None
    assert not await user.exists("email")
    assert await user.get_many(["email"]) == {}
    assert [key async for key in user.keys()] == []
    events = [event async for event in user.history("email")]
    assert [(event.operation, event.erased, event.data, event.previous_data) for event in events] == [
        ("set", True, None, None),
        ("set", True, None, None),
        ("delete", False, None, None),
    ]
    assert events[-1].reason == "cleared"


async def test_a_value_whose_key_is_gone_is_absent_even_where_no_delete_came(user: Memory) -> None:
    """As if the eraser had died between the two: nothing raises, and the key can be written anew."""
    revision = await user.set("email", SECRET)
    fabric = await user._fabric()
    for stored in await fabric.keys.stored([">"]):
        await fabric.keys.destroy(stored)
    memory = Memory(user._fabric)
    assert await user.get("email", "absent") == "absent"
    assert not await user.exists("email")
    assert await user.entry("email") is None
    assert [entry async for entry in user.items()] == []
    assert not await user.delete("email")
    assert await memory.get("email", "absent", scope="session", scope_id="user-1") == "absent"
    async with user.transaction() as tx:
        assert await tx.get("email", "absent") == "absent"
    assert await user.update("email", lambda value: value, "fresh") == "fresh"
    assert (await user.create("other", 1)) > revision
    assert await user.get("email") == "fresh"


async def test_an_erased_scope_starts_anew_with_another_key(user: Memory) -> None:
    await user.set("email", SECRET)
    memory = Memory(user._fabric)
    first = await memory.erase(scope="session", scope_id="user-1")
    await user.set("email", "again")
    assert await user.get("email") == "again"
    second = await memory.erase(scope="session", scope_id="user-1")
    assert set(first.keys).isdisjoint(second.keys)
    assert (fates(first), fates(second)) == ({"erased": 1}, {"erased": 1, "erased before": 1})


async def test_handlers_watchers_and_history_go_on_past_what_was_erased(
    server: NatsServer, namespace: str, user: Memory
) -> None:
    await user.set("email", "old")
    for number in range(20):
        await user.set("email", number)
    await Memory(user._fabric).erase(scope="session", scope_id="user-1")
    heard: list[Event] = []
    agent = Agent("late", nats_url=server.url, namespace=namespace)

    @agent.memory.on_change("*", scope="session", start="all")
    async def react(event: Event) -> None:
        heard.append(event)

    async with agent:
        await Memory(user._fabric).session("user-2").set("email", "new")

        async def all_heard() -> bool:
            return bool(heard) and heard[-1].data == "new"

        await eventually(all_heard, what="the handler has come to what is readable")
    assert [event.erased for event in heard] == [True] * 21 + [False] * 2
    watched = []
    async for item in Memory(user._fabric).watch("*", scope="session", start="all"):
        if isinstance(item, CaughtUp):
            break
        watched.append(item)
    assert [(event.revision, event.erased) for event in watched] == [(event.revision, event.erased) for event in heard]


async def test_agents_that_react_are_told_by_deletes(server: NatsServer, namespace: str, user: Memory) -> None:
    heard: list[Event] = []
    agent = Agent("reader", nats_url=server.url, namespace=namespace)

    @agent.memory.on_change("*", scope="session")
    async def react(event: Event) -> None:
        heard.append(event)

    async with agent:
        await user.set("email", SECRET)
        await user.set("name", "Ada")
        receipt = await Memory(user._fabric).erase(scope="session", scope_id="user-1")

        async def told() -> bool:
            return [event.reason for event in heard] == [None, None, "cleared", "cleared"]

        await eventually(told, what="the deletes have been handled")
    assert receipt.deleted == 2


# -- what is erased, and what is not ----------------------------------------------------------------------------------


async def test_only_what_was_asked_for_is_erased(user: Memory) -> None:
    memory = Memory(user._fabric)
    await user.set("email", SECRET)
    await memory.session("user-2").set("email", "bob")
    await memory.set("user_1_email", SECRET, scope="global")
    await memory.set("user_2_email", "bob", scope="global")
    await user.set("user_1_email", SECRET)
    receipt = await memory.erase("user_1_*")
    assert (fates(receipt), receipt.deleted, receipt.complete) == ({"erased": 2}, 2, True)
    assert await user.get("email") == SECRET
    assert await memory.get("user_1_email", "absent", scope="global") == "absent"
    await memory.erase(scope="session", scope_id="user-1")
    assert await user.get("email", "absent") == "absent"
    assert await memory.session("user-2").get("email") == "bob"
    assert await memory.get("user_2_email", scope="global") == "bob"


async def test_a_scope_is_erased_with_the_keys_in_it_that_have_a_data_key_of_their_own(user: Memory) -> None:
    await user.set("email", SECRET)
    await user.set("user_1_email", SECRET)
    receipt = await Memory(user._fabric).erase(scope="session", scope_id="user-1")
    assert (fates(receipt), len(receipt.keys)) == ({"erased": 2}, 2)


async def test_what_was_written_before_the_policy_is_listed_as_not_covered(memory: Memory) -> None:
    user = memory.session("user-1")
    plain = [await user.set("email", SECRET), await user.set("email", SECRET)]
    await memory.set_personal(["session"])
    await user.set("email", SECRET)
    receipt = await memory.erase(scope="session", scope_id="user-1")
    assert fates(receipt) == {"erased": 1, "not personal": 2}
    (left,) = receipt.left
    assert (left.first, left.last, left.revisions) == (plain[0], plain[1], [(plain[0], plain[1])])
    assert not receipt.complete
    assert [event.data async for event in user.history("email")][:3] == [SECRET, SECRET, None]


async def test_a_pattern_in_a_personal_scope_cannot_erase_what_shares_a_key_and_says_so(user: Memory) -> None:
    await user.set("email", SECRET)
    await user.set("name", "Ada")
    receipt = await Memory(user._fabric).erase("email", scope="session", scope_id="user-1")
    assert (fates(receipt), receipt.keys, receipt.complete) == ({"key still in use": 1}, [], False)
    assert (await user.get("email"), await user.get("name")) == (None, "Ada")


@pytest.mark.parametrize(
    "asked",
    [{}, {"scope": "global"}, {"scope": "session"}, {"pattern": "a*", "scope_id": "x"}, {"pattern": ">"}],
)
async def test_an_erasure_that_can_only_be_a_slip_is_refused(memory: Memory, asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        await memory.erase(**asked)


# -- writes at the same time ------------------------------------------------------------------------------------------


async def test_what_is_acknowledged_while_a_scope_is_erased_is_either_covered_or_readable(
    server: NatsServer, namespace: str, user: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No write is stored under a key that is gone, not even by a process that never hears of an erasure."""
    stop = asyncio.Event()
    acknowledged: list[int] = []

    async def write(name: str) -> None:
        async with connect(server.url, namespace=namespace) as memory:
            while not stop.is_set():
                acknowledged.append(await memory.session("user-1").set(name, SECRET))

    async def deaf(self: Policies) -> None:
        pass

    monkeypatch.setattr(Policies, "_listen", deaf)
    monkeypatch.setattr(Policies, "_follow", deaf)
    memory = Memory(user._fabric)
    receipts = []
    writers = [asyncio.create_task(write(name)) for name in "ab"]
    try:
        for _ in range(4):
            least = len(acknowledged) + 10

            async def go_on(least: int = least) -> bool:
                return len(acknowledged) > least

            await eventually(go_on, what="the writers go on")
            receipts.append(await memory.erase(scope="session", scope_id="user-1"))
    finally:
        stop.set()
        await asyncio.gather(*writers)
    events = {event.revision: event async for event in user.history("*") if event.operation == "set"}
    assert set(events) == set(acknowledged)
    assert all(event.erased or event.data == SECRET for event in events.values())
    erased = sum(event.erased for event in events.values())
    assert sum(fates(receipt)["erased"] for receipt in receipts) == erased
    assert sum(fates(receipt).get("key still in use", 0) for receipt in receipts) == 0
    assert [len(receipt.keys) for receipt in receipts] == [1] * 4


async def test_a_key_that_is_condemned_takes_no_more_writes_until_it_is_destroyed(
    user: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await user.set("email", SECRET)
    fabric = await user._fabric()

    async def dies(self: Keys, stored: Any) -> None:
        raise UnavailableError("the eraser died here")

    memory = Memory(user._fabric)
    with monkeypatch.context() as patch:
        patch.setattr(Keys, "destroy", dies)
        with pytest.raises(UnavailableError, match="died here"):
            await memory.erase(scope="session", scope_id="user-1")
    (stored,) = await fabric.keys.stored([">"])
    assert all(await fabric.log.last(condemnations(fabric, stored.key.fingerprint, "scope")))
    with monkeypatch.context() as patch:
        patch.setattr(fabric.log, "timeout", 0.3)
        with pytest.raises(UnavailableError, match="agentfield erase"):
            await user.set("email", "late")
    waiting = asyncio.create_task(user.set("email", "late"))
    receipt = await memory.erase(scope="session", scope_id="user-1")
    assert fates(receipt) == {"erased": 1}
    await waiting
    assert await user.get("email") == "late"


# -- the receipt ------------------------------------------------------------------------------------------------------


async def test_the_receipt_is_an_entry_without_personal_data_and_outlives_other_erasures(user: Memory) -> None:
    memory = Memory(user._fabric)
    revision = await user.set("email", SECRET)
    receipt = await memory.erase(scope="session", scope_id="user-1", by="Grace", sign=lambda data: str(len(data)))
    stored = await memory.get(f"erasure_receipt_{receipt.id}", scope="global", as_type=ErasureReceipt)
    assert stored == receipt
    assert (stored.by, stored.erased, stored.covered) == ("Grace", "session:user-1", 1)
    assert (stored.tallies[0].first, stored.tallies[0].last) == (revision, revision)
    unsigned = receipt.model_dump(mode="json", exclude={"signature"})
    assert receipt.signature == str(len(json.dumps(unsigned, separators=(",", ":"), ensure_ascii=False).encode()))
    assert SECRET not in receipt.model_dump_json()
    await memory.set_personal(patterns=["*"])
    await memory.erase("e*", scope="global")
    assert await memory.exists(f"erasure_receipt_{receipt.id}", scope="global")


def test_ranges_are_whole_until_there_are_too_many() -> None:
    count = erasing._Count()
    for sequence in [1, 2, 3, 7, 9, 10, *range(100, 100 + 2 * erasing.MAX_RANGES, 2)]:
        count.add(sequence)
    tally = count.tally("erased")
    assert tally.revisions[:4] == [(1, 3), (7, 7), (9, 10), (100, 100)]
    assert (tally.events, tally.first, tally.last) == (6 + erasing.MAX_RANGES, 1, 98 + 2 * erasing.MAX_RANGES)
    assert (len(tally.revisions), tally.complete) == (erasing.MAX_RANGES, False)
