"""The checker of histories accepts what a register can do and catches what it cannot."""

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.linearizability import Operation, Value, check


def read(called: float, returned: float, result: Value) -> Operation:
    return Operation("read", called, returned, result=result)


def write(called: float, returned: float, value: Value, done: bool | None = True) -> Operation:
    return Operation("write", called, returned, value=value, done=done)


def cas(called: float, returned: float, expected: Value, value: Value, done: bool | None = True) -> Operation:
    return Operation("cas", called, returned, value=value, expected=expected, done=done)


GOOD = {
    "nothing": [],
    "a read of the initial value": [read(0, 1, None)],
    "one after the other": [write(0, 1, 1), read(2, 3, 1), write(4, 5, 2), read(6, 7, 2)],
    "a read beside a write may find either": [write(0, 10, 1), read(1, 2, None), read(3, 4, 1)],
    "writes at once, in either order": [write(0, 10, 1), write(0, 10, 2), read(11, 12, 1), read(13, 14, 1)],
    "a cas that succeeds": [write(0, 1, 1), cas(2, 3, 1, 2), read(4, 5, 2)],
    "a cas that fails": [write(0, 1, 1), cas(2, 3, 7, 2, False), read(4, 5, 1)],
    "of two at once one succeeds": [cas(0, 9, None, 1), cas(0, 9, None, 2, False), read(10, 11, 1)],
    "a failed cas beside the write that spoils it": [cas(0, 9, None, 1, False), write(1, 5, 2), read(10, 11, 2)],
    "an open write that happened": [write(0, 1, 1), write(2, 3, 2, None), read(4, 5, 2)],
    "an open write that did not": [write(0, 1, 1), write(2, 3, 2, None), read(4, 5, 1)],
    "an open write that happens late": [write(0, 1, 1), write(2, 3, 2, None), read(4, 5, 1), read(6, 7, 2)],
    "an open cas that happens late": [write(0, 1, 1), cas(2, 3, 1, 2, None), read(4, 5, 1), read(6, 7, 2)],
    "an open cas that comes too late": [cas(0, 1, None, 2, None), write(2, 3, 1), read(4, 5, 1), read(6, 7, 1)],
    "a write that certainly failed": [write(0, 1, 1), write(2, 3, 2, False), read(4, 5, 1)],
    "times that touch overlap": [write(0, 1, 1), read(1, 2, None)],
}

BAD = {
    "a value never written": [read(0, 1, 1)],
    "a stale read": [write(0, 1, 1), write(2, 3, 2), read(4, 5, 1)],
    "a read of the future": [read(0, 1, 1), write(2, 3, 1)],
    "there and back": [write(0, 10, 1), read(1, 2, 1), read(3, 4, None)],
    "a lost update": [write(0, 1, 1), cas(2, 3, 1, 2), cas(4, 5, 1, 3)],
    "two that both succeed": [cas(0, 9, None, 1), cas(0, 9, None, 2)],
    "a cas that fails for no reason": [write(0, 1, 1), cas(2, 3, 1, 2, False)],
    "a failed write that is seen": [write(0, 1, 1), write(2, 3, 2, False), read(4, 5, 2)],
    "an open write that happens twice": [
        write(0, 1, 2, None), read(2, 3, 2), write(4, 5, 3), read(6, 7, 2),
    ],
    "an open write seen before it began": [read(0, 1, 2), write(2, 3, 2, None)],
    "readers who disagree": [
        write(0, 10, 1), write(0, 10, 2), read(11, 20, 1), read(21, 22, 2),
    ],
    "an acknowledged write that is gone after a failover": [
        write(0, 1, 1), write(2, 3, 2), write(4, 5, 3, None), read(6, 7, 3), read(8, 9, 1),
    ],
}  # fmt: skip


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_what_a_register_can_do_is_accepted(history: Sequence[Operation]) -> None:
    assert check(history) is None


@pytest.mark.parametrize("history", BAD.values(), ids=BAD)
def test_what_it_cannot_do_is_caught_and_explained(history: Sequence[Operation]) -> None:
    violation = check(history)
    assert violation is not None
    assert "not linearizable" in str(violation)
    assert set(violation.window) <= set(history)
    assert len(violation.longest) < len(history)


