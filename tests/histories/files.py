"""The files of a history: messages as lines of JSON, every byte of them kept."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from agentfield.codec import Record

HERE = Path(__file__).parent


def names() -> list[str]:
    """The histories there are."""
    return sorted(path.stem for path in HERE.glob("*.jsonl"))


def records(name: str) -> Iterator[Record]:
    """The messages of a history, in their order."""
    for line in (HERE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        content = fields.get("content")
        yield Record(
            fields["subject"],
            fields["sequence"],
            fields["timestamp"],
            fields["headers"],
            fields["payload"].encode("utf-8", "surrogateescape"),
            None if content is None else gzip.decompress(base64.b64decode(content)),
        )


def meaning(name: str) -> dict[str, Any]:
    """What a history means: its ``namespace``, ``events``, ``at`` (nanoseconds), and the ``state`` at that time.

    With ``keys``, where something is encrypted: the data keys that were left, in base64, by their fingerprints.
    """
    found: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    return found


def write(name: str, messages: Iterable[Record], means: dict[str, Any]) -> None:
    """Write a new history. Raises FileExistsError for one that is there: a history is never changed."""
    with (HERE / f"{name}.jsonl").open("x", encoding="utf-8") as file:
        for record in messages:
            fields: dict[str, Any] = {
                "subject": record.subject,
                "sequence": record.sequence,
                "timestamp": record.timestamp,
                "headers": dict(record.headers),
                "payload": record.payload.decode("utf-8", "surrogateescape"),
            }
            if record.content is not None:  # the object beside the log that the message refers to
                fields["content"] = base64.b64encode(gzip.compress(bytes(record.content), mtime=0)).decode()
            file.write(json.dumps(fields) + "\n")
    with (HERE / f"{name}.json").open("x", encoding="utf-8") as file:
        json.dump(means, file, indent=1)
        file.write("\n")
