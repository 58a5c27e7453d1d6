import copy
import inspect
import pickle
import re

import pytest

from agentfield import errors
from agentfield.errors import (
    AccessDeniedError,
    AgentFieldError,
    AgentUnavailableError,
    ClosedError,
    ConflictError,
    DecodeError,
    HistoryTruncatedError,
    IncompatibleServerError,
    InvalidInputError,
    LockLostError,
    NotFoundError,
    OutcomeUnknownError,
    ProjectionError,
    RemoteError,
    ResyncRequired,
    UnavailableError,
)

SAMPLES: list[tuple[AgentFieldError, dict[str, object]]] = [
    (AgentFieldError("it failed"), {}),
    (InvalidInputError("key '' is empty"), {}),
    (ConflictError("order_42", expected=3, actual=5), {"key": "order_42", "expected": 3, "actual": 5}),
    (ConflictError("order_42", expected=None, actual=None), {"expected": None, "actual": None}),
    (ConflictError("k", expected=0, actual=5, message="k is there"), {"message": "k is there", "expected": 0}),
    (LockLostError("reindex", expected=3, actual=9), {"key": "reindex", "expected": 3, "actual": 9}),
    (NotFoundError("no such thing"), {}),
    (UnavailableError("no server"), {}),
    (AgentUnavailableError("gone", agent="a"), {"agent": "a", "started": False, "execution_id": None}),
    (
        AgentUnavailableError("died", agent="a", started=True, execution_id="e"),
        {"agent": "a", "started": True, "execution_id": "e"},
    ),
    (
        IncompatibleServerError(found="2.9.10", needed="2.15.1", server="nats://h:4222"),
        {"found": "2.9.10", "needed": "2.15.1", "server": "nats://h:4222"},
    ),
    (OutcomeUnknownError("lost", event_id="i", execution_id="e"), {"event_id": "i", "execution_id": "e"}),
    (
        RemoteError(type_name="KeyError", message="'x'", agent="a", reasoner="r", execution_id="e"),
        {"type_name": "KeyError", "remote_message": "'x'", "agent": "a", "reasoner": "r", "execution_id": "e"},
    ),
    (AccessDeniedError("no", subject="a.b"), {"subject": "a.b"}),
    (HistoryTruncatedError(requested=3, first_available=9), {"requested": 3, "first_available": 9}),
    (ResyncRequired(requested=3, first_available=9), {"requested": 3, "first_available": 9}),
    (DecodeError("not JSON", subject="a.b", revision=7), {"subject": "a.b", "revision": 7}),
    (ProjectionError("stuck", projection="timeline", sequence=7), {"projection": "timeline", "sequence": 7}),
    (ClosedError("the memory is closed"), {}),
]


@pytest.mark.parametrize(("error", "facts"), SAMPLES, ids=lambda sample: type(sample).__name__)
def test_facts_are_attributes_and_survive_pickle_and_copy(error: AgentFieldError, facts: dict[str, object]) -> None:
    error.add_note("seen at noon")
    copies = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    for same in [error, *copies, copy.copy(error), copy.deepcopy(error)]:
        assert type(same) is type(error)
        assert str(same) == str(error) == same.message
        assert same.__notes__ == ["seen at noon"]
        assert {name: getattr(same, name) for name in facts} == facts


def drawn_tree() -> dict[str, str]:
    """Each error's parent in the tree drawn in the module's docstring."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in inspect.cleandoc(errors.__doc__ or "").splitlines():
        if found := re.match(r"((?:│ |├ |└ |  )*)([A-Z]\w+)\b", line.removeprefix("    ")):
            depth = len(found[1]) // 2
            path[depth:] = [found[2]]
            if depth:
                parents[found[2]] = path[depth - 1]
    return parents


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and kind.__module__ == errors.__name__]
    classes = {kind.__name__: kind for kind in kinds if kind is not AgentFieldError}
    assert drawn_tree() == {name: kind.__bases__[0].__name__ for name, kind in classes.items()}
    assert all(kind.__doc__ for kind in classes.values())
    assert {type(error) for error, _ in SAMPLES} == {*classes.values(), AgentFieldError}


def test_errors_are_also_the_builtin_kinds_a_python_user_expects() -> None:
    assert issubclass(InvalidInputError, ValueError)
    assert issubclass(NotFoundError, LookupError)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConflictError("k", expected=3, actual=5), "'k' is at revision 5, not revision 3; nothing was written"),
        (ConflictError("k", expected=0, actual=5), "'k' is at revision 5, not revision 0 (never written); nothing"),
        (
            ConflictError.of_expired("k", 3),
            "'k' is at revision 3 still, but its value has expired; nothing was written",
        ),
        (ConflictError("k", expected=3, actual=None), "'k' is at another revision, not revision 3; nothing"),
        (LockLostError("l", expected=3, actual=None), "the lock 'l' is no longer held with token 3; nothing"),
        (LockLostError("l", expected=None, actual=9), "the lock 'l' is no longer held (token 9 holds it now); nothing"),
        (IncompatibleServerError(found="2.9.10", needed="2.15.1"), "server is version 2.9.10, but 2.15.1 or later is"),
        (ResyncRequired(requested=3, first_available=9), "from revision 3 to 8 is gone"),
        (RemoteError(type_name="E", message="", agent="a", reasoner="r", execution_id="e"), "a.r raised E"),
        (DecodeError("not JSON", subject="a.b", revision=7), "not JSON (subject 'a.b', revision 7)"),
    ],
)
def test_messages_say_the_facts_and_what_to_do(error: AgentFieldError, text: str) -> None:
    assert text in str(error)
