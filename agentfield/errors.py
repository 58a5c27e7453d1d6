"""Every error a user of agentfield can meet, in one tree.

    AgentFieldError
    ├ InvalidInputError (ValueError)     refused before anything was sent
    ├ ConflictError                      the key is not at the revision that was expected
    │ └ LockLostError                    the lock behind a fenced write has moved on
    ├ NotFoundError (LookupError)        what was named does not exist
    ├ UnavailableError                   nothing was stored; safe to retry
    │ ├ AgentUnavailableError            no such agent, or it died while running the call
    │ └ IncompatibleServerError          the server is too old, or has no JetStream
    ├ OutcomeUnknownError                stored or not, nobody knows; a retry with the same event id is safe
    ├ RemoteError                        the reasoner that was called raised
    ├ AccessDeniedError                  the server's permissions forbid it
    ├ HistoryTruncatedError              history that was asked for is gone
    │ └ ResyncRequired                   what a subscription had still to give is gone
    ├ DecodeError                        a stored message is not one of ours, or is damaged
    ├ ProjectionError                    a projection could not go on
    └ ClosedError                        used after it was closed

The module imports nothing. It keeps one promise: whatever a message says as text is also there as attributes, and both
survive ``pickle`` and ``copy``, so that an error can cross a process boundary whole.
"""

from __future__ import annotations

from typing import Any, Final, Self

_AGAIN: Final = "read it again and decide anew"


def _restore(kind: type[AgentFieldError], arguments: tuple[Any, ...]) -> AgentFieldError:
    """Makes the bare exception again, without its constructor; pickle and copy then put the attributes back."""
    return kind.__new__(kind, *arguments)


class AgentFieldError(Exception):
    """The root of all errors raised by agentfield: catch this one to catch them all."""

    def __init__(self, message: str) -> None:
        super().__init__(message)

    @property
    def message(self) -> str:
        """The sentence that ``str()`` gives."""
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args), self.__dict__.copy()


class InvalidInputError(AgentFieldError, ValueError):
    """An argument is wrong: the message says which rule it broke and what to do. Nothing was sent or stored."""


class ConflictError(AgentFieldError):
    """A conditional write found its key at another revision. Nothing was stored.

    ``expected`` and ``actual`` are revisions; 0 stands for a key that has never been written, None for a revision that
    is not known. They are equal where nothing was written, but the value that was read has expired.
    """

    def __init__(self, key: str, *, expected: int | None, actual: int | None, message: str | None = None) -> None:
        super().__init__(message or self._describe(key, expected, actual))
        self.key = key
        self.expected = expected
        self.actual = actual

    @classmethod
    def of_expired(cls, key: str, revision: int) -> Self:
        """The value that was read, of that revision, has run out since; nothing has been written after it."""
        message = f"{key!r} is at revision {revision} still, but its value has expired; nothing was written: {_AGAIN}"
        return cls(key, expected=revision, actual=revision, message=message)

    @staticmethod
    def _describe(key: str, expected: int | None, actual: int | None) -> str:
        found = "another revision" if actual is None else _revision(actual)
        wanted = "" if expected is None else f", not {_revision(expected)}"
        return f"{key!r} is at {found}{wanted}; nothing was written: {_AGAIN}"


class LockLostError(ConflictError):
    """A write fenced by a lock was refused because the lock is no longer held. Nothing was stored.

    ``key`` is the lock's name; ``expected`` its fencing token, ``actual`` the token that holds it now, if known.
    """

    @staticmethod
    def _describe(key: str, expected: int | None, actual: int | None) -> str:
        ours = "" if expected is None else f" with token {expected}"
        theirs = "" if not actual else f" (token {actual} holds it now)"
        return f"the lock {key!r} is no longer held{ours}{theirs}; nothing was written: take the lock again"


class NotFoundError(AgentFieldError, LookupError):
    """What was named does not exist. Never raised for an outage: that is an ``UnavailableError``."""


class UnavailableError(AgentFieldError):
    """No server answered in time. Nothing was stored, so trying again is safe."""


