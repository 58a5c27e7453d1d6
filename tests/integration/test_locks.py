"""A lock has one holder at a time, and who has lost it cannot write under it, whatever they believe."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from agentfield import (
    ConflictError,
    Event,
    InvalidInputError,
    Lock,
    LockLostError,
    Memory,
    UnavailableError,
    connect,
)
from agentfield.fabric.appending import Conflict
from agentfield.fabric.fabric import Fabric
from agentfield.memory import writes
from tests.support import NatsServer, eventually
from tests.support.running import program
from tests.support.wire import wire

Connect = Callable[[], Awaitable[Memory]]


@pytest.fixture
async def another(server: NatsServer, namespace: str) -> AsyncIterator[Connect]:
    """Return a function that gives memory over a connection of its own."""
    async with AsyncExitStack() as stack:
        yield lambda: stack.enter_async_context(connect(server.url, namespace=namespace))


async def events(memory: Memory, pattern: str = "*") -> list[Event]:
    return [event async for event in memory.history(pattern)]


def now() -> float:
    return asyncio.get_running_loop().time()


# -- one holder -------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
async def test_a_lock_is_held_inside_its_block_and_free_right_after(another: Connect) -> None:
    memory, other = await another(), await another()
    async with memory.lock("name") as lock:
        assert bool(lock.held)
        with pytest.raises(UnavailableError, match="name"):
            await _enter(other.lock("name", timeout=0.2))
        async with other.lock("another name", timeout=1):
            pass
        async with other.lock("name", scope="session", scope_id="s", timeout=1):
            pass
    assert not lock.held
    began = now()
    async with other.lock("name", timeout=1) as later:
        assert now() - began < 0.5
        assert later.token > lock.token
    assert not await events(memory), "locks are not keys"


async def test_processes_that_count_under_a_lock_lose_no_step_and_their_tokens_only_grow(
    server: NatsServer, namespace: str, tmp_path: Path
) -> None:
    processes, steps = 4, 12
    (tmp_path / "count").write_text("0")
    async with AsyncExitStack() as stack:
        running = [
            await stack.enter_async_context(program("counter", server.url, namespace, tmp_path, steps))
            for _ in range(processes)
        ]
        for each in running:
            await each.finish(within=60)
    assert int((tmp_path / "count").read_text()) == processes * steps
    tokens = [int(line) for line in (tmp_path / "tokens").read_text().splitlines()]
    assert len(tokens) == processes * steps
    assert tokens == sorted(set(tokens))


async def test_many_tasks_of_one_process_take_turns(memory: Memory) -> None:
    inside, tokens = 0, []

    async def work() -> None:
        nonlocal inside
        async with memory.lock("name", ttl=2) as lock:
            inside += 1
            assert inside == 1
            await asyncio.sleep(0.001)
            inside -= 1
            tokens.append(lock.token)

    await asyncio.gather(*(work() for _ in range(15)))
    assert tokens == sorted(set(tokens))


async def test_a_lease_is_renewed_while_the_lock_is_held(another: Connect) -> None:
    memory, other = await another(), await another()
    async with memory.lock("name", ttl=2) as lock:
        token = lock.token
        with pytest.raises(UnavailableError):
            await _enter(other.lock("name", timeout=4.5))
        assert lock.held
        assert lock.token == token
        await memory.set("key", 1, fence=lock)


async def test_a_lock_whose_holder_died_is_free_when_its_lease_is_over(
    another: Connect, server: NatsServer, namespace: str
) -> None:
    memory = await another()
    async with program("holder", server.url, namespace, 1.5) as holder:
        token = int(await holder.line())
        await holder.kill()
        died = now()
    async with memory.lock("guard", timeout=10) as lock:
        assert 0.5 < now() - died < 5
        assert lock.token > token


async def test_an_exception_inside_gives_the_lock_back(memory: Memory) -> None:
    async def fail() -> None:
        async with memory.lock("name"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with memory.lock("name", timeout=0.5):
        pass


async def test_a_holder_that_is_cancelled_gives_the_lock_back(memory: Memory) -> None:
    holding = asyncio.Event()

    async def hold() -> None:
        async with memory.lock("name"):
            holding.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await holding.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with memory.lock("name", timeout=0.5):
        pass


async def test_who_waits_may_be_cancelled_and_holds_nothing(another: Connect) -> None:
    memory, other = await another(), await another()
    async with memory.lock("name"):
        waiting = asyncio.create_task(_enter(other.lock("name")))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with memory.lock("name", timeout=0.5):
        pass


async def test_who_is_cancelled_in_the_very_moment_of_taking_it_leaves_it_free(another: Connect) -> None:
    memory, other = await another(), await another()

    async def hold(name: str) -> None:
        async with memory.lock(name, ttl=30):
            await asyncio.Event().wait()

    for number in range(40):
        name = f"name_{number}"
        task = asyncio.create_task(hold(name))
        await asyncio.sleep(number * 0.0001)  # from before the first look to within the block
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with other.lock(name, timeout=2):
            pass


async def test_who_is_cancelled_before_the_server_has_answered_leaves_it_free(
    server: NatsServer, namespace: str, another: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write that takes the lock is stored, and its answer is lost on the way."""
    other = await another()
    async with wire(server.client_port) as cable, connect(cable.url, namespace=namespace) as memory:
        lock = memory.lock("name", ttl=30)
        write = lock._write

        async def write_unheard(expected: int, event_id: str | None = None) -> int:
            cable.lose_answers()
            return await write(expected, event_id)

        monkeypatch.setattr(lock, "_write", write_unheard)
        waiting = asyncio.create_task(lock.__aenter__())
        log = (await other._fabric()).log
        await eventually(lambda: _taken(log, f"{namespace}.locks.global.global.name"), within=5)
        cable.lose_answers(False)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with other.lock("name", timeout=2):
        pass


