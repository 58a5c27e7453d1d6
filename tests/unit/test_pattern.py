import itertools
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentfield.errors import InvalidInputError
from agentfield.key import MAX_TOKENS, key_tokens
from agentfield.pattern import MAX_FILTERS, Pattern, cover, disjoint, overlaps, subsumes
from tests.unit.strategies import KEY_CHARACTER, keys, patterns, within


def hears(filter: str, tokens: str) -> bool:
    """Whether a NATS filter matches a subject, by the book."""
    expression = re.escape(filter).replace(r"\*", r"[^.]+").replace(">", r".+")
    return re.fullmatch(expression, tokens) is not None


def oracle(pattern: str, key: str) -> bool:
    return re.fullmatch(".+".join(map(re.escape, pattern.split("*"))), key, re.DOTALL) is not None


stuffing = st.one_of(st.text("ab_", min_size=1, max_size=25), st.text(KEY_CHARACTER, min_size=1, max_size=8))


@st.composite
def matching(draw: st.DrawFn) -> tuple[str, str]:
    """A pattern, and a key made from it by filling its stars."""
    pattern = draw(patterns)
    key = "".join(draw(stuffing) if character == "*" else character for character in pattern)
    assume(within(key, 512))
    return pattern, key


@given(matching())
def test_the_filters_hear_every_key_that_matches(drawn: tuple[str, str]) -> None:
    text, key = drawn
    pattern = Pattern.parse(text)
    assert pattern.matches(key)
    assert any(hears(name, key_tokens(key)) for name in pattern.filters)
    assert any(hears(name, key_tokens(key)) for name in cover([pattern]))


@given(st.text("ab_*", min_size=1, max_size=8), st.text("ab_", min_size=1, max_size=10))
def test_matching_is_that_of_a_regular_expression(text: str, key: str) -> None:
    assert Pattern.parse(text).matches(key) == oracle(text, key)


@given(patterns, keys)
def test_a_key_that_no_filter_hears_does_not_match(text: str, key: str) -> None:
    pattern = Pattern.parse(text)
    assert pattern.matches(key) == oracle(text, key)
    if not any(hears(name, key_tokens(key)) for name in pattern.filters):
        assert not pattern.matches(key)


segment = st.sampled_from(["a", "b", "", "é."])
segments = st.lists(segment, max_size=6)


@given(segments, segments, segments, st.lists(segment, max_size=3))
def test_one_star_for_whole_segments_hears_nothing_else(
    before: list[str], after: list[str], middle: list[str], noise: list[str]
) -> None:
    pattern = Pattern.parse("_".join([*before, "*", *after]))
    for parts in ([*before, *middle, *after], [*before, *middle, *noise], [*noise, *middle, *after], middle):
        key = "_".join(parts)
        if not key or len(parts) >= MAX_TOKENS:
            continue
        # One empty segment is a token to NATS like any other, so a star that took nothing cannot be told apart.
        nothing = "_".join([*before, "", *after])
        heard = any(hears(name, key_tokens(key)) for name in pattern.filters)
        assert heard == (pattern.matches(key) or key == nothing)


@given(patterns)
def test_filters_are_few_and_well_formed(text: str) -> None:
    names = Pattern.parse(text).filters
    assert 1 <= len(names) <= MAX_FILTERS
    assert len(set(names)) == len(names)
    assert not any(subsumes(a, b) for a, b in itertools.permutations(names, 2))
    for name in names:
        tokens = name.split(".")
        assert len(tokens) <= MAX_TOKENS
        assert ">" not in tokens[:-1]
        assert all(re.fullmatch(r"[A-Za-z0-9/=-]+|\*|>", token) for token in tokens)


@given(st.lists(patterns, max_size=4), keys)
def test_a_cover_never_overlaps_and_hears_whatever_one_of_its_patterns_hears(texts: list[str], key: str) -> None:
    parsed = [Pattern.parse(text) for text in texts]
    names = cover(parsed)
    assert not any(overlaps(a, b) for a, b in itertools.combinations(names, 2))
    for name in itertools.chain.from_iterable(pattern.filters for pattern in parsed):
        assert any(subsumes(other, name) for other in names)
    if any(pattern.matches(key) for pattern in parsed):
        assert any(hears(name, key_tokens(key)) for name in names)
    assert cover(parsed[::-1]) == names == tuple(sorted(names))


small_filters = st.tuples(
    st.lists(st.sampled_from(["a", "b", "*"]), max_size=2), st.sampled_from(["a", "b", "*", ">"])
).map(lambda drawn: ".".join([*drawn[0], drawn[1]]))

# One token more, and one letter more, than any of the small filters names.
SUBJECTS = [".".join(tokens) for size in range(1, 5) for tokens in itertools.product("abc", repeat=size)]


def heard_by(*filters: str) -> set[str]:
    return {subject for subject in SUBJECTS if any(hears(name, subject) for name in filters)}


@given(small_filters, small_filters)
def test_overlapping_and_subsuming_are_what_they_are_for_the_subjects_heard(a: str, b: str) -> None:
    assert overlaps(a, b) == overlaps(b, a) == bool(heard_by(a) & heard_by(b))
    assert subsumes(a, b) == (heard_by(b) <= heard_by(a))


SMALL_FILTERS = [
    ".".join([*head, last]) for size in range(3) for head in itertools.product("ab*", repeat=size) for last in "ab*>"
]


