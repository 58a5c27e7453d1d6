import re
from enum import StrEnum

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentfield.errors import InvalidInputError
from agentfield.key import MAX_KEY_BYTES, MAX_TOKENS, check_key, key_of, key_tokens
from tests.unit.strategies import keys


@given(keys)
@example("_" * 15)
@example("_" * 16)
@example("_" * 512)
@example("=5F_=_.")
def test_every_legal_key_becomes_legal_tokens_and_comes_back(key: str) -> None:
    tokens = key_tokens(key)
    # What NATS KV allows in a key (ADR-8), without empty tokens.
    assert re.fullmatch(r"[A-Za-z0-9/_=-]+(\.[A-Za-z0-9/_=-]+)*", tokens)
    assert len(tokens.split(".")) == min(key.count("_") + 1, MAX_TOKENS)
    assert "_" not in tokens
    assert key_of(tokens) == key


@st.composite
def damaged_images(draw: st.DrawFn) -> str:
    tokens = key_tokens(draw(keys))
    at = draw(st.integers(0, len(tokens)))
    cut = draw(st.integers(0, 2))
    return tokens[:at] + draw(st.text("a=.F5f_e23D0C", max_size=3)) + tokens[at + cut :]


@given(
    st.one_of(
        damaged_images(),
        st.text("a=.5F_", max_size=12),
        st.text(max_size=8),
        st.lists(st.sampled_from(["a", "=", "=5F", "==5F", "b=5Fc", "=2E", "_", "=C3=A9"]), max_size=18).map(".".join),
    )
)
def test_every_token_string_that_is_accepted_is_the_image_of_its_key(tokens: str) -> None:
    try:
        key = key_of(tokens)
    except InvalidInputError:
        return
    check_key(key)
    assert key_tokens(key) == tokens


@given(keys, keys)
def test_two_keys_never_share_their_tokens(one: str, other: str) -> None:
    assert (key_tokens(one) == key_tokens(other)) == (one == other)


@pytest.mark.parametrize(
    ("key", "tokens"),
    [
        ("order_42_status", "order.42.status"),
        ("system-status", "system-status"),
        (".", "=2E"),
        ("=", "=3D"),
        ("a.b", "a=2Eb"),
        ("_", "=.="),
        ("a__b", "a.=.b"),
        ("_a_", "=.a.="),
        ("path/to/it", "path/to/it"),
        ("naïve key", "na=C3=AFve=20key"),
        ("$KV", "=24KV"),
        ("a\u2028b", "a=E2=80=A8b"),
        ("_".join("abcdefghijklmnop"), ".".join("abcdefghijklmnop")),
        ("_".join("abcdefghijklmnopqr"), ".".join("abcdefghijklmno") + ".p=5Fq=5Fr"),
        ("_" * 15, ".".join(["="] * 16)),
        ("_" * 16, ".".join(["="] * 15) + ".=5F"),
    ],
)
def test_keys_are_written_as_documented(key: str, tokens: str) -> None:
    assert key_tokens(key) == tokens
    assert key_of(tokens) == key


FIFTEEN = "a." * 15


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        ("", "nothing at all"),
        (".", "empty tokens"),
        ("a..b", "an empty token"),
        ("a.", "an empty last token"),
        ("=", "the empty key"),
        ("a=2eb", "lower-case hexadecimal"),
        ("=41", "an escape that needs none"),
        ("a=5Fb", "=5F outside a sixteenth token"),
        ("a_b", "a separator as itself"),
        (FIFTEEN + "b_c", "a separator as itself in the sixteenth token"),
        (FIFTEEN + "b==5F", "half an escape in the sixteenth token"),
        (FIFTEEN + "a.a", "seventeen tokens"),
        ("=C3", "half a character"),
        ("=FF", "no UTF-8"),
        ("=C0=80", "overlong UTF-8"),
        ("=ED=A0=80", "a surrogate"),
        ("=2", "half an escape"),
        ("a=", "an escape without digits"),
        ("a=.b", "a lone = in a longer token"),
        ("=2A", "a star"),
        ("=3E", "a greater-than sign"),
        ("=0A", "a control character"),
        ("a*", "a wildcard"),
        ("é", "a character that must be escaped"),
        ("a\n", "a trailing line end"),
        ("٣", "a digit that is not ASCII"),
        ("a" * 513, "a key that is too long"),
    ],
)
def test_what_is_no_image_is_refused(tokens: str, why: str) -> None:
    with pytest.raises(InvalidInputError):
        key_of(tokens)


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("", "key '' is empty: give it at least one character"),
        ("order_*", r"key 'order_\*' contains '\*' at position 6: .* replace it"),
        ("a>b", "key 'a>b' contains '>' at position 1"),
        ("a\x00", r"key 'a\\x00' contains the control character U\+0000 at position 1: remove it"),
        ("\x7f", r"U\+007F"),
        ("\x85", r"U\+0085"),
        ("a\udc80", r"key 'a\\udc80' contains the lone surrogate U\+DC80 at position 1.*decode the input"),
        ("x" * 513, "takes at least 513 bytes of UTF-8, but at most 512 are allowed: shorten it"),
        ("é" * 257, "takes 514 bytes of UTF-8, but at most 512 are allowed"),
        (7, r"key must be a string, not int \(7\): convert it first"),
        (b"order", r"key must be a string, not bytes \(b'order'\)"),
        (None, "key must be a string, not NoneType"),
        (["order"], "key must be a string, not list"),
        ({"a": []}, "key must be a string, not dict"),
    ],
)
def test_illegal_keys_are_refused_with_the_rule_and_the_remedy(key: str, fault: str) -> None:
    for refusing in (check_key, key_tokens):
        with pytest.raises(InvalidInputError, match=fault) as caught:
            refusing(key)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("tokens", [None, 7, ["a"], b"a"])
def test_tokens_that_are_no_string_are_refused(tokens: str) -> None:
    with pytest.raises(InvalidInputError, match="key tokens must be a string, not"):
        key_of(tokens)


def test_the_longest_keys_are_legal() -> None:
    for key in ("x" * MAX_KEY_BYTES, "é" * (MAX_KEY_BYTES // 2), "_" * MAX_KEY_BYTES):
        assert key_of(key_tokens(key)) == key


def test_a_string_enum_is_a_key() -> None:
    class Name(StrEnum):
        STATUS = "order_status"

    assert key_tokens(Name.STATUS) == "order.status"
