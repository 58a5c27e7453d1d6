"""A transaction stores all that it writes or nothing, and only if what it read still holds."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from agentfield import ConflictError, InvalidInputError, Memory, OutcomeUnknownError, connect
from agentfield.event import Event, Writer
from agentfield.execution import new_id
from agentfield.fabric.batch import BatchItem, Expectation, append_batch
from agentfield.fabric.fabric import Fabric
from agentfield.header import encode_event
from agentfield.memory.transaction import Transaction
from tests.support import NatsServer, eventually
from tests.support.events import headers, subject, write
from tests.support.running import program
from tests.support.wire import wire

OpenFabric = Callable[..., Awaitable[Fabric]]


async def events(memory: Memory, pattern: str = "*") -> list[Event]:
    return [event async for event in memory.history(pattern)]


async def transact(memory: Memory, body: Callable[[Transaction], Awaitable[None]]) -> Transaction:
    """Run a transaction; return it when it is over."""
    async with memory.transaction() as tx:
        await body(tx)
    return tx


async def length(fabric: Fabric) -> int:
    """How many messages the log holds, of whatever kind."""
    return int((await fabric.log.state())["messages"])


# -- all or nothing ---------------------------------------------------------------------------------------------------


@pytest.mark.smoke
async def test_what_a_transaction_writes_is_there_together_in_every_scope(memory: Memory) -> None:
    await memory.set("old", 1)
    async with memory.transaction() as tx:
        tx.set("a", 1)
        tx.set("b", {"x": None}, scope="session", scope_id="s")
        tx.set("c", 3, scope="workflow", scope_id="w")
        tx.delete("old")
        assert not await memory.exists("a"), "nothing is written before the end of the block"
    assert await memory.get("a") == 1
    assert await memory.get("b", scope="session", scope_id="s") == {"x": None}
    assert await memory.get("c", scope="workflow", scope_id="w") == 3
    assert not await memory.exists("old")
    revisions = [event.revision for event in await events(memory)][1:]
    assert revisions == list(range(revisions[0], revisions[0] + 4)), "one batch, without a gap"
    assert tx.revision == revisions[-1]


async def test_an_exception_inside_stores_nothing_and_is_raised(memory: Memory) -> None:
    begun: list[Transaction] = []

    async def body(tx: Transaction) -> None:
        begun.append(tx)
        tx.set("a", 1, ttl=5)
        await tx.get("a")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await transact(memory, body)
    assert not await events(memory)
    assert begun[0].revision is None


async def test_what_is_refused_inside_leaves_nothing_behind(memory: Memory) -> None:
    cases: list[dict[str, Any]] = [
        {"key": "", "value": 1},
        {"key": "a", "value": object()},
        {"key": "a", "value": 1, "ttl": -1},
        {"key": "a", "value": 1, "scope": "planet"},
        {"key": "a", "value": 1, "scope": "workflow"},
    ]
    for wrong in cases:

        async def body(tx: Transaction, wrong: dict[str, Any] = wrong) -> None:
            tx.set("fine", 1)
            tx.set(**wrong)

        with pytest.raises(InvalidInputError):
            await transact(memory, body)
    assert not await events(memory)


async def test_a_transaction_of_one_key_and_one_of_none(memory: Memory) -> None:
    async with memory.transaction() as tx:
        tx.set("a", 1)
    assert (await memory.entry("a")).revision == tx.revision  # type: ignore[union-attr]
    async with memory.transaction() as tx:
        pass
    assert tx.revision is None
    assert len(await events(memory)) == 1


async def test_the_last_of_several_writes_of_a_key_is_the_one_that_is_stored(memory: Memory) -> None:
    async with memory.transaction() as tx:
        tx.set("a", 1)
        tx.set("b", 1)
        tx.set("a", 2)
        tx.delete("b")
    assert [(event.key, event.operation, event.data) for event in await events(memory)] == [
        ("a", "set", 2),
        ("b", "delete", None),
    ]


async def test_a_transaction_works_inside_its_block_and_only_there(memory: Memory) -> None:
    tx = memory.transaction()
    with pytest.raises(InvalidInputError):
        tx.set("a", 1)
    async with tx:
        tx.set("a", 1)
    with pytest.raises(InvalidInputError):
        tx.set("a", 2)
    with pytest.raises(InvalidInputError):
        await tx.get("a")
    with pytest.raises(InvalidInputError):
        await tx.__aenter__()


async def test_after_a_conflict_the_transaction_is_over_too(memory: Memory) -> None:
    begun: list[Transaction] = []

    async def body(tx: Transaction) -> None:
        begun.append(tx)
        tx.set("b", await tx.get("a"))
        await memory.set("a", 1)

    with pytest.raises(ConflictError):
        await transact(memory, body)
    with pytest.raises(InvalidInputError):
        begun[0].set("a", 2)


# -- what it reads ----------------------------------------------------------------------------------------------------


async def test_its_own_writes_are_what_it_reads(memory: Memory) -> None:
    await memory.set("here", "global")
    async with memory.transaction() as tx:
        tx.set("a", [1])
        mine = await tx.get("a")
        mine.append(2)
        assert await tx.get("a") == [1], "what a reader does to a value is not a write"
        tx.set("here", "session", scope="session", scope_id="s")
        assert await tx.get("here", scope="session", scope_id="s") == "session"
        assert await tx.get("here") == "global"
        tx.delete("here")
        assert await tx.get("here", "gone") == "gone"
        assert not await tx.exists("here")
        assert await tx.get("a", as_type=list[int]) == [1]
    assert await memory.get("a") == [1]


async def test_an_unscoped_read_finds_what_memory_finds(server: NatsServer, namespace: str) -> None:
    async with connect(server.url, namespace=namespace, actor_id="me") as memory:
        await memory.set("key", "actor", scope="actor")
        await memory.set("key", "global", scope="global")
        async with memory.transaction() as tx:
            assert await tx.get("key") == "actor"
            tx.delete("key", scope="actor")
            assert await tx.get("key") == "global", "its own delete uncovers the next scope"
        assert await memory.get("key") == "global"


@pytest.mark.parametrize("change", ["set", "same value", "delete", "delete and set"])
async def test_a_key_that_was_read_and_has_changed_since_stops_the_commit(memory: Memory, change: str) -> None:
    first = await memory.set("read", 1)

    async def body(tx: Transaction) -> None:
        assert await tx.get("read") == 1
        tx.set("written", 2, ttl=5)
        if "delete" in change:
            await memory.delete("read")
        if change != "delete":
            await memory.set("read", 1 if change == "same value" else 3)

    with pytest.raises(ConflictError) as conflict:
        await transact(memory, body)
    history = await events(memory, "read")
    assert (conflict.value.key, conflict.value.expected, conflict.value.actual) == ("read", first, history[-1].revision)
    assert not await memory.exists("written")


async def test_absence_is_checked_too(memory: Memory) -> None:
    async def body(tx: Transaction) -> None:
        assert await tx.get("absent") is None
        tx.set("written", 1)
        await memory.set("absent", 1)

    with pytest.raises(ConflictError) as conflict:
        await transact(memory, body)
    assert (conflict.value.key, conflict.value.expected) == ("absent", 0)
    assert not await memory.exists("written")
    await memory.delete("absent")
    async with memory.transaction() as tx:
        assert await tx.get("absent") is None
        tx.set("written", 1)
    assert await memory.get("written") == 1


async def test_every_scope_that_an_unscoped_read_passed_is_checked(server: NatsServer, namespace: str) -> None:
    async with connect(server.url, namespace=namespace, actor_id="me") as memory:
        await memory.set("key", "global", scope="global")

        async def body(tx: Transaction) -> None:
            assert await tx.get("key") == "global"
            tx.set("written", 1)
            await memory.set("key", "actor", scope="actor")

        with pytest.raises(ConflictError):
            await transact(memory, body)
        assert not await memory.exists("written")


async def test_a_value_that_ran_out_before_the_commit_stops_it(memory: Memory) -> None:
    await memory.set("read", 1, ttl=0.3)
    for writes in (True, False):
        await memory.set("read", 1, ttl=0.3)

        async def body(tx: Transaction, writes: bool = writes) -> None:
            assert await tx.get("read") == 1
            if writes:
                tx.set("written", 1)
            await eventually(lambda: _absent(memory, "read"))

        with pytest.raises(
            ConflictError, match=r"'read' is at revision .* still, but its value has expired"
        ) as conflict:
            await transact(memory, body)
        revision = conflict.value.expected
        assert (conflict.value.key, conflict.value.actual) == ("read", revision), "nothing was written after it"
    assert not await memory.exists("written")


@pytest.mark.parametrize("stale", [0, 7, 19])
async def test_more_reads_than_writes_are_all_checked(memory: Memory, stale: int) -> None:
    for number in range(0, 20, 2):
        await memory.set(f"key_{number}", number)

    async def attempt(disturb: bool) -> None:
        async with memory.transaction() as tx:
            for number in range(20):
                assert await tx.get(f"key_{number}") == (None if number % 2 else number)
            tx.set("written", 1)
            if disturb:
                await memory.set(f"key_{stale}", "changed")

    await attempt(disturb=False)
    await memory.delete("written")
    with pytest.raises(ConflictError) as conflict:
        await attempt(disturb=True)
    assert conflict.value.key == f"key_{stale}"
    assert not await memory.exists("written")
    assert {event.key for event in await events(memory)} <= {"written", *(f"key_{number}" for number in range(20))}


async def test_a_read_only_transaction_saw_one_state_or_says_that_it_did_not(memory: Memory, fabric: Fabric) -> None:
    await memory.set_many({"a": 1, "b": 1})
    before = await length(fabric)
    async with memory.transaction() as tx:
        assert (await tx.get("a"), await tx.get("b")) == (1, 1)
    assert await length(fabric) == before

    async def body(tx: Transaction) -> None:
        await tx.get("a")
        await memory.set_many({"a": 2, "b": 2})
        await tx.get("b")

    with pytest.raises(ConflictError) as conflict:
        await transact(memory, body)
    assert conflict.value.key == "a"


async def test_tasks_that_read_a_key_at_once_agree_on_what_was_read(memory: Memory) -> None:
    stop = asyncio.Event()

    async def disturb() -> None:
        while not stop.is_set():
            await memory.increment("key")

    await memory.set("key", 0)
    disturbing = asyncio.create_task(disturb())
    committed = 0
    for _ in range(50):
        values: list[int] = []
        try:
            async with memory.transaction() as tx:
                values = await asyncio.gather(*(tx.get("key") for _ in range(5)))
                tx.set("copy", values[0])
        except ConflictError:
            pass
        else:
            committed += 1
        assert len(set(values)) == 1
    stop.set()
    await disturbing


# -- limits -----------------------------------------------------------------------------------------------------------


async def test_a_thousand_operations_are_stored_and_one_more_is_refused_with_the_limit(
    memory: Memory, fabric: Fabric
) -> None:
    async with memory.transaction() as tx:
        for number in range(1000):
            tx.set(f"key_{number}", number)
    assert await length(fabric) == 1000

    async def body(tx: Transaction) -> None:
        for number in range(1001):
            tx.set(f"key_{number}", number)

    with pytest.raises(InvalidInputError, match="1000"):
        await transact(memory, body)
    with pytest.raises(InvalidInputError, match="1000"):
        await memory.set_many({f"key_{number}": number for number in range(1001)})
    assert await length(fabric) == 1000


async def test_reads_count_where_they_need_a_message_of_their_own(memory: Memory, fabric: Fabric) -> None:
    async def body(tx: Transaction) -> None:
        for start_at in range(0, 1001, 100):
            await asyncio.gather(*(tx.get(f"key_{number}") for number in range(start_at, start_at + 100)))
        tx.set("written", 1, ttl=60)

    with pytest.raises(InvalidInputError, match="1000"):
        await transact(memory, body)
    assert await length(fabric) == 0
    assert not await timers(fabric), "nothing at all was sent"
    async with memory.transaction() as tx:
        await asyncio.gather(*(tx.get(f"key_{number}") for number in range(500)))
        for number in range(1000):
            tx.set(f"key_{number}", number)
    assert await length(fabric) == 1000


async def test_values_that_fill_many_megabytes_are_stored_together(memory: Memory) -> None:
    values = {f"key_{number}": "x" * 200_000 for number in range(200)}
    await memory.set_many(values)
    assert len([key async for key in memory.keys()]) == 200
    assert await memory.get("key_199") == values["key_199"]


async def test_set_many_stores_all_or_nothing(memory: Memory, fabric: Fabric) -> None:
    revision = await memory.set_many({"a": 1, "b": [2]}, scope="session", scope_id="s")
    assert await memory.get_many(["a", "b"], scope="session", scope_id="s") == {"a": 1, "b": [2]}
    assert revision == 2
    for wrong in ({}, {"c": 1, "": 2}, {"c": 1, "d": object()}, {"c": 1, "d*": 2}):
        with pytest.raises(InvalidInputError):
            await memory.set_many(wrong)
    assert await length(fabric) == 2


# -- bad weather ------------------------------------------------------------------------------------------------------


async def test_a_process_killed_inside_a_transaction_has_stored_nothing(
    memory: Memory, server: NatsServer, namespace: str
) -> None:
    await memory.set("third", 3)
    async with program("undecided", server.url, namespace) as undecided:
        await undecided.kill()
    assert len(await events(memory)) == 1
    async with memory.transaction() as tx:
        tx.set("first", await tx.get("first", 0) + 1)
    assert await memory.get("first") == 1


async def test_a_batch_that_never_came_to_its_end_is_not_stored_and_holds_up_nobody(
    server: NatsServer, open_fabric: OpenFabric, memory: Memory
) -> None:
    dying = await open_fabric(server)
    for number in range(1, 6):
        batch = {"Nats-Batch-Id": "unfinished", "Nats-Batch-Sequence": str(number)}
        await dying.connection.publish(subject(dying, f"key.{number}"), b"1", headers() | batch)
    await dying.connection.flush()
    await dying.aclose()
    assert not await events(memory)
    assert await memory.set_many({f"key_{number}": number for number in range(6)}) == 6


@pytest.mark.parametrize("checked", [True, False], ids=["with expectations", "without"])
async def test_a_wire_cut_anywhere_in_a_commit_stores_all_of_it_once(
    server: NatsServer, namespace: str, open_fabric: OpenFabric, checked: bool
) -> None:
    """Cut while the batch is on its way, at every place: the retry mends it, and stores nothing twice."""
    size, cuts = 5, 24
    fabric = await open_fabric(server)

    async def one(number: int, after: int) -> None:
        async with wire(server.client_port) as cutting:
            own = await Fabric.open(cutting.url, namespace=namespace, name="cut")
            try:
                items = _items(own, f"batch{number}", size, expected=0 if checked else None)
                cutting.cut_after(after)
                last = await append_batch(own.log, items)
                assert cutting.cuts == 1
            finally:
                await own.aclose()
        found = [record async for record in fabric.log.read([subject(fabric, f"batch{number}.>")])]
        assert [record.payload for record in found] == [str(each).encode() for each in range(size)]
        assert [record.sequence for record in found] == list(range(last - size + 1, last + 1))

    whole = sum(len(item.payload) + len(str(item.headers)) + 150 for item in _items(fabric, "batch00", size))
    step = whole // cuts
    for start_at in range(0, cuts, 8):
        await asyncio.gather(*(one(number, 1 + number * step) for number in range(start_at, start_at + 8)))


async def test_a_commit_whose_answer_is_lost_finds_that_it_was_stored(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    async with wire(server.client_port) as deaf, connect(deaf.url, namespace=namespace) as far:
        await far.set("read", 1)
        async with far.transaction() as tx:
            assert await tx.get("read") == 1
            tx.set("read", 2)
            tx.set("written", 2)
            deaf.lose_answers()
            committing = asyncio.create_task(_exit(tx))
            await eventually(lambda: memory.exists("written"))
            # Somebody else writes both keys before the retry.
            await memory.set_many({"read": 3, "written": 3})
            deaf.lose_answers(False)
            await committing
        assert tx.revision == 3
    assert [(event.key, event.data) for event in await events(memory)] == [
        ("read", 1), ("read", 2), ("written", 2), ("read", 3), ("written", 3)
    ]  # fmt: skip


async def test_a_commit_that_is_never_answered_is_open_and_repeating_it_stores_it_once(
    server: NatsServer, namespace: str, open_fabric: OpenFabric
) -> None:
    fabric = await open_fabric(server)
    items = _items(fabric, "batch", 3, expected=0)
    async with wire(server.client_port) as deaf:
        own = await Fabric.open(deaf.url, namespace=namespace, name="deaf", timeout=0.5)
        deaf.lose_answers()
        with pytest.raises(OutcomeUnknownError) as unknown:
            await append_batch(own.log, items)
        assert unknown.value.event_id == items[-1].headers["Nats-Msg-Id"]
        deaf.lose_answers(False)
        deaf.cut()
        await own.aclose()
    await eventually(lambda: _last(fabric, "batch.2"))
    assert await append_batch(fabric.log, items) == 3
    await write(fabric, "batch.2")
    assert await append_batch(fabric.log, items) == 3
    assert await length(fabric) == 4


async def test_a_transaction_of_unknown_outcome_is_repeated_by_its_id_and_stored_once(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    async def buy(tx: Transaction) -> None:
        stock = await tx.get("stock")
        if stock:
            tx.set("stock", stock - 1)
            tx.set("order", "placed")
        else:
            tx.set("order", "refused")
            tx.set("waiting", True)

    await memory.set("stock", 1)
    async with wire(server.client_port) as deaf, connect(deaf.url, namespace=namespace, timeout=0.5) as far:

        async def buy_unheard(tx: Transaction) -> None:
            await buy(tx)
            deaf.lose_answers()

        with pytest.raises(OutcomeUnknownError, match=r"memory\.transaction\(event_id=") as unknown:
            await transact(far, buy_unheard)
        deaf.lose_answers(False)
    await eventually(lambda: memory.exists("order"))
    for written in (False, True):
        if written:
            await memory.set("order", "shipped")
        # The block finds what the first time has led to, and so writes other keys; none of that is stored.
        async with memory.transaction(event_id=unknown.value.event_id) as tx:
            await buy(tx)
        assert tx.revision == 3
    assert [(event.key, event.data) for event in await events(memory)] == [
        ("stock", 1), ("stock", 0), ("order", "placed"), ("order", "shipped")
    ]  # fmt: skip


async def test_a_transaction_that_was_not_stored_is_stored_when_it_is_repeated(memory: Memory) -> None:
    for _ in range(2):
        async with memory.transaction(event_id="transfer-1") as tx:
            tx.set("a", 1)
            tx.set("b", 2)
        assert tx.revision == 2
    async with memory.transaction(event_id="transfer-2") as tx:
        tx.set("a", 3)
    async with memory.transaction(event_id="transfer-2") as tx:
        tx.set("b", 4)
    assert (tx.revision, len(await events(memory))) == (3, 3)
    with pytest.raises(InvalidInputError, match="event_id=7 is not"):
        memory.transaction(event_id=7)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="repeat it without event_id"):
        memory.transaction(once=True, event_id="transfer-3")


async def test_a_write_of_a_transaction_that_is_awaited(memory: Memory) -> None:
    async def write(name: str, *arguments: Any) -> None:
        async with memory.transaction() as tx:
            await getattr(tx, name)(*arguments)

    for name, arguments in {"set": ("key", 1), "delete": ("key",)}.items():
        with pytest.raises(InvalidInputError, match=r"not awaited: .* leave the await out"):
            await write(name, *arguments)
    assert not await memory.exists("key")


async def test_part_of_a_batch_stored_before_is_not_taken_for_all_of_it(fabric: Fabric) -> None:
    stored = _items(fabric, "batch", 1)
    await append_batch(fabric.log, stored)
    async with asyncio.timeout(5):  # the server never takes it, so it is not tried until the time is over
        with pytest.raises(InvalidInputError, match="was used for another write, revision 1: nothing was written"):
            await append_batch(fabric.log, [*stored, *_items(fabric, "other", 1)])
    assert await length(fabric) == 1


# -- the bank ---------------------------------------------------------------------------------------------------------

ACCOUNTS, EACH = 10, 100


@pytest.mark.slow
async def test_money_moved_by_transactions_of_clients_that_are_killed_at_random_is_never_made_or_lost(
    fresh_server: NatsServer, namespace: str
) -> None:
    """Twenty clients in four processes, each killed and started again, and the server once, too."""
    seconds = 10.0
    arguments = ("clients", fresh_server.url, namespace, ACCOUNTS, 5)
    async with AsyncExitStack() as stack:
        memory = await stack.enter_async_context(connect(fresh_server.url, namespace=namespace))
        await memory.set_many({f"account_{number}": EACH for number in range(ACCOUNTS)})
        running = [await stack.enter_async_context(program(*arguments)) for _ in range(4)]
        ends = asyncio.get_running_loop().time() + seconds
        looks = asyncio.create_task(_look(memory, ends))
        restarted, kills = False, 0
        while (now := asyncio.get_running_loop().time()) < ends or kills < 4:
            await asyncio.wait({looks}, timeout=random.uniform(0.3, 0.8))
            victim = running.pop(0)
            await victim.kill()
            kills += 1
            running.append(await stack.enter_async_context(program(*arguments)))
            if not restarted and now > ends - seconds / 2:
                restarted = True
                await fresh_server.restart(gracefully=False)
        assert restarted
        for each in running:
            await each.kill()
        assert await looks > 10
        history = await events(memory, "account_*")
    balances: dict[str, int] = {}
    for index, event in enumerate(history):
        balances[event.key] = event.data
        assert event.data >= 0
        if index + 1 >= ACCOUNTS and (index + 1 - ACCOUNTS) % 2 == 0:
            assert sum(balances.values()) == ACCOUNTS * EACH, f"at revision {event.revision}"
    assert len(history) > 200


async def _look(memory: Memory, ends: float) -> int:
    """Sum up all accounts in read-only transactions until the time is over; return how often that succeeded."""
    looks = 0
    while asyncio.get_running_loop().time() < ends:
        try:
            async with memory.transaction() as tx:
                balances = await asyncio.gather(*(tx.get(f"account_{number}") for number in range(ACCOUNTS)))
        except ConflictError:
            continue
        assert sum(balances) == ACCOUNTS * EACH
        looks += 1
    return looks


def _items(fabric: Fabric, name: str, size: int, *, expected: int | None = None) -> list[BatchItem]:
    items = []
    for number in range(size):
        key = subject(fabric, f"{name}.{number}")
        expectation = None if expected is None else Expectation(key, expected)
        event = encode_event(event_id=new_id(), operation="set", writer=Writer())
        items.append(BatchItem(key, str(number).encode(), event, expectation))
    return items


async def _exit(tx: Any) -> None:
    await tx.__aexit__(None, None, None)


async def _last(fabric: Fabric, tokens: str) -> bool:
    return await fabric.log.last([subject(fabric, tokens)]) != [None]


async def _absent(memory: Memory, key: str) -> bool:
    return not await memory.exists(key)


async def timers(fabric: Fabric) -> set[str]:
    """The names of the keys' timers, waiting or due."""
    return await fabric.timers.names("key")