@given(st.lists(small_filters, max_size=5).flatmap(lambda names: st.tuples(st.just(names), st.permutations(names))))
def test_merging_does_not_depend_on_order_and_is_as_tight_as_can_be(drawn: tuple[list[str], list[str]]) -> None:
    names, shuffled = drawn
    merged = disjoint(names)
    assert merged == disjoint(shuffled)
    assert heard_by(*names) <= heard_by(*merged)
    assert not any(overlaps(a, b) for a, b in itertools.combinations(merged, 2))
    for wide in merged:
        merged_here = [name for name in names if subsumes(wide, name)]
        assert not any(
            all(subsumes(tighter, name) for name in merged_here)
            for tighter in SMALL_FILTERS
            if tighter != wide and subsumes(wide, tighter)
        )
    if not any(overlaps(a, b) for a, b in itertools.combinations(set(names), 2)):
        assert set(merged) == set(names)


STARS = [".".join("*" * count) for count in range(MAX_TOKENS)]


@pytest.mark.parametrize(
    ("text", "filters"),
    [
        ("*", [">"]),
        ("order_42_status", ["order.42.status"]),
        ("order_*", ["order.>"]),
        ("order__*", ["order.=.>"]),
        ("order*", [">"]),
        ("order_4*", ["order.>"]),
        ("a_*_*", ["a.*.>"]),
        ("order_*_status", [f"order.{STARS[n]}.status" for n in range(1, 14)] + [f"order.{STARS[15]}"]),
        ("order_4*_status", [f"order.{STARS[n]}.status" for n in range(1, 14)] + [f"order.{STARS[15]}"]),
        ("*_status", [f"{STARS[n]}.status" for n in range(1, 15)] + [f"{STARS[15]}.*"]),
        ("a_*_*_b", [f"a.{STARS[n]}.b" for n in range(2, 14)] + [f"a.{STARS[15]}"]),
        ("a_*_b_*_c", ["a.>"]),
        ("*_b_*_c_*", [">"]),
        ("_".join("abcdefghijklmno") + "_*", [".".join("abcdefghijklmno") + ".>"]),
        ("_".join("abcdefghijklmnop") + "_*", [".".join("abcdefghijklmno") + ".*"]),
        ("_".join("abcdefghijklmnopq"), [".".join("abcdefghijklmno") + ".p=5Fq"]),
        ("_".join("abcdefghijklm") + "_*_o", [".".join("abcdefghijklm") + end for end in (".*.o", ".*.*.*")]),
    ],
)
def test_patterns_become_the_filters_that_were_promised(text: str, filters: list[str]) -> None:
    assert Pattern.parse(text).filters == tuple(sorted(filters))


def test_overlapping_patterns_are_merged_into_one_filter() -> None:
    parsed = [Pattern.parse(text) for text in ("order_*_status", "order_42_*", "cart_7")]
    assert cover(parsed) == ("cart.7", "order.*.>")
    assert cover([*parsed, Pattern.parse("*")]) == (">",)
    assert cover([]) == ()


@pytest.mark.parametrize(
    ("text", "key", "matches"),
    [
        ("order_*_status", "order_42_status", True),
        ("order_*_status", "order_a_b_status", True),
        ("order_*_status", "order__status", False),
        ("order_*_status", "order___status", True),
        ("order_*", "order_", False),
        ("*", "_", True),
        ("**", "a", False),
        ("a*a", "aa", False),
        ("a*a", "aaa", True),
        ("*.b", "a.b", True),
        ("a", "a", True),
        ("a", "ab", False),
    ],
)
def test_a_star_stands_for_one_or_more_characters(text: str, key: str, matches: bool) -> None:
    assert Pattern.parse(text).matches(key) is matches


def test_matching_does_not_try_every_way_to_place_the_stars() -> None:
    # A backtracking matcher would not be done within the age of the universe.
    assert not Pattern.parse("a*" * 100 + "b").matches("a" * 512)


def test_expanding_does_not_try_every_way_to_place_the_stars() -> None:
    assert Pattern.parse("_".join(["*", "a"] * 120)).filters == (">",)
    assert Pattern.parse("a_" * 15 + "_".join(["*", "a"] * 100)).filters == ("a." * 15 + "*",)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "pattern '' is empty"),
        ("order.>", r"pattern 'order\.>' contains '>' at position 6: no key holds it; use '\*'"),
        ("a\n*", r"pattern 'a\\n\*' contains the control character U\+000A"),
        ("\ud800*", "lone surrogate"),
        ("*" * 513, "at most 512 are allowed"),
        (None, "pattern must be a string, not NoneType"),
        (["a"], "pattern must be a string, not list"),
    ],
)
def test_illegal_patterns_are_refused_with_the_rule_and_the_remedy(text: str, fault: str) -> None:
    with pytest.raises(InvalidInputError, match=fault):
        Pattern.parse(text)


def test_patterns_are_values() -> None:
    assert Pattern.parse("a_*") == Pattern.parse("a_*")
    assert len({Pattern.parse("a_*"), Pattern.parse("a_*"), Pattern.parse("b")}) == 2
    assert (str(Pattern.parse("a_*")), Pattern.parse("a_*").text) == ("a_*", "a_*")
    assert Pattern.parse("a_b").is_literal
    assert not Pattern.parse("a_*").is_literal
