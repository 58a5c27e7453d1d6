import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from agentfield.codec import (
    Record,
    decode_data,
    decode_entry,
    decode_event,
    decode_outline,
    expires_at_ns,
    is_delete,
    needed_to_decode,
    reference_of,
)
from agentfield.errors import DecodeError, InvalidInputError
from agentfield.event import Event, ReplayedFrom, Writer
from agentfield.header import EVENT_HEADER, EVENT_ID, MAX_TTL, OPERATION, check_ttl, encode_event, led_to_by, refer
from agentfield.reference import Reference, digest_text
from agentfield.schema import Schemas, Stamp, schema_of
from agentfield.scope import GLOBAL, Scope
from agentfield.subject import Subjects
from agentfield.value import encode_value
from tests.unit.strategies import keys, scope_ids
from tests.unit.test_value import json_values

SUBJECTS = Subjects("agentfield")
STORED = 1_720_462_800_123_456_789
AT = datetime(2024, 7, 8, 18, 20, 0, 123456, tzinfo=UTC)
WRITER = Writer(agent="system-monitor", execution_id="e1", workflow_id="w1")
SUBJECT = SUBJECTS.memory(Scope.of("workflow", "w1"), "system_status")

names = st.none() | scope_ids
writers = st.builds(
    Writer,
    agent=names,
    function=names,
    execution_id=names,
    workflow_id=names,
    session_id=names,
    cause=names,
    cause_revision=st.none() | st.integers(1, 2**63),
    depth=st.integers(0, 2**31),
    path=st.lists(scope_ids, max_size=16).map(tuple),
    trace=names,
)
ttls = st.none() | st.floats(0, MAX_TTL, exclude_min=True)


def record(headers: dict[str, str], payload: bytes = b'"degraded"', *, subject: str = SUBJECT) -> Record:
    return Record(subject, 7, STORED, headers, payload)


def header(**changes: Any) -> dict[str, str]:
    fields = {"v": 1, "type": "set", "agent": "a"} | changes
    return {EVENT_ID: "id1", EVENT_HEADER: json.dumps(fields)}


@given(keys, scope_ids, json_values, json_values, writers, ttls)
def test_an_event_comes_back_as_it_was_written(
    key: str, scope_id: str, value: Any, before: Any, writer: Writer, ttl: float | None
) -> None:
    subject = SUBJECTS.memory(Scope.of("session", scope_id), key)
    headers = encode_event(event_id="id1", operation="set", writer=writer, ttl=ttl)
    lasting = encode_event(event_id="id0", operation="set", writer=writer)
    previous = Record(subject, 3, STORED - 10**9, lasting, encode_value(before))
    event = decode_event(record(headers, encode_value(value), subject=subject), SUBJECTS, previous)
    expected = Event(
        key=key,
        data=value,
        previous_data=before,
        scope="session",
        scope_id=scope_id,
        timestamp=AT,
        operation="set",
        revision=7,
        previous_revision=3,
        id="id1",
        writer=writer,
        ttl=ttl,
    )
    assert event == expected
    assert event.model_dump(mode="json")["timestamp"] == "2024-07-08T18:20:00.123456Z"


@given(writers, ttls)
def test_headers_are_ascii_on_one_line_and_leave_out_what_is_not_set(writer: Writer, ttl: float | None) -> None:
    headers = encode_event(event_id="id1", operation="set", writer=writer, ttl=ttl)
    assert headers.keys() == {EVENT_ID, EVENT_HEADER}
    assert headers[EVENT_HEADER].isascii()
    assert headers[EVENT_HEADER].isprintable()
    assert None not in json.loads(headers[EVENT_HEADER]).values()


def test_headers_are_readable() -> None:
    headers = encode_event(event_id="id1", operation="delete", writer=WRITER, reason="expired")
    assert headers == {
        "Nats-Msg-Id": "id1",
        "KV-Operation": "DEL",
        "Agentfield-Event": (
            '{"v":1,"type":"delete","agent":"system-monitor","execution_id":"e1","workflow_id":"w1","reason":"expired"}'
        ),
    }


