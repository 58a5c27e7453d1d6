"""Subjects: where in a namespace a key's events are published, and which filters hear the keys of a pattern.

A key's subject is ``<namespace>.memory.<scope kind>.<scope id token>.<key tokens>``. Pure; the subjects of calls, notes
and timers belong to the fabric.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from agentfield.errors import InvalidInputError
from agentfield.key import key_of, key_tokens
from agentfield.naming import shown
from agentfield.pattern import Pattern, cover, disjoint
from agentfield.scope import GLOBAL, Scope, ScopeKind, check_scope_kind, scope_id

# It also names streams and buckets, and stays readable there; no dot, so that it is one token.
_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


def check_namespace(text: object) -> None:
    """Raises InvalidInputError unless the text is 1 to 32 of ``a-z 0-9 _ -``, beginning with a letter or digit."""
    if not isinstance(text, str) or _NAMESPACE.fullmatch(text) is None:
        raise InvalidInputError(
            f"namespace {shown(text)} is not 1 to 32 of a-z, 0-9, '_' and '-', beginning with a letter or digit: "
            f"choose one like 'agentfield' or 'staging-eu'"
        )


@dataclass(frozen=True, slots=True)
class Subjects:
    """The subjects of one namespace. Raises InvalidInputError if the namespace is illegal."""

    namespace: str
    all_memory: str = field(init=False, repr=False, compare=False)
    """The filter that hears every write."""
    _prefix: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_namespace(self.namespace)
        object.__setattr__(self, "_prefix", f"{self.namespace}.memory.")
        object.__setattr__(self, "all_memory", f"{self._prefix}>")

    def memory(self, scope: Scope, key: str) -> str:
        """The subject of a key. Raises InvalidInputError if the key or the scope's id is illegal."""
        return f"{self._prefix}{scope.kind}.{scope.token}.{key_tokens(key)}"

    def parse(self, subject: str) -> tuple[Scope, str]:
        """The scope and key whose subject this is. Raises InvalidInputError if ``memory`` never gives that subject."""
        return _parse(self._prefix, subject)

    def filters(self, patterns: Sequence[Pattern], scopes: Sequence[tuple[ScopeKind, str | None]]) -> tuple[str, ...]:
        """Filters that hear every key which one of the patterns matches in one of the scopes; an id of None is any id.

        No two of them overlap, which the server demands of a consumer, and their order depends on nothing but the set
        asked for. They may hear more than matches: match each key again. Raises InvalidInputError if there is no
        pattern or no scope, since to NATS no filter means everything.
        """
        if not patterns or not scopes:
            raise InvalidInputError("filters need at least one pattern and one scope: '*' is the pattern of all keys")
        heads = disjoint(f"{self._prefix}{kind}.{_id_filter(kind, id)}" for kind, id in scopes)
        tails = cover(patterns)
        return tuple(f"{head}.{tail}" for head in heads for tail in tails)


def _id_filter(kind: ScopeKind, id: str | None) -> str:
    if check_scope_kind(kind) == "global" and id is None:
        return GLOBAL.token
    return "*" if id is None else Scope.of(kind, id).token


@lru_cache(maxsize=8192)
def _parse(prefix: str, subject: str) -> tuple[Scope, str]:
    parts = subject.removeprefix(prefix).split(".", 2)
    if not subject.startswith(prefix) or len(parts) != 3:
        raise InvalidInputError(f"subject {shown(subject)} is no key's: those are {prefix}<scope>.<scope id>.<key>")
    kind, token, tokens = parts
    return Scope.of(kind, scope_id(token)), key_of(tokens)
