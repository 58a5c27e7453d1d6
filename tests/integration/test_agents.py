"""Agents find each other, share state through their executions, and come and go without losing a call."""

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agentfield import (
    Agent,
    AgentUnavailableError,
    ClosedError,
    InvalidInputError,
    NotFoundError,
    OutcomeUnknownError,
    RemoteError,
    UnavailableError,
)
from agentfield.agent.running import run, serve
from agentfield.execution import Execution, current
from agentfield.fabric.calling.micro import find_all
from tests.support import NatsServer, eventually

MakeAgent = Callable[..., Agent]


class Order(BaseModel):
    id: str
    count: int = 1


@pytest.fixture
def make(server: NatsServer, namespace: str) -> MakeAgent:
    """Return a function that makes agents of this test's namespace."""

    def make(name: str, **options: Any) -> Agent:
        return Agent(name, **{"nats_url": server.url, "namespace": namespace, **options})

    return make


def here() -> Execution:
    execution = current.get()
    assert execution is not None
    return execution


# -- calls ------------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
async def test_one_agent_calls_another(make: MakeAgent) -> None:
    stock, shop = make("stock"), make("shop")

    @stock.reasoner()
    async def check(order: Order) -> Order:
        return Order(id=order.id, count=order.count + 1)

    async with stock, shop:
        assert await shop.call("stock.check", order=Order(id="42")) == {"id": "42", "count": 2}


async def test_a_reasoner_can_be_declared_bare_called_and_named(make: MakeAgent) -> None:
    stock = make("stock")

    @stock.reasoner
    async def bare() -> str:
        return "bare"

    @stock.reasoner()
    async def called() -> str:
        return "called"

    @stock.reasoner(name="other-name")
    async def named() -> str:
        return "named"

    assert list(stock.reasoners) == ["bare", "called", "other-name"]
    async with stock:
        results = [await stock.call(f"stock.{name}") for name in stock.reasoners]
    assert results == ["bare", "called", "named"]


async def test_a_name_used_twice_is_refused_at_the_declaration(make: MakeAgent) -> None:
    stock = make("stock")

    @stock.reasoner()
    async def check() -> None: ...

    with pytest.raises(InvalidInputError, match="'check' already"):
        stock.reasoner(name="check")(lambda: None)
    async with stock:
        with pytest.raises(InvalidInputError, match="serves already"):
            stock.reasoner(name="late")(lambda: None)


async def test_what_would_never_run_is_refused_where_it_is_declared(make: MakeAgent) -> None:
    app = make("app")

    async def late(_: object) -> None: ...

    async with app:
        for memory in (app.memory, app.memory.global_scope):
            with pytest.raises(InvalidInputError, match="'app' serves already: define 'late' before it starts"):
                memory.on_change("k")(late)
    for declare in (app.memory.on_change("k"), app.reasoner(name="late")):
        with pytest.raises(ClosedError, match="'app' is closed"):
            declare(late)
    assert app.memory.registrations == []
    assert not app.reasoners


async def test_wrong_arguments_name_the_reasoner_the_argument_and_what_was_expected(make: MakeAgent) -> None:
    stock = make("stock")
    ran: list[str] = []

    @stock.reasoner()
    async def check(order_id: str, count: int = 1) -> None:
        ran.append(order_id)

    async with stock:
        wrong: list[tuple[dict[str, Any], str]] = [
            ({}, "'check' did not run: argument 'order_id' is missing (expected str)"),
            ({"order_id": "1", "count": "many"}, "argument 'count' must be int, not 'many'"),
            ({"order_id": "1", "colour": "red"}, "argument 'colour' is not one of its parameters (order_id, count)"),
        ]
        for arguments, text in wrong:
            with pytest.raises(InvalidInputError) as caught:
                await stock.call("stock.check", **arguments)
            assert text in str(caught.value)
    assert not ran


async def test_what_cannot_be_sent_is_refused_before_anything_is_sent(make: MakeAgent) -> None:
    app = make("app", nats_url="nats://127.0.0.1:1")  # nobody is there: nothing may even be tried
    for target in ("stock", "stock.", ".check", "a.b.c", "sto ck.check", "stock.*", 7):
        with pytest.raises(InvalidInputError):
            await app.call(target)  # type: ignore[arg-type]
    for options in ({"timeout": 0}, {"timeout": "1"}, {"timeout": float("inf")}, {"session_id": ""}, {"x": object()}):
        with pytest.raises(InvalidInputError):
            await app.call("stock.check", **options)


