"""An archive's files hold what was given, once and byte for byte, whatever it is and whatever dies."""

import asyncio
import os
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentfield import DecodeError, InvalidInputError
from agentfield.archive import directory
from agentfield.archive.directory import Directory, LogId, Moved
from agentfield.archive.matching import matcher
from agentfield.archive.reading import Archive
from agentfield.audit.chain import Stored
from agentfield.audit.source import stored_of
from tests.support.archiving import LOG, add, archived

DAY = 86_400 * 10**9
NOON = 20_000 * DAY + DAY // 2


def message(sequence: int, *, time: int = 0, key: str = "k", payload: bytes = b"1") -> Stored:
    block = b'NATS/1.0\r\nNats-Msg-Id: id%d\r\nAgentfield-Event: {"v":1,"type":"set","agent":"a"}\r\n\r\n' % sequence
    subject = f"test.memory.global.global.{key}"
    return Stored(subject, sequence, time or NOON + sequence, block, payload)


def read(path: Path) -> list[Stored]:
    return asyncio.run(archived(path))


def files(path: Path) -> list[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob("*.parquet"))


blocks = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from([b"Nats-Msg-Id: ", b"\r\n", b"x", b"NATS/1.0", b"\xff", b"", b"\0", b" "])).map(b"".join),
)


@settings(max_examples=40)
@given(st.lists(st.tuples(blocks, st.binary(max_size=40), st.text(max_size=10)), min_size=1, max_size=20))
def test_whatever_is_stored_is_given_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[bytes, bytes, str]]
) -> None:
    path = tmp_path_factory.mktemp("archive")
    messages = [
        Stored(f"s.{name.encode('utf-8', 'replace').decode()}", number, NOON, headers, payload)
        for number, (headers, payload, name) in enumerate(parts, 1)
    ]
    messages[0] = messages[0]._replace(subject=b"s.\xff\xfe".decode("utf-8", "surrogateescape"))
    add(path, messages)
    assert read(path) == messages


