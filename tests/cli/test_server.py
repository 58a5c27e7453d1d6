"""up, down and status: the embedded server, and any server."""

import asyncio
import json
import os
import signal
from pathlib import Path

import nats
import pytest

from agentfield.version import __version__
from tests.cli.command import Cli
from tests.support import NatsServer

AGENTS = """
from agentfield import Agent
first, second = Agent("first"), Agent("second")

@first.reasoner()
def one(): ...

@first.reasoner()
def two(): ...
"""


def test_up_starts_a_server_that_down_stops(local_cli: Cli, home: Path) -> None:
    started = local_cli("up")
    assert (started.code, started.err) == (0, "")
    url, data, log = (line.split()[-1 if index else 0] for index, line in enumerate(started.lines))
    assert " started (nats-server " in started.lines[0]
    assert (data, log) == (str(home / "jetstream"), str(home / "server.log"))
    again = local_cli("up", "--json").object
    assert (again["url"], again["started"], again["fault"]) == (url, False, None)
    assert local_cli("set", "key", "1").out == "1\n"
    assert local_cli("down").out == "stopped\n"
    assert local_cli("down", "--json").object == {"stopped": False}
    assert local_cli("up", "--json").object["started"] is True
    assert local_cli("get", "key").out == "1\n", "what was stored outlives the server"


def test_a_command_without_any_server_starts_one_and_says_so(local_cli: Cli) -> None:
    first = local_cli("set", "key", "1")
    assert (first.code, first.out) == (0, "1\n")
    assert first.err.startswith("started the embedded server at nats://127.0.0.1:")
    assert local_cli("get", "key").err == ""


def test_up_says_when_the_environment_names_another_server(local_cli: Cli, server: NatsServer) -> None:
    up = local_cli("up", env={"NATS_URL": server.url})
    assert up.code == 0
    assert "names another server" in up.err
    assert up.err.count("\n") == 1


def test_up_on_a_home_that_cannot_be_is_one_sentence(local_cli: Cli, home: Path) -> None:
    home.write_text("a file")
    for command in ("up", "status", "get key"):
        done = local_cli(*command.split())
        assert done.code in (1, 2)
        assert str(home) in done.error


def test_status_without_a_server_says_so_and_starts_none(local_cli: Cli, home: Path) -> None:
    people = local_cli("status")
    assert people.code == 1
    assert people.error == f"no embedded server is running on {home}: `agentfield up` starts it"
    programs = local_cli("status", "--json")
    assert (programs.code, programs.object["running"]) == (1, False)
    assert not home.exists()


def test_status_of_a_server_that_is_away(cli: Cli) -> None:
    done = cli("status", "--json", "--url", "nats://127.0.0.1:1", "--timeout", "0.2")
    assert (done.code, done.object["running"]) == (1, False)
    assert "no NATS server answered" in done.object["reason"]


def test_status_describes_the_embedded_server(local_cli: Cli, home: Path) -> None:
    up = local_cli("up", "--json").object
    status = local_cli("status", "--json").object
    assert (status["running"], status["url"], status["namespace"]) == (True, up["url"], "agentfield")
    assert status["server"]["embedded"] == {name: up[name] for name in ("pid", "data", "log", "started_at")}
    assert not any(stream["exists"] for stream in status["streams"])
    people = local_cli("status")
    assert (people.code, people.err) == (0, "")
    assert f"data       {home / 'jetstream'}" in people.lines
    assert "no streams yet: the first agent or command that connects creates them" in people.lines
    assert "no agents are running" in people.lines


def test_status_counts_messages_and_agents_of_its_namespace(cli: Cli, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENTS)
    agents = [cli.start("run", "agents.py", cwd=tmp_path) for _ in range(2)]
    for each in agents:
        each.wait_line("agent second serves")
    cli("set", "key", "1")
    status = cli("status", "--json").object
    assert status["server"]["embedded"] is None
    assert status["server"]["store_bytes"] > 0
    (log,) = [stream for stream in status["streams"] if stream["name"] == f"{namespace.upper()}_MEMORY"]
    assert (log["messages"], log["last_sequence"], log["drift"]) == (1, 1, [])
    assert [(agent["name"], agent["instances"], agent["reasoners"]) for agent in status["agents"]] == [
        ("first", 2, ["one", "two"]),
        ("second", 2, []),
    ]
    rows = [line.split() for line in cli("status").lines]
    assert ["first", "2", __version__, "one,", "two"] in rows
    assert ["second", "2", __version__, "-"] in rows
    elsewhere = cli("status", "--json", "--namespace", f"{namespace}-2").object
    assert (elsewhere["agents"], any(stream["exists"] for stream in elsewhere["streams"])) == ([], False)
    for each in agents:
        assert each.end(signal.SIGTERM).code == 0
    assert cli("status", "--json").object["agents"] == []


def test_status_points_at_a_stream_that_differs_from_what_it_should_be(cli: Cli, namespace: str) -> None:
    cli("set", "key", "1")

    async def change() -> None:
        client = await nats.connect(cli.env["AGENTFIELD_NATS_URL"])
        try:
            stream = f"{namespace.upper()}_NOTES"
            answer = json.loads((await client.request(f"$JS.API.STREAM.INFO.{stream}")).data)
            changed = json.dumps({**answer["config"], "max_age": 600_000_000_000}).encode()
            await client.request(f"$JS.API.STREAM.UPDATE.{stream}", changed)
        finally:
            await client.close()

    asyncio.run(change())
    done = cli("status")
    assert done.code == 0
    assert f"differs: stream {namespace.upper()}_NOTES: max_age is 600000000000" in done.out


@pytest.mark.parametrize("args", [("status",), ("get", "key")])
def test_a_server_that_is_paused_is_one_sentence(local_cli: Cli, home: Path, args: tuple[str, ...]) -> None:
    pid = local_cli("up", "--json").object["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        done = local_cli(*args)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert done.code == 1
    assert "does not answer" in done.error
