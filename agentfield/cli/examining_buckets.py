"""``projections verify state`` and ``rebuild state``: the buckets that the server fills, beside the log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict

from agentfield.amount import number_of
from agentfield.cli.ending import WithDetails
from agentfield.cli.invocation import Invocation
from agentfield.cli.output import visible
from agentfield.cli.projecting import source_of
from agentfield.cli.waiting import wait
from projections import state
from projections.buckets import kinds_of
from projections.source import Source

_NAMED = 10
"""Differences that an error names one by one."""


def examine_buckets(
    invocation: Invocation, target: str, examine: Callable[[Source, str], Awaitable[state.Verdict]]
) -> None:
    """Examine the buckets that a target names, and fail if one is not what the log says."""
    kinds = kinds_of(target.partition(":")[2])

    async def each() -> list[state.Verdict]:
        async with source_of(invocation) as source:
            return [await examine(source, kind) for kind in kinds]

    verdicts = wait(each())
    for verdict in verdicts:
        if invocation.json:
            invocation.output.object({**asdict(verdict), "equal": verdict.equal})
        elif verdict.equal:
            invocation.output.text(
                f"as of event {verdict.checkpoint}, bucket {verdict.bucket} ({number_of(verdict.keys, 'key')}) is what "
                "the log says"
            )
    differences = [difference for verdict in verdicts for difference in verdict.differences]
    if differences:
        differing = len({difference.bucket for difference in differences})
        verb = "is" if differing == 1 else "are"
        raise WithDetails(
            f"{differing} of {number_of(len(kinds), 'bucket')} {verb} not what the log says; "
            f"`agentfield projections rebuild {target}` makes them anew",
            tuple(
                f"  {visible(each.subject)}: {each.found} instead of event {each.event}"
                for each in differences[:_NAMED]
            ),
        )
