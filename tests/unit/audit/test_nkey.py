"""Nkeys: the text form of NATS, and signatures that hold for one key and one content."""

import base64
import binascii

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfield.audit.nkey import Signer, check_public_key, is_signed_by
from agentfield.errors import InvalidInputError

# A pair from the documentation of NATS, of a user.
SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
PUBLIC = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"


def test_keys_of_nats_are_read() -> None:
    signer = Signer.of_seed(f" {SEED}\n")
    assert (signer.public, signer.seed) == (PUBLIC, SEED)
    assert is_signed_by(PUBLIC, signer.sign(b"text"), b"text")


def test_a_new_key_is_an_account_key_that_its_seed_gives_back() -> None:
    signer = Signer.generate()
    assert signer.seed.startswith("SA")
    assert signer.public.startswith("A")
    assert Signer.of_seed(signer.seed).public == signer.public != Signer.generate().public
    assert signer.seed not in repr(signer)


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_a_signature_holds_for_its_content_and_its_key_alone(content: bytes, other: bytes) -> None:
    signer = Signer.generate()
    signature = signer.sign(content)
    assert is_signed_by(signer.public, signature, content)
    assert is_signed_by(signer.public, signature, other) == (content == other)
    assert not is_signed_by(PUBLIC, signature, content)
    assert not is_signed_by(signer.public, signature[:-1], content)
    assert not is_signed_by("", b"", content)


@pytest.mark.parametrize("text", ["", "SU", SEED[:-1], SEED[:-1] + "Z", SEED.lower(), PUBLIC, "é" * 58, "A" * 58])
def test_what_is_no_seed_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        Signer.of_seed(text)
    assert not text or text not in str(refused.value)


@pytest.mark.parametrize("text", ["", "U", PUBLIC[:-1] + "Y", PUBLIC.lower(), "A" * 55 + "B"])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="no public nkey"):
        check_public_key(text)


def test_a_seed_in_place_of_a_public_key_is_not_shown() -> None:
    with pytest.raises(InvalidInputError, match="keep it secret") as refused:
        check_public_key(SEED)
    assert SEED not in str(refused.value)


def test_a_seed_of_a_kind_that_does_not_sign_is_refused() -> None:
    kind = 23 << 3  # a curve key
    raw = bytes([18 << 3 | kind >> 5, (kind & 31) << 3]) + bytes(32)
    text = base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).rstrip(b"=").decode()
    with pytest.raises(InvalidInputError, match="kind that does not sign"):
        Signer.of_seed(text)
