"""WebSockets, which need aiohttp: it is loaded for them, and for nothing else that goes on here."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.support import NatsServer
from tests.support.ports import free_ports

pytest.importorskip("aiohttp", reason="aiohttp, which comes with the extra ai, is not installed")

_PROGRAM = """
import asyncio, sys
import agentfield

async def main():
    async with agentfield.connect(sys.argv[1]) as memory:
        print("aiohttp.client" in sys.modules)
        await memory.set("key", "value")
        print(await memory.get("key"))

asyncio.run(main())
"""


def said_with(url: str) -> list[str]:
    program = [sys.executable, "-W", "ignore", "-c", _PROGRAM, url]  # nats-py uses what aiohttp deprecates
    done = subprocess.run(program, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_aiohttp_is_loaded_for_a_websocket_and_not_before(start_server: Callable[..., NatsServer]) -> None:
    (port,) = free_ports(1)
    server = start_server(extra=f"websocket {{ listen: '127.0.0.1:{port}', no_tls: true }}")
    assert said_with(server.url) == ["False", "value"]
    assert said_with(f"ws://127.0.0.1:{port}") == ["True", "value"]