async def test_a_remote_error_carries_the_facts(make: MakeAgent) -> None:
    stock = make("stock")

    class OutOfStockError(Exception):
        pass

    @stock.reasoner()
    async def check() -> None:
        raise OutOfStockError(f"nothing left in {here().execution_id}")

    async with stock:
        with pytest.raises(RemoteError) as caught:
            await stock.call("stock.check")
    error = caught.value
    assert (error.type_name, error.agent, error.reasoner) == ("OutOfStockError", "stock", "check")
    assert error.remote_message == f"nothing left in {error.execution_id}"


async def test_a_result_that_cannot_be_sent_is_a_remote_error_that_says_so(make: MakeAgent) -> None:
    stock = make("stock")

    @stock.reasoner()
    async def check() -> Any:
        return {"lock": threading.Lock()}

    async with stock:
        with pytest.raises(RemoteError, match="its result cannot be sent to the caller"):
            await stock.call("stock.check")


async def test_an_agent_can_call_itself_and_back(make: MakeAgent) -> None:
    one, two = make("one"), make("two")

    @one.reasoner()
    async def down(depth: int) -> Any:
        return depth if depth == 0 else await one.call("two.pass_on", depth=depth - 1)

    @two.reasoner()
    async def pass_on(depth: int) -> Any:
        return await two.call("one.down", depth=depth)

    async with one, two:
        results = await asyncio.gather(*(one.call("one.down", depth=20) for _ in range(20)))
    assert results == [0] * 20


async def test_a_plain_function_runs_in_a_thread_and_does_not_hold_others_up(make: MakeAgent) -> None:
    app = make("app")
    release = threading.Event()

    @app.reasoner()
    def slow() -> list[str]:
        release.wait(20)
        return [here().workflow_id or "", threading.current_thread().name]

    @app.reasoner()
    async def quick() -> str:
        return "done"

    async with app:
        async with app.workflow("wf-1"):
            pending = asyncio.create_task(app.call("app.slow"))
        assert await app.call("app.quick") == "done"
        release.set()
        workflow, thread = await pending
    assert workflow == "wf-1"
    assert thread != threading.main_thread().name


async def test_a_cancelled_caller_stops_the_whole_chain(make: MakeAgent) -> None:
    one, two = make("one"), make("two")
    entered, stopped = asyncio.Event(), asyncio.Event()

    @one.reasoner()
    async def outer() -> None:
        await one.call("two.inner")

    @two.reasoner()
    async def inner() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with one, two:
        pending = asyncio.create_task(two.call("one.outer"))
        await entered.wait()
        pending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pending
        await asyncio.wait_for(stopped.wait(), 5)


async def test_a_call_over_its_time_says_that_it_may_still_be_running(make: MakeAgent) -> None:
    app = make("app")
    release = asyncio.Event()
    seen: list[str] = []

    @app.reasoner()
    async def wait() -> None:
        seen.append(here().execution_id)
        await release.wait()

    async with app:
        with pytest.raises(OutcomeUnknownError, match="may still be running") as caught:
            await app.call("app.wait", timeout=0.5)
        release.set()
    assert seen == [caught.value.execution_id]


async def test_missing_agents_and_reasoners_are_told_apart_at_once(make: MakeAgent) -> None:
    stock = make("stock")

    @stock.reasoner()
    async def check() -> None: ...

    async with stock:
        began = time.monotonic()
        with pytest.raises(AgentUnavailableError, match="no agent 'nobody'"):
            await stock.call("nobody.check")
        with pytest.raises(NotFoundError, match=r"no reasoner 'chekc': it has check"):
            await stock.call("stock.chekc")
        assert time.monotonic() - began < 1


# -- executions -------------------------------------------------------------------------------------------------------


