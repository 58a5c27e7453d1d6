"""Which scope a call means, as a table."""

import pytest

from agentfield.errors import InvalidInputError
from agentfield.memory.addressing import AnyScope, Place, event_scopes, read_scopes, write_scope
from agentfield.scope import GLOBAL, Scope, ScopeKind

W, S, A = Scope("workflow", "w"), Scope("session", "s"), Scope("actor", "a")

NOWHERE = Place(None, None, None)
AGENT = Place(None, None, "a")
WORKFLOW = Place("w", None, "a")
SESSION = Place(None, "s", "a")
BOTH = Place("w", "s", "a")


def bound(place: Place, kind: ScopeKind, id: str | None = None) -> Place:
    return place._replace(bound=(kind, id))


@pytest.mark.parametrize(
    ("place", "written", "read"),
    [
        (NOWHERE, GLOBAL, (GLOBAL,)),
        (AGENT, GLOBAL, (A, GLOBAL)),
        (WORKFLOW, W, (W, A, GLOBAL)),
        (SESSION, S, (S, A, GLOBAL)),
        (BOTH, W, (W, S, A, GLOBAL)),
        (Place("w", "s", None), W, (W, S, GLOBAL)),
        (bound(BOTH, "workflow"), W, (W,)),
        (bound(BOTH, "session"), S, (S,)),
        (bound(BOTH, "actor"), A, (A,)),
        (bound(BOTH, "global"), GLOBAL, (GLOBAL,)),
        (bound(BOTH, "session", "other"), Scope("session", "other"), (Scope("session", "other"),)),
        (bound(NOWHERE, "workflow", "w"), W, (W,)),
    ],
)
def test_without_a_scope_the_surroundings_decide(place: Place, written: Scope, read: tuple[Scope, ...]) -> None:
    assert write_scope(place, None, None) == written
    assert read_scopes(place, None, None) == read


@pytest.mark.parametrize(
    ("place", "scope", "scope_id", "chosen"),
    [
        (BOTH, "workflow", None, W),
        (BOTH, "session", None, S),
        (BOTH, "actor", None, A),
        (BOTH, "global", None, GLOBAL),
        (BOTH, "global", "global", GLOBAL),
        (BOTH, "workflow", "other", Scope("workflow", "other")),
        (NOWHERE, "session", "a.b *>", Scope("session", "a.b *>")),
        (AGENT, "actor", "other", Scope("actor", "other")),
        (bound(BOTH, "session"), "session", None, S),
        (bound(BOTH, "session", "x"), "session", "x", Scope("session", "x")),
        (bound(BOTH, "session", "x"), None, "x", Scope("session", "x")),
    ],
)
def test_with_a_scope_it_is_that_one_for_reads_and_writes_alike(
    place: Place, scope: str, scope_id: str | None, chosen: Scope
) -> None:
    assert write_scope(place, scope, scope_id) == chosen
    assert read_scopes(place, scope, scope_id) == (chosen,)


@pytest.mark.parametrize(
    ("place", "scope", "scope_id", "fact"),
    [
        (NOWHERE, "workflow", None, "no workflow is running"),
        (NOWHERE, "session", None, "no session is bound"),
        (NOWHERE, "actor", None, "belongs to no agent"),
        (BOTH, "planet", None, "planet"),
        (BOTH, "", None, "unknown"),
        (BOTH, None, "x", "without a scope"),
        (BOTH, "session", "", "empty"),
        (BOTH, "session", "x" * 257, "256"),
        (BOTH, "global", "x", "of which there is one"),
        (bound(BOTH, "session"), "workflow", None, "bound to the session scope"),
        (bound(BOTH, "session", "x"), None, "y", "bound to the session scope 'x'"),
        (bound(NOWHERE, "session"), None, None, "no session is bound"),
    ],
)
def test_what_means_no_scope_is_refused(place: Place, scope: str | None, scope_id: str | None, fact: str) -> None:
    for choose in (write_scope, read_scopes):
        with pytest.raises(InvalidInputError, match=fact):
            choose(place, scope, scope_id)


@pytest.mark.parametrize(
    ("place", "scope", "scope_id", "heard"),
    [
        (NOWHERE, None, None, [("workflow", None), ("session", None), ("global", "global")]),
        (AGENT, None, None, [("workflow", None), ("session", None), ("actor", "a"), ("global", "global")]),
        (BOTH, None, None, [("workflow", None), ("session", None), ("actor", "a"), ("global", "global")]),
        (BOTH, "workflow", None, [("workflow", None)]),
        (BOTH, "session", "x", [("session", "x")]),
        (AGENT, "actor", None, [("actor", "a")]),
        (AGENT, "actor", "b", [("actor", "b")]),
        (BOTH, "global", None, [("global", "global")]),
        (bound(BOTH, "session", "x"), None, None, [("session", "x")]),
        (bound(BOTH, "workflow"), None, None, [("workflow", None)]),
    ],
)
def test_events_are_heard_from_any_workflow_and_session_and_from_ones_own_actor_scope(
    place: Place, scope: str | None, scope_id: str | None, heard: list[AnyScope]
) -> None:
    assert list(event_scopes(place, scope, scope_id)) == heard
