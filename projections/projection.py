"""A projection: which events it hears, and what each one does to the view.

Owns: what users write, and the rules it must keep before anything is opened. Must not know: where views are stored, how
events arrive. Invariant: a view is a function of the events alone, so ``apply`` looks at nothing but the event and the
view.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from agentfield import Erasure, Event, InvalidInputError, Scope

MAX_NAME = 32
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
SCOPES = ("workflow", "session", "actor", "global")
STORES = ("sqlite", "duckdb", "bucket")
RESERVED = frozenset({"timeline", "metrics", "archive", "seals", "state"})
"""Names of what ships."""
_OWN_STORES = ("seals", "archive")
"""Of projections that ship, and of nobody else's."""


class Projection(ABC):
    """Code that turns events into a view. Subclass it, name it, and say what an event does.

    The runner gives it every matching event once, in the order of the log, and stores what it did together with how far
    it has come: whatever dies, nothing counts twice and nothing is missed.
    """

    name: ClassVar[str]
    """Names the view for ever: 1 to 32 of ``a-z 0-9 _ -``, beginning with a letter or digit."""
    version: ClassVar[int] = 1
    """Raise it when the same events must give another view: the runner rebuilds beside the old view, then switches."""
    patterns: ClassVar[str | Sequence[str]] = "*"
    """The keys it hears."""
    scopes: ClassVar[Sequence[str | Scope]] = ()
    """The scopes it hears: kinds (any id), or one :class:`~agentfield.Scope` each; none means every scope."""
    store: ClassVar[str] = "sqlite"
    """What its view is: ``"sqlite"``, ``"duckdb"`` or ``"bucket"``, a KV bucket on the server."""
    previous: ClassVar[bool] = False
    """Whether events come with ``previous_data`` and ``previous_revision``, which costs time; without it, both are
    None."""

    def prepare(self, view: Any) -> Awaitable[None] | None:
        """Make what an empty view needs, such as its tables. Called once for each new view, before any event."""
        return None

    @abstractmethod
    def apply(self, event: Event, view: Any) -> Awaitable[None] | None:
        """Fold one event into the view. May be ``async``; a plain one runs outside the event loop.

        What it raises undoes its own effects, stops this projection and no other, and is shown with the event's
        sequence by ``agentfield projections status``.
        """

    def erase(self, erasure: Erasure, view: Any) -> Awaitable[None] | None:
        """Take out of the view what an erasure concerns (``erasure.concerns(scope, key)``), the past included.

        Define it where that is cheaper than making the view anew, which is what happens otherwise. May be ``async``,
        and be called for the same erasure twice; the file is written anew afterwards, so that nothing of it is left. A
        view in a bucket is always made anew.
        """
        raise NotImplementedError

    def snapshot(self, view: Any) -> Iterable[Sequence[Any]] | None:
        """What the view says, as rows in a fixed order, for comparing it with a rebuilt one; None: every row of it.

        Define it where the view holds something that events do not determine.
        """
        return None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events a projection hears, checked, in a form that can be stored and compared."""

    patterns: tuple[str, ...]
    scopes: tuple[tuple[str, str | None], ...]

    @classmethod
    def of(cls, projection: Projection) -> Selection:
        """What a projection hears. Raises InvalidInputError for what is no list of patterns or scopes."""
        patterns = (projection.patterns,) if isinstance(projection.patterns, str) else tuple(projection.patterns)
        if not patterns:
            raise InvalidInputError(f"projection {projection.name!r} hears no pattern: '*' is the one of all keys")
        return cls(patterns, tuple(_scope(projection.name, scope) for scope in projection.scopes or SCOPES))

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Selection:
        """The selection that ``fields`` gave."""
        return cls(tuple(fields["patterns"]), tuple((kind, id) for kind, id in fields["scopes"]))

    def fields(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {"patterns": list(self.patterns), "scopes": [list(scope) for scope in self.scopes]}


def check(projection: object) -> Projection:
    """The projection, if it is one that can run. Raises InvalidInputError naming what is wrong with it."""
    if not isinstance(projection, Projection):
        raise InvalidInputError(f"{projection!r} is no projection: give an instance of a subclass of Projection")
    kind = type(projection).__name__
    name, version = getattr(projection, "name", None), projection.version
    check_name(name, kind)
    if name in RESERVED and not _ships(projection):
        raise InvalidInputError(
            f"{kind} is named {name!r}, as one that ships with agentfield, and would take the place of its view: "
            "choose another name"
        )
    if type(version) is not int or version < 1:
        raise InvalidInputError(f"projection {name!r} has version {version!r}: a whole number, 1 or more")
    if projection.store not in (*STORES, *_OWN_STORES):
        raise InvalidInputError(f"projection {name!r} asks for store {projection.store!r}: one of {', '.join(STORES)}")
    for what in ("prepare", "apply", "erase"):
        method = getattr(projection, what)
        if inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
            raise InvalidInputError(
                f"{what}() of projection {name!r} has a yield in it, so nothing of it would run: take it out"
            )
    Selection.of(projection)
    return projection


def _ships(projection: Projection) -> bool:
    kinds = (kind for kind in type(projection).__mro__ if kind is not Projection)
    return any(kind.__module__.partition(".")[0] == __package__ for kind in kinds)


def check_name(name: object, of: str = "projection") -> str:
    """The name, if it is one. Raises InvalidInputError otherwise."""
    if not isinstance(name, str) or len(name) > MAX_NAME or _NAME.fullmatch(name) is None:
        raise InvalidInputError(
            f"{of} is named {name!r}, which is not 1 to {MAX_NAME} of a-z, 0-9, '_' and '-', beginning with a letter "
            f"or digit: set name = 'orders-by-day', say"
        )
    return name


def _scope(name: str, scope: object) -> tuple[str, str | None]:
    if isinstance(scope, Scope):
        checked = Scope.of(scope.kind, scope.id)
        return checked.kind, checked.id
    if scope not in SCOPES:
        raise InvalidInputError(
            f"projection {name!r} hears scope {scope!r}, which is none: one of {', '.join(SCOPES)}, or a Scope"
        )
    return str(scope), None
