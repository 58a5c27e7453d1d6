import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfield.errors import InvalidInputError
from agentfield.naming import check_name, escape, shown, unescape
from tests.unit.strategies import ANY_CHARACTER


@given(st.text(ANY_CHARACTER, min_size=1))
def test_unescape_undoes_escape_for_all_of_unicode(text: str) -> None:
    token = escape(text)
    assert re.fullmatch(r"[A-Za-z0-9/_=-]+", token)
    assert unescape(token) == text


@given(st.text("aF5=cC3é._ %", min_size=1, max_size=9))
def test_unescape_accepts_only_what_escape_produces(token: str) -> None:
    try:
        text = unescape(token)
    except InvalidInputError:
        return
    assert escape(text) == token


def test_exactly_the_control_characters_and_surrogates_are_refused() -> None:
    refused = set()
    for number in range(0x110000):
        try:
            check_name(chr(number), what="key", max_bytes=4)
        except InvalidInputError:
            refused.add(unicodedata.category(chr(number)))
            assert unicodedata.category(chr(number)) in ("Cc", "Cs")
        else:
            assert unicodedata.category(chr(number)) not in ("Cc", "Cs")
    assert refused == {"Cc", "Cs"}


@pytest.mark.parametrize("value", ["x" * 1_000_000, b"x" * 1_000_000, ["x" * 1000], "\udc80\n"])
def test_what_a_message_shows_is_short_printable_and_on_one_line(value: object) -> None:
    assert len(shown(value)) < 250
    assert shown(value).isprintable()
