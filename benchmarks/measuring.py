"""Taking turns and taking times.

Owns: the order in which contestants run, and the statistics of what they took. Must not know: what is measured.
Contestants take turns in short rounds, each round in another order, and a ratio is the median of the ratios within the
rounds: so a machine that grows slower or faster meanwhile, or does something else for a second, favours nobody.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import NamedTuple

Operation = Callable[[], Awaitable[object]]
"""One call to be timed; what it returns is looked at by nobody."""


class Span(NamedTuple):
    """So many things done in so many seconds."""

    things: int
    seconds: float

    @property
    def rate(self) -> float:
        """Things a second."""
        return self.things / self.seconds


Burst = Callable[[], Awaitable[Span]]
"""Does many things and says how many, and how long that took by its own clock."""


class Times:
    """How long one contestant's calls took, round by round, in seconds."""

    def __init__(self, rounds: Sequence[Sequence[float]]) -> None:
        self.rounds = rounds

    def shared_by(self, count: int) -> Times:
        """The times of one thing each, where each call did so many."""
        return Times([[time / count for time in one] for one in self.rounds])

    def percentile(self, percent: float) -> float:
        """The time within which so many percent of all calls were done."""
        ordered = sorted(time for one in self.rounds for time in one)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]

    @property
    def p50(self) -> float:
        """The median of all calls."""
        return self.percentile(50)

    @property
    def p99(self) -> float:
        """What one call in a hundred exceeds."""
        return self.percentile(99)

    def ratio_to(self, other: Times) -> float:
        """The median over the rounds of this contestant's median as a multiple of the other's."""
        return median(median(ours) / median(theirs) for ours, theirs in zip(self.rounds, other.rounds, strict=True))


class Rates:
    """How fast one contestant was, round by round, in things a second."""

    def __init__(self, rounds: Sequence[float]) -> None:
        self.rounds = rounds

    @property
    def typical(self) -> float:
        """The median of the rounds."""
        return median(self.rounds)

    def ratio_to(self, other: Rates) -> float:
        """The median over the rounds of this contestant's rate as a multiple of the other's."""
        return median(ours / theirs for ours, theirs in zip(self.rounds, other.rounds, strict=True))


async def times(contestants: Mapping[str, Operation], *, rounds: int, calls: int) -> dict[str, Times]:
    """The times of every contestant's calls, one call after the other; a round before the first is not counted."""
    taken: dict[str, list[list[float]]] = {name: [] for name in contestants}
    for number, name in _turns(list(contestants), rounds + 1):
        one = await _calls(contestants[name], calls)
        if number:
            taken[name].append(one)
    return {name: Times(found) for name, found in taken.items()}


async def rates(contestants: Mapping[str, Burst], *, rounds: int) -> dict[str, Rates]:
    """The rates of every contestant's bursts; a round before the first is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number, name in _turns(list(contestants), rounds + 1):
        gc.collect()
        span = await contestants[name]()
        if number:
            taken[name].append(span.rate)
    return {name: Rates(found) for name, found in taken.items()}


async def _calls(operation: Operation, calls: int) -> list[float]:
    gc.collect()  # so that nobody pays for what the one before has left
    taken = []
    for _ in range(calls):
        begun = time.perf_counter()
        await operation()
        taken.append(time.perf_counter() - begun)
    return taken


def _turns(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            yield number, name
