import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfield.errors import InvalidInputError
from agentfield.pattern import Pattern, overlaps, subsumes
from agentfield.scope import GLOBAL, RESOLUTION, Scope, ScopeKind
from agentfield.subject import Subjects, check_namespace
from tests.unit.strategies import keys, patterns, scope_ids

SUBJECTS = Subjects("agentfield")

scopes = st.one_of(
    st.just(GLOBAL), st.builds(Scope.of, st.sampled_from([kind for kind in RESOLUTION if kind != "global"]), scope_ids)
)


@given(scopes, keys)
def test_every_key_in_every_scope_has_a_subject_and_comes_back_from_it(scope: Scope, key: str) -> None:
    subject = SUBJECTS.memory(scope, key)
    assert SUBJECTS.parse(subject) == (scope, key)
    assert subsumes(SUBJECTS.all_memory, subject)


@given(
    st.lists(
        st.sampled_from(["agentfield", "memory", "global", "session", "a", "=", "=2E", "a_b", ""]), max_size=7
    ).map(".".join)
)
def test_every_subject_that_is_accepted_is_that_of_its_key(subject: str) -> None:
    try:
        scope, key = SUBJECTS.parse(subject)
    except InvalidInputError:
        return
    assert SUBJECTS.memory(scope, key) == subject


def test_subjects_read_as_documented() -> None:
    assert SUBJECTS.memory(Scope.of("session", "user.42"), "order_42_status") == (
        "agentfield.memory.session.user=2E42.order.42.status"
    )
    assert SUBJECTS.memory(GLOBAL, "feature_flags") == "agentfield.memory.global.global.feature.flags"
    assert (SUBJECTS.namespace, SUBJECTS.all_memory) == ("agentfield", "agentfield.memory.>")


def test_the_longest_subject_stays_under_what_disconnects_a_client() -> None:
    assert len(Subjects("n" * 32).memory(Scope.of("workflow", "é" * 128), "é" * 256)) < 4096 - 1024


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "agentfield.memory",
        "agentfield.memory.global.global",
        "other.memory.global.global.a",
        "agentfield.notes.global.global.a",
        "agentfield.memory.team.x.a",
        "agentfield.memory.global.mine.a",
        "agentfield.memory.session.=.a",
        "agentfield.memory.session.x.",
        "agentfield.memory.session.x.=",
        "agentfield.memory.session.x.a_b",
        "$KV.agentfield-global.global.a",
        "xagentfield.memory.global.global.a",
    ],
)
def test_subjects_that_are_no_keys_are_refused(subject: str) -> None:
    with pytest.raises(InvalidInputError):
        SUBJECTS.parse(subject)


@pytest.mark.parametrize("text", ["", "-a", "_a", "A", "a.b", "a b", "a\n", "é", "x" * 33, None, 7, "*", ">"])
def test_illegal_namespaces_are_refused_with_an_example(text: str) -> None:
    for refusing in (check_namespace, Subjects):
        with pytest.raises(InvalidInputError, match="choose one like 'agentfield'"):
            refusing(text)


@pytest.mark.parametrize("text", ["a", "0", "agentfield", "staging-eu_2", "x" * 32])
def test_legal_namespaces_are_accepted(text: str) -> None:
    assert Subjects(text).namespace == text
    assert Subjects(text) == Subjects(text)
    assert Subjects(text) != Subjects("other")


wanted = st.one_of(
    st.tuples(st.just("global"), st.just(None)),
    st.tuples(
        st.sampled_from([kind for kind in RESOLUTION if kind != "global"]), st.one_of(st.none(), st.sampled_from("ab."))
    ),
)


@given(st.lists(patterns, min_size=1, max_size=3), st.lists(wanted, min_size=1, max_size=5), scopes, keys)
def test_filters_hear_the_keys_asked_for_and_never_overlap(
    texts: list[str], asked: list[tuple[ScopeKind, str | None]], scope: Scope, key: str
) -> None:
    parsed = [Pattern.parse(text) for text in texts]
    filters = SUBJECTS.filters(parsed, asked)
    assert not any(overlaps(a, b) for a, b in itertools.combinations(filters, 2))
    assert SUBJECTS.filters(parsed[::-1], asked[::-1]) == filters
    for kind, id in asked:
        inside = GLOBAL if kind == "global" else Scope.of(kind, scope.id if id is None else id)
        subject = SUBJECTS.memory(inside, key)
        if any(pattern.matches(key) for pattern in parsed):
            assert any(subsumes(name, subject) for name in filters)
    if all(kind != scope.kind or (id is not None and id != scope.id) for kind, id in asked):
        assert not any(subsumes(name, SUBJECTS.memory(scope, key)) for name in filters)


def test_filters_name_the_scopes_as_narrowly_as_asked() -> None:
    literal = [Pattern.parse("system_status")]
    assert SUBJECTS.filters(literal, [("workflow", None), ("actor", "a.b"), ("global", None)]) == (
        "agentfield.memory.actor.a=2Eb.system.status",
        "agentfield.memory.global.global.system.status",
        "agentfield.memory.workflow.*.system.status",
    )
    assert SUBJECTS.filters(literal, [("session", "u"), ("session", None), ("session", "u")]) == (
        "agentfield.memory.session.*.system.status",
    )


def test_filters_of_nothing_are_refused_since_the_server_would_send_everything() -> None:
    with pytest.raises(InvalidInputError, match="at least one pattern"):
        SUBJECTS.filters([], [("global", None)])
    with pytest.raises(InvalidInputError, match="at least one pattern and one scope"):
        SUBJECTS.filters([Pattern.parse("*")], [])
    with pytest.raises(InvalidInputError, match="of which there is one"):
        SUBJECTS.filters([Pattern.parse("*")], [("global", "x")])
