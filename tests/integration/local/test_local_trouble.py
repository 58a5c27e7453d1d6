"""An embedded server in bad weather: each time it ends well, or in one sentence that says what to do."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nats
import psutil
import pytest

from agentfield import connect
from agentfield.errors import IncompatibleServerError, InvalidInputError, OutcomeUnknownError, UnavailableError
from agentfield.local import ensure_server, find_server, launch, lifecycle, stop_server
from agentfield.local.binary import Binary, find_binary
from agentfield.local.home import Home
from tests.support import eventually, wait_until
from tests.support.homes import Asker, end_servers_on, kill, servers_on

pytestmark = pytest.mark.timeout(60)

SMALL = 128 * 1024 * 1024

# Every file that the process and its children write may have so many bytes and no more.
LIMIT_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a directory on a file system so small that a test can fill it."""
    directory = tmp_path / "small"
    directory.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", directory], capture_output=True, text=True
    )
    if mount.returncode == 0:
        try:
            yield directory
        finally:
            end_servers_on(directory / "home")
            wait_until(lambda: is_unmounted(directory), within=5, what=f"{directory} is unmounted")
        return
    shared = Path("/dev/shm")  # what every container has, and where nothing may be mounted has 64 MB
    if shutil.disk_usage(shared).total > SMALL:
        pytest.fail(f"no small file system to fill: {mount.stderr.strip()}, and {shared} is larger than {SMALL} bytes")
    directory = shared / f"agentfield-{os.getpid()}"
    directory.mkdir()
    try:
        yield directory
    finally:
        end_servers_on(directory / "home")
        shutil.rmtree(directory)


def is_unmounted(directory: Path) -> bool:
    return (
        subprocess.run(["umount", directory], stderr=subprocess.DEVNULL).returncode == 0
    )  # a dying process has it busy


