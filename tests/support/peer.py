"""Another process with memory of its own, which does what it is told: the far side of everything shared.

A line of JSON on its standard input names an operation of `Memory` and its arguments; a line of JSON comes back with
what it returned or raised. So a test sees what a second program would see, over a connection that shares nothing with
the test's own.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel

from agentfield import AgentFieldError, Memory, connect

_READY = {"result": "ready"}


class PeerError(Exception):
    """What the operation raised there: the type's name and the message."""

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(f"{type_name}: {message}")
        self.type_name = type_name


class Peer:
    """The near end. Make one with `peer`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """The process, for signals."""
        return self._process.pid

    async def ask(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """Do it there; return the result as JSON data. Raises PeerError with what it raised."""
        self.begin(operation, *args, **kwargs)
        return await self.answer()

    def begin(self, operation: str, *args: Any, **kwargs: Any) -> None:
        """Let it start; `answer` waits for the end."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([operation, args, kwargs]).encode() + b"\n")

    async def answer(self) -> Any:
        """The result of the oldest operation that has none yet."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, f"the peer ended with code {await self._process.wait()}"
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(*answer["error"])
        return answer["result"]

    async def end(self) -> int:
        """Close its input, which ends it; return its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return await self._process.wait()


@asynccontextmanager
async def peer(url: str | Sequence[str], namespace: str, **options: Any) -> AsyncIterator[Peer]:
    """A connected process; `options` are those of `connect`. It has to end without a complaint."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-W", "error", "-m", __name__),
        *(url if isinstance(url, str) else ",".join(url), namespace, json.dumps(options)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=16 * 1024 * 1024,
    )
    try:
        near = Peer(process)
        assert await near.answer() == "ready"
        yield near
        assert await near.end() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _do(memory: Memory, operation: str, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        outcome = getattr(memory, operation)(*args, **kwargs)
        if hasattr(outcome, "__aiter__"):
            return {"result": [_plain(item) async for item in outcome]}
        return {"result": _plain(await outcome)}
    except AgentFieldError as error:
        return {"error": [type(error).__name__, str(error)]}


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


async def _serve(url: str, namespace: str, options: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=16 * 1024 * 1024)
    source, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        async with connect(url, namespace=namespace, **options) as memory:
            _say(_READY)
            while line := await reader.readline():
                _say(await _do(memory, *json.loads(line)))
    finally:
        source.close()


def _say(answer: dict[str, Any]) -> None:
    os.write(sys.stdout.fileno(), json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
