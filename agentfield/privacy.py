"""Privacy: which values are personal, and which data key each of them is encrypted with.

Owns: the policy of a namespace and the vaults that follow from it. Pure: where the policy and the keys are kept is the
fabric's. Invariant: a value has at most one vault, and which one depends on nothing but the policy, its scope and key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

from agentfield.errors import InvalidInputError
from agentfield.naming import shown
from agentfield.pattern import Pattern
from agentfield.scope import RESOLUTION, Scope, ScopeKind
from agentfield.subject import Subjects

RECEIPT: Final = "erasure_receipt_"
"""What the keys of erasure receipts begin with, in the global scope."""
VIEW: Final = "plaintext_view_"
"""What the keys begin with, in the global scope, under which views are registered that hold values in plain."""

KINDS: Final[tuple[ScopeKind, ...]] = tuple(kind for kind in RESOLUTION if kind != "global")
"""The scopes that can be personal as a whole: those that have an id for each of those they are about."""

Per = Literal["scope", "key"]

_VERSION = 1


class Encryption(NamedTuple):
    """What an event says of the key that its value is encrypted with."""

    key: str
    """The fingerprint of the data key: 32 hexadecimal digits of its SHA-256."""
    per: Per
    """Whether that key is for everything in the event's scope, or for the event's key alone."""

    @classmethod
    def of(cls, fields: Any) -> Encryption:
        """The encryption that ``fields()`` became in a header. Raises InvalidInputError if it is none."""
        if isinstance(fields, dict):
            key, per = fields.get("key"), fields.get("per")
            if isinstance(key, str) and key and per in ("scope", "key"):
                return cls(key, per)
        raise InvalidInputError(f"names its encryption wrongly: {shown(fields)}")

    def fields(self) -> dict[str, Any]:
        """The encryption as the event's header holds it."""
        return self._asdict()


class Vault(NamedTuple):
    """What one data key is for: everything in a scope, or one key of it."""

    scope: Scope
    key: str | None

    @property
    def per(self) -> Per:
        """Which of the two."""
        return "scope" if self.key is None else "key"

    def tokens(self, subjects: Subjects) -> str:
        """The vault as part of a subject: unlike for every vault."""
        if self.key is None:
            return f"{self.scope.kind}.{self.scope.token}"
        return subjects.memory(self.scope, self.key).removeprefix(f"{subjects.namespace}.memory.")


@dataclass(frozen=True)
class PrivacyPolicy:
    """What is personal in a namespace: scopes as a whole, and keys that match a pattern, in whatever scope.

    Make one with :meth:`of`, which validates. Where a pattern matches, the key has a data key of its own, so that it
    can be erased alone; else everything in one scope id shares one.
    """

    scopes: tuple[ScopeKind, ...] = ()
    patterns: tuple[Pattern, ...] = ()

    @classmethod
    def of(cls, scopes: Iterable[str] = (), patterns: Iterable[str] = ()) -> PrivacyPolicy:
        """The policy of these scope kinds and key patterns. Raises InvalidInputError."""
        if isinstance(scopes, str) or isinstance(patterns, str):
            raise InvalidInputError("scopes and patterns are lists of texts, not one text: write ['session']")
        kinds = list(scopes)
        for kind in kinds:
            if kind not in KINDS:
                raise InvalidInputError(
                    f"scope {shown(kind)} cannot be personal as a whole: name {', '.join(KINDS)}, and for single keys "
                    f"of any scope, patterns"
                )
        texts = dict.fromkeys(patterns)
        return cls(tuple(kind for kind in KINDS if kind in kinds), tuple(Pattern.parse(text) for text in texts))

    @classmethod
    def load(cls, fields: Any) -> PrivacyPolicy:
        """The policy that ``fields()`` became. Raises InvalidInputError if it is none, or of a later version."""
        known = isinstance(fields, Mapping) and fields.get("v") == _VERSION
        if not known or not all(_is_texts(fields.get(name)) for name in ("scopes", "patterns")):
            raise InvalidInputError(
                f"the namespace's policy on personal data is {shown(fields)}, and this agentfield reads version "
                f"{_VERSION}: upgrade it"
            )
        return cls.of(fields["scopes"], fields["patterns"])

    def fields(self) -> dict[str, Any]:
        """The policy as it is stored."""
        return {"v": _VERSION, "scopes": list(self.scopes), "patterns": [pattern.text for pattern in self.patterns]}

    def __bool__(self) -> bool:
        """Whether anything is personal."""
        return bool(self.scopes or self.patterns)

    def __str__(self) -> str:
        parts = [f"every {kind}" for kind in self.scopes] + [f"keys {pattern.text!r}" for pattern in self.patterns]
        return ", ".join(parts) or "nothing"

    def vault(self, scope: Scope, key: str) -> Vault | None:
        """Which data key a value is encrypted with; None if it is not personal."""
        return _vault(self, scope, key) if self else None


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


@lru_cache(maxsize=4096)
def _vault(policy: PrivacyPolicy, scope: Scope, key: str) -> Vault | None:
    if is_reserved(scope, key):
        return None
    if any(pattern.matches(key) for pattern in policy.patterns):
        return Vault(scope, key)
    return Vault(scope, None) if scope.kind in policy.scopes else None


def is_reserved(scope: Scope, key: str) -> bool:
    """Whether a key is for the record of erasures itself: never personal, and never erased."""
    return scope.kind == "global" and key.startswith((RECEIPT, VIEW))


def vault_of(encryption: Encryption, scope: Scope, key: str) -> Vault:
    """The vault of the key that an event's value is encrypted with, whatever the policy says by now."""
    return Vault(scope, key if encryption.per == "key" else None)
