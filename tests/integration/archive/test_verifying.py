"""Whatever is done to an archive is found, and the first event concerned is named: by the log, and by the seals."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow
import pyarrow.parquet
import pytest

from agentfield import DecodeError, InvalidInputError, Memory
from agentfield.archive.reading import Archive as Reading
from agentfield.audit import source
from agentfield.audit.chain import Stored
from agentfield.audit.checking import check_archive, check_live
from agentfield.audit.nkey import Signer
from agentfield.audit.verifying import Verdict
from agentfield.codec import Record
from agentfield.fabric.fabric import Fabric
from tests.support.archiving import archive, archived, archiver, live, rewritten, trim
from tests.support.sealing import seal_all

SIGNER = Signer.generate()
AT = 6
"""Where the seventh revision stands."""


@pytest.fixture
async def sealed(fabric: Fabric, memory: Memory, tmp_path: Path) -> Path:
    """Return the archive of a log that holds twelve events, in three seals."""
    for number in range(11):
        await memory.set(f"order_{number}", {"total": number})
    await memory.delete("order_3")
    assert [seal.last for seal in await seal_all(fabric, SIGNER, every=5)] == [5, 10, 12]
    return await archive(fabric, tmp_path)


async def verdict(path: Path, fabric: Fabric) -> Verdict:
    return (await check_archive(path, by=fabric, trusted=[SIGNER.public])).verdict


async def test_an_archive_is_verified_by_the_seals(sealed: Path, fabric: Fabric) -> None:
    found = await verdict(sealed, fabric)
    assert (found.intact, found.first, found.last, found.events, found.unsealed) == (True, 1, 12, 12, 0)


async def test_what_was_trimmed_is_verified_in_the_archive_and_the_rest_in_the_log(
    sealed: Path, fabric: Fabric, memory: Memory, tmp_path: Path
) -> None:
    for number in range(5):
        await memory.set("order_1", number)
    await seal_all(fabric, SIGNER)
    assert await trim(fabric, tmp_path)
    await memory.set("order_1", "new")
    await seal_all(fabric, SIGNER)
    await archive(fabric, tmp_path)
    found = await verdict(sealed, fabric)
    assert (found.intact, found.first, found.unsealed) == (True, 1, 0)
    left = (await check_live(fabric, trusted=[SIGNER.public])).verdict
    assert (left.intact, left.begins_at, left.last) == (True, fabric.log.held.complete, found.last)


def flip(messages: list[Stored]) -> None:
    payload = bytearray(messages[AT].payload)
    payload[3] ^= 1
    messages[AT] = messages[AT]._replace(payload=bytes(payload))


def flip_headers(messages: list[Stored]) -> None:
    messages[AT] = messages[AT]._replace(headers=messages[AT].headers.replace(b"v1", b"v2").replace(b"set", b"sat"))


def flip_time(messages: list[Stored]) -> None:
    messages[AT] = messages[AT]._replace(timestamp=messages[AT].timestamp ^ 1)


def remove(messages: list[Stored]) -> None:
    del messages[AT]


def insert(messages: list[Stored]) -> None:
    messages.insert(AT, messages[AT]._replace(payload=b'{"total":1000}'))


def reorder(messages: list[Stored]) -> None:
    one, other = messages[AT : AT + 2]
    messages[AT : AT + 2] = [
        other._replace(sequence=one.sequence),
        one._replace(sequence=other.sequence),
    ]


TAMPERED = [
    (flip, "changed"),
    (flip_headers, "changed"),
    (flip_time, "changed"),
    (remove, "removed"),
    (insert, "inserted"),
    (reorder, "reordered"),
]


@pytest.mark.parametrize(("tamper", "kind"), TAMPERED)
async def test_one_event_that_was_tampered_with_is_named(
    sealed: Path, fabric: Fabric, tmp_path: Path, tamper: Callable[[list[Stored]], None], kind: str
) -> None:
    async with rewritten(sealed) as messages:
        tamper(messages)
    found = await verdict(sealed, fabric)
    assert found.finding is not None
    assert (found.finding.kind, found.finding.sequence, found.last) == (kind, 7, 5)
    compared = await archiver(fabric, tmp_path).verify()
    assert not compared.equal
    assert any("revision 7" in (each or ()) for each in (compared.found, compared.expected))


async def test_a_bit_flipped_on_the_disk_is_found(sealed: Path, fabric: Fabric) -> None:
    messages = await archived(sealed)
    (path,) = sealed.glob("day=*/*.parquet")  # noqa: ASYNC240
    whole = path.read_bytes()
    harmless = 0
    for at in range(4, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            found = await verdict(sealed, fabric)
        except (DecodeError, InvalidInputError):
            continue
        if found.intact:
            assert await archived(sealed) == messages
            harmless += 1
    assert harmless < len(whole) // 97, "it was looked at where nothing is"


async def test_what_columns_say_beside_the_message_is_compared_with_it(
    sealed: Path, tmp_path: Path, fabric: Fabric
) -> None:
    segment = (await Reading(sealed).segments())[0]
    table = pyarrow.parquet.read_table(segment.path, partitioning=None)
    keys = table.column("key").to_pylist()
    keys[AT] = "another"
    column = pyarrow.array(keys).dictionary_encode()
    forged = table.set_column(table.schema.get_field_index("key"), table.schema.field("key"), column)
    pyarrow.parquet.write_table(forged, segment.path)
    with pytest.raises(DecodeError, match="beside revision 7"):
        await verdict(sealed, fabric)
    compared = await archiver(fabric, tmp_path).verify()
    assert (compared.equal, compared.found) == (False, ("revision 7", "other columns"))


async def test_what_queries_would_read_though_it_is_not_of_the_archive_is_named(sealed: Path, fabric: Fabric) -> None:
    segment = (await Reading(sealed).segments())[0]
    stranger = segment.path.with_name("more.parquet")
    stranger.write_bytes(segment.path.read_bytes())
    with pytest.raises(InvalidInputError, match=r"more\.parquet is none of the archive's files"):
        await verdict(sealed, fabric)
    stranger.unlink()
    elsewhere = sealed / "day=2020-01-01" / segment.path.name
    elsewhere.parent.mkdir()
    segment.path.rename(elsewhere)
    with pytest.raises(InvalidInputError, match=r"is out of place: .* belongs to .*/day=2\d+-\d\d-\d\d/0+1\.parquet"):
        await verdict(sealed, fabric)


@pytest.mark.parametrize("name", ["payload", "subject", "revision", "time"])
async def test_a_part_of_a_message_that_is_missing_is_named(sealed: Path, fabric: Fabric, name: str) -> None:
    segment = (await Reading(sealed).segments())[0]
    table = pyarrow.parquet.read_table(segment.path, partitioning=None)
    at, field = table.schema.get_field_index(name), table.schema.field(name)
    column = table.column(name).combine_chunks()
    without = pyarrow.array([row != AT for row in range(table.num_rows)])
    column = column.filter(without).take(pyarrow.array([*range(AT), None, *range(AT, table.num_rows - 1)]))
    pyarrow.parquet.write_table(table.set_column(at, field, column), segment.path)
    with pytest.raises(DecodeError) as caught:
        await verdict(sealed, fabric)
    assert caught.value.revision == 7


async def test_what_a_trimmed_log_has_kept_is_verified(
    sealed: Path, fabric: Fabric, memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await memory.set("order_1", number)
    await seal_all(fabric, SIGNER)
    assert await trim(fabric, tmp_path) > 0
    await seal_all(fabric, SIGNER)
    found = (await check_live(fabric, trusted=[SIGNER.public])).verdict
    complete = fabric.log.held.complete
    left = [each.sequence for each in await live(fabric) if each.sequence < complete]
    assert len(left) >= 11
    assert 7 in left
    assert (found.intact, found.kept, found.begins_at) == (True, len(left), complete)
    stored_of = source.stored_of

    def forged(record: Record) -> Stored:
        stored = stored_of(record)
        return stored._replace(payload=b"forged") if record.sequence == 7 else stored

    monkeypatch.setattr(source, "stored_of", forged)
    found = (await check_live(fabric, trusted=[SIGNER.public])).verdict
    assert found.finding is not None
    assert (found.finding.kind, found.finding.sequence) == ("changed", 7)


async def test_one_that_lost_its_end_is_found_by_the_log(sealed: Path, fabric: Fabric, memory: Memory) -> None:
    async with rewritten(sealed) as messages:
        del messages[9:]
    found = await verdict(sealed, fabric)
    assert found.finding is not None
    assert (found.finding.kind, found.finding.sequence) == ("removed", 10)


async def test_seals_of_another_log_are_refused(sealed: Path, fabric: Fabric, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no archive in"):
        await check_archive(tmp_path / "nothing", by=fabric)


def footer_rewritten(path: Path, old: bytes, new: bytes) -> None:
    """Replace some bytes, as many by others, in the footer of an archive's only file."""
    [file] = path.glob("*/*.parquet")
    content = file.read_bytes()
    begin = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    assert old in content[begin:]
    file.write_bytes(content[:begin] + content[begin:].replace(old, new))


async def test_a_footer_by_which_a_query_would_skip_rows_is_found(sealed: Path, fabric: Fabric) -> None:
    def asked() -> list[Any]:
        with duckdb.connect() as connection:
            rows = connection.execute("SELECT count(*) FROM read_parquet(?) WHERE key = 'order_5'", [f"{sealed}/*/*"])
            return rows.fetchall()

    assert asked() == [(1,)]
    footer_rewritten(sealed, b"order_9", b"order_1")
    assert asked() == [(0,)]
    with pytest.raises(DecodeError, match="its footer says of the column key"):
        await verdict(sealed, fabric)
    compared = await archiver(fabric, sealed.parent).verify()
    assert (compared.equal, compared.found) == (False, ("revision 1", "other columns"))


async def test_a_footer_over_which_pyarrow_would_die_is_found(sealed: Path) -> None:
    footer_rewritten(sealed, b"\x15\x0c\x19", b"\x15\x0e\x19")  # the type of a column, next to its encodings
    program = "import sys; from pathlib import Path; from agentfield.archive.directory import Directory; "
    program += "Directory(Path(sys.argv[1])).segments()"
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program, str(sealed)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "its columns are not what they are said to be" in done.stderr) == (1, True), done.stderr