class AgentUnavailableError(UnavailableError):
    """No instance of an agent answers.

    ``started`` is False when no instance took the call, so that nothing ran; it is True when the instance that was
    running the call died, so that some of its work may be done.
    """

    def __init__(self, message: str, *, agent: str, started: bool = False, execution_id: str | None = None) -> None:
        super().__init__(message)
        self.agent = agent
        self.started = started
        self.execution_id = execution_id


class IncompatibleServerError(UnavailableError):
    """The server was reached, but its version or its configuration lacks what agentfield needs. Nothing was stored."""

    def __init__(self, *, found: str, needed: str, server: str = "", message: str = "") -> None:
        at = f" at {server}" if server else ""
        super().__init__(
            message or f"the NATS server{at} is version {found}, but {needed} or later is needed: upgrade it"
        )
        self.found = found
        self.needed = needed
        self.server = server


class OutcomeUnknownError(AgentFieldError):
    """The answer was lost, so what was asked for may or may not have happened.

    Retrying a write with the same ``event_id`` is safe: the server stores it once.
    """

    def __init__(self, message: str, *, event_id: str | None = None, execution_id: str | None = None) -> None:
        super().__init__(message)
        self.event_id = event_id
        self.execution_id = execution_id


class RemoteError(AgentFieldError):
    """The reasoner that was called raised. ``type_name`` is its exception's type, ``remote_message`` what it said."""

    def __init__(self, *, type_name: str, message: str, agent: str, reasoner: str, execution_id: str) -> None:
        said = f": {message}" if message else ""
        super().__init__(f"{agent}.{reasoner} raised {type_name}{said}")
        self.type_name = type_name
        self.remote_message = message
        self.agent = agent
        self.reasoner = reasoner
        self.execution_id = execution_id


class AccessDeniedError(AgentFieldError):
    """The server refused by permission. Nothing was stored; ``subject`` is what was not allowed, if known."""

    def __init__(self, message: str, *, subject: str | None = None) -> None:
        super().__init__(message)
        self.subject = subject


class HistoryTruncatedError(AgentFieldError):
    """History from revision ``requested`` was asked for, but the log starts at ``first_available``."""

    def __init__(self, *, requested: int, first_available: int) -> None:
        super().__init__(self._describe(requested, first_available))
        self.requested = requested
        self.first_available = first_available

    @staticmethod
    def _describe(requested: int, first_available: int) -> str:
        return (
            f"history from revision {requested} is gone: the log starts at revision {first_available}; "
            f"ask from there, start from current values, or name the archive of what was before (AGENTFIELD_ARCHIVE)"
        )


class ResyncRequired(HistoryTruncatedError):
    """Events that a subscription had still to give were taken out of the log, from revision ``requested`` on.

    Nothing more comes from this subscription. Subscribe anew with ``start="current"``, for the present values, or with
    ``start=first_available``, for the events that are left.
    """

    @staticmethod
    def _describe(requested: int, first_available: int) -> str:
        return (
            f"the log was shortened: what happened from revision {requested} to {first_available - 1} is gone and "
            f"cannot be given; subscribe anew with start='current', or with start={first_available}"
        )


class DecodeError(AgentFieldError):
    """The message stored as ``revision`` under ``subject`` is not one agentfield wrote, or is damaged."""

    def __init__(self, message: str, *, subject: str, revision: int) -> None:
        super().__init__(f"{message} (subject {subject!r}, revision {revision})")
        self.subject = subject
        self.revision = revision


class ProjectionError(AgentFieldError):
    """A projection could not go on; its checkpoint still points before ``sequence``, the event it failed at."""

    def __init__(self, message: str, *, projection: str, sequence: int | None = None) -> None:
        super().__init__(message)
        self.projection = projection
        self.sequence = sequence


class ClosedError(AgentFieldError):
    """Something was used after it was closed. Nothing was sent: open a new one."""


def text_of(error: BaseException) -> str:
    """What an exception says, whoever wrote it: there is a text even if its own ``__str__`` fails."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # it is the user's
        return f"({type(error).__name__} cannot say what it is about)"


def _revision(number: int) -> str:
    return f"revision {number}" if number else "revision 0 (never written)"
