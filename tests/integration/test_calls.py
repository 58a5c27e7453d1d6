"""Calls over the wire: found or not, alive or dead, and never lost to a restart."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import nats
import nats.micro.service
import pytest
from nats.micro.request import Request

from agentfield import (
    AccessDeniedError,
    AgentUnavailableError,
    ClosedError,
    InvalidInputError,
    NotFoundError,
    OutcomeUnknownError,
    RemoteError,
)
from agentfield.execution import Execution, root
from agentfield.fabric.calling.calls import Calls
from agentfield.fabric.calling.micro import Endpoint, find_all
from agentfield.fabric.calling.offer import Offer
from agentfield.fabric.calling.protocol import ArgumentsRefused, call_subject
from agentfield.fabric.calling.service import Service
from agentfield.fabric.wire.connection import Connection
from agentfield.fabric.wire.message import Message
from tests.support import NatsServer, eventually

Handler = Callable[[bytes], Awaitable[bytes]]


class Unspeakable(Exception):
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Net:
    """Connections, services and callers of one namespace, all closed at the end."""

    def __init__(self, url: str, namespace: str, stack: AsyncExitStack) -> None:
        self.url = url
        self.namespace = namespace
        self._stack = stack

    async def connection(self, *, namespace: str | None = None) -> Connection:
        connection = await Connection.open(self.url, namespace=namespace or self.namespace, name="test")
        self._stack.push_async_callback(connection.aclose)
        return connection

    async def service(
        self, agent: str, *, limit: int = 1_000, namespace: str | None = None, **handlers: Handler
    ) -> Service:
        connection = await self.connection(namespace=namespace)

        async def run(name: str, payload: bytes, execution: Execution | None) -> bytes:
            return await handlers[name](payload)

        service = Service(
            connection,
            name=agent,
            version="1.2.3",
            description="for a test",
            endpoints=[
                Endpoint(name, call_subject(connection.namespace, agent, name), {"schema": "{}"}) for name in handlers
            ],
            runner=run,
            limit=limit,
        )
        await service.start()
        self._stack.push_async_callback(service.drain, 0.0)
        return service

    async def calls(self, *, silence: float = 10.0) -> Calls:
        calls = Calls(await self.connection(), silence=silence)
        self._stack.push_async_callback(calls.aclose)
        return calls


@asynccontextmanager
async def net_on(url: str, namespace: str) -> AsyncIterator[Net]:
    async with AsyncExitStack() as stack:
        yield Net(url, namespace, stack)


@pytest.fixture
async def net(server: NatsServer, namespace: str) -> AsyncIterator[Net]:
    async with net_on(server.url, namespace) as net:
        yield net


async def call(calls: Calls, target: str, payload: bytes = b"{}", *, timeout: float = 30.0) -> bytes:
    agent, _, reasoner = target.partition(".")
    return await calls.call(agent, reasoner, payload, execution=root(agent, None), timeout=timeout)


async def test_a_call_that_the_server_does_not_permit_says_so_at_once(
    start_server: Callable[..., NatsServer], namespace: str
) -> None:
    rules = f'{{publish: {{deny: "{call_subject(namespace, "Stock", "*")}"}}}}'
    users = f"[{{user: whole, password: secret}}, {{user: part, password: secret, permissions: {rules}}}]"
    server = start_server(extra=f"authorization {{ users: {users} }}\n")
    async with (
        net_on(server.url.replace("//", "//whole:secret@"), namespace) as theirs,
        net_on(server.url.replace("//", "//part:secret@"), namespace) as ours,
        asyncio.timeout(5),
    ):
        await theirs.service("Stock", count=echo)
        with pytest.raises(AccessDeniedError, match="nothing ran") as denied:
            await call(await ours.calls(), "Stock.count")
        assert denied.value.subject == call_subject(namespace, "Stock", "count")


async def echo(payload: bytes) -> bytes:
    return payload


class Gate:
    """A handler that waits until it is opened, and counts."""

    def __init__(self) -> None:
        self.entered = 0
        self.cancelled = 0
        self._open = asyncio.Event()

    async def __call__(self, payload: bytes) -> bytes:
        self.entered += 1
        try:
            await self._open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return payload

    def open(self) -> None:
        self._open.set()


@pytest.mark.smoke
async def test_a_call_brings_the_result(net: Net) -> None:
    await net.service("stock", check=echo)
    assert await call(await net.calls(), "stock.check", b'{"order":1}') == b'{"order":1}'


async def test_a_result_that_arrived_is_acknowledged_and_holds_no_stop_up(net: Net) -> None:
    service = await net.service("stock", check=echo)
    await call(await net.calls(), "stock.check")
    began = time.monotonic()
    await service.drain(10.0)
    assert time.monotonic() - began < 1


async def test_a_result_waits_for_a_caller_who_does_not_listen_at_the_moment(net: Net) -> None:
    callee, caller = await net.connection(), await net.connection()
    arrived: list[Message] = []

    async def listen(message: Message) -> None:
        arrived.append(message)
        await caller.publish(message.reply)

    tried = 0

    def hurried() -> bool:
        nonlocal tried
        tried += 1
        return False

    offer = Offer(f"{net.namespace}.inbox", b"7", {"A": "b"}, 30.0)
    made = asyncio.create_task(offer.made(callee, hurried=hurried))
    await eventually(lambda: tried >= 2)
    await caller.subscribe(offer.subject, listen)
    assert await asyncio.wait_for(made, 10) is None
    assert [(message.payload, message.headers["A"]) for message in arrived] == [(b"7", "b")]


async def test_a_result_for_a_caller_that_is_gone_is_dropped_soon_when_there_is_a_hurry(net: Net) -> None:
    offer = Offer(f"{net.namespace}.inbox", b"7", {}, 30.0)
    reason = await asyncio.wait_for(offer.made(await net.connection(), hurried=lambda: True), 10)
    assert reason is not None
    assert "does not listen" in reason


async def test_an_unknown_agent_is_reported_at_once(net: Net) -> None:
    calls = await net.calls()
    began = time.monotonic()
    with pytest.raises(AgentUnavailableError, match="'nobody'") as caught:
        await call(calls, "nobody.check")
    assert time.monotonic() - began < 1
    assert (caught.value.agent, caught.value.started) == ("nobody", False)


async def test_an_agent_of_another_namespace_does_not_count(net: Net, namespace: str) -> None:
    await net.service("stock", namespace=f"{namespace}-b"[-32:], check=echo)
    calls = await net.calls()
    began = time.monotonic()
    with pytest.raises(AgentUnavailableError, match="no agent 'stock' is running"):
        await call(calls, "stock.check")
    assert time.monotonic() - began < 1


async def test_an_unknown_reasoner_is_reported_with_those_there_are(net: Net) -> None:
    await net.service("stock", check=echo, order=echo)
    with pytest.raises(NotFoundError, match="it has check, order"):
        await call(await net.calls(), "stock.chekc")


async def test_refused_arguments_are_an_input_error_and_a_raised_error_a_remote_one(net: Net) -> None:
    async def refuse(payload: bytes) -> bytes:
        raise ArgumentsRefused("argument 'x' is missing")

    async def fail(payload: bytes) -> bytes:
        raise LookupError("no such order")

    async def leave(payload: bytes) -> bytes:
        raise SystemExit(3)

    async def stammer(payload: bytes) -> bytes:
        raise Unspeakable

    await net.service("stock", refuse=refuse, fail=fail, leave=leave, stammer=stammer)
    calls = await net.calls()
    with pytest.raises(InvalidInputError, match="argument 'x' is missing"):
        await call(calls, "stock.refuse")
    execution = root("stock", None)
    with pytest.raises(RemoteError) as caught:
        await calls.call("stock", "fail", b"{}", execution=execution, timeout=5)
    error = caught.value
    assert (error.type_name, error.remote_message, error.agent, error.reasoner, error.execution_id) == (
        "LookupError",
        "no such order",
        "stock",
        "fail",
        execution.execution_id,
    )
    with pytest.raises(RemoteError, match="SystemExit"):
        await call(calls, "stock.leave")
    with pytest.raises(RemoteError, match=r"raised Unspeakable: .*cannot say what it is about"):
        await call(calls, "stock.stammer")


async def test_calls_of_one_endpoint_run_concurrently(net: Net) -> None:
    gate = Gate()
    await net.service("stock", check=gate)
    calls = await net.calls()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(100):
            tasks.create_task(call(calls, "stock.check"))
        await eventually(lambda: gate.entered == 100)
        gate.open()


async def test_more_calls_than_an_instance_takes_are_refused_as_busy(net: Net) -> None:
    gate = Gate()
    await net.service("stock", limit=2, check=gate)
    calls = await net.calls()
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(call(calls, "stock.check")) for _ in range(2)]
        await eventually(lambda: gate.entered == 2)
        with pytest.raises(AgentUnavailableError, match="busy") as caught:
            await call(calls, "stock.check")
        assert not caught.value.started
        gate.open()
    assert [task.result() for task in running] == [b"{}"] * 2


async def test_two_instances_share_the_calls(net: Net) -> None:
    seen = {"a": 0, "b": 0}

    def instance(name: str) -> Handler:
        async def handle(payload: bytes) -> bytes:
            seen[name] += 1
            return name.encode()

        return handle

    await net.service("stock", check=instance("a"))
    await net.service("stock", check=instance("b"))
    calls = await net.calls()
    await asyncio.gather(*(call(calls, "stock.check") for _ in range(200)))
    assert seen["a"] + seen["b"] == 200
    assert min(seen.values()) > 20


async def test_a_graceful_stop_under_load_loses_no_call(net: Net) -> None:
    handled: list[bytes] = []

    async def handle(payload: bytes) -> bytes:
        await asyncio.sleep(0.002)  # work, so that calls are in progress at any time
        handled.append(payload)
        return payload

    first = await net.service("stock", check=handle)
    calls = await net.calls()
    results: list[bytes] = []
    stop = asyncio.Event()

    async def load(worker: int) -> None:
        number = 0
        while not stop.is_set():
            payload = b"%d.%d" % (worker, number)
            assert await call(calls, "stock.check", payload) == payload
            results.append(payload)
            number += 1

    async with asyncio.TaskGroup() as tasks:
        for worker in range(32):
            tasks.create_task(load(worker))
        running = first
        for _ in range(5):
            goal = len(results) + 200
            successor = await net.service("stock", check=handle)
            await running.drain(10.0)
            running = successor
            await eventually(lambda goal=goal: len(results) >= goal, within=20)  # type: ignore[misc]
        stop.set()
    assert sorted(results) == sorted(handled)
    assert len(set(results)) == len(results)


async def test_calls_cut_off_by_the_grace_period_tell_their_callers(net: Net) -> None:
    gate = Gate()
    service = await net.service("stock", check=gate)
    calls = await net.calls()
    pending = asyncio.create_task(call(calls, "stock.check"))
    await eventually(lambda: gate.entered)
    await service.drain(0.05)
    with pytest.raises(AgentUnavailableError, match="stopped before") as caught:
        await pending
    assert caught.value.started
    assert gate.cancelled == 1


async def test_a_cancelled_caller_cancels_the_callee(net: Net) -> None:
    gate = Gate()
    service = await net.service("stock", check=gate)
    pending = asyncio.create_task(call(await net.calls(), "stock.check"))
    await eventually(lambda: gate.entered)
    pending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pending
    await eventually(lambda: gate.cancelled == 1)
    await eventually(lambda: service.running == 0)


async def test_a_call_over_its_time_is_reported_as_unknown_and_goes_on(net: Net) -> None:
    gate = Gate()
    service = await net.service("stock", check=gate)
    execution = root("stock", None)
    with pytest.raises(OutcomeUnknownError, match="may still be running") as caught:
        await (await net.calls()).call("stock", "check", b"{}", execution=execution, timeout=0.3)
    assert caught.value.execution_id == execution.execution_id
    assert service.running == 1
    gate.open()
    await eventually(lambda: service.running == 0)
    assert gate.cancelled == 0


async def test_a_long_call_lives_by_its_heartbeats(net: Net) -> None:
    gate = Gate()
    await net.service("stock", check=gate)
    calls = await net.calls(silence=1.5)
    began = time.monotonic()
    pending = asyncio.create_task(call(calls, "stock.check", b"{}"))
    await eventually(lambda: time.monotonic() - began > 4, within=10)
    assert not pending.done()
    gate.open()
    assert await pending == b"{}"


async def test_a_callee_that_falls_silent_is_taken_for_dead(net: Net) -> None:
    """Here a plain NATS subscriber that takes the request and never says a word."""
    connection = await net.connection()
    taken: list[bytes] = []

    async def take(message: object) -> None:
        taken.append(b"")

    await connection.subscribe(call_subject(net.namespace, "stock", "check"), take, queue="q")
    await connection.flush()
    execution = root("stock", None)
    with pytest.raises(AgentUnavailableError, match="did not confirm") as caught:
        await (await net.calls(silence=0.5)).call("stock", "check", b"{}", execution=execution, timeout=30)
    assert taken
    assert (caught.value.started, caught.value.execution_id) == (True, execution.execution_id)


async def test_a_service_written_with_any_nats_library_can_be_called(net: Net) -> None:
    client = await nats.connect(net.url)
    try:
        service = await nats.micro.add_service(client, name="stock", version="0.0.1", metadata={})

        async def handle(request: Request) -> None:
            if request.data == b"{}":
                await request.respond_error("507", "no room")
            else:
                await request.respond(b"[" + request.data + b"]")

        await service.add_endpoint(name="check", subject=call_subject(net.namespace, "stock", "check"), handler=handle)
        calls = await net.calls()
        assert await call(calls, "stock.check", b"1") == b"[1]"
        with pytest.raises(RemoteError, match="no room"):
            await call(calls, "stock.check", b"{}")
        await service.stop()
    finally:
        await client.close()


async def test_any_nats_client_can_call_and_gets_one_plain_reply(net: Net) -> None:
    async def handle(payload: bytes) -> bytes:
        if payload == b"bad":
            raise ArgumentsRefused("no")
        return payload

    await net.service("stock", check=handle)
    client = await nats.connect(net.url)
    try:
        subject = call_subject(net.namespace, "stock", "check")
        reply = await client.request(subject, b'{"a":1}', timeout=5)
        assert reply.data == b'{"a":1}'
        refused = await client.request(subject, b"bad", timeout=5)
        assert refused.headers is not None
        assert refused.headers["Nats-Service-Error-Code"] == "400"
    finally:
        await client.close()


async def test_any_nats_tool_finds_the_service(net: Net) -> None:
    async def fail(payload: bytes) -> bytes:
        raise ValueError("no")

    service = await net.service("stock", check=echo, fail=fail)
    calls = await net.calls()
    await call(calls, "stock.check")
    with pytest.raises(RemoteError):
        await call(calls, "stock.fail")
    client = await nats.connect(net.url)
    try:
        ping = json.loads((await client.request(f"$SRV.PING.stock.{service.id}", timeout=5)).data)
        assert nats.micro.service.ServicePing.from_dict(ping).id == service.id
        info = json.loads((await client.request(f"$SRV.INFO.stock.{service.id}", timeout=5)).data)
        parsed = nats.micro.service.ServiceInfo.from_dict(info)
        assert (parsed.name, parsed.version) == ("stock", "1.2.3")
        assert parsed.metadata == {"namespace": net.namespace, "handlers": ""}
        assert [(each.name, each.queue_group, each.metadata) for each in parsed.endpoints] == [
            ("check", "q", {"schema": "{}"}),
            ("fail", "q", {"schema": "{}"}),
        ]
        stats = json.loads((await client.request(f"$SRV.STATS.stock.{service.id}", timeout=5)).data)
        check, fails = nats.micro.service.ServiceStats.from_dict(stats).endpoints
        assert (check.name, check.num_requests, check.num_errors, check.last_error) == ("check", 1, 0, "")
        assert (fails.name, fails.num_requests, fails.num_errors, fails.last_error) == ("fail", 1, 1, "ValueError no")
    finally:
        await client.close()


async def test_discovery_lists_the_instances_of_this_namespace(net: Net, namespace: str) -> None:
    first = await net.service("stock", check=echo)
    second = await net.service("billing", pay=echo)
    await net.service("stock", namespace=f"{namespace}-b"[-32:], check=echo)
    found = await find_all(await net.connection())
    assert [(info.name, info.id) for info in found] == [("billing", second.id), ("stock", first.id)]
    await first.drain(0)
    assert await find_all(await net.connection(), name="stock") == []


async def test_what_is_too_large_is_a_clear_error_either_way(net: Net) -> None:
    async def large(payload: bytes) -> bytes:
        return b"x" * 2_000_000

    await net.service("stock", check=large)
    calls = await net.calls()
    with pytest.raises(InvalidInputError, match=r"2,000,000 bytes.*memory"):
        await call(calls, "stock.check", b"x" * 2_000_000)
    with pytest.raises(RemoteError, match=r"the result is .* over the server's limit"):
        await call(calls, "stock.check")
    just_fits = 1024 * 1024 - 2_000
    await net.service("other", check=echo)
    assert len(await call(calls, "other.check", b"x" * just_fits)) == just_fits


async def test_a_malformed_context_is_refused_and_nothing_runs(net: Net) -> None:
    ran: list[bytes] = []

    async def handle(payload: bytes) -> bytes:
        ran.append(payload)
        return payload

    await net.service("stock", check=handle)
    client = await nats.connect(net.url)
    try:
        subject = call_subject(net.namespace, "stock", "check")
        reply = await client.request(subject, b"{}", timeout=5, headers={"Agentfield-Context": "{"})
        assert reply.headers is not None
        assert reply.headers["Nats-Service-Error-Code"] == "400"
        assert not ran
    finally:
        await client.close()


async def test_closing_fails_what_is_pending_and_what_comes(net: Net) -> None:
    gate = Gate()
    await net.service("stock", check=gate)
    calls = await net.calls()
    pending = asyncio.create_task(call(calls, "stock.check"))
    await eventually(lambda: gate.entered)
    await calls.aclose()
    for attempt in (pending, call(calls, "stock.check")):
        with pytest.raises(ClosedError):
            await attempt


@pytest.mark.parametrize("gracefully", [True, False])
async def test_a_server_restart_in_the_middle_of_calls_loses_no_result(
    fresh_server: NatsServer, namespace: str, gracefully: bool
) -> None:
    """Some results are ready before the server goes, some while it is away, some after it is back."""
    async with net_on(fresh_server.url, namespace) as net:
        before, during, after = Gate(), Gate(), Gate()
        await net.service("stock", before=before, during=during, after=after)
        calls = await net.calls()
        async with asyncio.TaskGroup() as tasks:
            pending = [
                tasks.create_task(call(calls, f"stock.{name}", b"%d" % number))
                for number in range(50)
                for name in ("before", "during", "after")
            ]
            await eventually(lambda: before.entered == during.entered == after.entered == 50)
            before.open()
            await (fresh_server.stop() if gracefully else fresh_server.kill())
            during.open()
            await fresh_server.start()
            after.open()
        assert [task.result() for task in pending] == [b"%d" % number for number in range(50) for _ in range(3)]


async def test_an_outage_longer_than_a_callees_silence_may_be_is_not_taken_for_it(
    fresh_server: NatsServer, namespace: str
) -> None:
    async with net_on(fresh_server.url, namespace) as net:
        gate = Gate()
        await net.service("stock", check=gate)
        calls = await net.calls(silence=3.0)  # longer than one try to connect may take
        pending = asyncio.create_task(call(calls, "stock.check", b"7"))
        await eventually(lambda: gate.entered)
        await fresh_server.kill()
        gone = time.monotonic()
        await eventually(lambda: time.monotonic() - gone > 3.5)
        await fresh_server.start()
        assert not pending.done()
        gate.open()
        assert await pending == b"7"


async def test_after_an_outage_a_callee_has_its_whole_time_to_be_heard_again(
    fresh_server: NatsServer, namespace: str
) -> None:
    """Here a callee that never comes back."""
    async with net_on(fresh_server.url, namespace) as net:
        gate = Gate()
        service = await net.service("stock", check=gate)
        calls = await net.calls(silence=2.5)
        pending = asyncio.create_task(call(calls, "stock.check"))
        await eventually(lambda: gate.entered)
        await fresh_server.kill()
        gone = time.monotonic()
        await service.drain(0.0)
        await eventually(lambda: time.monotonic() - gone > 3)
        await fresh_server.start()
        back = time.monotonic()
        with pytest.raises(AgentUnavailableError, match="silent"):
            await pending
        assert time.monotonic() - back > 1.6


async def test_time_in_which_the_callers_own_loop_was_blocked_is_not_the_callees_silence(net: Net) -> None:
    gate = Gate()
    await net.service("stock", check=gate)
    calls = await net.calls(silence=1.5)
    pending = asyncio.create_task(call(calls, "stock.check", b"7"))
    await eventually(lambda: gate.entered)
    threading.Event().wait(4)  # blocks the loop, as careless code does
    await asyncio.sleep(0)
    gate.open()
    assert await pending == b"7"


async def test_a_call_made_while_the_server_is_away_waits_for_it(fresh_server: NatsServer, namespace: str) -> None:
    async with net_on(fresh_server.url, namespace) as net:
        await net.service("stock", check=echo)
        calls = await net.calls()
        await call(calls, "stock.check")
        await fresh_server.kill()
        pending = asyncio.create_task(call(calls, "stock.check", b"7"))
        await fresh_server.start()
        assert await pending == b"7"
