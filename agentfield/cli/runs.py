"""How what came of a rehearsal looks: a few lines for each run that differs, and one for all of them.

Pure, but for the printing. Must not know: how handlers are run.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from agentfield.cli.differences import Side, show_sides
from agentfield.cli.output import Output, Part, visible
from agentfield.cli.traces import describe, users_frames
from agentfield.event import Event
from agentfield.replay.comparing import Compared
from agentfield.replay.rehearsing import Run
from agentfield.scope import Scope

VERDICTS: Final = ("same", "different", "missing", "extra", "erased")
_MARKS: Final = {"different": ("~", "yellow"), "missing": ("-", "red"), "extra": ("+", "green")}


def fields_of(run: Run) -> dict[str, Any]:
    """A run as JSON says it."""
    agent, _, handler = run.handler.partition(".")
    return {
        "agent": agent,
        "handler": handler,
        "differs": run.differs,
        "heard": run.heard,
        "error": None if run.error is None else describe(run.error),
        "event": run.event.model_dump(mode="json"),
        "writes": [
            {
                "verdict": write.verdict,
                "scope": write.event.scope,
                "scope_id": write.event.scope_id,
                "key": write.event.key,
                "recorded": None if write.recorded is None else write.recorded.model_dump(mode="json"),
                "replayed": None if write.replayed is None else write.replayed.model_dump(mode="json"),
            }
            for write in run.writes
        ],
    }


def show_run(run: Run, output: Output) -> None:
    """Print a line that says which handler and event, one for an error, and one or some for each write that differs."""
    event = run.event
    where = visible(str(Scope(event.scope, event.scope_id)))
    head: list[Part] = [
        (run.handler, "bold"),
        "on",
        (f"r{event.revision}", "cyan"),
        where,
        (visible(event.key), "bold"),
    ]
    output.line(*head)
    if not run.heard:
        output.line(("    it does not hear this event any more", "red"))
    if run.error is not None:
        output.line((f"    raised {visible(describe(run.error))}", "red"))
        for line in users_frames(run.error):
            output.line((f"    {visible(line)}", "dim"))
    for write in run.writes:
        if write.differs:
            _show_write(write, output)


def _show_write(write: Compared, output: Output) -> None:
    event = write.event
    mark, style = _MARKS[write.verdict]
    head: list[Part] = [(f"  {mark}", style)]
    if write.recorded is not None:
        head.append((f"r{write.recorded.revision}", "cyan"))
    head += [visible(str(Scope(event.scope, event.scope_id))), (visible(event.key), "bold")]
    before, after = _side(write.recorded), _side(write.replayed)
    if before == after:
        head.append((f"({_ttl(write.recorded)} → {_ttl(write.replayed)})", "dim"))
    show_sides(head, before, after, output)


def _side(event: Event | None) -> Side | None:
    return None if event is None else Side(event.data, deleted=event.operation == "delete")


def _ttl(event: Event | None) -> str:
    return "no ttl" if event is None or event.ttl is None else f"ttl {event.ttl:g} s"


def summary_of(counts: Counter[str]) -> str:
    """All the runs in one line."""
    runs, differing, raised = counts["runs"], counts["differing runs"], counts["raised"]
    if not runs:
        return "the handlers hear no event of that time, and none of them had written because of one"
    writes = ", ".join(f"{counts[name]:,} {name}" for name in VERDICTS if counts[name]) or "none"
    parts = [f"{runs:,} run{'' if runs == 1 else 's'}", "nothing differs" if not differing else f"{differing:,} differ"]
    if raised:
        parts.append(f"{raised:,} raised")
    return f"{', '.join(parts)}; writes: {writes}"
