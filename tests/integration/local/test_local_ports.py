"""The ports of an embedded server: the same again if possible, another one if not, never a stranger's."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from agentfield.errors import UnavailableError
from agentfield.local import Server, ensure_server, find_server, stop_server
from agentfield.local.binary import find_binary
from agentfield.local.config import CLIENT_PORT, ports
from agentfield.local.home import Home
from agentfield.local.launch import launch
from agentfield.local.probe import Answer, ask
from tests.support import NatsServer
from tests.support.homes import kill, servers_on
from tests.support.ports import free_ports

pytestmark = pytest.mark.timeout(60)


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


@contextmanager
def taken(port: int) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", port)):
        yield


@contextmanager
def stranger(directory: Path, port: int) -> Iterator[NatsServer]:
    server = NatsServer(directory, name="stranger", client_port=port, monitor_port=free_ports(1)[0])
    server.start_now()
    try:
        yield server
    finally:
        server.dispose()


def test_the_port_used_before_comes_first_then_the_usual_one_then_its_neighbours() -> None:
    usual, *others = free_block(4)
    earlier = free_ports(1)[0]
    choices = ports(usual, earlier)
    assert [next(choices) for _ in range(5)] == [earlier, usual, *others]


def test_a_port_that_is_taken_is_left_out() -> None:
    usual, second, third, _ = free_block(4)
    with taken(usual), taken(third):
        choices = ports(usual, None)
        assert next(choices) == second
        assert next(choices) == third + 1


def test_when_all_neighbours_are_taken_the_system_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentfield.local.config._NEIGHBOURS", 2)
    usual, second, third, fourth = free_block(4)
    with taken(usual), taken(second):
        choices = ports(usual, None)
        assert next(choices) not in (usual, second, third, fourth)
        assert next(choices) not in (usual, second)


async def test_a_home_that_is_new_gets_the_usual_port_or_one_above_it(new_home: Path) -> None:
    server = await ensure_server(new_home)
    assert CLIENT_PORT <= port_of(server) < CLIENT_PORT + 100


async def test_a_home_that_is_not_new_gets_its_ports_again(home: Path) -> None:
    earlier = Home(home).read_record()
    assert earlier is not None
    for _ in range(2):
        server = await ensure_server(home)
        assert (server.url, server.monitor_url) == (earlier.url, earlier.monitor_url)
        assert await stop_server(home) is True


async def test_a_port_that_is_taken_meanwhile_is_given_up(home: Path) -> None:
    first = await ensure_server(home)
    assert await stop_server(home) is True
    with taken(port_of(first)):
        second = await ensure_server(home)
        assert port_of(second) != port_of(first)
        assert await stop_server(home) is True
        again = await ensure_server(home)
        assert port_of(again) == port_of(second)


def test_a_race_lost_for_either_port_is_run_again(home: Path) -> None:
    client, monitor, lost = free_ports(3)
    with taken(lost):
        server = launch(Home(home), find_binary(), choices=[(lost, monitor), (client, lost), (client, monitor)])
        assert (port_of(server), server.monitor_port) == (client, monitor)
    assert [process.pid for process in servers_on(home)] == [server.pid]


def test_without_any_free_port_it_says_so(home: Path) -> None:
    lost, monitor = free_ports(2)
    with taken(lost), pytest.raises(UnavailableError, match="found no free port"):
        launch(Home(home), find_binary(), choices=[(lost, monitor)])
    assert not servers_on(home)


async def test_a_stranger_on_the_recorded_port_is_not_taken_for_it(home: Path, tmp_path: Path) -> None:
    first = await ensure_server(home)
    kill(first.pid)
    with stranger(tmp_path / "stranger", port_of(first)) as other:
        assert find_server(home) is None
        assert await stop_server(home) is False

        second = await ensure_server(home)

        assert (second.started, second.name != first.name) == (True, True)
        assert port_of(second) != port_of(first)
        assert psutil.pid_exists(other.pid)
        answer = ask(port_of(first), within=1)
        assert isinstance(answer, Answer)
        assert answer.name == "stranger"


async def test_something_mute_on_the_recorded_port_holds_nobody_up(home: Path) -> None:
    first = await ensure_server(home)
    kill(first.pid)
    with taken(port_of(first)):  # connections are accepted by the system, and nothing ever comes
        assert find_server(home) is None
        assert (await ensure_server(home)).started is True


def free_block(count: int) -> list[int]:
    """Neighbouring ports that are all free."""
    while True:
        first = free_ports(1)[0]
        block = list(range(first, first + count))
        if all(is_free(port) for port in block):
            return block


def is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