def test_an_event_of_before_there_were_depths_and_paths_is_read_as_ever() -> None:
    old = {
        "Nats-Msg-Id": "019357a4c5b97d3e8f0012ab34cd56ef",
        "Agentfield-Event": (
            '{"v":1,"type":"set","agent":"billing","execution_id":"e2","workflow_id":"w1","session_id":"s1",'
            '"cause":"019357a4c5b97d3e8f0012ab34cd0000",'
            '"trace":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}'
        ),
    }
    event = decode_event(record(old, b'{"paid":true}'), SUBJECTS)
    assert event.data == {"paid": True}
    assert event.writer == Writer(
        agent="billing",
        execution_id="e2",
        workflow_id="w1",
        session_id="s1",
        cause="019357a4c5b97d3e8f0012ab34cd0000",
        trace="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )
    assert (event.writer.cause_revision, event.writer.depth, event.writer.path) == (None, 0, ())


def test_what_a_handler_and_what_it_calls_write_is_readable_too() -> None:
    writer = Writer(
        agent="billing", function="bill", execution_id="e3", cause="e9", cause_revision=12, depth=1, path=("a.on/e2",)
    )
    headers = encode_event(event_id="id1", operation="set", writer=writer)
    assert headers["Agentfield-Event"] == (
        '{"v":1,"type":"set","agent":"billing","function":"bill","execution_id":"e3","cause":"e9",'
        '"cause_revision":12,"depth":1,"path":["a.on/e2"]}'
    )
    assert decode_event(record(headers), SUBJECTS).writer == writer


def test_a_delete_has_no_data_but_a_reason_and_what_was_there_before() -> None:
    before = record(encode_event(event_id="id0", operation="set", writer=WRITER), b'"healthy"')._replace(sequence=5)
    gone = record(encode_event(event_id="id1", operation="delete", writer=WRITER, reason="cleared"), b"")
    event = decode_event(gone, SUBJECTS, before)
    assert (event.operation, event.data, event.previous_data) == ("delete", None, "healthy")
    assert (event.reason, event.previous_revision, event.expires_at) == ("cleared", 5, None)
    assert is_delete(gone)
    assert not is_delete(before)


def test_after_a_delete_nothing_was_there_but_the_delete_has_its_revision() -> None:
    gone = record(encode_event(event_id="id0", operation="delete", writer=WRITER), b"")._replace(sequence=5)
    event = decode_event(record(encode_event(event_id="id1", operation="set", writer=WRITER)), SUBJECTS, gone)
    assert (event.previous_data, event.previous_revision) == (None, 5)


def test_the_first_event_of_a_key_has_nothing_before_it() -> None:
    event = decode_event(record(encode_event(event_id="id1", operation="set", writer=WRITER)), SUBJECTS)
    assert (event.data, event.previous_data, event.previous_revision) == ("degraded", None, None)


def test_an_entry_says_which_scope_answered_who_wrote_and_when_it_expires() -> None:
    subject = SUBJECTS.memory(GLOBAL, "feature_flags")
    stored = record(encode_event(event_id="id1", operation="set", writer=WRITER, ttl=1.5), b"null", subject=subject)
    entry = decode_entry(stored, SUBJECTS)
    assert (entry.key, entry.value, entry.revision) == ("feature_flags", None, 7)
    assert (entry.scope, entry.scope_id, entry.writer) == ("global", "global", WRITER)
    assert (entry.timestamp, entry.expires_at) == (AT, AT + timedelta(seconds=1.5))
    assert expires_at_ns(stored) == STORED + 1_500_000_000


def test_what_has_no_ttl_never_expires() -> None:
    stored = record(encode_event(event_id="id1", operation="set", writer=WRITER))
    assert expires_at_ns(stored) is None
    assert decode_entry(stored, SUBJECTS).expires_at is None
    assert expires_at_ns(record(encode_event(event_id="id1", operation="delete", writer=WRITER), b"")) is None


@pytest.mark.parametrize("nanoseconds", [0, 1, 999, 1000, STORED, 1_720_462_800_999_999_999])
def test_timestamps_are_exact_to_the_microsecond(nanoseconds: int) -> None:
    stored = Record(SUBJECT, 7, nanoseconds, header(), b"1")
    timestamp = decode_event(stored, SUBJECTS).timestamp
    assert timestamp.tzinfo is UTC
    assert (timestamp - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) == nanoseconds // 1000


def test_header_fields_that_are_not_known_are_ignored() -> None:
    assert decode_event(record(header(colour={"red": 1}, execution_id="e")), SUBJECTS).writer == Writer(
        agent="a", execution_id="e"
    )


@pytest.mark.parametrize(
    ("stored", "fault"),
    [
        (record({}), "has no Agentfield-Event header: something other than agentfield wrote it"),
        (record({EVENT_HEADER: header()[EVENT_HEADER]}), "has no Nats-Msg-Id header"),
        (record({**header(), EVENT_HEADER: ""}), "is not JSON"),
        (record({**header(), EVENT_HEADER: "{"}), "is not JSON"),
        (record({**header(), EVENT_HEADER: "[1]"}), "is not a JSON object with a version v"),
        (record({**header(), EVENT_HEADER: "{}"}), "is not a JSON object with a version v"),
        (record(header(v="1")), "is not a JSON object with a version v"),
        (record(header(v=2)), "has version 2, but this agentfield reads version 1: upgrade it"),
        (record(header(type="patch")), "has the unknown type 'patch'"),
        (record(header(type="delete")), "contradict each other"),
        (record({**header(), OPERATION: "DEL"}), "contradict each other"),
        (record(header(agent=7)), "names its writer wrongly, in agent"),
        (record(header(depth="deep")), "names its writer wrongly, in depth"),
        (record(header(path="a.b/e")), "names its writer wrongly, in path"),
        (record(header(reason="bored")), "has the unknown reason 'bored'"),
        (record(header(reason=["expired"])), "has the unknown reason"),
        (record(header(ttl="soon")), "ttl 'soon' is not a number"),
        (record(header(ttl=0)), "ttl 0 is not above 0"),
        (record(header(ttl=1e300)), "is not above 0 and at most"),
        (record(header(object={"name": "a"})), "names its object wrongly"),
        (record(header(object=True)), "names its object wrongly"),
        (record(header(schema=7, schema_version=1)), "names its schema wrongly: 7"),
        (record(header(schema="Mood")), "names its schema wrongly: 'Mood', version None"),
        (record(header(schema="Mood", schema_version=0)), "names its schema wrongly: 'Mood', version 0"),
        (record(header(), b""), "payload b'' is not JSON"),
        (record(header(), b"degraded"), "payload b'degraded' is not JSON"),
        (record(header(), subject="agentfield.memory.team.x.a"), "scope 'team' is unknown"),
        (record(header(), subject="agentfield.memory.global.global.a_b"), "tokens 'a_b' are no key's"),
        (record(header(), subject="elsewhere.memory.global.global.a"), "is no key's"),
    ],
)
def test_what_agentfield_did_not_write_is_a_decode_error(stored: Record, fault: str) -> None:
    decoders: list[Any] = [decode_event]
    if OPERATION not in stored.headers and EVENT_ID in stored.headers:
        decoders.append(decode_entry)
    for decode in decoders:
        with pytest.raises(DecodeError, match=fault) as caught:
            decode(stored, SUBJECTS)
        assert (caught.value.subject, caught.value.revision) == (stored.subject, 7)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "before"),
    [
        ({"ttl": 1.0}, None),
        ({"ttl": 1.000000001}, "was"),
        ({"ttl": 5.0, "ends": STORED}, None),
        ({"ttl": 5.0, "ends": STORED + 1}, "was"),
    ],
)
def test_what_had_run_out_when_an_event_was_stored_was_not_there_before_it(
    changes: dict[str, Any], before: str | None
) -> None:
    previous = Record(SUBJECT, 3, STORED - 10**9, header(**changes), b'"was"')
    for following in (header(), {**header(type="delete", reason="cleared"), OPERATION: "DEL"}):
        event = decode_event(record(following), SUBJECTS, previous)
        assert (event.previous_data, event.previous_revision) == (before, 3)
    ended = decode_event(record({**header(type="delete", reason="expired"), OPERATION: "DEL"}), SUBJECTS, previous)
    assert ended.previous_data == "was", "the event of an end tells of what has ended"