def fill(directory: Path) -> Path:
    """Write a file that takes all the room there is."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(64 * 1024)) == 64 * 1024:
                pass
        except OSError:
            pass
    assert shutil.disk_usage(directory).free < 64 * 1024
    return filler


def is_one_sentence(error: pytest.ExceptionInfo[Exception]) -> bool:
    return "\n" not in str(error.value) and len(str(error.value)) < 600


async def test_a_home_below_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for home in (file, file / "home"):
        with pytest.raises(InvalidInputError, match="there is a file in its place: name another directory in AGENT"):
            await ensure_server(home)


@pytest.mark.parametrize(
    "home",
    ["/proc/agentfield", "/sys/agentfield", "/sys/kernel", f"/proc/{os.getpid()}/fdinfo"],
    ids=["not made in /proc", "not made in /sys", "not written in /sys", "not written in /proc"],
)
async def test_a_home_that_cannot_be_made_or_written_is_refused(home: str) -> None:
    assert find_server(home) is None
    with pytest.raises(UnavailableError, match=rf"cannot be kept in {home} \(.+\): make it writable, or name another"):
        await ensure_server(home)


@pytest.mark.parametrize("home", ["relative/path", "~/agentfield", "/with/a/\0", ""])
async def test_a_path_that_is_none_is_refused(home: str) -> None:
    with pytest.raises(InvalidInputError, match="cannot be the server's home"):
        await ensure_server(home)


async def test_a_full_disk_is_named_and_nothing_is_left_behind(small_disk: Path) -> None:
    home = small_disk / "home"
    filler = fill(small_disk)

    with pytest.raises(UnavailableError, match=f"no room for the server's data in {home}") as refused:
        await ensure_server(home)

    assert is_one_sentence(refused)
    assert not servers_on(home)
    filler.unlink()
    assert (await ensure_server(home)).started is True


async def test_a_disk_with_too_little_room_for_any_stream_is_refused_at_once(small_disk: Path) -> None:
    home = small_disk / "home"
    filler = fill(small_disk)
    os.truncate(filler, filler.stat().st_size - 512 * 1024)

    with pytest.raises(UnavailableError, match=r"no room for the server's data .*\d+ KB are free"):
        await ensure_server(home)

    assert not servers_on(home)


async def test_a_disk_that_fills_under_a_running_server_shows_as_its_fault(small_disk: Path) -> None:
    home = small_disk / "home"
    server = await ensure_server(home)
    client = await nats.connect(server.url)
    stream = client.jetstream(timeout=0.5)
    await stream.add_stream(name="s", subjects=["s"])
    await stream.publish("s", b"stored while there was room")
    filler = fill(small_disk)

    for _ in range(3):
        try:
            await stream.publish("s", bytes(500_000))
        except (nats.errors.TimeoutError, nats.js.errors.APIError):
            break
    assert "no space left" in str(await eventually(server.fault, what="the server knows"))

    filler.unlink()
    await client.close()
    assert await stop_server(home) is True
    again = await ensure_server(home)
    assert again.fault() is None
    client = await nats.connect(again.url)
    assert (await client.jetstream().get_msg("s", 1)).data == b"stored while there was room"
    await client.close()


async def test_a_server_that_a_full_disk_has_switched_off_is_restarted_when_there_is_room(small_disk: Path) -> None:
    home = small_disk / "home"
    server = await ensure_server(home)

    def is_off() -> bool:
        try:
            find_server(home)
        except UnavailableError as error:
            return "switched its storage (JetStream) off, as it does when its disk is full" in str(error)
        return False

    async with connect(server.url, timeout=1) as memory:
        await memory.set("before", 1)
        filler = fill(small_disk)
        with pytest.raises((UnavailableError, OutcomeUnknownError)):
            await memory.set("large", "x" * 200_000)
        await eventually(is_off, what="the server has switched its storage off")
        with pytest.raises(UnavailableError, match="`agentfield doctor` says what to do"):
            await memory.get("before")
        with pytest.raises(UnavailableError, match=r"there is no room .*\d+ KB are free"):
            await ensure_server(home)

        filler.unlink()
        again = await ensure_server(home)
        assert (again.started, again.url, again.pid != server.pid) == (True, server.url, True)
        assert await eventually(lambda: memory.get("before"), what="who was connected finds it again") == 1
        await memory.set("after", 2)


@pytest.mark.parametrize(
    "limit", [0, 100, 400], ids=["no byte fits", "the record does not fit", "the configuration does not fit"]
)
def test_a_file_size_limit_is_named_and_nothing_is_left_behind(
    new_home: Path, ask_for_server: Callable[..., Asker], limit: int
) -> None:
    asker = ask_for_server(before=LIMIT_FILES.format(limit))
    asker.wait_ready()
    asker.go()
    answer = asker.answer()

    assert answer["error"] == "UnavailableError"
    assert "\n" not in answer["message"]
    assert str(new_home) in answer["message"]
    assert not servers_on(new_home)
    assert not list(new_home.glob("*.new"))
    assert lifecycle.ensure(new_home).started is True


async def test_a_paused_server_is_reported_soon_and_not_doubled(home: Path) -> None:
    server = await ensure_server(home)
    psutil.Process(server.pid).suspend()

    begin = time.monotonic()
    with pytest.raises(
        UnavailableError, match=f"process {server.pid}.* is running, but does not answer .*-CONT"
    ) as said:
        await ensure_server(home)
    with pytest.raises(UnavailableError, match="is running, but does not answer"):
        find_server(home)

    assert time.monotonic() - begin < 6
    assert is_one_sentence(said)
    assert len(servers_on(home)) == 1
    psutil.Process(server.pid).resume()
    assert (await ensure_server(home)).pid == server.pid


IMPOSSIBLE = '{"name": "x", "port": 99999, "monitor_port": 1, "version": "1", "started_at": "2026-01-01", "pid": -1}'


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"name": 1}', '{"pid": "x"}', "\0\0\0", IMPOSSIBLE])
async def test_a_damaged_record_of_a_dead_server_is_replaced(home: Path, damage: str) -> None:
    server = await ensure_server(home)
    kill(server.pid)
    (home / "server.json").write_text(damage)

    assert find_server(home) is None
    assert (await ensure_server(home)).started is True


async def test_a_server_that_is_slow_to_come_up_is_not_cut_off(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large store takes longer to restore than anybody waits; killing the server then would be for ever."""
    gate = home.parent / "gate"
    slow = script(home.parent / "slow", f'until [ -e "{gate}" ]; do sleep 0.01; done; exec "{find_binary().path}" "$@"')
    (home / "server.pid").write_text("1")  # left by an earlier server that crashed
    monkeypatch.setattr(launch, "START_DEADLINE", 0.3)
    with pytest.raises(UnavailableError, match=r"is not ready after 0\.3 s and goes on trying") as slowness:
        launch.launch(Home(home), Binary(slow, "2.15.1"))
    assert is_one_sentence(slowness)
    assert not (home / "server.pid").exists()

    gate.touch()
    server = await ensure_server(home)

    assert server.started is False
    assert [process.pid for process in servers_on(home)] == [server.pid]


