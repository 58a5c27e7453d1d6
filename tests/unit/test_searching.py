"""Searching files finds what is there, however it is stored: else not to find it would mean nothing."""

import gzip
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import duckdb
import pyarrow
import pyarrow.parquet
import pytest

from tests.support.searching import files_with

NEEDLE = b"needle-8c1f"


def plain(path: Path) -> None:
    path.write_bytes(b"hay" * 1000 + NEEDLE + b"hay")


def gzipped(path: Path) -> None:
    path.write_bytes(gzip.compress(b"hay" + NEEDLE))


def parquet(path: Path) -> None:
    table = pyarrow.table({"payload": [b"hay", NEEDLE * 50] * 100})
    pyarrow.parquet.write_table(table, path, compression="zstd")


def sqlite(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE found (value TEXT)")
        connection.execute("INSERT INTO found VALUES (?)", ("x" * 4060 + NEEDLE.decode(),))  # over the end of a page
        connection.commit()


def in_duckdb(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE found AS SELECT 'needle-8c1f' || (i % 3) AS value FROM range(100000) t(i)")


@pytest.mark.parametrize("write", [plain, gzipped, parquet, sqlite, in_duckdb])
def test_what_a_file_holds_is_found(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "below").mkdir()
    write(tmp_path / "below" / "file")
    assert files_with(tmp_path, b"other", NEEDLE) == ["below/file"]
    assert files_with(tmp_path, b"other") == []
