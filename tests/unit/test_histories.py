"""Golden histories: whatever was recorded once is understood for ever, and means what it meant then."""

from collections.abc import Callable
from typing import Any

import pytest

from agentfield.schema import Schemas, schema_of
from agentfield.subject import Subjects
from tests.histories import files
from tests.histories.folding import fold
from tests.histories.record import TicketWithUrgency, urgent_if_angry

FORMS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "set": lambda event: event.get("operation") == "set",
    "delete": lambda event: event.get("operation") == "delete" and event["reason"] is None,
    "expired": lambda event: event.get("reason") == "expired",
    "cleared": lambda event: event.get("reason") == "cleared",
    "with a ttl": lambda event: event.get("ttl") is not None,
    "of a schema": lambda event: event.get("schema_version") == 1,
    "of a later version of it": lambda event: event.get("schema_version") == 2,
    "large": lambda event: isinstance(event.get("data"), dict) and event["data"].get("bytes", 0) > 300_000,
    "by an execution": lambda event: event.get("writer", {}).get("trace") is not None,
    "with a cause": lambda event: event.get("writer", {}).get("cause") is not None,
    "of a workflow": lambda event: event.get("scope") == "workflow",
    "of a session": lambda event: event.get("scope") == "session",
    "of an actor": lambda event: event.get("scope") == "actor",
    "large and encrypted": lambda event: bool(event.get("encrypted")) and "sha256" in str(event.get("data")),
    "encrypted for its scope": lambda event: event.get("encrypted") == "scope" and event["data"] is not None,
    "encrypted for its key": lambda event: event.get("encrypted") == "key" and event["data"] is not None,
    "encrypted and of a schema": lambda event: bool(event.get("encrypted")) and bool(event.get("schema_version")),
    "encrypted, with a ttl": lambda event: bool(event.get("encrypted")) and bool(event.get("ttl")),
    "erased": lambda event: event.get("erased") is True and event["data"] is None,
    "a receipt": lambda event: event.get("key", "").startswith("erasure_receipt_"),
    "the entry of a view": lambda event: event.get("key", "").startswith("plaintext_view_"),
    "by a function": lambda event: event.get("writer", {}).get("function") is not None,
    "of a call in a call": lambda event: len(event.get("writer", {}).get("path", ())) > 0,
    "because of a revision": lambda event: event.get("writer", {}).get("cause_revision") is not None,
    "by a handler that a handler started": lambda event: event.get("writer", {}).get("depth", 0) > 1,
    "a key that was condemned": lambda event: ".checks.keys." in event.get("subject", ""),
    "the notice of an erasure": lambda event: ".checks.erasures." in event.get("subject", ""),
    "the marker of an event that was handled": lambda event: ".checks.handled." in event.get("subject", ""),
    "a lease of a projection": lambda event: ".checks.projections." in event.get("subject", ""),
    "a check of a transaction": lambda event: ".checks." in event.get("subject", ""),
    "a lock": lambda event: ".locks." in event.get("subject", ""),
    "another's": lambda event: event.get("no event") == "DecodeError",
}


@pytest.mark.parametrize("name", files.names())
def test_a_history_is_the_events_and_the_state_that_it_was(name: str) -> None:
    means = files.meaning(name)
    events, state = fold(files.records(name), means["namespace"], means["at"], keys=means.get("keys", {}))
    for found, expected in zip(events, means["events"], strict=True):
        assert _as_it_was(found, expected) == expected
    assert [_as_it_was(found, expected) for found, expected in zip(state, means["state"], strict=True)] == means[
        "state"
    ]


def _as_it_was(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that have been added since, which say nothing of what was written before there were any."""
    return {
        name: _as_it_was(value, expected[name])
        if isinstance(value, dict) and isinstance(expected.get(name), dict)
        else value
        for name, value in found.items()
        if name in expected or value
    }


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_event_is_recorded(form: str) -> None:
    assert any(FORMS[form](event) for name in files.names() for event in files.meaning(name)["events"])


@pytest.mark.parametrize("name", files.names())
def test_a_state_of_any_moment_is_what_its_events_say(name: str) -> None:
    """The recorded events, folded without any code of ours, agree with the state at many points."""
    means = files.meaning(name)
    records = list(files.records(name))
    for count in range(0, len(records) + 1, 7):
        events = means["events"][:count]
        at = records[count - 1].timestamp if count else 0
        left = {}
        for event in events:
            if "no event" not in event:
                left[event["scope"], event["scope_id"], event["key"]] = event
        expected = {
            place: event["data"]
            for place, event in left.items()
            if event["operation"] == "set"
            and not event.get("erased")
            and (event["ttl"] is None or records[event["revision"] - 1].timestamp + event["ttl"] * 1e9 > at)
        }
        _, state = fold(records[:count], means["namespace"], at, keys=means.get("keys", {}))
        assert {(entry["scope"], entry["scope_id"], entry["key"]): entry["value"] for entry in state} == expected


def test_what_was_written_under_a_schema_is_lifted_to_any_later_version() -> None:
    means = files.meaning("v1")
    schemas = Schemas()
    schemas.bind(schema_of("ticket_*", TicketWithUrgency, name="ticket", version=2, upcast={1: urgent_if_angry}))
    events, _ = fold(files.records("v1"), means["namespace"], means["at"], schemas)
    tickets = [event["data"] for event in events if event.get("key", "").startswith("ticket_") and event["data"]]
    assert tickets == [
        {"id": 1, "mood": "angry", "urgent": True},
        {"id": 2, "mood": "calm", "urgent": False},
        {"id": 2, "mood": "calm", "urgent": True},
        {"id": 3, "mood": "calm", "urgent": False},
    ]


@pytest.mark.parametrize("name", files.names())
def test_an_event_that_was_encrypted_is_erased_once_its_key_is_gone(name: str) -> None:
    means = files.meaning(name)
    events, _ = fold(files.records(name), means["namespace"], means["at"])
    for found, expected in zip(events, means["events"], strict=True):
        if expected.get("encrypted"):
            assert (found["erased"], found["data"]) == (True, None)
            assert {found[field] for field in ("key", "id")} == {expected[field] for field in ("key", "id")}
        elif "no event" not in expected:
            assert found["data"] == expected["data"]


@pytest.mark.parametrize("name", files.names())
def test_a_subject_that_was_recorded_is_the_one_its_key_has_today(name: str) -> None:
    means = files.meaning(name)
    subjects = Subjects(means["namespace"])
    for record, event in zip(files.records(name), means["events"], strict=True):
        if "no event" not in event:
            scope, key = subjects.parse(record.subject)
            assert (scope.kind, scope.id, key) == (event["scope"], event["scope_id"], event["key"])
            assert subjects.memory(scope, key) == record.subject
