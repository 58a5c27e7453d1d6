from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from agentfield.event import Entry, Event, Writer

AT = datetime(2024, 7, 8, 18, 20, tzinfo=UTC)
WRITER = Writer(agent="system-monitor", execution_id="e1", workflow_id="w1")


def event(**changes: Any) -> Event:
    fields: dict[str, Any] = {
        "key": "system_status",
        "data": "degraded",
        "previous_data": "healthy",
        "scope": "workflow",
        "timestamp": AT,
        "scope_id": "w1",
        "operation": "set",
        "revision": 7,
        "previous_revision": 5,
        "id": "id1",
        "writer": WRITER,
    }
    return Event(**(fields | changes))


def test_a_dumped_event_begins_with_the_documented_five_fields() -> None:
    dumped = event().model_dump(mode="json")
    assert list(dumped.items())[:5] == [
        ("key", "system_status"),
        ("data", "degraded"),
        ("previous_data", "healthy"),
        ("scope", "workflow"),
        ("timestamp", "2024-07-08T18:20:00Z"),
    ]
    assert dumped["writer"]["agent"] == "system-monitor"
    assert Event.model_validate(dumped) == event()


def test_a_fraction_of_a_second_is_kept_in_the_dump() -> None:
    dumped = event(timestamp=AT + timedelta(microseconds=123456)).model_dump(mode="json")
    assert dumped["timestamp"] == "2024-07-08T18:20:00.123456Z"


def test_events_and_entries_cannot_be_changed() -> None:
    entry = Entry(key="k", value=1, revision=7, scope="global", scope_id="global", timestamp=AT, writer=Writer())
    with pytest.raises(ValidationError, match="frozen"):
        entry.value = 2  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        event().data = "healthy"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        WRITER.agent = "other"  # type: ignore[misc]


def test_an_event_expires_its_ttl_after_the_server_stored_it() -> None:
    assert event(ttl=90.5).expires_at == AT + timedelta(seconds=90.5)
    assert event().expires_at is None


def test_only_known_scopes_operations_and_reasons_make_an_event() -> None:
    for changes in ({"scope": "team"}, {"operation": "patch"}, {"reason": "bored"}):
        with pytest.raises(ValidationError):
            event(**changes)
    assert event(operation="delete", data=None, reason="expired").reason == "expired"