async def test_a_call_from_outside_begins_a_workflow_and_nested_calls_inherit_it(make: MakeAgent) -> None:
    one, two = make("one"), make("two", actor_id="the-second")
    seen: dict[str, Execution] = {}

    @one.reasoner()
    async def outer() -> None:
        seen["outer"] = here()
        await one.call("two.inner")

    @two.reasoner()
    async def inner() -> None:
        seen["inner"] = here()

    async with one, two:
        await two.call("one.outer", session_id="user-42")
        assert current.get() is None
    outer_run, inner_run = seen["outer"], seen["inner"]
    assert outer_run.workflow_id == outer_run.execution_id
    assert outer_run.parent_id is None
    assert (inner_run.workflow_id, inner_run.session_id) == (outer_run.workflow_id, "user-42")
    assert inner_run.parent_id == outer_run.execution_id
    assert (outer_run.agent, outer_run.actor_id) == ("one", "one")
    assert (inner_run.agent, inner_run.actor_id) == ("two", "the-second")
    assert outer_run.trace is not None
    assert inner_run.trace is not None
    assert outer_run.trace.split("-")[1] == inner_run.trace.split("-")[1]
    assert outer_run.trace != inner_run.trace


async def test_two_hundred_interleaved_executions_never_see_each_others_workflow(make: MakeAgent) -> None:
    app, other = make("app"), make("other")
    everyone = asyncio.Barrier(200)

    @app.reasoner()
    async def work(number: int) -> list[Any]:
        workflow = here().workflow_id
        await app.memory.set("number", number)
        await everyone.wait()  # all 200 are in the middle of it now
        seen = [await app.memory.get("number"), await app.call("other.look"), here().workflow_id == workflow]
        await everyone.wait()
        return [*seen, await app.memory.get("number"), workflow]

    @other.reasoner()
    async def look() -> Any:
        return await other.memory.get("number")

    async with app, other:
        results = await asyncio.gather(*(app.call("app.work", number=number, timeout=90) for number in range(200)))
    assert [result[:4] for result in results] == [[number, number, True, number] for number in range(200)]
    assert len({result[4] for result in results}) == 200


async def test_binding_a_workflow_and_a_session_holds_inside_the_block_only(make: MakeAgent) -> None:
    app = make("app")

    @app.reasoner()
    async def look() -> list[str | None]:
        return [here().workflow_id, here().session_id]

    async with app:
        async with app.workflow("wf-1"):
            assert await app.call("app.look") == ["wf-1", None]
            async with app.session("user-42"):
                assert await app.call("app.look") == ["wf-1", "user-42"]
                assert await app.call("app.look", session_id="user-43") == ["wf-1", "user-43"]
            assert await app.call("app.look") == ["wf-1", None]
        assert current.get() is None


async def test_one_binding_serves_any_number_of_tasks_at_once(make: MakeAgent) -> None:
    app = make("app")
    shared = app.workflow("wf-1")
    inside = asyncio.Barrier(3)

    async def work(number: int) -> Execution | None:
        async with app.session(f"s{number}"):
            before = current.get()
            async with shared:
                await inside.wait()  # so that they leave in another order than they came in
                await asyncio.sleep(0.01 * number)
                assert (here().workflow_id, here().session_id) == ("wf-1", f"s{number}")
                async with shared:
                    await asyncio.sleep(0)
                assert (here().workflow_id, here().session_id) == ("wf-1", f"s{number}")
            assert current.get() is before
        return current.get()

    assert await asyncio.gather(*map(work, range(3))) == [None, None, None]


async def test_a_binding_is_left_where_it_was_entered(make: MakeAgent) -> None:
    binding = make("app").workflow("wf-1")
    async with binding:
        pass
    with pytest.raises(InvalidInputError, match="another task"):
        await asyncio.create_task(binding.__aexit__(None, None, None))


async def test_a_session_outside_any_workflow_is_where_unscoped_writes_go(make: MakeAgent) -> None:
    app = make("app")
    async with app:
        async with app.session("user-42"):
            await app.memory.set("language", "en")
        entry = await app.memory.entry("language", "session", "user-42")
        assert entry is not None
        assert (entry.value, entry.scope, entry.scope_id) == ("en", "session", "user-42")
        await app.memory.set("language", "de")
        entry = await app.memory.entry("language")
        assert entry is not None
        assert entry.scope == "global"


