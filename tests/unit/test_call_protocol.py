"""How a call's failure travels, and what a caller is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentfield import AgentUnavailableError, InvalidInputError, RemoteError
from agentfield.fabric.calling.protocol import BUSY, INVALID_ARGUMENTS, RAISED, STOPPED, Failure, message_size

kinds = st.sampled_from([INVALID_ARGUMENTS, RAISED, BUSY, STOPPED])


@given(kinds, st.text(max_size=200), st.text(max_size=50))
def test_a_failure_arrives_as_it_was_sent(kind: str, message: str, type_name: str) -> None:
    failure = Failure(kind, message, type_name)
    assert Failure.of(failure.headers(), failure.payload()) == failure


@given(kinds, st.text(), st.text())
def test_its_headers_are_plain_ascii_lines(kind: str, message: str, type_name: str) -> None:
    for value in Failure(kind, message, type_name).headers().values():
        assert value.isascii()
        assert value.isprintable()
        assert value


def test_a_message_of_megabytes_is_cut_and_says_so() -> None:
    failure = Failure(RAISED, "x" * 5_000_000, "ValueError")
    assert len(failure.payload()) < 20_000
    assert "5,000,000 characters" in Failure.of({}, failure.payload()).message


@pytest.mark.parametrize("payload", [b"", b"text", b"[]", b"{}", b"\xff"])
def test_a_failure_of_some_other_service_is_understood(payload: bytes) -> None:
    headers = {"Nats-Service-Error": "no room", "Nats-Service-Error-Code": "507"}
    error = Failure.of(headers, payload).error(agent="a", reasoner="r", execution_id="e")
    assert isinstance(error, RemoteError)
    assert "no room" in str(error)
    assert "507" in error.type_name


def test_each_kind_is_the_error_that_says_whether_anything_ran() -> None:
    def error(kind: str) -> Exception:
        return Failure(kind, "text", "KeyError").error(agent="a", reasoner="r", execution_id="e")

    assert isinstance(error(INVALID_ARGUMENTS), InvalidInputError)
    busy, stopped, raised = error(BUSY), error(STOPPED), error(RAISED)
    assert isinstance(busy, AgentUnavailableError)
    assert not busy.started
    assert isinstance(stopped, AgentUnavailableError)
    assert (stopped.started, stopped.agent, stopped.execution_id) == (True, "a", "e")
    assert isinstance(raised, RemoteError)
    assert (raised.type_name, raised.remote_message, raised.agent, raised.reasoner, raised.execution_id) == (
        "KeyError",
        "text",
        "a",
        "r",
        "e",
    )


@given(st.binary(max_size=100), st.dictionaries(st.text("abc-", min_size=1), st.text(st.characters(codec="utf-8"))))
def test_the_size_is_never_underestimated(payload: bytes, headers: dict[str, str]) -> None:
    block = b"NATS/1.0\r\n" + b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items()) + b"\r\n"
    assert message_size(payload, headers) >= len(payload) + len(block)
