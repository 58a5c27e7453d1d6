"""Patterns: keys in which ``*`` stands for one or more characters, and the NATS filters that hear the keys they match.

NATS wildcards stand for whole tokens, and only ``>`` for more than one, so a pattern becomes a set of filters, one for
each number of tokens its stars may take. Matching the decoded key is exact; filters may hear more than matches.

Pure. Invariant: the filters of a pattern match the tokens of every key that the pattern matches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import takewhile
from typing import Final

from agentfield.key import MAX_KEY_BYTES, MAX_TOKENS, segment_tokens
from agentfield.naming import check_name

MAX_FILTERS: Final = 32
"""The most filters for one pattern: past it, its literal beginning is the filter."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A legal pattern. Make one with ``Pattern.parse``, which validates; the constructor trusts its argument."""

    text: str
    _pieces: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_pieces", tuple(self.text.split("*")))

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern this text is: a key in which ``*`` may stand. Raises InvalidInputError if it is not legal."""
        check_name(
            text,
            what="pattern",
            max_bytes=MAX_KEY_BYTES,
            forbidden=">",
            remedy="no key holds it; use '*', which stands for one or more characters, '_' included",
        )
        return cls(text)

    @property
    def is_literal(self) -> bool:
        """Whether it has no star, and so matches one key only."""
        return len(self._pieces) == 1

    @property
    def filters(self) -> tuple[str, ...]:
        """Token filters, without a scope's part, that match the tokens of every key the pattern matches.

        At most 32; two of them may overlap: ``cover`` merges those. Keys that do not match are let through only where
        NATS cannot tell them apart: a star inside a segment counts as any token, the token of an empty segment passes
        as any other, and keys of sixteen tokens, whose last holds all the rest, pass for their first fifteen.
        """
        return _filters(self.text)

    def matches(self, key: str) -> bool:
        """Whether the key matches: each star takes one or more characters, ``_`` included."""
        first, *rest = self._pieces
        if not rest:
            return key == first
        if not key.startswith(first):
            return False
        # Taking the leftmost place for each literal piece leaves most room for what follows, so no way back is needed.
        at = len(first)
        for piece in rest[:-1]:
            found = key.find(piece, at + 1)
            if found < 0:
                return False
            at = found + len(piece)
        return len(key) - len(rest[-1]) > at and key.endswith(rest[-1])

    def __str__(self) -> str:
        return self.text


def cover(patterns: Iterable[Pattern]) -> tuple[str, ...]:
    """Token filters that hear whatever one of the patterns matches, no two of which overlap.

    The server demands that of a consumer's filters. Their order depends on nothing but the set of patterns.
    """
    return disjoint(name for pattern in patterns for name in pattern.filters)


def disjoint(filters: Iterable[str]) -> tuple[str, ...]:
    """Filters that match whatever these match, no two of which overlap, sorted.

    What overlaps is merged into the tightest filter that subsumes both.
    """
    return _disjoint(frozenset(filters))


@lru_cache(maxsize=256)
def _disjoint(filters: frozenset[str]) -> tuple[str, ...]:
    # Whatever overlaps must end up in one filter, so the order of merging does not change the outcome.
    done: list[str] = []
    waiting = list(filters)
    while waiting:
        name = waiting.pop()
        clash = next((other for other in done if overlaps(name, other)), None)
        if clash is None:
            done.append(name)
        else:
            done.remove(clash)
            waiting.append(_merge(name, clash))
    return tuple(sorted(done))


def overlaps(a: str, b: str) -> bool:
    """Whether some subject matches both filters."""
    ours, theirs = a.split("."), b.split(".")
    for mine, other in zip(ours, theirs, strict=False):
        if ">" in (mine, other):
            return True
        if mine != other and "*" not in (mine, other):
            return False
    return len(ours) == len(theirs)


def subsumes(a: str, b: str) -> bool:
    """Whether every subject that matches the filter ``b`` matches the filter ``a``."""
    ours, theirs = a.split("."), b.split(".")
    for mine, other in zip(ours, theirs, strict=False):
        if mine == ">":
            return True
        if other == ">" or (mine != other and mine != "*"):
            return False
    return len(ours) == len(theirs)


def _merge(a: str, b: str) -> str:
    """The tightest single filter that subsumes both."""
    ours, theirs = a.split("."), b.split(".")
    tokens = [mine if mine == other else "*" for mine, other in zip(ours, theirs, strict=False)]
    if len(ours) != len(theirs) or ">" in (ours[-1], theirs[-1]):
        tokens[-1] = ">"
    return ".".join(tokens)


@lru_cache(maxsize=1024)
def _filters(text: str) -> tuple[str, ...]:
    runs = _runs(text)
    names: set[str] = set()
    for name in _expansions(runs, []):
        names.add(name)
        if len(names) > MAX_FILTERS:
            prefix = list(takewhile(lambda run: isinstance(run, str), runs))
            return (".".join([*segment_tokens([str(segment) for segment in prefix]), ">"]),)
    return tuple(sorted(a for a in names if not any(a != b and subsumes(b, a) for b in names)))


def _runs(text: str) -> list[str | int]:
    """The segments of a pattern in order: a literal one as its text, neighbours with stars as the number of them."""
    runs: list[str | int] = []
    for segment in text.split("_"):
        if "*" not in segment:
            runs.append(segment)
        elif runs and isinstance(runs[-1], int):
            runs[-1] += 1
        else:
            runs.append(1)
    return runs


def _expansions(runs: list[str | int], parts: list[str]) -> Iterator[str]:
    """The filters of a pattern, one for each number of tokens its runs of stars may take.

    ``parts`` holds the segments before these runs, a star for each token of a run.
    """
    if not runs:
        yield _filter(parts, open_ended=False)
        return
    run, rest = runs[0], runs[1:]
    if isinstance(run, str):
        yield from _expansions(rest, [*parts, run])
    elif not rest:
        yield _filter(parts + ["*"] * run, open_ended=True)
    else:
        # What lies past the last token of a key is part of that token: more stars than that change nothing.
        most = max(run, MAX_TOKENS + 1 - len(parts))
        for count in range(run, most + 1):
            yield from _expansions(rest, parts + ["*"] * count)


def _filter(parts: list[str], *, open_ended: bool) -> str:
    # A literal segment holds no star, so "=2A" in a token can only be one of ours.
    tokens = ["*" if "=2A" in token else token for token in segment_tokens(parts)]
    if open_ended and len(parts) <= MAX_TOKENS:
        tokens[-1] = ">"
    return ".".join(tokens)
