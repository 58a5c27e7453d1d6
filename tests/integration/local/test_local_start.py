"""An embedded server that is found or started, on a good day."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nats
import psutil
import pytest

from agentfield.local import Server, ensure_server, find_server, stop_server
from agentfield.local.home import Home
from agentfield.local.probe import Answer, ask
from tests.support import eventually, monitor
from tests.support.homes import Asker, expected, kill, servers_on

pytestmark = pytest.mark.timeout(60)


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


async def test_the_first_who_asks_starts_it_and_the_next_finds_it(home: Path) -> None:
    assert find_server(home) is None

    first = await ensure_server(home)
    second = await ensure_server(str(home))

    assert (first.started, second.started) == (True, False)
    assert (second.url, second.pid, second.name) == (first.url, first.pid, first.name)
    assert find_server(home) == second
    assert [process.pid for process in servers_on(home)] == [first.pid]
    assert first.fault() is None


def test_finding_nothing_leaves_nothing_behind(new_home: Path) -> None:
    assert find_server(new_home) is None
    assert asyncio.run(stop_server(new_home)) is False
    assert not new_home.exists()


async def test_a_start_is_answered_in_less_than_a_second(home: Path) -> None:
    begin = time.perf_counter()
    server = await ensure_server(home)
    answer = ask(port_of(server), within=1)
    taken = time.perf_counter() - begin

    assert isinstance(answer, Answer)
    assert taken < 1


async def test_it_is_durable_and_keeps_everything_in_its_home(home: Path) -> None:
    server = await ensure_server(home)

    answer = monitor.ask(server.monitor_port, "/jsz")
    assert answer is not None
    assert answer[1]["config"]["sync_always"] is True
    assert answer[1]["config"]["store_dir"] == str(home / "jetstream") == str(server.store_dir)
    assert server.log_path.read_text().count("Server is ready") == 1
    assert psutil.Process(server.pid).cwd() == str(home)


def test_only_this_user_can_look_into_the_home(new_home: Path) -> None:
    asyncio.run(ensure_server(new_home))
    assert stat.S_IMODE(new_home.stat().st_mode) == 0o700


async def test_it_listens_on_the_loopback_interface_only(home: Path) -> None:
    server = await ensure_server(home)
    connections = psutil.Process(server.pid).net_connections()
    listening = {connection.laddr for connection in connections if connection.status == psutil.CONN_LISTEN}
    assert {port for _, port in listening} == {port_of(server), server.monitor_port}
    assert {address for address, _ in listening} == {"127.0.0.1"}


@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "größe/ブ/🚀",
        'it\'s "quoted" \\ $HOME',
        "#{x} [y], //z; a=b: 1",
        "line\nbreak",
        os.fsdecode(b"\xff"),
    ],
    ids=["spaces", "other scripts", "quotes and dollars", "the configuration's own signs", "line break", "not UTF-8"],
)
async def test_any_path_can_be_its_home(home: Path, name: str) -> None:
    odd = home / name
    server = await ensure_server(odd)
    try:
        assert server.store_dir == odd / "jetstream"
        assert server.store_dir.is_dir()
        assert server.log_path.stat().st_size > 0
    finally:
        assert await stop_server(odd) is True


async def test_a_home_is_the_same_by_whichever_link_it_is_reached(home: Path, tmp_path: Path) -> None:
    server = await ensure_server(home)
    link = tmp_path / "link"
    link.symlink_to(home)
    assert (await ensure_server(link)).pid == server.pid
    assert await stop_server(link) is True


async def test_without_a_home_the_one_of_the_settings_is_meant(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTFIELD_HOME", str(home))
    server = await ensure_server()
    assert server.store_dir.parent == home
    assert find_server() is not None
    assert await stop_server() is True


async def test_what_was_stored_is_there_after_a_crash(home: Path) -> None:
    server = await ensure_server(home)
    client = await nats.connect(server.url)
    await client.jetstream().add_stream(name="s", subjects=["s"])
    await client.jetstream().publish("s", b"kept")
    await client.close()

    kill(server.pid)
    again = await ensure_server(home)

    assert (again.started, again.url) == (True, server.url)
    client = await nats.connect(again.url)
    assert (await client.jetstream().get_msg("s", 1)).data == b"kept"
    await client.close()


async def test_who_is_connected_finds_it_again_after_a_stop_and_a_start(home: Path) -> None:
    first = await ensure_server(home)
    client = await nats.connect(first.url, max_reconnect_attempts=-1, reconnect_time_wait=0.05, error_cb=expected)

    assert await stop_server(home) is True
    await eventually(lambda: not client.is_connected, what="the client has noticed")
    second = await ensure_server(home)

    assert (second.url, second.monitor_url) == (first.url, first.monitor_url)
    await eventually(lambda: client.is_connected, what="the client is back")
    await client.close()


def test_it_outlives_who_started_it(home: Path, ask_for_server: Callable[..., Asker]) -> None:
    asker = ask_for_server()
    asker.wait_ready()
    asker.go()
    answer = asker.answer()
    asker.go()
    asker.wait_end()

    server = find_server(home)
    assert server is not None
    assert (server.pid, answer["started"]) == (answer["pid"], True)


def test_a_ctrl_c_that_ends_who_started_it_does_not_reach_it(home: Path, ask_for_server: Callable[..., Asker]) -> None:
    asker = ask_for_server()
    asker.wait_ready()
    asker.go()
    pid = asker.answer()["pid"]

    asker.interrupt()
    asker.wait_end()

    server = find_server(home)
    assert server is not None
    assert server.pid == pid == os.getsid(pid)


async def test_the_callers_loop_goes_on_meanwhile(home: Path) -> None:
    server = await ensure_server(home)
    psutil.Process(server.pid).suspend()
    asking = asyncio.create_task(ensure_server(home))
    turns = 0
    while not asking.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert asking.exception() is not None
    assert turns > 50


async def test_many_tasks_of_one_process_get_one_server(home: Path) -> None:
    servers = await asyncio.gather(*(ensure_server(home) for _ in range(8)))
    assert len({server.pid for server in servers}) == 1
    assert sum(server.started for server in servers) == 1


async def test_its_end_leaves_no_dead_process_behind(home: Path) -> None:
    server = await ensure_server(home)
    os.kill(server.pid, signal.SIGKILL)
    await eventually(lambda: not psutil.pid_exists(server.pid), what="the dead server was waited for")


async def test_the_record_says_where_it_is_and_since_when(home: Path) -> None:
    server = await ensure_server(home)
    record = Home(home).read_record()
    assert record is not None
    assert (record.url, record.pid, record.name) == (server.url, server.pid, server.name)
    assert abs(record.started_at.timestamp() - time.time()) < 60


def test_the_package_is_light_to_import() -> None:
    heavy = "{'nats', 'filelock', 'platformdirs', 'sqlite3', 'http', 'pydantic'}"
    program = f"import agentfield.local, sys; print(sorted({heavy} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
