"""A file that is replaced is whole or as it was, and errors are about the file that was asked for."""

import errno
from pathlib import Path

import pytest

from agentfield.audit.replacing import replacing


def test_an_error_in_writing_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("before")

    def write() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")  # as write() raises it: of no file

    with pytest.raises(OSError, match=r"No space left on device: '.*/log\.jsonl'$"):
        write()
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "no" / "where") as partial:
        partial.write_text("half")
    assert caught.value.filename == str(tmp_path / "no" / "where")
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]
    assert path.read_text() == "before"


def test_an_error_about_another_file_is_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "log.jsonl"):
        (tmp_path / "source").read_text()
    assert caught.value.filename == str(tmp_path / "source")
