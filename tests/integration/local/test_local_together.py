"""Many processes that want one server, some of which die on the way."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from agentfield.errors import UnavailableError
from agentfield.local import ensure_server, find_server, lifecycle, stop_server
from tests.support import wait_until
from tests.support.homes import Asker, servers_on

pytestmark = pytest.mark.timeout(60)

PROCESSES = 20

_HOLDER = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_twenty_processes_at_once_end_up_on_one_server(home: Path, ask_for_server: Callable[..., Asker]) -> None:
    askers = [ask_for_server() for _ in range(PROCESSES)]
    for asker in askers:
        asker.wait_ready()
    for asker in askers:
        asker.go()
    answers = [asker.answer() for asker in askers]

    assert len({(answer["pid"], answer["url"]) for answer in answers}) == 1
    assert sum(answer["started"] for answer in answers) == 1
    assert [process.pid for process in servers_on(home)] == [answers[0]["pid"]]


def test_twenty_processes_after_a_crash_end_up_on_one_server(home: Path, ask_for_server: Callable[..., Asker]) -> None:
    first = ask_for_server()
    first.wait_ready()
    first.go()
    crashed = first.answer()
    os.kill(crashed["pid"], signal.SIGKILL)

    askers = [ask_for_server() for _ in range(PROCESSES)]
    for asker in askers:
        asker.wait_ready()
    for asker in askers:
        asker.go()
    answers = [asker.answer() for asker in askers]

    assert {answer["url"] for answer in answers} == {crashed["url"]}
    assert sum(answer["started"] for answer in answers) == 1
    assert [process.pid for process in servers_on(home)] == [answers[0]["pid"]]


def has_pid(record: Path) -> bool:
    return record.exists() and json.loads(record.read_text())["pid"] is not None


@pytest.mark.parametrize(
    "reached",
    [
        pytest.param(lambda home: (home / "start.lock").exists(), id="it has the lock"),
        pytest.param(lambda home: (home / "server.json").exists(), id="it has decided"),
        pytest.param(lambda home: (home / "server.conf").exists(), id="it has written the configuration"),
        pytest.param(lambda home: (home / "alive.lock").exists(), id="it is about to start the process"),
        pytest.param(lambda home: bool(servers_on(home)), id="the process exists"),
        pytest.param(lambda home: has_pid(home / "server.json"), id="the process is recorded"),
        pytest.param(lambda home: (home / "server.pid").exists(), id="the process has said so itself"),
    ],
)
async def test_a_starter_killed_on_the_way_is_in_nobodys_way(
    new_home: Path, ask_for_server: Callable[..., Asker], reached: Callable[[Path], bool]
) -> None:
    home = new_home
    asker = ask_for_server()
    asker.wait_ready()
    asker.go()
    while not reached(home):  # without a pause: the whole start takes 40 ms
        pass
    asker.dispose()

    server = await ensure_server(home)

    assert [process.pid for process in servers_on(home)] == [server.pid]
    assert await stop_server(home) is True


async def test_a_server_whose_start_was_never_recorded_is_taken_up(home: Path) -> None:
    server = await ensure_server(home)
    record = home / "server.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"pid": None}))

    found = await ensure_server(home)

    assert (found.started, found.pid) == (False, server.pid)
    assert await stop_server(home) is True
    assert not servers_on(home)


def test_who_holds_the_lock_for_ever_is_named_and_its_death_frees_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "LOCK_DEADLINE", 0.3)
    command = [sys.executable, "-c", _HOLDER, str(home / "start.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"

        with pytest.raises(UnavailableError, match=r"another process has been starting or stopping .*start\.lock"):
            lifecycle.ensure(home)
        assert find_server(home) is None

        holder.kill()
    assert lifecycle.ensure(home).started is True


async def test_a_server_does_not_hold_the_lock_of_its_start(home: Path) -> None:
    server = await ensure_server(home)
    held = {file.path for file in psutil.Process(server.pid).open_files()}
    assert str(home / "start.lock") not in held
    assert str(home / "alive.lock") in held
    wait_until(lambda: find_server(home), within=1, what="it is found")
