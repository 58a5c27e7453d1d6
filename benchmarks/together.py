"""Several keys at once: get_many, set_many and transactions."""

from __future__ import annotations

import time
from collections.abc import Callable

import orjson

from agentfield.event import Writer
from agentfield.execution import new_id
from agentfield.header import encode_event
from agentfield.scope import GLOBAL
from agentfield.subject import Subjects
from benchmarks.measuring import Burst, Operation, Span, rates, times
from benchmarks.report import Table, Target
from benchmarks.surroundings import LOG, NAMESPACE, PATIENCE, PAYLOAD, VALUE, Surroundings, raw_stream

READ = 100
WRITTEN = 1000
_DIRECT = f"$JS.API.DIRECT.GET.{LOG}"


async def get_many(here: Surroundings) -> Table:
    """100 keys in one call, against one raw direct get, and against what the server alone needs for 100 answers."""
    async with here.raw() as client, here.agent() as agent:
        memory = agent.memory
        keys = [f"order_{number}_status" for number in range(READ)]
        await memory.set_many(dict.fromkeys(keys, VALUE), scope="global")
        subjects = [Subjects(NAMESPACE).memory(GLOBAL, key) for key in keys]
        question = orjson.dumps({"multi_last": subjects, "batch": READ})

        async def direct() -> None:
            await client.request(f"{_DIRECT}.{subjects[0]}", timeout=PATIENCE)

        async def answers_counted() -> None:
            """The cheapest a client can be: count the answers, parse nothing of ours."""
            inbox = client.new_inbox()
            subscription = await client.subscribe(inbox)
            await client.publish(_DIRECT, question, reply=inbox)
            while not (await subscription.next_msg(PATIENCE)).headers.get("Status"):  # type: ignore[union-attr]
                pass
            await subscription.unsubscribe()

        async def in_one_scope() -> None:
            await memory.get_many(keys, scope="global")

        async def through_four() -> None:
            await memory.get_many(keys)

        contestants: dict[str, Operation] = {
            "raw direct get of one key": direct,
            f"raw multi-get of {READ}, by nats-py": answers_counted,
            f"get_many of {READ}, in one scope": in_one_scope,
            f"get_many of {READ}, through four scopes": through_four,
        }
        found = await times(contestants, rounds=here.scale(20, 5), calls=here.scale(30, 20))
    table = Table(f"get_many of {READ} keys against one raw direct get", ("p50 ms", "p99 ms"))
    baseline = found["raw direct get of one key"]
    for name, one in found.items():
        ratio = one.ratio_to(baseline)
        targets = [Target(ratio, "≤", 5, "× raw")] if name.startswith("get_many") else []
        table.add(name, one.p50 * 1000, one.p99 * 1000, ratio=ratio, targets=targets)
    return table


async def set_many(here: Surroundings) -> Table:
    """1,000 keys in one call, against an atomic batch of 1,000 messages published by nats-py."""
    async with here.raw() as client, here.agent() as agent:
        await raw_stream(client)
        keys = [f"order_{number}_status" for number in range(WRITTEN)]
        writer = Writer(agent="bench", execution_id=new_id(), workflow_id="wf-1", session_id="user-42")

        def event_headers() -> dict[str, str]:
            return encode_event(event_id=new_id(), operation="set", writer=writer)

        def raw(more: Callable[[], dict[str, str]], prefix: str = "raw") -> Burst:
            async def batch() -> Span:
                begun = time.perf_counter()
                name = new_id()
                for number in range(1, WRITTEN):
                    headers = {"Nats-Batch-Id": name, "Nats-Batch-Sequence": str(number)} | more()
                    await client.publish(f"{prefix}.{number}", orjson.dumps(VALUE), headers=headers)
                headers = {"Nats-Batch-Id": name, "Nats-Batch-Sequence": str(WRITTEN), "Nats-Batch-Commit": "1"}
                answer = await client.request(
                    f"{prefix}.{WRITTEN}", orjson.dumps(VALUE), headers=headers | more(), timeout=PATIENCE
                )
                if "error" in orjson.loads(answer.data):
                    raise RuntimeError(f"the raw batch: {answer.data!r}")
                return Span(WRITTEN, time.perf_counter() - begun)

            return batch

        async def ours() -> Span:
            values = dict.fromkeys(keys, VALUE)
            begun = time.perf_counter()
            await agent.memory.set_many(values)
            return Span(WRITTEN, time.perf_counter() - begun)

        log = Subjects(NAMESPACE).memory(GLOBAL, "raw")
        found = await rates(
            {"bare": raw(dict), "headers": raw(event_headers), "log": raw(event_headers, log), "ours": ours},
            rounds=here.scale(30, 6),
        )
    table = Table(f"set_many of {WRITTEN:,} against a raw atomic batch", ("events a second",))
    table.add("raw atomic batch", found["bare"].typical, ratio=1.0)
    headers = found["headers"].ratio_to(found["bare"])
    table.add("raw atomic batch, with events' headers", found["headers"].typical, ratio=headers)
    log_ratio = found["log"].ratio_to(found["bare"])
    table.add("raw atomic batch of events into the log, which fills a bucket", found["log"].typical, ratio=log_ratio)
    ratio = found["ours"].ratio_to(found["bare"])
    table.add("set_many", found["ours"].typical, ratio=ratio, targets=[Target(ratio, "≥", 0.85, "× raw")])
    return table


async def transaction(here: Surroundings) -> Table:
    """A transaction over two keys, as a blind write and as a transfer that reads both first, against one set."""
    async with here.raw() as client, here.agent() as agent:
        await raw_stream(client)
        stream = client.jetstream(timeout=PATIENCE)
        memory = agent.memory
        await memory.set_many({"account_1": 1_000_000, "account_2": 0})

        async def publish() -> None:
            await stream.publish("raw.account", PAYLOAD)

        async def publish_two() -> None:
            name = {"Nats-Batch-Id": new_id()}
            await client.publish("raw.account_1", PAYLOAD, headers=name | {"Nats-Batch-Sequence": "1"})
            commit = name | {"Nats-Batch-Sequence": "2", "Nats-Batch-Commit": "1"}
            answer = await client.request("raw.account_2", PAYLOAD, headers=commit, timeout=PATIENCE)
            if "error" in orjson.loads(answer.data):
                raise RuntimeError(f"the raw batch: {answer.data!r}")

        async def store() -> None:
            await memory.set("account_3", 5)

        async def write_two() -> None:
            async with memory.transaction() as tx:
                tx.set("account_1", 1_000_000)
                tx.set("account_2", 0)

        async def transfer() -> None:
            async with memory.transaction() as tx:
                left, right = await tx.get("account_1"), await tx.get("account_2")
                tx.set("account_1", left - 1)
                tx.set("account_2", right + 1)

        contestants: dict[str, Operation] = {
            "set of one key": store,
            "transaction that writes two keys": write_two,
            "transaction that reads and writes two keys": transfer,
            "raw publish + ack": publish,
            "raw atomic batch of two": publish_two,
        }
        found = await times(contestants, rounds=here.scale(20, 5), calls=here.scale(40, 25))
    table = Table("a two-key transaction against one set", ("p50 ms", "p99 ms"))
    baseline = found["set of one key"]
    for name, one in found.items():
        ratio = one.ratio_to(baseline)
        targets = [Target(ratio, "≤", 2.5, "× set")] if name.startswith("transaction") else []
        table.add(name, one.p50 * 1000, one.p99 * 1000, ratio=ratio, targets=targets)
    return table
