"""Agentfield: shared memory for multi-agent systems, with no configuration.

Write in one agent, read in another; react to changes; see who wrote what, and when. Everything public is named in
`__all__` and importable from here. Names are loaded when they are first used, so that `import agentfield` costs
nothing a program does not use: the table `_HOME` says which module each one lives in.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from agentfield.version import __version__

if TYPE_CHECKING:
    from agentfield.agent import Agent, AIConfig
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
    from agentfield.event import Entry, Event, ReplayedFrom, Writer
    from agentfield.memory import (
        CaughtUp,
        Change,
        Consistency,
        Diff,
        Erasure,
        ErasureReceipt,
        Freshness,
        Lock,
        Memory,
        Moment,
        OfflineBuffer,
        Past,
        Reverted,
        Transaction,
        connect,
    )
    from agentfield.privacy import PrivacyPolicy
    from agentfield.scope import Scope

__all__ = [
    "AIConfig",
    "AccessDeniedError",
    "Agent",
    "AgentFieldError",
    "AgentUnavailableError",
    "CaughtUp",
    "Change",
    "ClosedError",
    "ConflictError",
    "Consistency",
    "DecodeError",
    "Diff",
    "Entry",
    "Erasure",
    "ErasureReceipt",
    "Event",
    "Freshness",
    "HistoryTruncatedError",
    "IncompatibleServerError",
    "InvalidInputError",
    "Lock",
    "LockLostError",
    "Memory",
    "Moment",
    "NotFoundError",
    "OfflineBuffer",
    "OutcomeUnknownError",
    "Past",
    "PrivacyPolicy",
    "ProjectionError",
    "RemoteError",
    "ReplayedFrom",
    "ResyncRequired",
    "Reverted",
    "Scope",
    "Transaction",
    "UnavailableError",
    "Writer",
    "__version__",
    "connect",
]

# One name, one module. A name added here is added to `__all__`, to the imports above and to tests/unit/test_exports.py.
_HOME = {
    "AIConfig": "agentfield.agent",
    "AccessDeniedError": "agentfield.errors",
    "Agent": "agentfield.agent",
    "AgentFieldError": "agentfield.errors",
    "AgentUnavailableError": "agentfield.errors",
    "CaughtUp": "agentfield.memory",
    "Change": "agentfield.memory",
    "ClosedError": "agentfield.errors",
    "ConflictError": "agentfield.errors",
    "Consistency": "agentfield.memory",
    "DecodeError": "agentfield.errors",
    "Diff": "agentfield.memory",
    "Entry": "agentfield.event",
    "Erasure": "agentfield.memory",
    "ErasureReceipt": "agentfield.memory",
    "Event": "agentfield.event",
    "Freshness": "agentfield.memory",
    "HistoryTruncatedError": "agentfield.errors",
    "IncompatibleServerError": "agentfield.errors",
    "InvalidInputError": "agentfield.errors",
    "Lock": "agentfield.memory",
    "LockLostError": "agentfield.errors",
    "Memory": "agentfield.memory",
    "Moment": "agentfield.memory",
    "NotFoundError": "agentfield.errors",
    "OfflineBuffer": "agentfield.memory",
    "OutcomeUnknownError": "agentfield.errors",
    "Past": "agentfield.memory",
    "PrivacyPolicy": "agentfield.privacy",
    "ProjectionError": "agentfield.errors",
    "RemoteError": "agentfield.errors",
    "ReplayedFrom": "agentfield.event",
    "ResyncRequired": "agentfield.errors",
    "Reverted": "agentfield.memory",
    "Scope": "agentfield.scope",
    "Transaction": "agentfield.memory",
    "UnavailableError": "agentfield.errors",
    "Writer": "agentfield.event",
    "connect": "agentfield.memory",
}

if not TYPE_CHECKING:  # a type checker would take any misspelt name for an attribute if it saw this function

    def __getattr__(name: str) -> object:
        """Load a public name on its first use and keep it."""
        try:
            home = _HOME[name]
        except KeyError:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
        value = getattr(import_module(home), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """Name what is public, loaded or not."""
        return sorted({*globals(), *__all__})
