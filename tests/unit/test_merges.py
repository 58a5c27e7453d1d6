"""Merges commute: whatever the order in which they are applied, the outcome is the same."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfield import InvalidInputError
from agentfield.memory import merges

numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=5)
values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(max_size=2), scalars, max_size=2)


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def folded(functions: Sequence[Callable[[Any], Any]], old: Any = None) -> Any:
    """Apply one after the other, with what is stored in between, as `update` does."""
    for function in functions:
        old = json.loads(json.dumps(function(old)))
    return old


@given(st.lists(numbers, min_size=1), st.randoms(use_true_random=False))
def test_maximum_and_minimum_do_not_depend_on_the_order(items: list[float], random: Any) -> None:
    shuffled = random.sample(items, len(items))
    for merge, expected in ((merges.maximum, max(items)), (merges.minimum, min(items))):
        assert folded([merge(item) for item in items]) == folded([merge(item) for item in shuffled]) == expected


@given(st.lists(st.sampled_from([0, 0.0, -0.0, False, 1, 1.0, True, 2]), min_size=1), st.randoms(use_true_random=False))
def test_of_values_that_compare_equal_the_same_one_stays_in_any_order(items: list[float], random: Any) -> None:
    shuffled = random.sample(items, len(items))
    for merge in (merges.maximum, merges.minimum):
        assert canonical(folded([merge(item) for item in items])) == canonical(
            folded([merge(item) for item in shuffled])
        )


@given(st.lists(st.text(max_size=3), min_size=1))
def test_whatever_has_an_order_has_a_maximum(items: list[str]) -> None:
    assert folded([merges.maximum(item) for item in items]) == max(items)


@given(st.lists(st.lists(values, max_size=4)), st.randoms(use_true_random=False))
def test_a_union_holds_each_item_once_in_any_order(lists: list[list[Any]], random: Any) -> None:
    shuffled = random.sample(lists, len(lists))
    outcomes = [folded([merges.union(each) for each in order], []) for order in (lists, shuffled)]
    wanted = {canonical(item) for each in lists for item in each}
    for outcome in outcomes:
        texts = [canonical(item) for item in outcome]
        assert len(texts) == len(set(texts))
        assert set(texts) == wanted


def test_a_union_keeps_the_order_of_first_appearance() -> None:
    assert folded([merges.union(list("bca")), merges.union(list("dbe"))]) == ["b", "c", "a", "d", "e"]


@given(st.lists(st.lists(values, max_size=3)), st.randoms(use_true_random=False))
def test_append_keeps_all_items_in_the_order_of_the_writes(lists: list[list[Any]], random: Any) -> None:
    assert folded([merges.append(*each) for each in lists], []) == [item for each in lists for item in each]
    shuffled = folded([merges.append(*each) for each in random.sample(lists, len(lists))], [])
    assert Counter(map(canonical, shuffled)) == Counter(canonical(item) for each in lists for item in each)


def test_what_is_merged_in_is_compared_as_it_is_stored() -> None:
    early, late = (datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2))
    stored = json.loads(orjson.dumps(late, option=orjson.OPT_UTC_Z))
    assert folded([merges.maximum(early)], stored) == folded([merges.maximum(late)], stored) == stored
    assert folded([merges.union([(1, 2)]), merges.union([(1, 2)])]) == [[1, 2]]


@pytest.mark.parametrize(
    ("merge", "old"),
    [(merges.union([1]), "text"), (merges.append(1), {"a": 1}), (merges.maximum(1), "a"), (merges.minimum([1]), 1)],
)
def test_what_cannot_be_merged_is_refused(merge: Callable[[Any], Any], old: Any) -> None:
    with pytest.raises(InvalidInputError):
        merge(old)


@pytest.mark.parametrize("items", ["eu", b"eu", {"eu": 1}, None, 5])
def test_a_union_takes_a_list_of_items_and_nothing_that_might_be_one_item(items: Any) -> None:
    with pytest.raises(InvalidInputError, match="give a list of items"):
        merges.union(items)


@pytest.mark.parametrize("value", [None, {"a": 1}])
def test_what_has_no_order_is_refused_before_there_is_anything_to_compare_it_with(value: Any) -> None:
    for merge in (merges.maximum, merges.minimum):
        with pytest.raises(InvalidInputError, match="have none"):
            merge(value)


def test_a_merge_leaves_the_old_value_as_it_was() -> None:
    old = [1]
    merges.append(2)(old)
    merges.union([2])(old)
    assert old == [1]
