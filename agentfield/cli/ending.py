"""How a command ends: the exit code, and the one line on stderr that an error becomes.

Owns: the table from errors to exit codes, Ctrl-C, and a reader of our output that has gone away. Must not know: which
command ran. Invariant: whatever is raised, the user sees at most one line of ours and no traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from agentfield.errors import AgentFieldError, ConflictError, InvalidInputError, NotFoundError

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
NOT_FOUND_OR_CONFLICT: Final = 3
INTERRUPTED: Final = 130
"""What a shell makes of SIGINT (128 + 2)."""
TERMINATED: Final = 143
"""What a shell makes of SIGTERM (128 + 15)."""
HUNG_UP: Final = 129
"""What a shell makes of SIGHUP (128 + 1): the terminal was closed."""
PIPE_CLOSED: Final = 141
"""What a shell makes of SIGPIPE (128 + 13), by which other programs end when ``head`` has seen enough."""

_CODES: Final[tuple[tuple[type[AgentFieldError], int], ...]] = (
    (InvalidInputError, WRONG_USAGE),
    (ConflictError, NOT_FOUND_OR_CONFLICT),
    (NotFoundError, NOT_FOUND_OR_CONFLICT),
    (AgentFieldError, FAILED),
)


class WithDetails(AgentFieldError):
    """A failure that has more to show than a line fits: the lines of ``details`` follow its own."""

    def __init__(self, message: str, details: tuple[str, ...]) -> None:
        super().__init__(message)
        self.details = details


def code_of(run: Callable[[], int]) -> int:
    """Runs it and returns the exit code of the process; whatever it raised has then been said on stderr."""
    try:
        with quietly():
            return run()
    except click.exceptions.Abort:  # what click makes of Ctrl-C while it reads the arguments
        return INTERRUPTED
    except click.ClickException as error:
        _say(_usage(error))
        return error.exit_code
    except AgentFieldError as error:
        _say(str(error), *(error.details if isinstance(error, WithDetails) else ()))
        return next(code for kind, code in _CODES if isinstance(error, kind))
    except OSError as error:
        _say(": ".join(str(part) for part in (error.filename, error.strerror) if part is not None) or repr(error))
        return FAILED
    except Exception as error:  # noqa: BLE001 - a defect of ours must not look like one of the user's
        _say(f"unexpected {type(error).__name__}: {error}{_where(error)}; this is a defect of agentfield: report it")
        return FAILED


@contextmanager
def quietly() -> Iterator[None]:
    """Turns Ctrl-C and a closed pipe into a silent exit; else, what was printed is out when the block ends."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # What is still buffered has nowhere to go; without this the interpreter complains about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(PIPE_CLOSED) from None


def one_line(text: str) -> str:
    """The text with every run of white space as one space, and control characters made visible."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in " ".join(text.split()))


def _say(message: str, *details: str) -> None:
    print(f"error: {one_line(message)}", *details, sep="\n", file=sys.stderr, flush=True)


def _usage(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    return message if context is None else f"{message}; see '{context.command_path} --help'"


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
