"""What the server's errors mean, by one table, and what a user sees of them."""

import pytest

from agentfield.errors import (
    AccessDeniedError,
    AgentFieldError,
    IncompatibleServerError,
    InvalidInputError,
    UnavailableError,
)
from agentfield.fabric.faults import (
    NO_MESSAGE,
    VERDICTS,
    ConnectionLostFault,
    Fault,
    NoAnswerFault,
    NoRespondersFault,
    ServerFault,
    Verdict,
    error_of,
)


def fault(err_code: int, *, code: int = 400, description: str = "something") -> ServerFault:
    return ServerFault.of({"code": code, "err_code": err_code, "description": description})


@pytest.mark.parametrize(
    ("err_code", "verdict"),
    [
        (10071, Verdict.CONFLICT),
        (10164, Verdict.CONFLICT),
        (10201, Verdict.COMMITTED),
        (10158, Verdict.RETRY),
        (10210, Verdict.RETRY),
        (10008, Verdict.RETRY),
        (10047, Verdict.UNAVAILABLE),
        (10077, Verdict.UNAVAILABLE),
        (10057, Verdict.DENIED),
        (10110, Verdict.DENIED),
        (10111, Verdict.DENIED),
        (10166, Verdict.DENIED),
        (10097, Verdict.INVALID),
        (10199, Verdict.INVALID),
        (10014, Verdict.ABSENT),
        (NO_MESSAGE, Verdict.ABSENT),
        (10059, Verdict.ABSENT),
        (10058, Verdict.EXISTS),
        (10074, Verdict.NO_PEERS),
        (10039, Verdict.INCOMPATIBLE),
    ],
)
def test_a_known_error_has_its_verdict_whatever_its_class(err_code: int, verdict: Verdict) -> None:
    assert {fault(err_code, code=code).verdict for code in (400, 404, 500, 503)} == {verdict}


@pytest.mark.parametrize(
    ("code", "verdict"),
    [(404, Verdict.ABSENT), (503, Verdict.RETRY), (400, Verdict.UNAVAILABLE), (500, Verdict.UNAVAILABLE)],
)
def test_an_unknown_error_goes_by_its_class(code: int, verdict: Verdict) -> None:
    assert 19999 not in VERDICTS
    assert fault(19999, code=code).verdict is verdict


def test_an_error_that_says_nothing_is_not_taken_for_a_promise() -> None:
    assert ServerFault.of({}).verdict is Verdict.UNAVAILABLE


@pytest.mark.parametrize(
    ("description", "sequence"),
    [("wrong last sequence: 42", 42), ("wrong last sequence: 0", 0), ("wrong last sequence", None), ("", None)],
)
def test_a_conflict_names_what_is_there_if_the_server_does(description: str, sequence: int | None) -> None:
    assert fault(10071, description=description).actual_sequence == sequence


@pytest.mark.parametrize("verdict", Verdict)
def test_every_verdict_becomes_one_of_our_errors(verdict: Verdict) -> None:
    expected: dict[Verdict, type[AgentFieldError]] = {
        Verdict.DENIED: AccessDeniedError,
        Verdict.INVALID: InvalidInputError,
        Verdict.INCOMPATIBLE: IncompatibleServerError,
    }
    for err_code in [code for code, meaning in VERDICTS.items() if meaning is verdict]:
        error = error_of(fault(err_code, description="the reason"), "writing a key")
        assert type(error) is expected.get(verdict, UnavailableError)
        assert "the reason" in str(error)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (NoRespondersFault("x"), "nobody answers"),
        (NoAnswerFault("x"), "no answer"),
        (ConnectionLostFault("x"), "no answer"),
        (UnavailableError("the server is away"), "the server is away"),
    ],
)
def test_silence_is_unavailability_and_says_what_was_attempted(failure: Fault | UnavailableError, said: str) -> None:
    error = error_of(failure, "reading 3 keys")
    assert type(error) is UnavailableError
    assert str(error).startswith("reading 3 keys: ")
    assert said in str(error)


def test_a_lost_connection_leaves_the_outcome_open_and_nobody_listening_does_not() -> None:
    assert issubclass(ConnectionLostFault, NoAnswerFault)
    assert not issubclass(NoRespondersFault, NoAnswerFault)


def test_faults_are_no_errors_that_a_user_could_be_meant_to_catch() -> None:
    assert not issubclass(Fault, AgentFieldError)
