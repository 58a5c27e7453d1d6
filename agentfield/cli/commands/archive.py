"""``archive``: what the archive holds of the log, and trimming the log by it."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from agentfield.cli import ending
from agentfield.cli.confirming import confirmed, yes_option
from agentfield.cli.invocation import Invocation, command, group
from agentfield.cli.output import size
from agentfield.cli.projecting import chosen_store, source_of, store_option
from agentfield.cli.waiting import wait
from projections.source import Source
from projections.stores import Stores
from projections.stores.seals import KIND as SEALS
from projections.trimming import PROJECTION, REBUILD, Outlook, outlook, trim


@command("show")
@store_option
def show_command(invocation: Invocation, store: Path | None) -> None:
    """Show what is archived, what the log still holds, and who holds trimming back."""
    chosen = chosen_store(invocation, store)

    async def look() -> dict[str, Any]:
        async with source_of(invocation) as source:
            return await _shown(source, Stores(source, chosen))

    fields = wait(look())
    if invocation.json:
        invocation.output.object(fields)
        return
    output = invocation.output
    messages = f"{fields['archived_messages']:,} messages, {fields['files']:,} files, {size(fields['bytes'])}"
    output.line(("archive", "dim"), fields["archive"], f"revisions {fields['first']} to {fields['archived']}", messages)
    whole = f"whole from revision {fields['begins']} " + (
        f"to {fields['last']}" if fields["begins"] <= fields["last"] else "on, which is the next one"
    )
    output.line(("log", "dim"), f"{fields['messages']:,} messages", whole)
    output.line(("trimming", "dim"), f"possible up to revision {fields['complete'] - 1}", _holding(fields["held_by"]))


@command("trim")
@click.option("--dry-run", is_flag=True, help="Show how far it would go, and take nothing out.")
@yes_option
@store_option
def trim_command(invocation: Invocation, dry_run: bool, yes: bool, store: Path | None) -> None:
    """Take out of the log what the archive holds and nobody needs.

    The archive is brought up to date and compared with the log, message by message, before anything goes. Of every key
    the log keeps what it holds now, and every event that a handler, a projection or the seals have still to come to.
    History goes on to be read, from the archive. Writers wait for a moment now and then, and notice nothing else.
    """
    chosen = chosen_store(invocation, store)
    output = invocation.output

    async def look() -> Outlook:
        async with source_of(invocation) as source:
            return await outlook(source, Stores(source, chosen))

    async def take_out() -> dict[str, Any]:
        async with source_of(invocation) as source:
            stores = Stores(source, chosen)
            removed, longest = 0, 0.0
            async with aclosing(trim(source, stores)) as steps:
                async for step in steps:
                    removed, longest = removed + step.messages, max(longest, step.seconds)
            return {"removed": removed, "longest_pause": round(longest, 3), **await _shown(source, stores)}

    before = wait(look())
    if dry_run:
        if output.as_json:
            output.object(_fields(before))
        else:
            output.text(f"up to revision {before.complete - 1}, all but the last event of each key could go")
            output.note(_holding(_fields(before)["held_by"]))
        return
    question = f"take all but the last event of each key, up to revision {before.complete - 1}, out of the log?"
    if not confirmed(question, yes=yes):
        output.note("nothing was taken out")
        click.get_current_context().exit(ending.FAILED)
    done = wait(take_out())
    if output.as_json:
        output.object(done)
        return
    output.text(
        f"taken out: {done['removed']:,}, left: {done['messages']:,}; the log is whole from revision {done['begins']} "
        f"on, and what was before is in {done['archive']}"
    )
    output.note(f"writers had to wait for {done['longest_pause']:.1f} s at most; {_holding(done['held_by'])}")


async def _shown(source: Source, stores: Stores) -> dict[str, Any]:
    found = await outlook(source, stores)
    view = await stores.archive.live("archive")
    segments = [] if view is None else await view.segments()
    return {
        "archive": str(stores.archive.path),
        "first": segments[0].first if segments else 0,
        **_fields(found),
        "archived_messages": sum(segment.rows for segment in segments),
        "files": len(segments),
        "bytes": sum(segment.path.stat().st_size for segment in segments),
    }


def _fields(found: Outlook) -> dict[str, Any]:
    fields = asdict(found)
    if found.held_by is not None:
        fields["held_by"] = {"name": found.held_by.name, "revision": found.held_by.sequence}
    return fields


def _holding(held_by: dict[str, Any] | None) -> str:
    if held_by is None:
        return "nobody needs more of it"
    name = held_by["name"]
    who, remedy = name, ""
    if name.startswith("reader-"):
        who = f"a program that reads the log ({name})"
    elif name.startswith(REBUILD):
        remedy = (
            f": `agentfield projections rebuild` with its code goes on with it, or begins it anew with other code; "
            f"`agentfield projections remove {name.removeprefix(REBUILD)}` lets it go, and the view with it"
        )
    elif name.startswith(PROJECTION):
        view = name.removeprefix(PROJECTION)
        remedy = (
            ": seal what is not sealed yet" if view == SEALS else f": run it, or `agentfield projections remove {view}`"
        )
    return f"held back by {who}, from revision {held_by['revision']} on{remedy}"


archive_command = group(
    "archive",
    show_command,
    trim_command,
    help="""Show what is archived, and trim the log to what is needed.

    The archive itself is a projection: `agentfield projections run archive` keeps it current.""",
)
