"""Whatever a command raises becomes one line and an exit code."""

import errno

import click
import pytest

from agentfield import (
    AgentFieldError,
    AgentUnavailableError,
    ConflictError,
    DecodeError,
    IncompatibleServerError,
    InvalidInputError,
    LockLostError,
    NotFoundError,
    OutcomeUnknownError,
    RemoteError,
    UnavailableError,
)
from agentfield.cli.ending import WithDetails, code_of, one_line

REMOTE = RemoteError(type_name="E", message="m", agent="a", reasoner="r", execution_id="x")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInputError("wrong"), 2),
        (ConflictError("k", expected=1, actual=2), 3),
        (LockLostError("k", expected=1, actual=2), 3),
        (NotFoundError("absent"), 3),
        (UnavailableError("away"), 1),
        (AgentUnavailableError("away", agent="a"), 1),
        (IncompatibleServerError(found="1", needed="2"), 1),
        (OutcomeUnknownError("unknown"), 1),
        (REMOTE, 1),
        (DecodeError("damaged", subject="s", revision=1), 1),
        (AgentFieldError("any"), 1),
        (click.UsageError("wrong"), 2),
        (click.exceptions.Abort(), 130),
        (OSError(errno.ENOSPC, "No space left on device"), 1),
        (ZeroDivisionError("division by zero"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_one_line_and_a_code(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise error

    assert code_of(fail) == code
    out, err = capsys.readouterr()
    said = [] if isinstance(error, click.exceptions.Abort) else [f"error: {err.removeprefix('error: ').rstrip()}"]
    assert (out, err.splitlines()) == ("", said)


def test_a_defect_of_ours_is_told_from_a_mistake_of_the_users(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(lambda: int("x")) == 1
    _, err = capsys.readouterr()
    assert err.startswith("error: unexpected ValueError: invalid literal")
    assert "(test_ending.py:" in err


def test_details_follow_on_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise WithDetails("it failed", ("  here", "  and there"))

    assert code_of(fail) == 1
    assert capsys.readouterr().err == "error: it failed\n  here\n  and there\n"


def test_ctrl_c_and_a_closed_pipe_are_silent(capfd: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        code_of(interrupted)
    assert (ended.value.code, *capfd.readouterr()) == (130, "", "")


def test_a_message_of_several_lines_is_told_on_one() -> None:
    assert one_line("two\nlines\twith \x1b[31m colour ") == "two lines with \\x1b[31m colour"
