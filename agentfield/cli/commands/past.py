"""``as-of``, ``diff`` and ``revert``: what was, what has changed since, and going back to it."""

from __future__ import annotations

import sys

import click

from agentfield.cli import ending
from agentfield.cli.commands.entries import entries_of, only, show, show_all
from agentfield.cli.connecting import connected
from agentfield.cli.differences import counted, show_diff
from agentfield.cli.invocation import LOOKING_BACK, Invocation, command
from agentfield.cli.kinds import POINT, Point
from agentfield.cli.output import moment
from agentfield.cli.scopes import named, scope_options, to_read, to_write
from agentfield.cli.waiting import wait
from agentfield.event import Writer
from agentfield.memory import Diff, Moment, Reverted
from agentfield.memory.addressing import AnyScope
from agentfield.memory.lifetime import Lifetimes
from agentfield.memory.moment import Pin
from agentfield.memory.resolving import Resolver
from agentfield.memory.time_travel.diff import differences
from agentfield.memory.time_travel.revert import Reverting, present_of
from agentfield.naming import shown
from agentfield.pattern import Pattern


@command("as-of", takes=LOOKING_BACK)
@click.argument("point", type=POINT)
@click.argument("pattern", metavar="[KEY_OR_PATTERN]", default="*")
@scope_options
def as_of_command(invocation: Invocation, point: Point, pattern: str, scope: AnyScope | None) -> None:
    """Show what a key held, or what there was, in the past.

    POINT is a time (RFC 3339), an age such as 15m or 2h, or a revision. The value of a key is printed as by get, the
    entries of a pattern are listed as by ls. Without a scope: every scope there is.
    """
    parsed = Pattern.parse(pattern)
    pin = Pin(point, "POINT")
    output = invocation.output

    async def look() -> None:
        async with connected(invocation) as fabric:
            instant = await pin.instant(fabric)
            if parsed.is_literal:
                entries = await entries_of(fabric, parsed, to_read(scope), instant)
                show(only(pattern, entries, scope, then=True), output)
            else:
                await show_all(fabric, parsed, to_read(scope), output, instant)

    wait(look())


@command("diff", takes=LOOKING_BACK)
@click.argument("pattern", metavar="KEY_OR_PATTERN")
@click.argument("before", type=POINT)
@click.argument("after", type=POINT, required=False)
@scope_options
def diff_command(
    invocation: Invocation, pattern: str, before: Point, after: Point | None, scope: AnyScope | None
) -> None:
    """Show how entries differ between two points in the past.

    BEFORE and AFTER are times (RFC 3339), ages such as 15m or 2h, or revisions; without AFTER, it is now. Without a
    scope: in every scope there is.
    """
    parsed = Pattern.parse(pattern)
    begin, end = Pin(before, "BEFORE"), None if after is None else Pin(after, "AFTER")

    async def compare() -> Diff:
        async with connected(invocation) as fabric:
            first = await begin.instant(fabric)
            second = await present_of(fabric) if end is None else await end.instant(fabric)
            return await differences(fabric, Resolver(fabric), [parsed], to_read(scope), first, second)

    diff = wait(compare())
    show_diff(diff, invocation.output)
    if not invocation.json:
        between = f"between {_said(diff.before)} and {_said(diff.after)}"
        invocation.output.note(f"{counted(diff)}, {between}" if diff else f"nothing differs {between}")


@command("revert", takes=LOOKING_BACK)
@click.argument("pattern", metavar="KEY_OR_PATTERN")
@click.argument("point", type=POINT)
@click.option("--dry-run", is_flag=True, help="Show what would change, and write nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@scope_options
def revert_command(
    invocation: Invocation, pattern: str, point: Point, dry_run: bool, yes: bool, scope: AnyScope | None
) -> None:
    """Make keys what they were at a point in the past.

    By new events: the past stays as it is. Shows what changes and asks first. POINT is a time (RFC 3339), an age such
    as 15m or 2h, or a revision. Without a scope, a key is reverted in the global one; for a pattern, the scope must be
    named.
    """
    parsed = Pattern.parse(pattern)
    pin = Pin(point, "POINT")
    context = click.get_current_context()
    if not parsed.is_literal and scope is None:
        raise click.UsageError("a pattern needs a scope: name it, for example with --global", context)
    target = to_write(scope)
    if not (dry_run or yes or _somebody_answers(invocation)):
        raise click.UsageError("revert asks before it writes, and here nobody answers: add --yes or --dry-run", context)

    async def revert(*, trial: bool) -> Reverted:
        async with connected(invocation) as fabric:
            reverting = Reverting(fabric, Lifetimes(), Resolver(fabric), Writer(), target, parsed)
            return await reverting.to(await pin.instant(fabric), await present_of(fabric), dry_run=trial)

    output = invocation.output
    asks = not (dry_run or yes)
    done = wait(revert(trial=dry_run or asks))
    if output.as_json:
        output.object(done.model_dump(mode="json"))
        return
    show_diff(done.changes, output)
    where = f"{named(target)} to {_said(done.changes.after)}"
    if not done:
        output.note(f"nothing to revert: {shown(pattern)} in {where.replace(' to ', ' is what it was at ')}")
        return
    if asks:
        if not click.confirm(f"revert {counted(done.changes)}, in {where}?", err=True):
            output.note("nothing was written")
            context.exit(ending.FAILED)
        done = wait(revert(trial=False))
    verb = "would revert" if dry_run else "reverted"
    output.note(f"{verb} {counted(done.changes)}, in {where}")


def _somebody_answers(invocation: Invocation) -> bool:
    return sys.stdin.isatty() and not invocation.json


def _said(point: Moment) -> str:
    at = "" if point.timestamp is None else f" ({moment(point.timestamp)})"
    return f"revision {point.revision}{at}"