async def test_illegal_ids_are_refused_when_the_block_is_written(make: MakeAgent) -> None:
    app = make("app")
    for bind in (app.workflow, app.session):
        for wrong in ("", "a\nb", "x" * 300, 7):
            with pytest.raises(InvalidInputError):
                bind(wrong)  # type: ignore[arg-type]


async def test_what_was_current_returns_when_a_block_fails(make: MakeAgent) -> None:
    app = make("app")
    with pytest.raises(KeyError):
        async with app.workflow("wf-1"):
            raise KeyError
    assert current.get() is None


async def test_a_decorated_function_is_still_the_function(make: MakeAgent) -> None:
    app = make("app")

    @app.reasoner()
    async def one(a: int, b: int = 2) -> tuple[int, int, Execution]:
        """Return what it got."""
        return a, b, here()

    @app.reasoner()
    def two() -> Execution:
        return here()

    a, b, execution = await one(1, b=3)
    assert (a, b, execution.workflow_id) == (1, 3, execution.execution_id)
    assert (two().agent, two().actor_id) == ("app", "app")
    assert current.get() is None
    async with app.workflow("wf-1"):
        assert (await one(1))[2] == current.get()
        assert two() == current.get()
    assert (one.__name__, one.__doc__) == ("one", "Return what it got.")


async def test_a_handler_and_what_it_calls_run_in_the_events_workflow(make: MakeAgent) -> None:
    triage, reactor, helper = make("triage"), make("reactor"), make("helper")
    seen: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    @triage.reasoner()
    async def start(order: str) -> str | None:
        await triage.memory.set(f"order_{order}_status", "paid")
        return here().workflow_id

    @reactor.memory.on_change("order_*_status")
    async def react(event: Any) -> None:
        called = await reactor.call("helper.look", key=event.key)
        seen.put_nowait({"event": event, "execution": here(), "called": called})

    @helper.reasoner()
    async def look(key: str) -> list[Any]:
        return [here().workflow_id, here().cause, await helper.memory.get(key)]

    async with helper, reactor, triage:
        workflow = await triage.call("triage.start", order="42", session_id="user-42")
        got = await asyncio.wait_for(seen.get(), 10)
    event, execution = got["event"], got["execution"]
    assert (event.key, event.data) == ("order_42_status", "paid")
    assert (execution.workflow_id, execution.session_id) == (workflow, "user-42")
    assert (execution.cause, execution.parent_id) == (event.id, event.writer.execution_id)
    assert got["called"] == [workflow, event.id, "paid"]


# -- life -------------------------------------------------------------------------------------------------------------


async def test_everything_connects_when_it_is_first_used(make: MakeAgent) -> None:
    app, served = make("app"), make("served")

    @served.reasoner()
    async def double(x: int) -> int:
        return 2 * x

    async with served:
        await app.memory.set("a", 1)
        assert await app.memory.get("a") == 1
        assert await app.call("served.double", x=4) == 8
    await app.aclose()


async def test_first_uses_at_the_same_time_share_one_connection(make: MakeAgent) -> None:
    app = make("app")
    await asyncio.gather(*(app.memory.set(f"key_{number}", number) for number in range(20)))
    assert len({id(await app._presence.handle.fabric()) for _ in range(3)}) == 1
    await app.aclose()


def test_a_second_event_loop_gets_a_connection_of_its_own_without_complaint(make: MakeAgent) -> None:
    app = make("app")

    async def script(value: int) -> Any:
        await app.memory.set("value", value)
        return await app.memory.get("value")

    assert [asyncio.run(script(value)) for value in (1, 2)] == [1, 2]
    assert not app._presence.handle._links or all(loop.is_closed() for loop in app._presence.handle._links)


async def test_a_closed_agent_says_so(make: MakeAgent) -> None:
    app = make("app")
    async with app:
        pass
    await app.aclose()
    for use in (app.memory.get("a"), app.call("app.check"), app.__aenter__()):
        with pytest.raises(ClosedError, match="'app' is closed"):
            await use
    never_opened = make("never")
    await never_opened.aclose()
    with pytest.raises(ClosedError):
        await never_opened.memory.set("a", 1)


async def test_an_agent_serves_once_at_a_time(make: MakeAgent) -> None:
    app = make("app")
    async with app:
        with pytest.raises(InvalidInputError, match="serves already"):
            await app.__aenter__()
        assert [info.name for info in await find_all((await app._presence.handle.fabric()).connection)] == ["app"]