async def test_giving_back_is_at_once_also_in_the_middle_of_a_renewal(another: Connect) -> None:
    memory, other = await another(), await another()

    async def hold_and_take(name: str) -> float:
        async with memory.lock(name, ttl=1):
            await asyncio.sleep(1 / 3 + random.uniform(-0.002, 0.004))  # when the lease is renewed
        began = now()
        async with other.lock(name, timeout=5):
            return now() - began

    waits = [wait for _ in range(4) for wait in await asyncio.gather(*map(hold_and_take, map(str, range(10))))]
    assert max(waits) < 0.8, "otherwise somebody waited for the end of a lease"


async def test_locks_have_names_like_keys(another: Connect) -> None:
    memory, other = await another(), await another()
    for name in ("a b", "ü/=.x", "_", "a_" * 40, "x" * 512):
        async with memory.lock(name) as lock:
            await memory.set("key", 1, fence=lock)
            with pytest.raises(UnavailableError):
                await _enter(other.lock(name, timeout=0.05))
    for wrong in ("", "a*", "a>", "x" * 513, "a\n"):
        with pytest.raises(InvalidInputError):
            await _enter(memory.lock(wrong))


@pytest.mark.parametrize("options", [{"ttl": 0.5}, {"ttl": 0}, {"ttl": float("nan")}, {"timeout": 0}, {"timeout": -1}])
async def test_impossible_times_are_refused(memory: Memory, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        memory.lock("name", **options)


async def test_a_lock_is_entered_once_and_has_no_token_before(memory: Memory) -> None:
    lock = memory.lock("name")
    with pytest.raises(InvalidInputError):
        lock.token  # noqa: B018
    with pytest.raises(LockLostError):
        await memory.set("key", 1, fence=lock)
    async with lock:
        pass
    with pytest.raises(InvalidInputError):
        await lock.__aenter__()
    with pytest.raises(LockLostError):
        await memory.set("key", 1, fence=lock)
    assert not await events(memory)


# -- fencing ----------------------------------------------------------------------------------------------------------


async def test_a_paused_holder_cannot_write_after_another_has_taken_the_lock(
    server: NatsServer, namespace: str, another: Connect
) -> None:
    """However it was caught: it writes without a pause, so it is stopped at a different place every time."""
    memory = await another()
    for _ in range(3):
        async with program("holder", server.url, namespace, 1.0) as holder:
            token = int(await holder.line())
            await asyncio.sleep(random.uniform(0, 0.4))
            holder.pause()
            async with memory.lock("guard", timeout=10) as lock:
                assert lock.token > token
                mine = await memory.set("guarded", "mine", fence=lock)
                holder.resume()
                assert (await holder.line()).split()[0] == "LockLostError"
                assert await memory.get("guarded") == "mine"
                last = (await events(memory, "guarded"))[-1]
                assert (last.revision, last.data) == (mine, "mine")


async def test_a_paused_holder_whose_lock_nobody_took_cannot_write_either(
    server: NatsServer, namespace: str, another: Connect
) -> None:
    memory = await another()
    async with program("holder", server.url, namespace, 1.0) as holder:
        token = int(await holder.line())
        holder.pause()
        fabric = await memory._fabric()
        subject = f"{namespace}.locks.global.global.guard"

        async def lease_is_over() -> bool:
            (record,) = await fabric.log.last([subject])
            assert record is not None
            return fabric.log.now() > record.timestamp + 1_200_000_000

        await eventually(lease_is_over)
        before = len(await events(memory, "guarded"))
        holder.resume()
        assert (await holder.line()).split() == ["LockLostError", str(token), "None"]
        # What was on its way when it was stopped may still arrive; nothing was begun after its lease.
        assert len(await events(memory, "guarded")) <= before + 1


async def test_the_server_refuses_a_write_of_a_holder_that_believes_in_its_lock(another: Connect) -> None:
    memory, other = await another(), await another()
    async with memory.lock("name", ttl=1) as lock:
        token = lock.token
        await _freeze(lock)
        async with other.lock("name", timeout=5) as theirs:
            lock._until = now() + 60
            assert lock.held, "as far as it knows"
            for expected in (None, 0):
                with pytest.raises(LockLostError) as lost:
                    await memory.set("key", 1, fence=lock, if_revision=expected)
                lock._until = now() + 60
                assert (lost.value.key, lost.value.expected, lost.value.actual) == ("name", token, theirs.token)
        with pytest.raises(LockLostError) as lost:
            await memory.set("key", 1, fence=lock)
        assert (lost.value.expected, lost.value.actual) == (token, None)
        lock._until = 0.0
    assert not await events(memory)


async def test_a_lock_of_another_namespace_is_no_fence(server: NatsServer, namespace: str, memory: Memory) -> None:
    async with connect(server.url, namespace=f"{namespace}-b") as other, other.lock("name") as lock:
        async with asyncio.timeout(5):
            with pytest.raises(InvalidInputError, match=f"namespace '{namespace}-b'.*nothing was written"):
                await memory.set("key", 1, fence=lock)
    assert not await events(memory)


async def test_a_lock_of_another_server_is_no_fence(fresh_server: NatsServer, namespace: str, memory: Memory) -> None:
    async with connect(fresh_server.url, namespace=namespace) as other, other.lock("name") as lock:
        async with asyncio.timeout(5):
            with pytest.raises(InvalidInputError, match=fresh_server.url):
                await memory.set("key", 1, fence=lock)
    assert not await events(memory)


async def test_a_fenced_write_that_is_refused_for_no_reason_ends_in_time(
    server: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(server.url, namespace=namespace, timeout=0.5) as memory, memory.lock("name") as lock:

        async def refuse(*_: Any, **__: Any) -> int:
            raise Conflict(None)

        monkeypatch.setattr(writes, "store_together", refuse)
        async with asyncio.timeout(5):
            with pytest.raises(UnavailableError, match=r"refused for 0\.5 s"):
                await memory.set("key", 1, fence=lock)


async def test_a_fence_and_a_revision_are_both_checked(memory: Memory) -> None:
    async with memory.lock("name") as lock:
        first = await memory.set("key", 1, fence=lock, if_revision=0)
        second = await memory.set("key", 2, fence=lock, if_revision=first)
        with pytest.raises(ConflictError) as conflict:
            await memory.set("key", 3, fence=lock, if_revision=first)
        assert not isinstance(conflict.value, LockLostError)
        assert (conflict.value.key, conflict.value.expected, conflict.value.actual) == ("key", first, second)
        await memory.set("key", 4, fence=lock, ttl=60)
    assert [event.data for event in await events(memory, "key")] == [1, 2, 4]


async def test_no_write_is_refused_because_the_lease_is_being_renewed(memory: Memory) -> None:
    async with memory.lock("name", ttl=2) as lock:
        ends = now() + 3.5
        revisions = set()

        async def write(key: str) -> int:
            revision, count = 0, 0
            while now() < ends:
                # Half of them expect a revision too, so that both reasons for a refusal are told apart.
                expected = revision if count % 2 else None
                revision = await memory.set(key, count, fence=lock, if_revision=expected)
                count += 1
                revisions.add(lock._revision)
            return count

        counts = await asyncio.gather(*(write(f"key_{number}") for number in range(20)))
        assert sum(counts) > 100
        assert len(revisions) > 3, "the lease was renewed meanwhile"


async def test_a_fenced_write_meets_a_renewal_that_we_have_not_heard_of(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    """The log may know of a renewal before its answer reaches us."""
    async with connect(server.url, namespace=namespace) as holder, holder.lock("name", ttl=10) as lock:
        before = lock._revision
        lock._revision = await lock._write(before)
        lock._revision = before
        revision = await holder.set("key", 1, fence=lock)
        assert (await memory.entry("key")).revision == revision  # type: ignore[union-attr]


# -- bad weather ------------------------------------------------------------------------------------------------------


async def test_a_lock_is_kept_while_the_server_restarts(fresh_server: NatsServer, namespace: str) -> None:
    async with (
        connect(fresh_server.url, namespace=namespace) as memory,
        connect(fresh_server.url, namespace=namespace) as other,
        memory.lock("name", ttl=8) as lock,
    ):
        await memory.set("key", 1, fence=lock)
        await fresh_server.restart(gracefully=False)
        await memory.set("key", 2, fence=lock)
        revision = lock._revision
        await eventually(lambda: lock._revision > revision, within=8, what="the lease is renewed")
        with pytest.raises(UnavailableError):
            await _enter(other.lock("name", timeout=0.5))
        await memory.set("key", 3, fence=lock)


async def test_a_holder_cut_off_for_longer_than_its_lease_knows_that_it_has_lost_it(
    server: NatsServer, namespace: str, another: Connect
) -> None:
    other = await another()
    async with (
        wire(server.client_port) as cable,
        connect(cable.url, namespace=namespace, timeout=3) as memory,
        memory.lock("name", ttl=1.2) as lock,
    ):
        cable.lose_answers()
        await eventually(lambda: not lock.held, within=3)
        with pytest.raises(LockLostError):
            await memory.set("key", 1, fence=lock)
        async with other.lock("name", timeout=5) as theirs:
            assert theirs.token > lock.token
            cable.lose_answers(False)
            cable.cut()
            with pytest.raises(LockLostError):
                await memory.set("key", 1, fence=lock)
    async with other.lock("name", timeout=1):
        pass
    assert not await events(other)


async def test_a_renewal_whose_answer_was_lost_costs_nobody_the_lock(server: NatsServer, namespace: str) -> None:
    async with (
        wire(server.client_port) as cable,
        connect(cable.url, namespace=namespace) as memory,
        memory.lock("name", ttl=6) as lock,
    ):
        revision, fabric = lock._revision, await memory._fabric()
        cable.lose_answers()
        async with connect(server.url, namespace=namespace) as observer:
            log = (await observer._fabric()).log
            await eventually(lambda: _renewed(log, lock._subject, revision), within=5, what="a renewal is stored")
        assert lock._revision == revision, "we have not heard of it"
        cable.lose_answers(False)
        cable.cut()
        await fabric.connection.wait_connected(5)
        await memory.set("key", 1, fence=lock)
        assert lock._revision > revision


async def test_what_something_else_wrote_into_a_lock_is_nobody_holding_it(memory: Memory, fabric: Fabric) -> None:
    async with memory.lock("name", ttl=10) as lock:
        await fabric.connection.publish(lock._subject, b"no JSON", {})
        await fabric.connection.flush()
        with pytest.raises(LockLostError):
            await memory.set("key", 1, fence=lock)


async def _enter(lock: Lock) -> None:
    async with lock:
        pass


async def _freeze(lock: Lock) -> None:
    """Keep a lock from renewing its lease, as a pause of the whole process would."""
    assert lock._renewer is not None
    lock._renewer.cancel()
    await asyncio.wait({lock._renewer})


async def _taken(log: Any, subject: str) -> bool:
    (record,) = await log.last([subject])
    return record is not None


async def _renewed(log: Any, subject: str, revision: int) -> bool:
    (record,) = await log.last([subject])
    return bool(record.sequence > revision)
