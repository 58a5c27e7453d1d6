"""Scopes: where a key lives, who sees it, and the token that stands for a scope's id in a subject.

Pure. Invariant: ``scope_token`` and ``scope_id`` are inverse to each other between legal ids and their tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, cast, get_args

from agentfield.errors import InvalidInputError
from agentfield.naming import check_name, check_text, escape, shown, unescape

ScopeKind = Literal["workflow", "session", "actor", "global"]

RESOLUTION: Final[tuple[ScopeKind, ...]] = get_args(ScopeKind)
"""The kinds in the order in which an unscoped read looks through them: the most specific first."""

# Three characters a byte when escaped, so a scope id, a key and a namespace stay well under the 4,096 bytes of a
# NATS control line, past which the server disconnects the client.
MAX_SCOPE_ID_BYTES = 256

_GLOBAL_ID = "global"


@dataclass(frozen=True, slots=True)
class Scope:
    """One scope: a kind and an id. ``Scope.of`` makes one and validates; the constructor trusts its arguments."""

    kind: ScopeKind
    id: str

    @classmethod
    def of(cls, kind: str, id: str) -> Scope:
        """The scope of this kind with this id. Raises InvalidInputError if either is illegal."""
        checked = check_scope_kind(kind)
        check_scope_id(id)
        if checked == "global" and id != _GLOBAL_ID:
            raise InvalidInputError(
                f"scope id {shown(id)} given for the global scope, of which there is one: leave the id out, "
                f"or use a workflow, session or actor scope"
            )
        return cls(checked, id)

    @property
    def token(self) -> str:
        """The id as one token of a subject."""
        return scope_token(self.id)

    def __str__(self) -> str:
        return self.kind if self.kind == "global" else f"{self.kind}:{self.id}"


GLOBAL: Final = Scope("global", _GLOBAL_ID)
"""The one global scope."""


def check_scope_kind(text: object) -> ScopeKind:
    """The text as a scope kind. Raises InvalidInputError if it is none."""
    if isinstance(text, str) and text in RESOLUTION:
        return cast(ScopeKind, str(text))
    raise InvalidInputError(f"scope {shown(text)} is unknown: use one of {', '.join(RESOLUTION)}")


def check_scope_id(text: object) -> None:
    """Raises InvalidInputError unless the text is a legal scope id.

    It must be a non-empty string of at most 256 bytes of UTF-8 without control characters and lone surrogates.
    Everything else is legal, ``*`` and ``>`` included: they are escaped.
    """
    check_name(text, what="scope id", max_bytes=MAX_SCOPE_ID_BYTES)


def scope_token(id: str) -> str:
    """The one token that stands for a scope id in a subject. Raises InvalidInputError if the id is illegal."""
    if type(id) is not str:  # before the cache, which cannot take just anything
        check_scope_id(id)
    return _token_of(id)


def scope_id(token: str) -> str:
    """The scope id for which a token stands. Raises InvalidInputError if ``scope_token`` never gives that token."""
    if type(token) is not str:
        check_text(token, "scope token")
    return _id_of(token)


@lru_cache(maxsize=4096)
def _token_of(id: str) -> str:
    check_scope_id(id)
    return escape(id)


@lru_cache(maxsize=4096)
def _id_of(token: str) -> str:
    id = unescape(token)
    check_scope_id(id)
    return id