async def test_without_a_server_entering_fails_and_leaves_nothing(namespace: str) -> None:
    app = Agent("app", nats_url="nats://127.0.0.1:1", namespace=namespace)
    before = asyncio.all_tasks()
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
        await app.__aenter__()
    assert asyncio.all_tasks() == before


async def test_the_settings_name_the_server_and_the_namespace(
    server: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_URL", "nats://127.0.0.1:1")
    monkeypatch.setenv("AGENTFIELD_NATS_URL", server.url)
    monkeypatch.setenv("AGENTFIELD_NAMESPACE", namespace)
    async with Agent("app") as app:
        assert app.namespace == namespace
        await app.memory.set("a", 1)


@pytest.mark.parametrize("name", ["", "two words", "a.b", "é", "x" * 65, None])
def test_an_illegal_agent_name_is_refused(name: Any) -> None:
    with pytest.raises(InvalidInputError, match="agent name"):
        Agent(name)


def test_illegal_namespaces_and_actors_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="namespace"):
        Agent("a", namespace="A.B")
    with pytest.raises(InvalidInputError, match="scope id"):
        Agent("a", actor_id="")


async def test_a_stop_lets_what_was_begun_finish(make: MakeAgent) -> None:
    worker, caller = make("worker"), make("caller")
    entered, release = asyncio.Event(), asyncio.Event()

    @worker.reasoner()
    async def work() -> str:
        entered.set()
        await release.wait()
        await worker.memory.set("last", "word")  # memory still works while the agent drains
        return "finished"

    async with caller:
        await worker.__aenter__()
        pending = asyncio.create_task(caller.call("worker.work"))
        await entered.wait()
        closing = asyncio.create_task(worker.aclose())
        await eventually(lambda: _gone(caller, "worker"))
        release.set()
        assert await pending == "finished"
        await closing
        with pytest.raises(AgentUnavailableError):
            await caller.call("worker.work")


