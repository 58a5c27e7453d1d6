"""Exports: whole, or not there; verified with no server; and whatever is done to one is found and named."""

import json
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from agentfield import DecodeError, InvalidInputError, Memory
from agentfield.audit.checking import check_export, open_export
from agentfield.audit.exporting import Exported, Selection, export
from agentfield.audit.nkey import Signer
from agentfield.audit.source import Live
from agentfield.audit.verifying import Verdict
from agentfield.fabric.fabric import Fabric
from agentfield.memory.addressing import AnyScope
from agentfield.pattern import Pattern
from agentfield.scope import RESOLUTION
from tests.support.events import write
from tests.support.sealing import seal_all

SIGNER = Signer.generate()
EVERYWHERE: tuple[AnyScope, ...] = tuple((kind, None) for kind in RESOLUTION)
WHOLE = Selection(Pattern.parse("*"), EVERYWHERE)


@pytest.fixture
async def sealed(fabric: Fabric, memory: Memory) -> Fabric:
    """Return a fabric whose log holds twelve events, in three seals."""
    for number in range(10):
        await memory.set(f"order_{number}", {"total": number, "name": "né"})
    await memory.delete("order_3")
    await memory.set("cart", [1], scope="session", scope_id="a/b")
    assert [seal.last for seal in await seal_all(fabric, SIGNER, every=5)] == [5, 10, 12]
    return fabric


def names(directory: Path) -> list[str]:
    return [each.name for each in directory.iterdir()]


async def verdict(path: Path, **options: Any) -> Verdict:
    return (await check_export(path, trusted=[SIGNER.public], **options)).verdict