def test_a_server_that_ends_at_once_is_reported_with_its_last_words(home: Path) -> None:
    broken = script(home.parent / "broken", "echo 'nats-server: out of luck' >&2; exit 3")
    with pytest.raises(
        UnavailableError, match=r"ended while starting \(exit code 3\): nats-server: out of luck"
    ) as end:
        launch.launch(Home(home), Binary(broken, "2.15.1"))
    assert is_one_sentence(end)


def test_a_server_that_logs_a_fatal_error_is_reported_with_it(home: Path) -> None:
    (home / "jetstream").write_text("a file where the store should be")
    with pytest.raises(UnavailableError, match=r"ended while starting \(exit code 1\): Can't start JetStream: .+"):
        lifecycle.ensure(home)


def test_a_program_that_cannot_be_run_is_named(home: Path) -> None:
    with pytest.raises(UnavailableError, match="/nowhere/nats-server cannot be run"):
        launch.launch(Home(home), Binary(Path("/nowhere/nats-server"), "2.15.1"))
    assert lifecycle.ensure(home).started is True


async def test_without_a_new_enough_program_a_running_server_is_still_found(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> Binary:
        return find_binary([])

    monkeypatch.setattr(lifecycle, "find_binary", none_left)
    with pytest.raises(UnavailableError, match="no nats-server program was found"):
        await ensure_server(home)
    monkeypatch.undo()
    server = await ensure_server(home)
    monkeypatch.setattr(lifecycle, "find_binary", none_left)
    assert (await ensure_server(home)).pid == server.pid


@pytest.mark.skipif(
    "AGENTFIELD_TEST_OLD_NATS_SERVER" not in os.environ,
    reason="AGENTFIELD_TEST_OLD_NATS_SERVER names no old nats-server",
)
class TestDebiansServer:
    """The nats-server 2.9.10 that `apt-get install nats-server` gives."""

    @pytest.fixture
    def old(self) -> Path:
        return Path(os.environ["AGENTFIELD_TEST_OLD_NATS_SERVER"])

    def test_as_a_program_it_is_refused(self, old: Path) -> None:
        with pytest.raises(
            IncompatibleServerError, match=r"is version 2\.9\.10, but 2\.15\.1 or later is needed"
        ) as refused:
            find_binary([old])
        assert (refused.value.found, refused.value.needed, refused.value.server) == ("2.9.10", "2.15.1", str(old))

    def test_running_in_the_home_it_is_refused(self, old: Path, home: Path) -> None:
        """As an earlier agentfield may have left it; an upgrade of the package does not restart it."""
        server = lifecycle.ensure(home)
        kill(server.pid)
        port = server.url.rpartition(":")[2]
        command = [
            str(old),
            "--name",
            server.name,
            "--addr",
            "127.0.0.1",
            "--port",
            port,
            "-js",
            "-sd",
            str(home / "old"),
        ]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                refusal = wait_until(lambda: refused_by(home), within=5, what="it is refused")
            finally:
                process.kill()
        assert (refusal.found, refusal.needed, refusal.server) == ("2.9.10", "2.15.1", server.url)


def refused_by(home: Path) -> IncompatibleServerError | None:
    try:
        assert find_server(home) is None
    except IncompatibleServerError as error:
        return error
    return None


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path
