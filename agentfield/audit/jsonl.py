"""Exports in JSON Lines: every message exactly as stored, and the seals, in one file that can be verified anywhere.

Owns: the lines and what they mean. The first says what the file is of, one line a message follows, then the seals, and
the last line says how many of each there are, so that a file that was cut off is known. What is not UTF-8 is written in
base64. Invariant: reading gives back what was written, bit for bit; a line that this would not have written, however
slightly it differs, is an error that names its place.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from agentfield.audit.chain import Stored
from agentfield.audit.seal import SignedSeal
from agentfield.audit.verifying import Extent
from agentfield.errors import DecodeError, InvalidInputError
from agentfield.fabric.records import nanoseconds_of
from agentfield.fabric.topology import Topology

_VERSION: Final = 1
_EVENT: Final = b'{"revision":'
_SEAL: Final = b'{"seal":'
_END: Final = b'{"end":'
_LINE_END: Final = 4096
"""Bytes from the end of a file in which its last line begins."""


def header_line(extent: Extent, *, namespace: str, exported: int, selection: Mapping[str, Any] | None = None) -> bytes:
    """The first line. ``selection`` says by what the messages were chosen, None that all of them are here."""
    fields = {
        "agentfield_export": _VERSION,
        "namespace": namespace,
        "stream": extent.stream,
        "created": extent.created,
        "first": extent.first,
        "last": extent.last,
        "selection": None if selection is None else dict(selection),
        "exported": time_text(exported),
    }
    return orjson.dumps(fields) + b"\n"


def event_line(stored: Stored) -> bytes:
    """A message."""
    fields: dict[str, Any] = {"revision": stored.sequence, "time": time_text(stored.timestamp)}
    _put(fields, "subject", stored.subject.encode("utf-8", "surrogateescape"))
    _put(fields, "headers", stored.headers)
    _put(fields, "payload", stored.payload)
    return orjson.dumps(fields) + b"\n"


def seal_line(signed: SignedSeal) -> bytes:
    """A seal: its body as it was signed, by whom, and the signature."""
    fields: dict[str, Any] = {"seal": signed.sequence}
    _put(fields, "body", signed.body)
    fields |= {"key": signed.key, "signature": base64.b64encode(signed.signature).decode()}
    return orjson.dumps(fields) + b"\n"


def end_line(events: int, seals: int) -> bytes:
    """The last line."""
    return orjson.dumps({"end": {"events": events, "seals": seals}}) + b"\n"


@dataclass(frozen=True, slots=True)
class Header:
    """What an export says of itself."""

    namespace: str
    extent: Extent
    selection: Mapping[str, Any] | None
    """By what the messages were chosen; None if all of them are there."""

    @classmethod
    def of(cls, line: bytes, path: Path) -> Header:
        """The header of a file's first line. Raises InvalidInputError if it is no export's."""
        try:
            fields = orjson.loads(line)
            if fields["agentfield_export"] != _VERSION:
                raise ValueError
            numbers = [fields[name] for name in ("created", "first", "last")]
            selection = fields["selection"]
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            raise InvalidInputError(f"{path} is no export: make one with `agentfield audit export`") from None
        namespace, stream = fields.get("namespace"), fields.get("stream")
        legible = isinstance(namespace, str) and isinstance(selection, dict | None)
        if not legible or not all(type(number) is int for number in numbers):
            raise InvalidInputError(f"the first line of {path} is damaged: it does not say what is in the file")
        extent = Extent(stream, *numbers)
        if stream != Topology(namespace).log.name or extent.first < 1 or extent.last < extent.first - 1:
            raise InvalidInputError(f"the first line of {path} is damaged: what it says of the file contradicts itself")
        return cls(namespace, extent, selection)


class Export:
    """A file that was exported as JSON Lines. Raises InvalidInputError if it is none, or was not written to its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            first = file.readline()
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LINE_END))
            last = file.read().removesuffix(b"\n").rpartition(b"\n")[2]
        self.header = Header.of(first, path)
        if not _is_end(last):
            raise InvalidInputError(f"{path} was cut off: its last line is not that of an export; make it anew")

    def events(self) -> Iterator[Stored]:
        """The messages, in the order of the file. Raises DecodeError at a line that is not as it was written."""
        last = self.header.extent.first - 1
        over = False
        with self._path.open("rb") as file:
            file.readline()
            for number, line in enumerate(file, 2):
                if line.startswith((_SEAL, _END)):
                    over = True
                    continue
                stored = None if over else _stored(line)  # behind the seals, no message is looked for
                if stored is None:
                    raise DecodeError(
                        f"line {number} of {self._path} is not as it was written: {line[:60]!r}…",
                        subject=f"line {number}",
                        revision=last + 1,
                    )
                last = stored.sequence
                yield stored

    def seals(self) -> Iterator[SignedSeal]:
        """The seals, in the order of the file. One that is not as it was written is one that nobody has signed."""
        with self._path.open("rb") as file:
            for line in file:
                if line.startswith(_SEAL):
                    yield seal_of(line)


def _is_end(line: bytes) -> bool:
    try:
        counts = orjson.loads(line)["end"]
        return end_line(counts["events"], counts["seals"]) == line + b"\n"
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False


def time_text(nanoseconds: int) -> str:
    """A time as RFC 3339 in UTC, exact to the nanosecond."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _put(fields: dict[str, Any], name: str, content: bytes) -> None:
    try:
        fields[name] = content.decode()
    except UnicodeDecodeError:
        fields[f"{name}_base64"] = base64.b64encode(content).decode()


def _taken(fields: Mapping[str, Any], name: str) -> bytes:
    text = fields.get(name)
    if text is None:
        return base64.b64decode(fields[f"{name}_base64"], validate=True)
    return bytes(text.encode())


def _stored(line: bytes) -> Stored | None:
    """The message of a line; None if ``event_line`` would not have written it just so."""
    try:
        fields = orjson.loads(line)
        stored = Stored(
            _taken(fields, "subject").decode("utf-8", "surrogateescape"),
            int(fields["revision"]),
            nanoseconds_of(fields["time"]),
            _taken(fields, "headers"),
            _taken(fields, "payload"),
        )
        return stored if event_line(stored) == line else None
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, binascii.Error, OverflowError):
        return None


def seal_of(line: bytes) -> SignedSeal:
    """The seal of a line. What ``seal_line`` would not have written becomes one that nobody has signed."""
    try:
        fields = orjson.loads(line)
        signature = base64.b64decode(fields["signature"], validate=True)
        return SignedSeal(int(fields["seal"]), _taken(fields, "body"), str(fields["key"]), signature)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, binascii.Error):
        return SignedSeal(0, line, "", b"")