@pytest.fixture(params=["own seals", "live seals"])
async def verify(sealed: Fabric, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return a function that verifies an export, by the seals in it or by those on the server."""
    by = sealed if request.param == "live seals" else None
    return lambda path: verdict(path, by=by)


async def test_an_export_is_verified_by_its_own_seals(sealed: Fabric, tmp_path: Path) -> None:
    path = tmp_path / "log"
    for format in ("jsonl", "parquet"):
        assert await export(sealed, path, format, WHOLE) == Exported(events=12, seals=3, left_out=0, first=1, last=12)
        result = await verdict(path)
        assert (result.intact, result.last, result.events, result.seals) == (True, 12, 12, 3)
        assert (await verdict(path, by=sealed)).events == 12
        assert names(tmp_path) == ["log"]


async def test_an_export_gives_back_every_bit(sealed: Fabric, tmp_path: Path, namespace: str) -> None:
    subject = f"{namespace}.memory.global.global.k"
    block = b"NATS/1.0\r\nA: \xff\r\nA:  2\r\n\r\n"
    client = sealed.connection.client
    await client._send_command(f"HPUB {subject} {len(block)} {len(block) + 4}\r\n".encode() + block + b"\0\xff\n\r\r\n")
    await client._send_command(b"PUB " + subject.encode() + b"\xff.x 0\r\n\r\n")
    assert await write(sealed, "stored.after.them") == 15
    live = Live(sealed)
    extent = await live.extent()
    async with aclosing(live.read(1, extent.last)) as messages:
        stored = [each async for each in messages]
    assert len(stored) == 15
    for format in ("jsonl", "parquet"):
        await export(sealed, tmp_path / format, format, WHOLE)
        found = open_export(tmp_path / format)
        assert list(found.events()) == stored
        assert found.header.extent == extent
        async with aclosing(live.seals(3)) as seals:
            assert list(found.seals()) == [each async for each in seals]


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def place(lines: list[bytes], revision: int) -> int:
    return next(at for at, line in enumerate(lines) if line.startswith(b'{"revision":%d,' % revision))


def flip(lines: list[bytes]) -> None:
    at = place(lines, 7)
    line = bytearray(lines[at])
    line[line.index(b'\\"total\\":6') + 10] ^= 1
    lines[at] = bytes(line)


def remove(lines: list[bytes]) -> None:
    del lines[place(lines, 7)]


def insert(lines: list[bytes]) -> None:
    at = place(lines, 7)
    lines.insert(at, lines[at].replace(b'\\"total\\":6', b'\\"total\\":1000'))


def reorder(lines: list[bytes]) -> None:
    at = place(lines, 7)
    lines[at], lines[at + 1] = lines[at + 1], lines[at]


def renumber(lines: list[bytes]) -> None:
    remove(lines)
    for revision in range(8, 13):
        at = place(lines, revision)
        lines[at] = lines[at].replace(b'"revision":%d,' % revision, b'"revision":%d,' % (revision - 1))


@pytest.mark.parametrize(
    ("tamper", "kind"),
    [(flip, "changed"), (remove, "removed"), (insert, "inserted"), (reorder, "reordered"), (renumber, "removed")],
)
async def test_one_event_that_was_tampered_with_is_named(
    sealed: Fabric,
    verify: Callable[..., Any],
    tmp_path: Path,
    tamper: Callable[[list[bytes]], None],
    kind: str,
) -> None:
    path = tmp_path / "log"
    await export(sealed, path, "jsonl", WHOLE)
    lines = lines_of(path)
    tamper(lines)
    path.write_bytes(b"".join(lines))
    result = await verify(path)
    assert (result.finding.kind, result.finding.sequence, result.last) == (kind, 7, 5)


async def named(path: Path) -> int | None:
    """The revision that is found fault with: by what it holds, or because it cannot be read."""
    try:
        result = await verdict(path)
    except DecodeError as error:
        return error.revision
    return None if result.finding is None else result.finding.sequence


async def test_any_one_bit_flipped_in_an_event_is_found_and_named(sealed: Fabric, tmp_path: Path) -> None:
    path = tmp_path / "log"
    await export(sealed, path, "jsonl", WHOLE)
    lines = lines_of(path)
    at = place(lines, 7)
    for bit in range(0, 8 * len(lines[at]), 7):
        damaged = bytearray(lines[at])
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(b"".join([*lines[:at], damaged, *lines[at + 1 :]]))
        assert await named(path) == 7, bytes(damaged)


def stranger(line: bytes, revision: int) -> bytes:
    return line.replace(b'"revision":12,', b'"revision":%d,' % revision)


async def test_what_was_added_where_no_seal_reaches_is_counted_or_named(sealed: Fabric, tmp_path: Path) -> None:
    whole, some = tmp_path / "whole", tmp_path / "some"
    await export(sealed, whole, "jsonl", WHOLE)
    await export(sealed, some, "jsonl", Selection(Pattern.parse("order_*"), EVERYWHERE))
    for path in (whole, some):
        lines = lines_of(path)
        end = next(at for at, line in enumerate(lines) if line.startswith(b'{"seal"'))
        last = lines_of(whole)[12]
        path.write_bytes(b"".join([*lines[:end], stranger(last, 13), *lines[end:]]))
        result = await verdict(path)
        assert result.finding is not None
        assert (result.finding.kind, result.finding.sequence, result.unsealed) == ("inserted", 13, 0)
        lines[0] = lines[0].replace(b'"last":12', b'"last":14')
        path.write_bytes(b"".join([*lines[:end], stranger(last, 13), stranger(last, 14), *lines[end:]]))
        result = await verdict(path)
        assert (result.intact, result.unsealed) == (True, 2)
        path.write_bytes(b"".join([*lines[:end], stranger(last, 14), stranger(last, 13), *lines[end:]]))
        assert not (await verdict(path)).intact
        path.write_bytes(b"".join([*lines[:-1], stranger(last, 13), lines[-1]]))
        with pytest.raises(DecodeError, match="not as it was written"):
            await verdict(path)


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        (b'"first":1,', b'"first":2000,'),
        (b'"first":1,', b'"first":-1,'),
        (b'"namespace":"', b'"namespace":"other_'),
        (b'{"end":{"events":12', b'{"end":{"events":"x'),
    ],
)
async def test_an_export_that_contradicts_itself_is_refused(
    sealed: Fabric, tmp_path: Path, said: bytes, instead: bytes
) -> None:
    path = tmp_path / "log"
    await export(sealed, path, "jsonl", WHOLE)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(said, instead, 1))
    assert path.read_bytes() != whole
    with pytest.raises(InvalidInputError):
        await verdict(path)


async def test_a_seal_that_was_tampered_with_is_found(sealed: Fabric, tmp_path: Path) -> None:
    path = tmp_path / "log"
    await export(sealed, path, "jsonl", WHOLE)
    lines = lines_of(path)
    at = next(at for at, line in enumerate(lines) if line.startswith(b'{"seal":2'))
    for others in ([], [lines[at].replace(b"first", b"forst", 1)], [lines[at - 1]], [b'{"seal":2}\n']):
        path.write_bytes(b"".join([*lines[:at], *others, *lines[at + 1 :]]))
        result = await verdict(path)
        assert result.seal_fault is not None
        assert (result.last, result.seals) == (5, 1)


async def test_an_export_that_was_cut_off_is_refused(sealed: Fabric, tmp_path: Path) -> None:
    path = tmp_path / "log"
    await export(sealed, path, "jsonl", WHOLE)
    whole = path.read_bytes()
    for rest in (whole[: len(whole) // 2], b"".join(lines_of(path)[:-1]), b"", b"text\n"):
        path.write_bytes(rest)
        with pytest.raises(InvalidInputError):
            await verdict(path)
    await export(sealed, path, "parquet", WHOLE)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InvalidInputError):
        await verdict(path)


async def test_a_footer_by_which_a_query_would_skip_rows_is_found(sealed: Fabric, tmp_path: Path) -> None:
    path = tmp_path / "log"
    await export(sealed, path, "parquet", WHOLE)
    content = path.read_bytes()
    begin = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    assert b"order_9" in content[begin:]
    path.write_bytes(content[:begin] + content[begin:].replace(b"order_9", b"order_1"))
    with pytest.raises(DecodeError, match="its footer says of the column key"):
        await verdict(path)


async def test_a_footer_that_is_not_legible_is_found(sealed: Fabric, tmp_path: Path) -> None:
    path = tmp_path / "log"
    await export(sealed, path, "parquet", WHOLE)
    content = path.read_bytes()
    begin = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for old, new in ((b"execution_id", b"execution\xff\xfe\xff"), (b"\x15\x0c\x19", b"\x15\x0e\x19")):
        path.write_bytes(content[:begin] + content[begin:].replace(old, new))
        with pytest.raises(InvalidInputError, match=r"is damaged|is no export"):
            await verdict(path)


async def test_a_value_changed_in_parquet_is_named(sealed: Fabric, tmp_path: Path) -> None:
    path = tmp_path / "log"
    await export(sealed, path, "parquet", WHOLE)
    table = pyarrow.parquet.read_table(path)
    assert table.column("key").to_pylist()[:2] == ["order_0", "order_1"]
    assert table.column("operation").to_pylist()[10] == "delete"
    metadata = pyarrow.parquet.read_metadata(path).metadata
    payloads = table.column("payload").to_pylist()
    payloads[6] = payloads[6].replace(b"6", b"7")
    changed = table.set_column(table.schema.names.index("payload"), "payload", pyarrow.array(payloads, "binary"))
    pyarrow.parquet.write_table(changed.replace_schema_metadata(metadata), path)
    result = await verdict(path)
    assert result.finding is not None
    assert (result.finding.kind, result.finding.sequence) == ("changed", 7)


@pytest.mark.parametrize("name", ["key", "operation", "agent", "payload", "revision"])
async def test_columns_that_do_not_say_what_the_message_says_are_named(
    sealed: Fabric, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "log"
    await export(sealed, path, "parquet", WHOLE)
    table = pyarrow.parquet.read_table(path)
    metadata = pyarrow.parquet.read_metadata(path).metadata
    field = table.schema.field(name)
    column = table.column(name).to_pylist()
    column[6] = "forged" if field.type == "string" else None
    changed = table.set_column(table.schema.names.index(name), field, pyarrow.array(column, field.type))
    pyarrow.parquet.write_table(changed.replace_schema_metadata(metadata), path)
    assert await named(path) == 7
    pyarrow.parquet.write_table(table.drop_columns(["headers"]).replace_schema_metadata(metadata), path)
    with pytest.raises(InvalidInputError, match="columns"):
        await verdict(path)


async def test_a_selection_is_verified_as_far_as_it_can_be(sealed: Fabric, tmp_path: Path, namespace: str) -> None:
    path = tmp_path / "log"
    await sealed.connection.client._send_command(
        b"PUB %b.memory.global.global.order.\xff 1\r\nx\r\n" % namespace.encode()
    )
    await write(sealed, "other")
    some = Selection(Pattern.parse("order_*"), (("global", None),), 3, 9)
    assert (await export(sealed, path, "jsonl", some)).events == 7
    assert (await export(sealed, path, "jsonl", replace(some, last=None))).events == 9
    assert (await export(sealed, path, "jsonl", some)).events == 7
    result = await verdict(path)
    assert (result.intact, result.selection, result.events) == (True, True, 7)
    lines = lines_of(path)
    lines[3] = lines[3].replace(b"total", b"Total")
    path.write_bytes(b"".join(lines))
    result = await verdict(path)
    assert result.finding is not None
    assert (result.finding.kind, result.finding.sequence) == ("changed", 5)


async def test_an_export_made_before_the_last_seals_is_verified_by_them(sealed: Fabric, tmp_path: Path) -> None:
    path = tmp_path / "log"
    memory_subject = f"{sealed.topology.namespace}.memory.global.global.k"
    await sealed.connection.request(memory_subject, b"1", timeout=5)
    await export(sealed, path, "jsonl", WHOLE)
    await sealed.connection.request(memory_subject, b"2", timeout=5)
    assert [(seal.first, seal.last) for seal in await seal_all(sealed, SIGNER)] == [(13, 14)]
    assert (await verdict(path)).unsealed == 1
    result = await verdict(path, by=sealed)
    assert (result.intact, result.last, result.events) == (True, 13, 13)
    lines = lines_of(path)
    at = place(lines, 13)
    lines[at] = lines[at].replace(b'"payload":"1"', b'"payload":"2"')
    path.write_bytes(b"".join(lines))
    result = await verdict(path, by=sealed)
    assert result.finding is not None
    assert (result.finding.kind, result.finding.sequence) == ("changed", 13)


async def test_cloud_events_say_what_happened(sealed: Fabric, tmp_path: Path, namespace: str) -> None:
    path = tmp_path / "events"
    await sealed.connection.request(f"{namespace}.checks.1", b"null", timeout=5)
    done = await export(sealed, path, "cloudevents", WHOLE)
    assert (done.events, done.left_out) == (12, 1)
    events = [json.loads(line) for line in path.read_text().splitlines()]
    first, deleted, last = events[0], events[10], events[11]
    assert {"specversion", "id", "source", "type"} <= first.keys()
    assert (first["specversion"], first["type"], first["subject"]) == ("1.0", "agentfield.memory.set", "order_0")
    assert (first["data"], first["datacontenttype"]) == ({"total": 0, "name": "né"}, "application/json")
    assert (deleted["type"], "data" in deleted) == ("agentfield.memory.delete", False)
    assert (last["source"], last["sequence"]) == (f"/agentfield/{namespace}/session/a%2Fb", "12")
    assert all(name.islower() and name.isalnum() for event in events for name in event)


async def test_what_was_erased_is_exported_as_erased_and_still_verified(
    sealed: Fabric, memory: Memory, tmp_path: Path
) -> None:
    await memory.set_personal(["session"])
    await memory.session("user-1").set("email", "ada@example.org")
    await memory.erase(scope="session", scope_id="user-1")
    await seal_all(sealed, SIGNER)
    cloud, lines = tmp_path / "cloud", tmp_path / "lines"
    await export(sealed, cloud, "cloudevents", WHOLE)
    events = [json.loads(line) for line in cloud.read_text().splitlines()]
    (erased,) = (event for event in events if event.get("erased"))
    assert (erased["subject"], "data" in erased) == ("email", False)
    await export(sealed, lines, "jsonl", WHOLE)
    assert (await verdict(lines)).intact


async def test_an_export_that_fails_leaves_what_was_there(sealed: Fabric, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before")
    await sealed.connection.aclose()
    with pytest.raises(Exception, match="closed"):
        await export(sealed, path, "jsonl", WHOLE)
    assert path.read_text() == "before"
    assert names(tmp_path) == ["log"]