async def test_a_reasoner_that_catches_every_cancellation_is_left_behind_and_named(
    make: MakeAgent, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in [("ending", "CLEANING"), ("ending", "_AGAIN"), ("fabric.calling.service", "_STOPPED_NOTICE")]:
        monkeypatch.setattr(f"agentfield.{module}.{name}", 0.1)
    app = make("stubborn")
    begun, enough = asyncio.Event(), asyncio.Event()

    @app.reasoner()
    async def insist() -> None:
        begun.set()
        while not enough.is_set():
            with suppress(asyncio.CancelledError):
                await enough.wait()

    await app.__aenter__()
    caller = make("caller")
    calling = asyncio.create_task(caller.call("stubborn.insist"))
    await begun.wait()
    try:
        async with asyncio.timeout(4):
            await app.aclose(grace=0.1)
        assert "stubborn.insist" in caplog.text
        assert "catches its cancellation and goes on" in caplog.text
    finally:
        enough.set()
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        await caller.aclose()


async def _gone(app: Agent, name: str) -> bool:
    return not await find_all((await app._presence.handle.fabric()).connection, name=name, wait=0.2)


async def test_serving_several_agents_starts_and_stops_them_together(make: MakeAgent) -> None:
    one, two = make("one"), make("two")
    stop = asyncio.Event()
    serving = asyncio.create_task(serve([one, two], stop))
    async with make("watcher") as watcher:
        connection = (await watcher._presence.handle.fabric()).connection

        async def names() -> bool:
            return {info.name for info in await find_all(connection, wait=0.2)} == {"one", "two", "watcher"}

        await eventually(names)
        stop.set()
        await serving
        await eventually(lambda: _gone(watcher, "one"))
    for app in (one, two):
        with pytest.raises(ClosedError):
            await app.__aenter__()


async def test_one_agent_that_cannot_start_stops_the_others(make: MakeAgent) -> None:
    good, bad = make("good"), make("bad", nats_url="nats://127.0.0.1:1")
    with pytest.raises(UnavailableError):
        await serve([good, bad], asyncio.Event())
    with pytest.raises(ClosedError):
        await good.memory.get("a")


async def test_run_inside_a_loop_is_refused(make: MakeAgent) -> None:
    with pytest.raises(InvalidInputError, match="async with"):
        make("app").run()
    with pytest.raises(InvalidInputError, match="main thread"):
        await asyncio.to_thread(contextvars.Context().run, run, [make("app")])


# -- processes --------------------------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, os, sys, time
from agentfield import Agent

app = Agent("worker")

@app.reasoner()
async def who() -> int:
    return os.getpid()

@app.reasoner()
async def sleep(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return os.getpid()

@app.reasoner()
def block(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()

app.run()
"""


class Processes:
    """Worker processes of one test."""

    def __init__(self, directory: Path, server: NatsServer, namespace: str) -> None:
        self._file = directory / "worker.py"
        self._file.write_text(PROGRAM)
        self._environment = os.environ | {"AGENTFIELD_NATS_URL": server.url, "AGENTFIELD_NAMESPACE": namespace}
        self.all: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, self._file], env=self._environment, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        self.all.append(process)
        return process

    async def serve(self, app: Agent, count: int) -> None:
        """Return when so many of them serve; fail at once, with what it said, if one has ended by itself."""
        connection = (await app._presence.handle.fabric()).connection

        async def there() -> bool:
            for process in self.all:
                if process.poll():
                    raise RuntimeError(f"a worker ended with {process.returncode}: {process.communicate()[1].decode()}")
            return len(await find_all(connection, name="worker", wait=0.3)) == count

        await eventually(there, within=20, what=f"{count} workers")

    def end(self) -> None:
        for process in self.all:
            process.kill()
            process.communicate()


@pytest.fixture
def workers(tmp_path: Path, server: NatsServer, namespace: str) -> Iterator[Processes]:
    processes = Processes(tmp_path, server, namespace)
    yield processes
    processes.end()


async def test_two_processes_of_one_name_share_the_calls(make: MakeAgent, workers: Processes) -> None:
    pids = {workers.start().pid, workers.start().pid}
    async with make("caller") as app:
        await workers.serve(app, 2)
        answers = await asyncio.gather(*(app.call("worker.who") for _ in range(100)))
    assert set(answers) == pids


async def test_a_callee_that_is_killed_in_mid_call_is_noticed(make: MakeAgent, workers: Processes) -> None:
    process = workers.start()
    async with make("caller") as app:
        await workers.serve(app, 1)
        pending = asyncio.create_task(app.call("worker.sleep", seconds=300))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(pending), 0.5)
        began = time.monotonic()
        process.kill()
        with pytest.raises(AgentUnavailableError, match="taken for dead") as caught:
            await pending
        assert time.monotonic() - began < 15
        assert caught.value.started
        assert caught.value.execution_id


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_calls_finish_and_the_process_end_well(
    make: MakeAgent, workers: Processes, number: signal.Signals
) -> None:
    """One process takes over from another under load, as in a rolling update; no call is lost."""
    old = workers.start()
    stop = asyncio.Event()
    done = 0

    async with make("caller") as app:

        async def load() -> None:
            nonlocal done
            while not stop.is_set():
                await app.call("worker.sleep", seconds=0.01)
                done += 1

        await workers.serve(app, 1)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(20):
                tasks.create_task(load())
            long = tasks.create_task(app.call("worker.sleep", seconds=1.0))
            await eventually(lambda: done > 50)
            workers.start()
            await workers.serve(app, 2)
            old.send_signal(number)
            _, errors = await asyncio.to_thread(old.communicate, None, 20)
            goal = done + 100
            await eventually(lambda: done > goal, within=20)
            stop.set()
        assert long.done()
    assert (old.returncode, errors) == (0, b"")


async def test_a_second_signal_ends_the_process_at_once(make: MakeAgent, workers: Processes) -> None:
    process = workers.start()
    async with make("caller") as app:
        await workers.serve(app, 1)
        pending = asyncio.create_task(app.call("worker.block", seconds=300))
        await eventually(lambda: _busy(app))
        process.send_signal(signal.SIGINT)
        await eventually(lambda: _gone(app, "worker"))
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 5) == -signal.SIGINT
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)


async def _busy(app: Agent) -> bool:
    calls = (await app._presence.handle.link()).calls
    return any(pending.accepted for pending in calls._pending.values())
