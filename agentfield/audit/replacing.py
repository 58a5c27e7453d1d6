"""Writing a file so that it is whole or not there.

Owns: the name under which it is written, beside its place, and the moment in which it takes that place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentfield.errors import InvalidInputError
from agentfield.naming import shown


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; what is there at the end of the block takes the place of ``path``, on the disk.

    After a failure there is no new file, and one that was there before is as it was. An OSError names ``path``.
    """
    if path.is_dir():
        raise InvalidInputError(f"{shown(str(path))} is a directory: give the name of a file")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with _naming(path, partial):
            yield partial
            descriptor = os.open(partial, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            partial.replace(path)
    finally:
        with _naming(path, partial):
            partial.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path, partial: Path) -> Iterator[None]:
    """Has an error that is about the partial file, or names none, name the file that was asked for."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(partial)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
