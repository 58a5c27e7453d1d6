import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfield.errors import InvalidInputError
from agentfield.scope import GLOBAL, RESOLUTION, Scope, check_scope_kind, scope_id, scope_token
from tests.unit.strategies import scope_ids


@given(scope_ids)
def test_every_legal_id_becomes_one_token_and_comes_back(id: str) -> None:
    token = scope_token(id)
    assert re.fullmatch(r"[A-Za-z0-9/_=-]+", token)
    assert scope_id(token) == id
    assert Scope.of("session", id).token == token


@given(st.one_of(st.text("a_=2EeF5.", max_size=9), st.text(max_size=6), scope_ids.map(scope_token).map(str.lower)))
def test_every_token_that_is_accepted_is_the_image_of_its_id(token: str) -> None:
    try:
        id = scope_id(token)
    except InvalidInputError:
        return
    assert scope_token(id) == token


@pytest.mark.parametrize(
    ("id", "token"),
    [
        ("user-42", "user-42"),
        ("a_b", "a_b"),
        ("a.b", "a=2Eb"),
        ("a=b", "a=3Db"),
        ("*", "=2A"),
        (">", "=3E"),
        ("a b", "a=20b"),
        ("ünder/way", "=C3=BCnder/way"),
        ("🚀", "=F0=9F=9A=80"),
    ],
)
def test_ids_keep_their_underscores_and_escape_what_a_token_may_not_hold(id: str, token: str) -> None:
    assert scope_token(id) == token
    assert scope_id(token) == id


@pytest.mark.parametrize("token", ["", "=", "a.b", "=2e", "=41", "=5F", "=C3", "=FF", "=2", "a=", "é", "=00", "=C2=85"])
def test_tokens_that_are_no_image_are_refused(token: str) -> None:
    with pytest.raises(InvalidInputError):
        scope_id(token)


@pytest.mark.parametrize(
    ("id", "fault"),
    [
        ("", "scope id '' is empty"),
        ("a\nb", r"scope id 'a\\nb' contains the control character U\+000A at position 1: remove it"),
        ("\ud800", "lone surrogate U\\+D800 at position 0"),
        ("x" * 257, "257 bytes of UTF-8, but at most 256 are allowed: shorten it"),
        ("é" * 129, "258 bytes of UTF-8, but at most 256"),
        (42, r"scope id must be a string, not int \(42\)"),
        (None, "scope id must be a string, not NoneType"),
        (["x"], "scope id must be a string, not list"),
    ],
)
def test_illegal_ids_are_refused_with_the_rule_and_the_remedy(id: str, fault: str) -> None:
    for refusing in (scope_token, lambda id: Scope.of("workflow", id)):
        with pytest.raises(InvalidInputError, match=fault):
            refusing(id)


@pytest.mark.parametrize("text", ["", "Workflow", "team", None, 3, ["global"]])
def test_unknown_kinds_are_refused_naming_the_known_ones(text: str) -> None:
    with pytest.raises(InvalidInputError, match="use one of workflow, session, actor, global"):
        Scope.of(text, "x")


def test_kinds_resolve_from_the_most_specific_to_the_global() -> None:
    assert RESOLUTION == ("workflow", "session", "actor", "global")
    assert [check_scope_kind(kind) for kind in RESOLUTION] == list(RESOLUTION)


def test_there_is_one_global_scope() -> None:
    assert Scope.of("global", "global") == GLOBAL
    with pytest.raises(InvalidInputError, match="of which there is one: leave the id out"):
        Scope.of("global", "mine")
    assert (str(GLOBAL), str(Scope.of("session", "u"))) == ("global", "session:u")