def test_the_last_file_grows_and_a_new_day_begins_another(tmp_path: Path) -> None:
    messages = [message(n, time=NOON + (n // 4) * DAY) for n in range(1, 10)]
    for each in messages:
        add(tmp_path, [each])
    assert [name.partition("/")[2] for name in files(tmp_path)] == [f"{n:012d}.parquet" for n in (1, 4, 8)]
    assert read(tmp_path) == messages


def test_a_clock_that_steps_back_changes_nothing_of_the_order(tmp_path: Path) -> None:
    times = [NOON, NOON + DAY, NOON, NOON + DAY, NOON + DAY]
    messages = [message(n, time=time) for n, time in enumerate(times, 1)]
    add(tmp_path, messages)
    assert len(files(tmp_path)) == 4
    assert read(tmp_path) == messages
    archive = Archive(tmp_path)
    assert asyncio.run(archive.sequence_at(NOON + 1)) == 2


def test_a_file_that_is_large_is_not_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "MOST_ROWS", 10)
    for start in range(1, 40, 4):
        add(tmp_path, [message(n) for n in range(start, start + 4)])
    assert [each.rows for each in Directory(tmp_path).segments()] == [8, 8, 8, 8, 8]
    assert [each.sequence for each in read(tmp_path)] == list(range(1, 41))


@pytest.mark.parametrize("fails", ["pyarrow.parquet.write_table", "os.fsync", "pathlib.Path.replace"])
def test_what_fails_in_the_middle_leaves_the_archive_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    add(tmp_path, [message(1), message(2)])
    with monkeypatch.context() as broken:

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        broken.setattr(fails, full)
        with pytest.raises(OSError, match="No space"):
            add(tmp_path, [message(3)])
    assert [each.sequence for each in read(tmp_path)] == [1, 2]
    assert [name for name in os.listdir(next(tmp_path.glob("day=*"))) if name.startswith(".draft")] == []
    add(tmp_path, [message(3)])
    assert [each.sequence for each in read(tmp_path)] == [1, 2, 3]


def test_what_a_dead_writer_left_is_no_part_of_it_and_taken_away(tmp_path: Path) -> None:
    add(tmp_path, [message(1)])
    draft = next(tmp_path.glob("day=*")) / ".draft-1-000000000002"
    draft.write_bytes(b"half a fi")
    assert [each.sequence for each in read(tmp_path)] == [1]
    add(tmp_path, [message(2)])
    assert not draft.exists()


def test_who_believes_to_be_elsewhere_adds_nothing(tmp_path: Path) -> None:
    add(tmp_path, [message(1)])
    with pytest.raises(Moved):
        Directory(tmp_path).add(LOG, 0, [], begin=1)
    Directory(tmp_path).pause(True)
    with pytest.raises(Moved):
        Directory(tmp_path).add(LOG, 1, [], begin=1)


def test_a_gap_is_refused_by_name(tmp_path: Path) -> None:
    for n in range(3):
        add(tmp_path, [message(n + 1, time=NOON + n * DAY)])
    next(tmp_path.glob("day=*/000000000002.parquet")).unlink()
    with pytest.raises(InvalidInputError, match="revisions 2 to 2 are missing"):
        Directory(tmp_path).segments()


def test_a_beginning_that_is_missing_is_refused_by_name(tmp_path: Path) -> None:
    for n in range(3):
        add(tmp_path, [message(n + 7, time=NOON + n * DAY)], begin=5)
    assert [(each.begins, each.first) for each in Directory(tmp_path).segments()] == [(5, 5), (5, 8), (5, 9)]
    next(tmp_path.glob("day=*/000000000005.parquet")).unlink()
    with pytest.raises(InvalidInputError, match=r"revisions 5 to 7 are missing, before .*000000000008"):
        Directory(tmp_path).segments()


def test_files_that_changed_places_are_refused_and_never_replaced(tmp_path: Path) -> None:
    for n in range(2):
        add(tmp_path, [message(n + 1, time=NOON + n * DAY)])
    one, other = sorted(tmp_path.glob("day=*/*.parquet"))
    moved = other.with_name(one.name)
    other.rename(moved)
    with pytest.raises(InvalidInputError, match=r"belongs to .*/000000000002\.parquet; move it back"):
        add(tmp_path, [message(3, time=NOON + DAY)])
    moved.rename(one.with_name(other.name))
    with pytest.raises(InvalidInputError, match="out of place"):
        Directory(tmp_path).segments()
    one.with_name(other.name).rename(other)
    add(tmp_path, [message(3, time=NOON + DAY)])
    assert [each.sequence for each in read(tmp_path)] == [1, 2, 3]


def test_who_asks_duckdb_meanwhile_finds_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path, [message(1)])
    found = []

    def look(_: int) -> None:
        query = f"SELECT revision FROM read_parquet('{tmp_path}/*/*.parquet', hive_partitioning = true)"
        found.append(duckdb.execute(query).fetchall())

    monkeypatch.setattr("os.fsync", look)
    add(tmp_path, [message(2)])
    assert found == [[(1,)], [(1,), (2,)]]


def test_two_logs_in_one_directory_are_refused_by_name(tmp_path: Path) -> None:
    add(tmp_path, [message(1)])
    add(tmp_path, [message(2, time=NOON + DAY)], log=LogId("test", "TEST_MEMORY", 6))
    with pytest.raises(InvalidInputError, match="two logs"):
        Directory(tmp_path).segments()


def test_a_foreign_file_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "day=2024-10-04"
    folder.mkdir()
    duckdb.sql(f"COPY (SELECT 1 AS a) TO '{folder}/000000000001.parquet' (FORMAT parquet)")
    with pytest.raises(InvalidInputError, match="no file of an archive"):
        Directory(tmp_path).segments()


def test_a_flipped_bit_in_a_file_is_never_read_as_if_nothing_was(tmp_path: Path) -> None:
    messages = [message(n, payload=b'{"n":%d}' % n, key=f"k{n % 3}") for n in range(1, 30)]
    add(tmp_path, messages)
    (path,) = tmp_path.glob("day=*/*.parquet")
    whole = path.read_bytes()
    found = 0
    footer = whole.index(b"ARROW:schema")  # what of it says how to read the columns is proved by nothing else
    for at in [*range(4, footer, 61), *range(footer, len(whole), 11)]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            same = read(tmp_path) == messages
        except (DecodeError, InvalidInputError):
            found += 1
        else:
            assert same
    assert found > 10


@pytest.mark.parametrize(
    ("filters", "subject", "matches"),
    [
        ([], "a", True),
        (["a.*.c"], "a.b.c", True),
        (["a.*.c"], "a.b.c.d", False),
        (["a.>"], "a", False),
        (["a.>"], "a.b.c", True),
        (["x", "a.b"], "a.b", True),
        (["a.*"], "a.b.c", False),
    ],
)
def test_filters_match_as_the_server_matches_them(filters: list[str], subject: str, matches: bool) -> None:
    assert matcher(filters)(subject) is matches


def test_what_each_subject_held_is_found_however_many_files_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "MOST_ROWS", 7)
    monkeypatch.setattr(directory, "_GROUP", 3)
    messages = [message(n, key=f"k{n * n % 11}", time=NOON + n + n // 20 * DAY) for n in range(1, 61)]
    for start in range(0, 60, 5):
        add(tmp_path, messages[start : start + 5])

    async def look() -> None:
        archive = Archive(tmp_path)
        for sequence in (0, 1, 7, 8, 31, 60):
            last = {each.subject: each for each in messages[:sequence]}
            found = [stored_of(each) async for each in archive.last(["test.>"], sequence)]
            assert found == sorted(last.values(), key=lambda each: each.sequence)
            one = [each.sequence async for each in archive.last([messages[3].subject], sequence)]
            assert one == [last[messages[3].subject].sequence] if messages[3].subject in last else not one
        part = [stored_of(each) async for each in archive.read(["*.*.*.*.k4"], 5, 44)]
        assert part == [each for each in messages[4:44] if each.subject.endswith(".k4")]
        assert [await archive.sequence_at(each.timestamp) for each in messages] == [*range(1, 61)]

    asyncio.run(look())
