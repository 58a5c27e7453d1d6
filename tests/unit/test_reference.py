import base64
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfield.errors import InvalidInputError
from agentfield.reference import LARGEST, Reference, check_size, digest_text, is_object_name
from tests.unit.test_value import json_values

REFERENCE = Reference("01a2", digest_text(hashlib.sha256(b"value").digest()), 5)

references = st.builds(
    Reference,
    name=st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    digest=st.binary(min_size=32, max_size=32).map(digest_text),
    size=st.integers(1, LARGEST),
)


@given(references)
def test_a_reference_comes_back_as_it_was_written(reference: Reference) -> None:
    assert Reference.of(json.loads(json.dumps(reference.fields()))) == reference


def test_a_digest_is_written_as_object_stores_write_it() -> None:
    algorithm, _, text = REFERENCE.digest.partition("=")
    assert algorithm == "SHA-256"
    assert base64.urlsafe_b64decode(text) == hashlib.sha256(b"value").digest()


def test_what_stands_in_the_values_place_can_be_read_by_people() -> None:
    assert json.loads(REFERENCE.payload("agentfield-objects")) == {
        "object": "01a2",
        "bucket": "agentfield-objects",
        "digest": REFERENCE.digest,
        "size": 5,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"name": "a.b"},
        {"name": ">"},
        {"name": ""},
        {"name": None},
        {"digest": "SHA-256=short"},
        {"digest": REFERENCE.digest.replace("256", "512")},
        {"size": 0},
        {"size": True},
        {"size": "5"},
        {"size": LARGEST + 1},
    ],
)
def test_what_names_no_object_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="names its object wrongly"):
        Reference.of(REFERENCE.fields() | change)


@given(json_values)
def test_nothing_else_in_a_header_is_taken_for_a_reference(value: Any) -> None:
    with pytest.raises(InvalidInputError):
        Reference.of(value)


def test_the_limit_is_named_with_the_key() -> None:
    check_size(LARGEST, "report")
    with pytest.raises(InvalidInputError, match=r"'report' is 268,435,457 bytes .* 268,435,456 \(256 MiB\)"):
        check_size(LARGEST + 1, "report")


@given(st.text(max_size=70))
def test_an_object_name_is_one_plain_token(text: str) -> None:
    assert is_object_name(text) == (
        0 < len(text) <= 64 and all(c.isascii() and (c.isalnum() or c in "_-") for c in text)
    )
