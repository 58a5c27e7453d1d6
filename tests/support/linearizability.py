"""Is a history of one register linearizable? A checker of our own.

Wing and Gong's search ("Testing and verifying concurrent objects", 1993) with Lowe's cache ("Testing for
linearizability", 2017): try the operations one after the other, each somewhere between its call and its return, undo
what leads nowhere, and never look twice at the same set of operations done with the same state. The history is cut into
windows where nothing was going on, and each window is searched from every state in which the one before can have ended.

An operation whose outcome is not known may have happened at any time after its call, or not at all; it goes along from
window to window until it is of use, or to the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, NamedTuple

Value = int | str | None


@dataclass(frozen=True, slots=True)
class Operation:
    """What one client did: between which times, with which arguments, and what came of it.

    ``read``: ``result`` is what was found. ``write``: ``value`` is what was written. ``cas``: ``value`` is written if
    the register holds ``expected``; ``done`` says whether it did. ``done`` is None for an unknown outcome, and
    ``returned`` is then of no interest. ``done=False`` for a write: nothing was written, for certain.
    """

    kind: Literal["read", "write", "cas"]
    called: float
    returned: float
    value: Value = None
    expected: Value = None
    result: Value = None
    done: bool | None = True
    client: str = ""

    @property
    def ends(self) -> float:
        """When it was over; never, if nobody knows."""
        return inf if self.done is None else self.returned

    def after(self, state: Value) -> tuple[Value] | None:
        """The state that it leaves, or None if it cannot happen in this one."""
        if self.kind == "read":
            return (state,) if state == self.result else None
        if self.kind == "write":
            return (state if self.done is False else self.value,)
        fits = state == self.expected
        if self.done is not None and fits is not self.done:
            return None
        return (self.value if fits else state,)


class Violation(NamedTuple):
    """Where no order can be found: the operations of the window, and the most of them that could be put in order."""

    window: tuple[Operation, ...]
    longest: tuple[Operation, ...]
    states: frozenset[Value]
    """What the register may have held before the window."""

    def __str__(self) -> str:
        begin = min(operation.called for operation in self.window)
        lines = [f"not linearizable; the register held one of {sorted(map(repr, self.states))} before"]
        for operation in self.window:
            mark = "✓" if operation in self.longest else "✗"
            lines.append(f"{mark} {operation.called - begin:9.6f} – {operation.ends - begin:9.6f} {operation}")
        return "\n".join(lines)


_Configuration = tuple[Value, frozenset[int]]
"""What the register holds, and which operations of unknown outcome have not happened (by their index)."""
_Path = tuple[int, "_Path"] | None
"""The operations put in order so far, the last one first."""


def check(history: Iterable[Operation], *, initial: Value = None) -> Violation | None:
    """The first violation in a history of one register, or None if it is linearizable.

    The order of the operations given does not matter. Times are of one clock; two operations overlap unless one's
    return lies before the other's call.
    """
    operations = sorted(_of_use(history), key=lambda operation: operation.called)
    open_ended = {index for index, operation in enumerate(operations) if operation.done is None}
    configurations: set[_Configuration] = {(initial, frozenset())}
    for window in _windows(operations):
        fresh = frozenset(window) & open_ended
        search = _Search(operations, [index for index in window if index not in open_ended])
        for state, waiting in configurations:
            search.run(state, waiting | fresh)
        if not search.found:
            shown = tuple(operations[index] for index in window)
            longest = tuple(operations[index] for index in search.longest)
            return Violation(shown, longest, frozenset(state for state, _ in configurations))
        configurations = search.found
    return None


def _of_use(history: Iterable[Operation]) -> list[Operation]:
    """Without reads that nobody got an answer to: they say nothing."""
    return [operation for operation in history if operation.kind != "read" or operation.done is not None]


def _windows(operations: Sequence[Operation]) -> list[list[int]]:
    """The operations by index, cut wherever all that had begun (and whose end is known) was over."""
    windows: list[list[int]] = []
    busy_until = -inf
    for index, operation in enumerate(operations):
        if operation.called > busy_until or not windows:
            windows.append([])
        windows[-1].append(index)
        if operation.done is not None:
            busy_until = max(busy_until, operation.returned)
    return windows


class _Search:
    """All ways to put the operations of one window in order.

    An operation of unknown outcome is put just before one that needs it, and otherwise waits: if what follows it can
    happen without it as well, then it can come later, or not at all.
    """

    def __init__(self, operations: Sequence[Operation], definite: Sequence[int]) -> None:
        self._operations = operations
        self._definite = definite
        self._seen: set[tuple[int, Value, frozenset[int]]] = set()
        self._depth = 0
        self._longest: _Path = None
        self.found: set[_Configuration] = set()

    @property
    def longest(self) -> list[int]:
        """The most operations that could be put in order."""
        order, path = [], self._longest
        while path is not None:
            index, path = path
            order.append(index)
        return order[::-1]

    def run(self, state: Value, waiting: frozenset[int]) -> None:
        """Find every configuration in which the window can end, begun in this state."""
        everything = (1 << len(self._definite)) - 1
        stack: list[tuple[int, Value, frozenset[int], _Path, int]] = [(0, state, waiting, None, 0)]
        while stack:
            done, state, waiting, path, depth = stack.pop()
            if (done, state, waiting) in self._seen:
                continue
            self._seen.add((done, state, waiting))
            if depth > self._depth:
                self._depth, self._longest = depth, path
            if done == everything:
                self.found.add((state, waiting))
                continue
            for position, first_return in self._candidates(done):
                index = self._definite[position]
                operation = self._operations[index]
                after = operation.after(state)
                if after is not None:
                    stack.append((done | 1 << position, after[0], waiting, (index, path), depth + 1))
                    continue
                usable = frozenset(each for each in waiting if self._operations[each].called <= first_return)
                for chain in self._chains(operation, state, usable):
                    helped, longer = state, path
                    for each in chain:
                        helped, longer = (self._operations[each].after(helped) or (helped,))[0], (each, longer)
                    last = operation.after(helped)
                    if last is not None:
                        rest = waiting - set(chain)
                        stack.append((done | 1 << position, last[0], rest, (index, longer), depth + 1 + len(chain)))

    def _candidates(self, done: int) -> list[tuple[int, float]]:
        """The operations that may come next, by position, with the first return of all that are left.

        They are those called before any of what is left had returned.
        """
        position = (~done & (done + 1)).bit_length() - 1  # the first that is not done
        first_return = inf
        found = []
        while position < len(self._definite):
            if not done >> position & 1:
                operation = self._operations[self._definite[position]]
                if operation.called > first_return:
                    break
                found.append(position)
                first_return = min(first_return, operation.ends)
            position += 1
        return [
            (position, first_return)
            for position in found
            if self._operations[self._definite[position]].called <= first_return
        ]

    def _chains(self, needy: Operation, state: Value, usable: frozenset[int]) -> list[tuple[int, ...]]:
        """The ways in which open operations can make way for one that cannot happen in this state."""
        if needy.kind == "cas" and needy.done is False:  # it needs any other state
            return [(each,) for each in usable if (self._operations[each].after(state) or (state,))[0] != state]
        return self._leading_to(needy.result if needy.kind == "read" else needy.expected, state, usable)

    def _leading_to(self, target: Value, state: Value, usable: frozenset[int]) -> list[tuple[int, ...]]:
        chains: list[tuple[int, ...]] = []
        for each in usable:
            operation = self._operations[each]
            if operation.value != target:
                continue
            if operation.kind == "write" or operation.expected == state:
                chains.append((each,))
            else:
                before = self._leading_to(operation.expected, state, usable - {each})
                chains.extend((*chain, each) for chain in before)
        return chains
