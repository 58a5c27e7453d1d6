"""The command line on a real server, in a namespace of each test's own."""

import asyncio
import gc
import io
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import agentfield
from agentfield import Memory
from agentfield.cli import main
from tests.cli.command import Cli, Result
from tests.support import NatsServer
from tests.support.homes import end_servers_on

Inside = Callable[..., Result]
Remember = Callable[[Callable[[Memory], Awaitable[Any]]], Any]


@contextmanager
def collecting_after() -> Iterator[None]:
    """Undo what the command line does about garbage in a process that is its own, and ends with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "freeze", lambda: None)
        try:
            yield
        finally:
            gc.enable()


@pytest.fixture
def cli(server: NatsServer, namespace: str) -> Iterator[Cli]:
    """Return the command line, told by its environment which server and namespace to use."""
    cli = Cli({"AGENTFIELD_NATS_URL": server.url, "AGENTFIELD_NAMESPACE": namespace})
    yield cli
    cli.dispose()


@pytest.fixture
def inside(
    server: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Inside:
    """Return a function that does the same in this process, which is faster; an event loop may be running here."""
    monkeypatch.setenv("AGENTFIELD_NATS_URL", server.url)
    monkeypatch.setenv("AGENTFIELD_NAMESPACE", namespace)
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def run(*args: str) -> Result:
        monkeypatch.setattr("sys.argv", ["agentfield", *args])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended, collecting_after():
            main()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Return the path of a home that does not exist yet."""
    home = tmp_path / "home"
    yield home
    end_servers_on(home)


@pytest.fixture
def local_cli(home: Path) -> Iterator[Cli]:
    """Return the command line as it is with nothing configured, on a home of the test's own."""
    cli = Cli({"AGENTFIELD_HOME": str(home)})
    yield cli
    cli.dispose()


@pytest.fixture
def used(remember: Remember) -> None:
    """Make the namespace, and leave it empty."""

    async def look(memory: Memory) -> None:
        await memory.exists("anything")

    remember(look)


@pytest.fixture
def remember(server: NatsServer, namespace: str) -> Remember:
    """Return a function that runs a coroutine on the library's memory, in the command line's namespace."""

    def run(use: Callable[[Memory], Awaitable[Any]]) -> Any:
        async def connected() -> Any:
            async with agentfield.connect(server.url, namespace=namespace) as memory:
                return await use(memory)

        return asyncio.run(connected())

    return run
