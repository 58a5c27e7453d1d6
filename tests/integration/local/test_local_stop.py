"""Stopping an embedded server, and nothing else."""

import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nats
import psutil
import pytest

from agentfield.errors import UnavailableError
from agentfield.local import ensure_server, find_server, lifecycle, stop_server
from tests.support import eventually
from tests.support.homes import expected, kill, servers_on

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """Return a process that has nothing to do with any server."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        yield process


def record_pid(home: Path, pid: int) -> None:
    record = home / "server.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"pid": pid}))


async def test_a_server_with_clients_is_stopped_properly(home: Path) -> None:
    server = await ensure_server(home)
    client = await nats.connect(server.url, allow_reconnect=False, error_cb=expected)

    assert await stop_server(home) is True

    assert not servers_on(home)
    assert find_server(home) is None
    await eventually(lambda: client.is_closed, what="the client was told")
    assert "Server Exiting" in server.log_path.read_text()
    assert await stop_server(home) is False


async def test_a_stopped_server_leaves_no_process_id_that_might_be_reused(home: Path) -> None:
    await ensure_server(home)
    assert await stop_server(home) is True
    assert json.loads((home / "server.json").read_text())["pid"] is None
    assert not (home / "server.pid").exists()


async def test_a_paused_server_is_stopped_properly_too(home: Path) -> None:
    server = await ensure_server(home)
    psutil.Process(server.pid).suspend()

    assert await stop_server(home) is True

    assert not servers_on(home)
    assert "Server Exiting" in server.log_path.read_text()


def test_a_server_that_does_not_end_is_killed(home: Path) -> None:
    server = lifecycle.ensure(home)
    pauser = subprocess.Popen(["sh", "-c", f"while kill -STOP {server.pid}; do :; done"], stderr=subprocess.DEVNULL)
    try:
        assert lifecycle.stop(home, patience=0.2) is True
    finally:
        pauser.kill()
        pauser.wait()
    assert not servers_on(home)


async def test_a_process_that_got_the_pid_of_a_dead_server_is_left_alone(
    home: Path, bystander: subprocess.Popen[bytes]
) -> None:
    server = await ensure_server(home)
    kill(server.pid)
    record_pid(home, bystander.pid)

    assert find_server(home) is None
    assert await stop_server(home) is False
    again = await ensure_server(home)
    assert await stop_server(home) is True

    assert again.pid != bystander.pid
    assert bystander.poll() is None


async def test_a_server_that_lives_where_its_pid_means_another_process_is_left_alone(
    home: Path, bystander: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home that two containers share: the lock shows the server to both, the process ids of one mean nothing here."""
    server = await ensure_server(home)
    kill(server.pid)
    record_pid(home, bystander.pid)
    monkeypatch.setattr(lifecycle, "START_DEADLINE", 0.3)
    with (home / "alive.lock").open("r+") as held_elsewhere:
        fcntl.flock(held_elsewhere, fcntl.LOCK_EX)

        with pytest.raises(UnavailableError, match=f"process {bystander.pid} is not it, so it was left alone"):
            await stop_server(home)
        with pytest.raises(UnavailableError, match=r"alive on .*, but does not serve clients"):
            await ensure_server(home)

    assert bystander.poll() is None
    assert not servers_on(home)


async def test_a_damaged_record_keeps_a_living_server_from_being_doubled_and_stop_still_works(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ensure_server(home)
    (home / "server.json").write_text('{"url": ')
    monkeypatch.setattr(lifecycle, "START_DEADLINE", 0.3)

    with pytest.raises(UnavailableError, match="`agentfield down` stops it"):
        await ensure_server(home)
    assert len(servers_on(home)) == 1

    assert await stop_server(home) is True
    assert (await ensure_server(home)).started is True


async def test_without_any_trace_of_its_process_it_says_how_to_find_the_server(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ensure_server(home)
    (home / "server.json").unlink()
    (home / "server.pid").unlink()
    monkeypatch.setattr(lifecycle, "ANSWER_DEADLINE", 0.1)

    with pytest.raises(UnavailableError, match=r"find the nats-server process that runs with .*server\.conf"):
        await stop_server(home)
    assert len(servers_on(home)) == 1
