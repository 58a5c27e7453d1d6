"""Running the recorder program, and judging what it wrote down."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any


class Recorder:
    """An instance of the recording agent in a process of its own."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    async def end(self, how: signal.Signals) -> None:
        """Send it a signal that ends it, and wait until it is gone."""
        if self.process.returncode is None:
            self.process.send_signal(how)
        async with asyncio.timeout(20):
            await self.process.wait()

    def pause(self) -> None:
        """Stop it where it is."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)


async def start_recorder(url: str, namespace: str, path: Path, pattern: str = "*", delay: float = 0.0) -> Recorder:
    """Start an instance and wait until it serves."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.programs.recorder", url, namespace, str(path), pattern, str(delay),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(20):
        line = await process.stdout.readline()
    assert line == b"ready\n", line
    return Recorder(process)


@asynccontextmanager
async def recorder(
    url: str, namespace: str, path: Path, pattern: str = "*", delay: float = 0.0
) -> AsyncIterator[Recorder]:
    """An instance that is killed at the end of the block if it still runs."""
    instance = await start_recorder(url, namespace, path, pattern, delay)
    try:
        yield instance
    finally:
        if instance.process.returncode is None:
            await instance.end(signal.SIGKILL)


def recorded(path: Path) -> list[dict[str, Any]]:
    """What has been handled so far, in the order of handling; a line cut off by a kill does not count."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def without_late(lines: list[dict[str, Any]], paused: set[tuple[int, int]]) -> list[dict[str, Any]]:
    """What was handled, without what an instance finished after a pause although another had taken over.

    ``paused``: for every pause the process id, and how much that process had handled before. What it was in the middle
    of it finishes when it wakes, whatever has happened meanwhile. If it goes on with the next event right behind that,
    it was not in the middle of anything: it is the active one again.
    """
    counts, revisions = Counter[int](), Counter(line["revision"] for line in lines)
    kept = []
    for line, following in zip(lines, [*lines[1:], None], strict=True):
        goes_on = following is not None and (following["pid"], following["revision"]) == (
            line["pid"],
            line["revision"] + 1,
        )
        late = (line["pid"], counts[line["pid"]]) in paused and revisions[line["revision"]] > 1 and not goes_on
        counts[line["pid"]] += 1
        if late:
            revisions[line["revision"]] -= 1
        else:
            kept.append(line)
    return kept


def judge(lines: list[dict[str, Any]], written: dict[str, list[tuple[int, Any]]]) -> None:
    """Every write handled at least once, per key in order, with the right previous data.

    ``written``: for each key its (revision, value) in the order of the log. Repeats are allowed, as whole runs that go
    back: after each step back, the order holds again and no event is skipped.
    """
    for key, writes in written.items():
        place = {revision: index for index, (revision, _) in enumerate(writes)}
        handled = [line for line in lines if line["key"] == key]
        furthest = -1
        for line in handled:
            index = place[line["revision"]]
            assert index <= furthest + 1, f"{key}: {writes[furthest + 1]} was skipped before {line}"
            furthest = max(furthest, index)
            assert line["data"] == writes[index][1]
            assert line["previous"] == (writes[index - 1][1] if index else None), line
        assert furthest == len(writes) - 1, f"{key}: only {furthest + 1} of {len(writes)} were handled"
