"""A beginning that somebody took away is told from one that was trimmed: of a log, an archive and an export."""

import asyncio
from pathlib import Path

import orjson
import pyarrow.parquet
import pytest

from agentfield import Memory, ProjectionError
from agentfield.archive.directory import Directory
from agentfield.archive.reading import Archive
from agentfield.audit.checking import check_archive, check_export, check_live
from agentfield.audit.exporting import Selection, export
from agentfield.audit.jsonl import Export, end_line, event_line, header_line, seal_line
from agentfield.audit.nkey import Signer
from agentfield.audit.verifying import Verdict
from agentfield.fabric.fabric import Fabric
from agentfield.pattern import Pattern
from agentfield.scope import RESOLUTION
from tests.support.archiving import archive, rewritten, trim, write
from tests.support.sealing import seal_all

SIGNER = Signer.generate()
EVERYTHING = Selection(Pattern.parse("*"), tuple((kind, None) for kind in RESOLUTION))


async def of_archive(path: Path, fabric: Fabric) -> Verdict:
    return (await check_archive(path, by=fabric, trusted=[SIGNER.public])).verdict


async def of_log(fabric: Fabric, *, whole: bool = False) -> Verdict:
    return (await check_live(fabric, whole=whole, trusted=[SIGNER.public])).verdict


async def of_export(path: Path) -> Verdict:
    return (await check_export(path, trusted=[SIGNER.public])).verdict


def named(result: Verdict) -> tuple[str, int] | None:
    return None if result.finding is None else (result.finding.kind, result.finding.sequence)


@pytest.fixture
async def kept(fabric: Fabric, memory: Memory, tmp_path: Path) -> Path:
    """An archive of a sealed log, which is trimmed, and sealed and archived again."""
    await write(memory, 4)
    await seal_all(fabric, SIGNER, every=20)
    path = await archive(fabric, tmp_path)
    assert await trim(fabric, tmp_path) > 20
    await write(memory, 1)
    await seal_all(fabric, SIGNER)
    await archive(fabric, tmp_path)
    return path


async def cut(path: Path, first: int = 1, last: int = 1 << 62) -> None:
    """Leave of an archive what lies between two revisions, and have its files say that it is all."""
    async with rewritten(path) as messages:
        messages[:] = [each for each in messages if first <= each.sequence <= last]
        end = messages[-1].sequence
    [segment] = Directory(path).segments()
    table = pyarrow.parquet.read_table(segment.path, partitioning=None)
    footer = orjson.loads(table.schema.metadata[b"agentfield.archive"]) | {"begins": first, "first": first, "last": end}
    table = table.replace_schema_metadata({b"agentfield.archive": orjson.dumps(footer)})
    segment.path.unlink()
    pyarrow.parquet.write_table(table, segment.path.with_name(f"{first:012d}.parquet"))


async def test_a_trimmed_log_says_where_its_beginning_is_and_is_whole_together_with_that(
    fabric: Fabric, kept: Path
) -> None:
    result = await of_log(fabric)
    assert (result.intact, result.whole) == (True, False)
    assert result.absent is not None
    assert [(left.note.begins, left.sealed) for left in result.absent.left] == [(1, True)]
    assert (await of_archive(kept, fabric)).whole
    assert not (await of_log(fabric, whole=True)).whole
    fabric.log.earlier = Archive(kept)
    result = await of_log(fabric, whole=True)
    assert (result.whole, result.first, result.absent) == (True, 1, None)


async def test_an_archive_whose_front_was_cut_off_is_found_wherever_it_was_cut(
    fabric: Fabric, memory: Memory, kept: Path, tmp_path: Path
) -> None:
    for first in (2, fabric.log.held.complete):
        await cut(kept, first)
        result = await of_archive(kept, fabric)
        assert (result.intact, result.first, named(result)) == (False, first, ("removed", 1))
        fabric.log.earlier = Archive(kept)
        assert not (await of_log(fabric, whole=True)).whole
        fabric.log.earlier = None
    await write(memory, 1)
    with pytest.raises(ProjectionError, match="its beginning was taken away"):
        await trim(fabric, tmp_path)


async def test_an_archive_whose_end_was_cut_off_is_found_if_the_log_has_it_no_more(
    fabric: Fabric, memory: Memory, kept: Path, tmp_path: Path
) -> None:
    complete = fabric.log.held.complete
    for last, finding in ((complete - 1, None), (complete - 4, ("removed", complete - 3))):
        await cut(kept, last=last)
        result = await of_archive(kept, fabric)
        assert (named(result), result.whole, result.last) == (finding, False, last)


async def test_an_archive_that_is_not_gone_on_with_is_no_finding_if_another_one_is(
    fabric: Fabric, memory: Memory, kept: Path, tmp_path: Path
) -> None:
    await archive(fabric, tmp_path / "second")
    await write(memory, 2)
    await seal_all(fabric, SIGNER)
    await archive(fabric, tmp_path / "second")
    assert await trim(fabric, tmp_path / "second")
    result = await of_archive(kept, fabric)
    assert (named(result), result.first, result.last < fabric.log.held.complete) == (None, 1, True)


async def test_a_second_archive_that_begins_later_is_no_finding(
    fabric: Fabric, memory: Memory, kept: Path, tmp_path: Path
) -> None:
    complete = fabric.log.held.complete
    for sealed in (False, True):
        second = await archive(fabric, tmp_path / "second")
        if sealed:
            await write(memory, 2)
            await seal_all(fabric, SIGNER)
            await archive(fabric, tmp_path / "second")
            assert await trim(fabric, tmp_path / "second")
            await seal_all(fabric, SIGNER)
        result = await of_archive(second, fabric)
        assert (result.intact, result.whole, result.first) == (True, False, complete)
        assert result.absent is not None
        assert [left.note.begins for left in result.absent.left] == [1]
        assert (await of_log(fabric)).intact


async def test_an_export_whose_front_was_cut_off_is_found_and_one_of_a_trimmed_log_is_not(
    fabric: Fabric, kept: Path, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    for format in ("jsonl", "parquet"):
        await export(fabric, path, format, EVERYTHING)
        result = await of_export(path)
        assert (result.intact, result.whole, result.first) == (True, False, fabric.log.held.complete)
    fabric.log.earlier = Archive(kept)
    await export(fabric, path, "jsonl", EVERYTHING)
    assert (await of_export(path)).whole
    export_of = Export(path)
    extent = export_of.header.extent
    events, seals = list(export_of.events()), list(export_of.seals())
    for first in (2, fabric.log.held.complete + 1):
        header = header_line(extent._replace(first=first), namespace=export_of.header.namespace, exported=5)
        left = [each for each in events if each.sequence >= first]
        lines = [header, *map(event_line, left), *map(seal_line, seals), end_line(len(left), len(seals))]
        path.write_bytes(b"".join(lines))
        result = await of_export(path)
        assert (result.first, named(result)) == (first, ("removed", 1))


async def test_a_log_is_never_found_to_have_lost_what_is_just_being_trimmed(
    fabric: Fabric, memory: Memory, tmp_path: Path
) -> None:
    await write(memory, 6)
    await seal_all(fabric, SIGNER)
    await archive(fabric, tmp_path)
    trimming = asyncio.create_task(trim(fabric, tmp_path))
    while not trimming.done():
        result = await of_log(fabric)
        assert result.intact, result
    assert await trimming
    assert (await of_log(fabric)).intact
