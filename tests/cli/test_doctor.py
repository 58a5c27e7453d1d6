"""doctor: one report of what is wrong, with its remedy; healthy is 0, anything found is 1, and it never hangs."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentfield import Agent, Event, Memory, UnavailableError, connect
from agentfield.cli import diagnosing
from agentfield.cli.connecting import Place
from agentfield.cli.examining import examine
from agentfield.fabric.jetstream import api
from tests.cli.command import Cli, Result
from tests.cli.conftest import Inside, Remember
from tests.support import NatsServer, eventually


def found(result: Result) -> dict[str, list[str]]:
    """What was found, by the check that found it."""
    assert result.err == ""
    checks: dict[str, list[str]] = {}
    for finding in result.objects:
        assert finding["remedy"], finding
        checks.setdefault(finding["check"], []).append(finding["finding"])
    return checks


async def examined(inside: Inside) -> dict[str, list[str]]:
    return found(await asyncio.to_thread(inside, "doctor", "--json"))


@pytest.fixture
async def memory(server: NatsServer, namespace: str) -> AsyncIterator[Memory]:
    """Return the memory of a plain program."""
    async with connect(server.url, namespace=namespace) as memory:
        yield memory


async def change(memory: Memory, stream: str, **fields: Any) -> None:
    """Change a stream as an operator might."""
    fabric = await memory._fabric()
    config = (await api(fabric.connection, f"STREAM.INFO.{stream}"))["config"]
    await api(fabric.connection, f"STREAM.UPDATE.{stream}", {**config, **fields})


def test_a_healthy_namespace_is_ok_in_every_check(inside: Inside, remember: Remember) -> None:
    remember(lambda memory: memory.set("key", 1))
    done = inside("doctor")
    assert (done.code, done.err) == (0, ""), done.out
    assert [line.split()[:2] for line in done.lines[:-1]] == [[name, "ok"] for name in diagnosing.CHECKS]
    assert done.lines[-1].startswith("note: no agent is running")
    done = inside("doctor", "--json")
    assert (done.code, done.out) == (0, "")


def test_a_namespace_that_nobody_has_used_is_ok_and_stays_unused(inside: Inside) -> None:
    done = inside("doctor")
    assert (done.code, "has not been used yet" in done.out) == (0, True)
    assert not any(stream["exists"] for stream in inside("status", "--json").object["streams"])


def test_a_server_that_is_away_is_one_finding(inside: Inside) -> None:
    done = inside("doctor", "--json", "--url", "nats://127.0.0.1:1", "--timeout", "0.3")
    assert (done.code, list(found(done))) == (1, ["server"])
    assert "no NATS server answered" in done.object["finding"]
    done = inside("doctor", "--url", "nats://127.0.0.1:1", "--timeout", "0.3")
    assert (done.code, done.err, len(done.lines)) == (1, "", 3)
    assert done.lines[0] == "server       1 finding"


def test_without_a_server_of_its_own_it_starts_none(local_cli: Cli, home: Path) -> None:
    done = local_cli("doctor", "--json")
    assert done.code == 1
    assert done.object == {
        "check": "server",
        "finding": f"no embedded server is running on {home}",
        "remedy": "`agentfield up` starts it",
    }
    assert not home.exists()


async def test_a_server_that_does_not_answer_any_more_is_one_finding_in_time(
    fresh_server: NatsServer, inside: Inside
) -> None:
    await fresh_server.pause()
    began = time.monotonic()
    done = await asyncio.to_thread(inside, "doctor", "--json", "--url", fresh_server.url, "--timeout", "1")
    assert (done.code, list(found(done))) == (1, ["server"])
    assert time.monotonic() - began < 10
    await fresh_server.resume()


def test_a_server_without_jetstream_is_one_finding(start_server: Callable[..., NatsServer], inside: Inside) -> None:
    server = start_server(extra="accounts { plain { users: [{user: plain, password: secret}] } }\n")
    url = server.url.replace("//", "//plain:secret@")
    done = inside("doctor", "--json", "--url", url, "--timeout", "2")
    assert (done.code, list(found(done))) == (1, ["server"])
    assert "JetStream" in done.object["finding"]
    assert done.object["remedy"] == "use a NATS server with JetStream"


async def test_drift_and_a_missing_stream_are_found(inside: Inside, memory: Memory) -> None:
    fabric = await memory._fabric()
    notes, letters = fabric.topology.notes.name, fabric.topology.deadletters.name
    await change(memory, notes, max_age=3600_000_000_000)
    await api(fabric.connection, f"STREAM.DELETE.{letters}")
    first, second = (await examined(inside))["streams"]
    assert first.startswith(f"stream {notes}: max_age is 3600000000000")
    assert second == f"stream {letters} is missing"


async def test_keys_that_were_lost_are_found(inside: Inside, memory: Memory, namespace: str) -> None:
    await memory.set_personal(["session"])
    fabric = await memory._fabric()
    await api(fabric.connection, f"STREAM.DELETE.{fabric.topology.keys.name}", {})
    async with connect(fabric.connection.url, namespace=namespace):
        (finding,) = (await examined(inside))["streams"]
    assert "the keys of personal data are lost" in finding


async def test_a_trimmed_log_is_found(inside: Inside, memory: Memory) -> None:
    for number in range(5):
        await memory.set("key", number)
    fabric = await memory._fabric()
    await change(memory, fabric.log.stream, max_msgs_per_subject=2)
    checks = await examined(inside)
    assert checks["log"] == ["the log begins at revision 4: what came before was trimmed, and history no longer has it"]
    (limit,) = checks["streams"]
    assert limit.startswith(f"stream {fabric.log.stream}: max_msgs_per_subject is 2")


async def test_a_log_that_the_server_could_not_load_is_found_and_not_made_anew(
    fresh_server: NatsServer, namespace: str, inside: Inside, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with connect(fresh_server.url, namespace=namespace) as memory:
        for number in range(15):  # more than one file
            await memory.set_many({f"key_{number}_{each}": secrets.token_hex(30_000) for each in range(10)})
    await fresh_server.kill()
    (log,) = tmp_path_factory.getbasetemp().rglob(f"{namespace.upper()}_MEMORY/msgs")
    await asyncio.to_thread(damage, log)
    await fresh_server.start()
    checks = found(await asyncio.to_thread(inside, "doctor", "--json", "--url", fresh_server.url))
    assert checks["streams"][0].startswith(f"the log {namespace.upper()}_MEMORY is gone: the server could not load it")
    with pytest.raises(UnavailableError, match="Nothing was created"):
        async with connect(fresh_server.url, namespace=namespace) as memory:
            await memory.get("key_0_0")
    assert found(await asyncio.to_thread(inside, "doctor", "--json", "--url", fresh_server.url)) == checks


async def test_an_event_that_is_missing_in_the_midst_of_the_log_is_found(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    await memory.set_many({f"key_{number}": number for number in range(5)})
    facts = await examine(Place(server.url, namespace), connect_patience=5, patience=10)
    assert list(diagnosing.log(facts)) == []
    log = facts.topology.log
    info = facts.info(log)
    assert info is not None
    holed = {**info, "state": {**info["state"], "num_deleted": 1, "messages": 4}}
    ((what, _),) = diagnosing.log(replace(facts, streams={**facts.streams, log.name: holed}))
    assert what.startswith("1 event of the log cannot be read any more: its files are damaged")


def damage(log: Path) -> None:
    """Turn a byte in the middle of the first file around, as a bad disk does."""
    content = bytearray((log / "1.blk").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (log / "1.blk").write_bytes(content)


async def test_handlers_that_are_orphans_or_unserved_and_dead_letters_are_found(
    server: NatsServer, namespace: str, inside: Inside, memory: Memory
) -> None:
    def agent(name: str, handler: str, react: Callable[[Event], Awaitable[None]]) -> Agent:
        made = Agent(name, nats_url=server.url, namespace=namespace)
        made.memory.on_change("k_*", name=handler, retries=0)(react)
        return made

    async def nothing(_: Event) -> None: ...

    async def fail(_: Event) -> None:
        raise ValueError

    async with agent("idle", "wait", nothing), agent("shop", "old", nothing):
        pass
    fabric = await memory._fabric()
    async with agent("shop", "new", fail):
        await memory.set("k_1", 1)
        await eventually(lambda: fabric.deadletters.counts())

        async def diagnosed() -> bool:
            return await examined(inside) == {
                "handlers": [
                    "nobody serves idle.wait, and it is 1 event behind",
                    "shop.old is an orphan, 1 event behind: agent shop is running, and has no such handler",
                ],
                "deadletters": ["1 dead letter of shop.new"],
            }

        await eventually(diagnosed, within=10)


async def test_timers_that_nobody_deals_with_are_found(
    inside: Inside, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosing, "OVERDUE", 0.1)
    await memory.set("key", 1, ttl=0.1)
    found = await eventually(lambda: overdue(inside), within=10)
    assert found.startswith("1 timer overdue, the first for")
    assert found.endswith("no agent is running")


async def overdue(inside: Inside) -> str:
    return "".join((await examined(inside)).get("timers", []))


async def test_a_clock_that_is_off_is_found(inside: Inside, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await memory.get("key") is None
    now = time.time
    monkeypatch.setattr("agentfield.cli.examining.time.time", lambda: now() - 60)
    (what,) = (await examined(inside))["clock"]
    assert what.startswith(("the server's clock is 60.", "the server's clock is 59."))
    assert what.endswith("s ahead of the one here")


def test_the_embedded_server_is_looked_into(local_cli: Cli) -> None:
    assert local_cli("up").code == 0
    assert local_cli("set", "key", "1").code == 0
    done = local_cli("doctor")
    assert (done.code, "embedded" in done.lines[0], "free" in done.lines[1]) == (0, True, True)
