"""Looking for bytes wherever they may lie: in every file below a directory, as they are and as what the file holds.

A database or a Parquet file may hold a text compressed, or in pieces: so these are read as well, from a copy.
"""

import gzip
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet


def files_with(directory: Path, *needles: bytes) -> list[str]:
    """Every file below a directory that holds one of these, by its name in there."""
    found = [path for path in directory.rglob("*") if path.is_file() and _holds(path, needles)]
    return sorted(path.relative_to(directory).as_posix() for path in found)


def _holds(path: Path, needles: Iterable[bytes]) -> bool:
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # whoever has it open has just removed it
        return False
    texts = [content]
    for begin, unpacked in _UNPACKED.items():
        if content[8 if begin == _DUCKDB else 0 :].startswith(begin):
            texts += unpacked(path)
    return any(needle in text for text in texts for needle in needles)


def _cells(rows: Iterable[Iterable[Any]]) -> Iterator[bytes]:
    for row in rows:
        for cell in row:
            yield cell if isinstance(cell, bytes) else str(cell).encode()


def _in_gzip(path: Path) -> list[bytes]:
    return [gzip.decompress(path.read_bytes())]


def _in_parquet(path: Path) -> list[bytes]:
    table = pyarrow.parquet.read_table(path)
    columns = [
        column.cast("int64")
        if pyarrow.types.is_timestamp(column.type)
        else column  # to the nanosecond: no datetime can
        for column in table.columns
    ]
    return list(_cells(zip(*(column.to_pylist() for column in columns), strict=True)))


def _in_sqlite(path: Path) -> list[bytes]:
    def read(copy: Path) -> list[bytes]:
        connection = sqlite3.connect(copy)
        try:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            return [cell for (name,) in tables for cell in _cells(connection.execute(f'SELECT * FROM "{name}"'))]
        finally:
            connection.close()

    return _of_copy(path, read)


def _in_duckdb(path: Path) -> list[bytes]:
    def read(copy: Path) -> list[bytes]:
        with duckdb.connect(str(copy)) as connection:
            tables = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
            return [
                cell for (name,) in tables for cell in _cells(connection.execute(f'SELECT * FROM "{name}"').fetchall())
            ]

    return _of_copy(path, read)


def _of_copy(path: Path, read: Callable[[Path], list[bytes]]) -> list[bytes]:
    """What is read of a copy of a database: who has it open is not disturbed."""
    with tempfile.TemporaryDirectory() as directory:
        for beside in ("", "-wal", ".wal"):
            if (source := path.with_name(path.name + beside)).exists():
                shutil.copy(source, Path(directory) / source.name)
        return read(Path(directory) / path.name)


_DUCKDB = b"DUCK"
_UNPACKED: dict[bytes, Callable[[Path], list[bytes]]] = {
    b"\x1f\x8b": _in_gzip,
    b"PAR1": _in_parquet,
    b"SQLite format 3\0": _in_sqlite,
    _DUCKDB: _in_duckdb,
}
"""How files are read that begin like this (DuckDB's after eight bytes)."""
