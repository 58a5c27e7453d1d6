"""Archives, made and looked into: what the tests of archiving, trimming and reading on share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agentfield import Event, Memory
from agentfield.archive.columns import Rows, day_of
from agentfield.archive.directory import Directory, LogId
from agentfield.audit.chain import Stored
from agentfield.audit.source import Live, stored_of
from agentfield.codec import Record
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.wire.client import ExactHeaders
from agentfield.subject import Subjects
from projections import Source, open_store, trimming
from projections.archive import Archive, Archiver
from projections.stores import Stores


def archiver(fabric: Fabric, root: Path) -> Archiver:
    """What archives the log of a fabric, into a store of views."""
    return Archiver(Source(fabric), Archive(), open_store(root).archive)


async def archive(fabric: Fabric, root: Path) -> Path:
    """Archive what the log holds now; return the archive's directory."""
    running = archiver(fabric, root)
    await running.catch_up()
    return running.path


async def trim(fabric: Fabric, root: Path) -> int:
    """Trim the log by the archive there; return how many messages that took out."""
    stores = Stores(Source(fabric), open_store(root))
    return sum([step.messages async for step in trimming.trim(Source(fabric), stores)])


async def live(fabric: Fabric, start: int = 1) -> list[Stored]:
    """What the log holds, exactly as stored."""
    last = int((await fabric.log.state())["last_seq"])
    return [each async for each in Live(fabric).read(start, last)]


async def archived(path: Path) -> list[Stored]:
    """What an archive holds."""
    from agentfield.archive.reading import Archive as Reading

    return [stored_of(each) async for each in Reading(path).read((), 1, 1 << 60)]


async def events_of(memory: Memory, pattern: str = "*", **options: Any) -> list[dict[str, Any]]:
    """A slice of history, whole."""
    return [event.model_dump() async for event in memory.history(pattern, **options)]


async def state_of(memory: Memory, point: Any) -> list[tuple[str, Any, int]]:
    """What memory held."""
    return [(each.key, each.value, each.revision) async for each in memory.as_of(point).items("*")]


async def write(memory: Memory, rounds: int, keys: int = 20) -> list[Event]:
    """Write keys round by round, some of them deleted in between, and one that is written once; return it all."""
    await memory.set("quiet", {"since": "the beginning"})
    for number in range(rounds):
        await memory.set_many({f"order_{key}": {"round": number, "name": "né"} for key in range(keys)})
        await memory.delete(f"order_{number % keys}")
    await memory.set("cart", [1, 2], scope="session", scope_id="a/b")
    return [event async for event in memory.history("*")]


LOG = LogId("test", "TEST_MEMORY", 5)


def add(path: Path, messages: list[Stored], *, log: LogId = LOG, begin: int = 1) -> int:
    """Add messages to an archive as its writer does."""
    files = Directory(path)
    days: list[tuple[int, Rows]] = []
    for each in messages:
        day = day_of(each.timestamp)
        if not days or days[-1][0] != day:
            days.append((day, Rows(Subjects(log.namespace))))
        days[-1][1].add(Record(each.subject, each.sequence, each.timestamp, ExactHeaders(each.headers), each.payload))
    segments = files.segments()
    return files.add(log, segments[-1].last if segments else 0, days, begin=begin)


@asynccontextmanager
async def rewritten(path: Path) -> AsyncIterator[list[Stored]]:
    """All messages of an archive, which is then made of what they are at the end of the block: by a forger."""
    segments = Directory(path).segments()
    messages = await archived(path)
    yield messages
    for segment in segments:
        segment.path.unlink()
    days: list[tuple[int, Rows]] = []
    for each in messages:
        days.append((day_of(each.timestamp), Rows(Subjects(segments[0].log.namespace)))) if not days else None
        days[-1][1].add(Record(each.subject, each.sequence, each.timestamp, ExactHeaders(each.headers), each.payload))
    rows = days[0][1]
    first, last = segments[0].first, segments[-1].last
    Directory(path)._write(segments[0].log, days[0][0], first, last, rows.table(), begins=first)