def test_the_initial_value_is_given() -> None:
    assert check([read(0, 1, 7)], initial=7) is None
    assert check([read(0, 1, None)], initial=7) is not None


def test_only_the_window_at_fault_is_shown() -> None:
    before = [each for number in range(50) for each in (write(number, number + 0.3, number),)]
    violation = check([*before, read(100, 101, 3), write(110, 111, 4)])
    assert violation is not None
    assert violation.window == (read(100, 101, 3),)
    assert violation.states == {49}


# -- against the definition -------------------------------------------------------------------------------------------


def by_definition(history: Sequence[Operation]) -> bool:
    """Try every order of every choice of open operations; only for a handful."""
    open_ones = [each for each in history if each.done is None and each.kind != "read"]
    closed = [each for each in history if each.done is not None]
    for chosen in range(1 << len(open_ones)):
        picked = [each for index, each in enumerate(open_ones) if chosen >> index & 1]
        if any(map(fits, permutations([*closed, *picked]))):
            return True
    return False


def fits(order: Sequence[Operation]) -> bool:
    state: Value = None
    earliest = -inf
    for operation in order:
        earliest = max(earliest, operation.called)
        after = operation.after(state)
        if operation.ends < earliest or after is None:
            return False
        state = after[0]
    return True


times = st.integers(0, 8)
small = st.sampled_from([None, 1, 2])


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    """Up to five operations with small times and values."""
    found = []
    for _ in range(draw(st.integers(0, 5))):
        called = draw(times)
        returned = called + draw(st.integers(0, 4))
        done = draw(st.sampled_from([True, True, False, None]))
        match draw(st.sampled_from(["read", "write", "cas"])):
            case "read":
                found.append(read(called, returned, draw(small)))
            case "write":
                found.append(write(called, returned, draw(small), done))
            case _:
                found.append(cas(called, returned, draw(small), draw(small), done))
    return found


@given(histories())
def test_it_says_what_the_definition_says(history: list[Operation]) -> None:
    assert (check(history) is None) == by_definition(history)


# -- real sizes -------------------------------------------------------------------------------------------------------


def simulated(seed: int, count: int, clients: int, *, unknown: float = 0.02) -> list[Operation]:
    """What clients of a true register would see: each operation takes effect at some moment within it."""
    chance = random.Random(seed)
    drafts = []
    free = [0.0] * clients
    for number in range(count):
        client = min(range(clients), key=free.__getitem__)
        called = free[client] + chance.random() * 0.2
        returned = called + chance.random()
        drafts.append((chance.uniform(called, returned), called, returned, number, client))
        free[client] = returned
    state: Value = None
    history = []
    for _, called, returned, number, client in sorted(drafts):
        kind = chance.choice(["read", "write", "cas"])
        lost = kind != "read" and chance.random() < unknown
        happens = not lost or chance.random() < 0.5
        if kind == "read":
            operation = read(called, returned, state)
        elif kind == "write":
            operation = write(called, returned, number, None if lost else True)
            state = number if happens else state
        else:
            expected = state if chance.random() < 0.7 else -1
            operation = cas(called, returned, expected, number, None if lost else expected == state)
            state = number if happens and expected == state else state
        history.append(replace(operation, client=f"client {client}"))
    return history


@pytest.mark.parametrize("seed", range(2))
def test_thousands_of_operations_of_eight_clients_are_checked_in_seconds(seed: int) -> None:
    history = simulated(seed, 2000, 8)
    began = time.process_time()  # whatever else the machine does meanwhile
    assert check(history) is None
    assert time.process_time() - began < 10


@pytest.mark.parametrize("seed", range(20))
def test_one_stale_read_among_a_thousand_operations_is_caught(seed: int) -> None:
    history = simulated(seed, 1000, 6)
    chance = random.Random(seed)
    reads = [index for index, each in enumerate(history) if each.kind == "read" and 200 < index < 900]
    victim = chance.choice(reads)
    # What an earlier write wrote that was overwritten, and read, long before this read began.
    old = next(each for each in history if each.kind == "write" and each.done and each.value != history[victim].result)
    history[victim] = replace(history[victim], result=old.value)
    assert check(history) is not None
