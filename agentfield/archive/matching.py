"""Matching subjects with the filters of the server, for what does not come from the server.

Pure. Source: the subject rules of NATS: ``*`` is one token, ``>`` is one or more at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def matcher(filters: Sequence[str]) -> Callable[[str], bool]:
    """Whether a subject matches one of the filters; no filter means every subject. Remembers what it was asked."""
    literal = {each for each in filters if not _is_wild(each)}
    wild = [each.split(".") for each in filters if _is_wild(each)]
    everything = not filters or ">" in filters
    known: dict[str, bool] = {}

    def matches(subject: str) -> bool:
        if everything or subject in literal:
            return True
        if not wild:
            return False
        found = known.get(subject)
        if found is None:
            tokens = subject.split(".")
            found = known[subject] = any(_matches(tokens, pattern) for pattern in wild)
        return found

    return matches


def literal_only(filters: Sequence[str]) -> bool:
    """Whether each filter is one subject."""
    return bool(filters) and not any(map(_is_wild, filters))


def _is_wild(subject: str) -> bool:
    return any(token in ("*", ">") for token in subject.split("."))


def _matches(tokens: Sequence[str], pattern: Sequence[str]) -> bool:
    if pattern[-1] == ">":
        pattern = pattern[:-1]
        if len(tokens) <= len(pattern):
            return False
    elif len(tokens) != len(pattern):
        return False
    return all(want in ("*", token) for token, want in zip(tokens, pattern, strict=False))
