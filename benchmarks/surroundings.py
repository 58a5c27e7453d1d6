"""The servers a benchmark runs against, and the clients it uses, ours and the plain ones.

Owns: one fresh nats-server a benchmark, configured as the embedded one is in production (every acknowledged write on
the disk), in a home that is removed afterwards; a redis-server where there is one. Nothing outlives the benchmark.
"""

from __future__ import annotations

import asyncio
import importlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import nats
import orjson
from nats.aio.client import Client as RawClient

from agentfield.agent import Agent
from agentfield.local import Server, ensure_server, stop_server

NAMESPACE = "bench"
LOG = "BENCH_MEMORY"
"""The log of that namespace, for those who read it by plain NATS."""
RAW = "RAW"
RAW_SUBJECTS = "raw.>"
VALUE = {
    "mood": "frustrated",
    "urgency": "high",
    "confidence": 0.93,
    "analyzed_at": "2026-03-01T09:30:00.123456",
}
"""What is written and read: the size and shape of what agents share."""
PAYLOAD = orjson.dumps(VALUE)
PATIENCE = 30.0
"""Seconds that plain NATS is given for one answer; its own default is too short for a machine that is busy."""
_REDIS_START = 10.0


class Surroundings:
    """What a benchmark may use."""

    def __init__(self, server: Server, home: Path, *, quick: bool) -> None:
        self.server = server
        self.url = server.url
        self.home = home
        self.quick = quick

    def scale(self, whole: int, quick: int) -> int:
        """The first number, or in a quick run the second."""
        return quick if self.quick else whole

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[RawClient]:
        """A plain nats-py connection."""
        client = await nats.connect(self.url)
        try:
            yield client
        finally:
            await client.close()

    @asynccontextmanager
    async def agent(self, name: str = "bench") -> AsyncIterator[Agent]:
        """An agent in a workflow and a session, not serving: its memory has all four scopes."""
        agent = Agent(name, nats_url=self.url, namespace=NAMESPACE)
        try:
            async with agent.session("user-42"), agent.workflow("wf-1"):
                await agent.memory.exists("nothing")  # connects
                yield agent
        finally:
            await agent.aclose()


@asynccontextmanager
async def surroundings(*, quick: bool) -> AsyncIterator[Surroundings]:
    """A fresh server in a home of its own; both are gone afterwards."""
    home = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="agentfield-bench-"))
    try:
        server = await ensure_server(home)
        yield Surroundings(server, home, quick=quick)
    finally:
        await stop_server(home)
        await asyncio.to_thread(shutil.rmtree, home, ignore_errors=True)


async def raw_stream(client: RawClient) -> None:
    """A stream for plain NATS that is what the log is, apart from what the log does for the buckets."""
    config = {
        "name": RAW,
        "subjects": [RAW_SUBJECTS],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "num_replicas": 1,
        "deny_delete": True,
        "deny_purge": True,
        "allow_direct": True,
        "allow_atomic": True,
        "duplicate_window": 120_000_000_000,
        "compression": "s2",
    }
    answer = orjson.loads((await client.request(f"$JS.API.STREAM.CREATE.{RAW}", orjson.dumps(config), PATIENCE)).data)
    if "error" in answer:
        raise RuntimeError(f"the raw stream: {answer['error']}")


def redis_client() -> Any:
    """The module ``redis`` (redis-py) with its ``asyncio`` part, or None."""
    try:
        importlib.import_module("redis.asyncio")
        return importlib.import_module("redis")
    except ImportError:
        return None


@contextmanager
def redis_port() -> Iterator[int | None]:
    """The port of a redis-server of our own on the loopback interface, or None where the program is missing."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory(prefix="agentfield-bench-redis-") as directory:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", directory, "--save", ""]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                _await_port(port, process)
                yield port
            finally:
                process.terminate()


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _REDIS_START
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"redis-server did not come up on port {port}") from None
            time.sleep(0.01)
