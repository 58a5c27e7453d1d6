"""Envelopes open for their own event with their own key, and in no other way."""

from __future__ import annotations

import subprocess
import sys
from base64 import b64decode, b64encode
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfield.codec import Record, decode_event, encrypted_by, needed_to_decode
from agentfield.envelope import ENVELOPE, DataKey, WrongEnvelope, close_up, open_up
from agentfield.errors import DecodeError
from agentfield.event import Writer
from agentfield.header import EVENT_HEADER, encode_event, encrypts
from agentfield.privacy import Encryption
from agentfield.subject import Subjects

KEY = DataKey.of(bytes(range(32)))
NONCE = bytes(12)
SUBJECT = "n.memory.session.u.k"


def test_an_envelope_can_be_read_years_later() -> None:
    """Recorded when the form was fixed: what is in the log stays readable."""
    envelope = (
        b'{"agentfield_encrypted":{"cipher":"AES-256-GCM","key":"630dcd2966c4336691125448bbb25b4f",'
        b'"nonce":"AAAAAAAAAAAAAAAA","data":"dZ7U/I8d/hC1v4jn/6Z9hIoo8nMxYVM="}}'
    )
    assert open_up(KEY, envelope, SUBJECT, "id") == b'{"a":1}'
    assert close_up(KEY, NONCE, b'{"a":1}', SUBJECT, "id") == envelope


@given(st.binary(max_size=2000), st.binary(min_size=32, max_size=32), st.binary(min_size=12, max_size=12))
def test_what_was_closed_up_opens_and_is_plain_json_that_shows_nothing(
    content: bytes, secret: bytes, nonce: bytes
) -> None:
    key = DataKey.of(secret)
    envelope = close_up(key, nonce, content, SUBJECT, "id")
    assert open_up(key, envelope, SUBJECT, "id") == content
    assert set(orjson.loads(envelope)) == {ENVELOPE}
    if len(content) > 8:
        assert content not in envelope
        assert content not in b64decode(orjson.loads(envelope)[ENVELOPE]["data"])


@pytest.mark.parametrize(
    ("key", "subject", "event_id"),
    [
        (KEY, "n.memory.session.u.other", "id"),
        (KEY, "n.memory.session.v.k", "id"),
        (KEY, SUBJECT, "other"),
        (DataKey.of(bytes(32)), SUBJECT, "id"),
    ],
)
def test_an_envelope_moved_elsewhere_does_not_open(key: DataKey, subject: str, event_id: str) -> None:
    envelope = close_up(KEY, NONCE, b"1", SUBJECT, "id")
    with pytest.raises(WrongEnvelope, match="another event"):
        open_up(key, envelope, subject, event_id)


@given(st.integers(min_value=0, max_value=16))
def test_one_changed_bit_is_noticed(position: int) -> None:
    fields = orjson.loads(close_up(KEY, NONCE, b"1", SUBJECT, "id"))
    data = bytearray(b64decode(fields[ENVELOPE]["data"]))
    data[position] ^= 1
    fields[ENVELOPE]["data"] = b64encode(data).decode()
    with pytest.raises(WrongEnvelope, match="changed"):
        open_up(KEY, orjson.dumps(fields), SUBJECT, "id")


@pytest.mark.parametrize(
    "payload",
    [b"", b"1", b"{}", b"[]", b'{"agentfield_encrypted":1}', b'{"agentfield_encrypted":{}}'],
)
def test_what_is_no_envelope_is_said_to_be_none(payload: bytes) -> None:
    with pytest.raises(WrongEnvelope):
        open_up(KEY, payload, SUBJECT, "id")


def test_a_cipher_of_the_future_is_named() -> None:
    fields = orjson.loads(close_up(KEY, NONCE, b"1", SUBJECT, "id"))
    fields[ENVELOPE]["cipher"] = "ROT13"
    with pytest.raises(WrongEnvelope, match="ROT13"):
        open_up(KEY, orjson.dumps(fields), SUBJECT, "id")


def test_a_data_key_never_shows_itself() -> None:
    assert KEY.secret.hex() not in f"{KEY!r} {KEY}"
    assert repr(KEY.secret) not in f"{KEY!r} {[KEY]} {KEY}"


def record(**changes: Any) -> Record:
    headers = encrypts(
        encode_event(event_id="id", operation="set", writer=Writer(agent="encrypted")), Encryption("f", "scope")
    )
    return Record(SUBJECT, 1, 0, headers, b'{"agentfield_encrypted":{}}')._replace(**changes)


def test_the_header_says_what_an_event_is_encrypted_with_and_stays_readable() -> None:
    assert encrypted_by(record()) == Encryption("f", "scope")
    plain = encode_event(event_id="id", operation="set", writer=Writer(agent="encrypted"))
    assert encrypted_by(record(headers=plain)) is None
    event = decode_event(record(content=b"1"), Subjects("n"))
    assert (event.data, event.writer.agent, event.erased) == (1, "encrypted", False)


def test_a_value_that_was_not_decrypted_is_never_taken_for_its_envelope() -> None:
    with pytest.raises(DecodeError, match="not decrypted"):
        decode_event(record(), Subjects("n"))


def test_an_erased_event_has_no_data_and_says_so() -> None:
    event = decode_event(record(erased=True), Subjects("n"), record(erased=True))
    assert (event.data, event.previous_data, event.erased, event.operation) == (None, None, True, "set")
    assert event.model_dump(mode="json")["erased"] is True


def test_what_is_kept_of_a_record_is_enough_to_decrypt_it() -> None:
    assert needed_to_decode(record()) == record().headers
    assert needed_to_decode(record(headers={EVENT_HEADER: "{}"})) is None


def test_without_the_package_one_sentence_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['cryptography'] = None; sys.modules['cryptography.hazmat'] = None\n"
        "from agentfield.envelope import DataKey, close_up\n"
        "try: close_up(DataKey.of(bytes(32)), bytes(12), b'1', 's', 'i')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.startswith("InvalidInputError this namespace keeps personal values encrypted")
    assert 'pip install "agentfield[privacy]"' in said
