"""Which agents a program makes: for whoever imports its files and serves what they define.

Owns: one context variable. Must not know: files. Invariant: outside :func:`collecting` nothing is remembered.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from agentfield.agent.agent import Agent

collected: Final[ContextVar[list[Agent] | None]] = ContextVar("agentfield.collected", default=None)
"""The agents made so far where somebody collects them. Also those whose name was bound to another one since."""


@contextmanager
def collecting() -> Iterator[list[Agent]]:
    """Gather the agents that are made in the block, in their order; ``Agent.run()`` does nothing meanwhile."""
    agents: list[Agent] = []
    token = collected.set(agents)
    try:
        yield agents
    finally:
        collected.reset(token)