def test_a_damaged_previous_event_is_named_as_the_one_at_fault() -> None:
    damaged = record(header(), b"{")._replace(sequence=5)
    with pytest.raises(DecodeError) as caught:
        decode_event(record(header()), SUBJECTS, damaged)
    assert caught.value.revision == 5


def test_a_delete_is_no_entry() -> None:
    with pytest.raises(DecodeError, match="a delete holds no value"):
        decode_entry(record(encode_event(event_id="id1", operation="delete", writer=WRITER), b""), SUBJECTS)


@given(
    st.dictionaries(st.sampled_from([EVENT_ID, EVENT_HEADER, OPERATION]), st.text(max_size=9)), st.binary(max_size=9)
)
def test_no_message_whatever_raises_anything_but_a_decode_error(headers: dict[str, str], payload: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_event(record(headers, payload), SUBJECTS)


packed_json = st.fixed_dictionaries(
    {"v": st.sampled_from([1, 1, 1, 2, True, None])},
    optional=dict.fromkeys(("type", "agent", "trace", "reason", "ttl", "ends", "object", "schema"), json_values),
)


@given(packed_json, st.sampled_from(["set", "delete", None]))
def test_no_header_whatever_gives_anything_but_an_event_or_a_decode_error(fields: dict[str, Any], kind: Any) -> None:
    headers = {EVENT_ID: "id1", EVENT_HEADER: json.dumps(fields | ({"type": kind} if kind else {}))}
    try:
        event = decode_event(record(headers), SUBJECTS)
    except DecodeError:
        return
    assert event.operation == "set"
    assert event.ttl is None or 0 < event.ttl <= MAX_TTL


@pytest.mark.parametrize("ttl", [0, -1, 0.0, float("nan"), float("inf"), MAX_TTL * 2, "5", True, timedelta(1), [5]])
def test_a_ttl_that_is_no_time_to_live_is_refused_with_the_remedy(ttl: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"ttl .*: (use None|give it in seconds)"):
        check_ttl(ttl)
    with pytest.raises(InvalidInputError):
        encode_event(event_id="id1", operation="set", writer=WRITER, ttl=ttl)


def test_a_ttl_is_a_number_of_seconds() -> None:
    assert (check_ttl(5), check_ttl(0.25), check_ttl(MAX_TTL)) == (5.0, 0.25, MAX_TTL)
    assert decode_event(record(header(ttl=5)), SUBJECTS).expires_at == AT + timedelta(seconds=5)


def test_an_end_that_was_fixed_before_the_value_was_stored_holds_to_the_nanosecond() -> None:
    ends = STORED + 5_000_000_123
    kept = record(header(ttl=5.1, ends=ends))
    assert expires_at_ns(kept) == ends
    event = decode_event(kept, SUBJECTS)
    assert (event.ttl, event.expires_at) == (5.0, AT + timedelta(seconds=5))
    assert decode_entry(kept, SUBJECTS).expires_at == event.expires_at
    late = record(header(ttl=0.1, ends=STORED - 1))
    assert expires_at_ns(late) == STORED + 1000, "stored after its end: it ends at once"
    assert decode_event(late, SUBJECTS).ttl == 1e-6
    for wrong in (0, -1, 2**63, "1", 1.5, True):
        with pytest.raises(DecodeError, match="when the value ends"):
            decode_event(record(header(ttl=5, ends=wrong)), SUBJECTS)


# -- values in objects ------------------------------------------------------------------------------------------------

REFERENCE = Reference("01a2", digest_text(bytes(32)), 300_000)


def large(event_id: str = "id1") -> Record:
    headers = refer(encode_event(event_id=event_id, operation="set", writer=WRITER, ttl=5), REFERENCE)
    return record(headers, REFERENCE.payload("agentfield-objects"))


def test_a_reference_joins_what_the_header_says_already() -> None:
    stored = large()
    assert reference_of(stored) == REFERENCE
    assert decode_outline(stored, SUBJECTS).writer == WRITER
    assert expires_at_ns(stored) is not None
    assert stored.headers[EVENT_HEADER].isascii()


def test_what_is_no_reference_is_taken_as_the_value_it_is() -> None:
    lookalike = record(header(agent='say "object" twice'), REFERENCE.payload("agentfield-objects"))
    assert reference_of(lookalike) is None
    assert decode_event(lookalike, SUBJECTS).data["object"] == "01a2"


def test_a_value_that_was_not_fetched_is_never_replaced_by_its_reference() -> None:
    for decode in (decode_event, decode_entry):
        with pytest.raises(DecodeError, match="the value is the object 01a2, which was not fetched"):
            decode(large(), SUBJECTS)
    with pytest.raises(DecodeError, match="was not fetched"):
        decode_event(record(header()), SUBJECTS, large())


def test_once_fetched_it_is_the_value() -> None:
    whole = large()._replace(content=bytearray(b'"much"'))
    assert decode_event(whole, SUBJECTS, whole).data == decode_event(whole, SUBJECTS, whole).previous_data == "much"
    assert decode_entry(whole, SUBJECTS).value == "much"


def test_an_outline_needs_no_value() -> None:
    outline = decode_outline(large(), SUBJECTS)
    assert (outline.key, outline.revision, outline.id, outline.data) == ("system_status", 7, "id1", None)
    assert decode_outline(record(header(), b"not JSON"), SUBJECTS).data is None


# -- values under schemas ---------------------------------------------------------------------------------------------


class Status(BaseModel):
    level: int


def statuses(version: int = 2) -> Schemas:
    schemas = Schemas()
    steps = {step: lambda data: {"level": data["level"] + 1} for step in range(1, version)}
    schemas.bind(schema_of("*_status", Status, name=None, version=version, upcast=steps))
    return schemas


def test_an_event_names_its_schema_and_holds_its_model() -> None:
    headers = encode_event(event_id="id1", operation="set", writer=WRITER, stamp=Stamp("Status", 2))
    assert json.loads(headers[EVENT_HEADER])["schema"] == "Status"
    stored = record(headers, b'{"level":3}')
    event, entry = (
        decode_event(stored, SUBJECTS, schemas=statuses()),
        decode_entry(stored, SUBJECTS, schemas=statuses()),
    )
    assert event.data == entry.value == Status(level=3)
    assert (event.schema_name, event.schema_version) == (entry.schema_name, entry.schema_version) == ("Status", 2)
    assert decode_event(stored, SUBJECTS).data == {"level": 3}
    assert event.model_dump(mode="json")["data"] == {"level": 3}


def test_what_a_key_held_before_is_lifted_by_what_its_own_event_says() -> None:
    old = record(encode_event(event_id="id0", operation="set", writer=WRITER, stamp=Stamp("Status", 1)), b'{"level":1}')
    new = record(encode_event(event_id="id1", operation="set", writer=WRITER, stamp=Stamp("Status", 2)), b'{"level":1}')
    event = decode_event(new, SUBJECTS, old, schemas=statuses())
    assert (event.data, event.previous_data) == (Status(level=1), Status(level=2))


def test_data_that_does_not_fit_its_schema_is_a_decode_error_of_that_event() -> None:
    for headers, payload in ((header(), b'{"level":"?"}'), (header(schema="Status", schema_version=3), b"{}")):
        with pytest.raises(DecodeError, match="Status") as caught:
            decode_data(record(headers, payload), SUBJECTS, statuses())
        assert (caught.value.subject, caught.value.revision) == (SUBJECT, 7)


def test_the_headers_a_value_needs_are_kept_and_no_others() -> None:
    assert needed_to_decode(record(header())) is None
    assert needed_to_decode(large()) == {EVENT_HEADER: large().headers[EVENT_HEADER]}
    stamped = record(header(schema="Status", schema_version=1), b'{"level":1}')
    kept = stamped._replace(headers=needed_to_decode(stamped) or {})
    assert decode_data(kept, SUBJECTS, statuses()) == Status(level=2)


def test_a_replayed_event_says_where_it_was_recorded_first() -> None:
    first = ReplayedFrom(namespace="agentfield", revision=17, timestamp=AT, ttl=60)
    headers = encode_event(event_id="id1", operation="set", writer=WRITER, replayed_from=first)
    assert decode_event(record(headers), SUBJECTS).replayed_from == first
    assert json.loads(headers[EVENT_HEADER])["replayed_from"] == {
        "namespace": "agentfield",
        "revision": 17,
        "timestamp": "2024-07-08T18:20:00.123456Z",
        "ttl": 60.0,
    }
    assert decode_event(record(header()), SUBJECTS).replayed_from is None
    with pytest.raises(DecodeError, match="says wrongly where it was replayed from"):
        decode_event(record(header(replayed_from={"namespace": "agentfield"})), SUBJECTS)


def test_the_place_of_a_cause_can_be_put_in_later() -> None:
    headers = encode_event(event_id="id1", operation="set", writer=WRITER)
    moved = decode_event(record(led_to_by(headers, 41)), SUBJECTS)
    assert moved.writer == WRITER.model_copy(update={"cause_revision": 41})
