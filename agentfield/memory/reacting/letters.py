"""Dead letters: what is kept of an event that a handler has given up on, and of the wish to have it handled again.

Owns: what a letter says, as JSON, and what a request to replay one says. Must not know: when a handler gives up.
Invariants: a letter can always be stored, whatever the exception said; whoever wrote a letter, reading it fails with
one error that names it, or gives what is known.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from agentfield.codec import Record
from agentfield.errors import DecodeError, ResyncRequired, text_of
from agentfield.event import Event

_LONGEST_TEXT = 20_000
"""Characters of an exception's text or traceback that a dead letter holds: it must never be too large to be stored."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter, as it is stored. What its writer did not know is None."""

    number: int
    """Its sequence in the stream of dead letters: what it is called by."""
    timestamp: datetime
    """When it was stored: aware, UTC, the server's."""
    agent: str
    handler: str
    key: str | None
    scope: str | None
    scope_id: str | None
    revision: int | None
    event_id: str | None
    tries: int
    """How often the handler was tried, the last time that the event was handed to it."""
    replays: int
    """How often the event was handed to it again before this letter."""
    error_type: str
    message: str
    traceback: str

    @classmethod
    def of(cls, record: Record) -> Letter:
        """The letter a message is. Raises :class:`DecodeError` if it is none."""
        try:
            *_, agent, handler = record.subject.split(".")
            body = orjson.loads(record.payload)
            error = body.get("error") or {}
            return cls(
                number=record.sequence,
                timestamp=datetime.fromtimestamp(record.timestamp / 1e9, UTC),
                agent=agent,
                handler=handler,
                key=_text(body, "key"),
                scope=_text(body, "scope"),
                scope_id=_text(body, "scope_id"),
                revision=None if body.get("revision") is None else int(body["revision"]),
                event_id=_text(body, "event_id"),
                tries=int(body.get("tries") or 0),
                replays=int(body.get("replays") or 0),
                error_type=_text(error, "type") or "",
                message=_text(error, "message") or "",
                traceback=_text(error, "traceback") or "",
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise DecodeError(
                f"this is no dead letter of agentfield's: {error}", subject=record.subject, revision=record.sequence
            ) from None

    def fields(self) -> dict[str, Any]:
        """The letter as JSON."""
        return {
            "id": self.number,
            "timestamp": self.timestamp,
            "agent": self.agent,
            "handler": self.handler,
            "key": self.key,
            "scope": self.scope,
            "scope_id": self.scope_id,
            "revision": self.revision,
            "event_id": self.event_id,
            "tries": self.tries,
            "replays": self.replays,
            "error": {"type": self.error_type, "message": self.message, "traceback": self.traceback},
        }


def letter(event: Event, error: BaseException, *, agent: str, handler: str, tries: int, replays: int) -> bytes:
    """What to store of an event that a handler gives up on."""
    return orjson.dumps(
        {
            "agent": agent,
            "handler": handler,
            "key": event.key,
            "scope": event.scope,
            "scope_id": event.scope_id,
            "revision": event.revision,
            "event_id": event.id,
            "tries": tries,
            "replays": replays,
            "error": {
                "type": type(error).__name__,
                "message": said(error),
                "traceback": _storable("".join(traceback.format_exception(error))),
            },
        }
    )


def letter_of_gap(error: ResyncRequired, *, agent: str, handler: str) -> bytes:
    """What to store, about no event in particular, when events are gone that a handler may have had still to handle."""
    return orjson.dumps(
        {
            "kind": "gap",
            "agent": agent,
            "handler": handler,
            "after": error.requested - 1,
            "first_available": error.first_available,
            "tries": 0,
            "error": {"type": type(error).__name__, "message": str(error), "traceback": ""},
        }
    )


def request(wanted: Letter) -> bytes:
    """What to tell a handler that should handle a letter's event again."""
    return orjson.dumps({"letter": wanted.number, "revision": wanted.revision})


def requested(record: Record) -> int:
    """The number of the letter that a request is about. Raises :class:`DecodeError` if it is no request."""
    try:
        return int(orjson.loads(record.payload)["letter"])
    except (ValueError, TypeError, LookupError) as error:
        raise DecodeError(
            f"this is no request to replay a dead letter: {error!r}", subject=record.subject, revision=record.sequence
        ) from None


def said(error: BaseException, most: int = _LONGEST_TEXT) -> str:
    """What an exception says, whatever it is."""
    return _storable(text_of(error), most)


def _storable(text: str, most: int = _LONGEST_TEXT) -> str:
    """The text as a dead letter can hold it: valid Unicode, and without its middle if it is too long."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def _text(fields: Any, name: str) -> str | None:
    found = fields.get(name)
    return None if found is None else str(found)
