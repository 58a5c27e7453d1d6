"""Homes of embedded servers: what runs on one, and a program in another process that asks for its server."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from tests.support.waiting import wait_until

_ASKER = """
import asyncio, json, sys
import filelock  # before the signal to go, so that all that follows it is the start
from agentfield.errors import AgentFieldError
from agentfield.local import ensure_server

print("ready", flush=True)
sys.stdin.readline()
try:
    server = asyncio.run(ensure_server(sys.argv[1]))
    answer = {"url": server.url, "pid": server.pid, "started": server.started}
except AgentFieldError as error:
    answer = {"error": type(error).__name__, "message": str(error)}
print(json.dumps(answer), flush=True)
sys.stdin.readline()
"""


def servers_on(home: Path) -> list[psutil.Process]:
    """Return the live nats-server processes of that home, however they came to be."""
    config = str(home.resolve() / "server.conf")
    return [process for process in psutil.process_iter() if _runs_with(process, config)]


def end_servers_on(home: Path) -> None:
    """Kill whatever server is left on that home."""
    left = servers_on(home)
    for process in left:
        process.kill()
    wait_until(lambda: not servers_on(home), within=5, what=f"the servers on {home} are gone")


def kill(pid: int) -> None:
    """End a server that this process started as a crash would, and return when it is gone."""
    os.kill(pid, signal.SIGKILL)
    # Not before it was waited for: while a thread of it is still on the way out, its files and ports are not free.
    wait_until(lambda: not psutil.pid_exists(pid), within=5, what=f"process {pid} is gone")


async def expected(error: Exception) -> None:
    """Take note of the end of a server that the test ended, which a client of nats-py would otherwise log."""


class Asker:
    """A Python process that waits for `go`, then asks for a home's server, says what it got, and waits again."""

    def __init__(self, home: Path, *, before: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", before + _ASKER, home],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_ready(self) -> None:
        """Return when it has imported everything and waits."""
        assert self._line() == "ready\n"

    def go(self) -> None:
        """Let it ask."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Return what it got."""
        answer: dict[str, Any] = json.loads(self._line())
        return answer

    def interrupt(self) -> None:
        """Press Ctrl-C in its terminal: every process of its group gets the signal."""
        os.killpg(self._process.pid, signal.SIGINT)

    def wait_end(self) -> None:
        """Return when it has ended."""
        self._process.communicate()

    def dispose(self) -> None:
        """Kill it if it still runs."""
        self._process.kill()
        self.wait_end()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def _runs_with(process: psutil.Process, config: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and config in process.cmdline()
    except (psutil.Error, OSError):  # gone meanwhile
        return False
