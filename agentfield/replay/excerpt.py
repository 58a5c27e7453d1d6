"""Excerpts: which part of the past a replay is about.

Owns: keys, scopes, writers and revisions together, and reading what they mean. Must not know: what is done with it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import NamedTuple

from agentfield.codec import Record
from agentfield.event import Writer
from agentfield.fabric.fabric import Fabric
from agentfield.memory.addressing import AnyScope
from agentfield.memory.history import Slice, records_between
from agentfield.pattern import Pattern


class Excerpt(NamedTuple):
    """What of the past is meant: keys, scopes, whose writes, and the part of the log."""

    patterns: Sequence[Pattern]
    scopes: Sequence[AnyScope]
    part: Slice
    writer: str | None = None
    """Only what an agent of that name wrote, or the execution, workflow or session of that id."""

    @property
    def by(self) -> Callable[[Writer], bool] | None:
        """Whether somebody's writes are meant; None for everybody's."""
        name = self.writer
        if name is None:
            return None
        return lambda writer: name in (writer.agent, writer.execution_id, writer.workflow_id, writer.session_id)

    def records(self, fabric: Fabric) -> AsyncGenerator[tuple[Record, Record | None], None]:
        """The records, each with that of its key before it."""
        return records_between(fabric, self.patterns, self.scopes, self.part, by=self.by)
