"""``projections``: the views that are derived from the log, and the code that derives them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from agentfield.cli.commands.audit import FILE, public_keys_option, verify_seals
from agentfield.cli.examining_buckets import examine_buckets
from agentfield.cli.invocation import Invocation, command, group
from agentfield.cli.logs import show_life
from agentfield.cli.output import age, moment, visible
from agentfield.cli.projecting import (
    chosen_store,
    is_seals,
    is_state,
    load_projection,
    load_projections,
    runner_of,
    source_of,
    store_option,
    with_key,
)
from agentfield.cli.running_projections import bring_up_to_date, run_all, say_where
from agentfield.cli.waiting import wait
from agentfield.errors import ConflictError, InvalidInputError, NotFoundError, ProjectionError
from projections import state
from projections.erasures import Erasures, owed, owed_elsewhere
from projections.runner import view_name
from projections.shipped import SHIPPED
from projections.source import Source
from projections.stores import Stores
from projections.stores.archive import KIND
from projections.stores.seals import NEVER
from projections.view import Head, View, looking

_COLUMNS = ("projection", "version", "state", "checkpoint", "lag", "events", "age")
UNREADABLE = "unreadable"
"""The state of a view of which nothing can be said."""


@command("list")
@store_option
def list_command(invocation: Invocation, store: Path | None) -> None:
    """List the projections that ship, and every view there is."""
    chosen = chosen_store(invocation, store)

    async def listed() -> list[dict[str, Any]]:
        rows = []
        async with source_of(invocation) as source:
            stores = Stores(source, chosen)
            names = await stores.names()
            for name in [*SHIPPED, *(name for name in names if name not in SHIPPED)]:
                place = await _place(stores, name) if name in names else None
                summary = SHIPPED[name].summary if name in SHIPPED else "yours"
                rows.append({"projection": name, "view": place, "summary": summary})
        return [*rows, {"projection": state.NAME, "view": "buckets of the server", "summary": state.SUMMARY}]

    rows = wait(listed())
    if invocation.json:
        for row in rows:
            invocation.output.object(row)
    else:
        cells = [(row["projection"], row["summary"], row["view"] or "-") for row in rows]
        invocation.output.table(("projection", "what", "view"), cells, shrink="view")


@command("run")
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True)
@click.option("--once", is_flag=True, help="Bring the views up to date, and end.")
@click.option("--key", "key_file", type=FILE, metavar="FILE", help="For seals: the key's file, from audit keygen.")
@store_option
def run_command(
    invocation: Invocation, targets: Sequence[str], once: bool, key_file: Path | None, store: Path | None
) -> None:
    """Keep views current, until Ctrl-C or SIGTERM.

    TARGET is the name of a projection that ships, or a file or module in which yours is: FILE_OR_MODULE[:NAME]. Of
    several processes that run the same one on the same store, one works and the others stand by. A projection that
    fails stops alone; the command fails when all have stopped, or with --once, if one has.
    """
    projections = with_key(load_projections(targets), key_file)
    chosen = chosen_store(invocation, store)
    logging.getLogger("agentfield.consumer").setLevel(logging.WARNING)
    if not once:
        show_life(as_json=invocation.json)

    async def run() -> None:
        async with source_of(invocation, founds=not once) as source:
            runners = [runner_of(source, projection, chosen) for projection in projections]
            if once:
                await bring_up_to_date(runners, invocation)
            else:
                await run_all(runners)

    wait(run())


@command("status")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@store_option
def status_command(invocation: Invocation, names: Sequence[str], store: Path | None) -> None:
    """Show where every view stands, how far it is behind, and what stopped it."""
    chosen = chosen_store(invocation, store)

    async def look() -> tuple[list[dict[str, Any]], dict[str, int]]:
        async with source_of(invocation) as source:
            stores = Stores(source, chosen)
            there = await stores.names()
            for name in names:
                if name not in there:
                    raise NotFoundError(f"there is no view of {name!r} in {chosen.root}: run the projection first")
            rows = [row for name in names or there for row in await _status(source, stores, name)]
            return rows, {} if names else await owed_elsewhere(source, {row["registered"] for row in rows})

    rows, elsewhere = wait(look())
    if invocation.json:
        for row in rows:
            invocation.output.object(row)
        return
    for name, count in elsewhere.items():
        invocation.output.note(f"view {name}, which is kept elsewhere, has not confirmed {_erasures(count)}")
    if not rows:
        invocation.output.note(f"there are no views in {chosen.root}")
        return
    cells = [tuple("-" if row[column] is None else str(row[column]) for column in _COLUMNS) for row in rows]
    invocation.output.table(_COLUMNS, cells, right=("version", "checkpoint", "lag", "events", "age"))
    for row in rows:
        if row["owes"] and row["state"] != "rebuilding":
            invocation.output.line(f"{row['projection']} owes {_erasures(row['owes'])}: run it, or rebuild it")
        if row["state"] == UNREADABLE:
            invocation.output.line(f"{row['projection']}: {visible(row['error'])}")
        elif row["error"] is not None:
            at = "" if row["failed_at"] is None else f" at event {row['failed_at']}"
            invocation.output.line(f"{row['projection']} stopped{at}: {visible(row['error'])}")


async def _status(source: Source, store: Stores, name: str) -> list[dict[str, Any]]:
    found = ((store.live, ""), (store.building, "rebuilding"))
    rows = [await looking(partial(_generation, source, store, find, name, known)) for find, known in found]
    return [row for row in rows if row is not None]


async def _generation(
    source: Source, store: Stores, find: Callable[[str], Awaitable[View | None]], name: str, known: str
) -> dict[str, Any] | None:
    """Where a generation of a view stands; if it cannot be read, why, since that concerns no other view."""
    view = await find(name)
    if view is None:
        return None
    registered = view_name(name, store, view.kind)
    try:
        head = await view.head()
        state = known or _state(head, await source.lease(registered).taken())
        row = await _row(source, view, head, state)
    except ProjectionError as error:
        unknown = dict.fromkeys(_COLUMNS)
        row = {**unknown, "projection": name, "state": UNREADABLE, "error": str(error), "view": view.place, "owes": 0}
    finally:
        await view.aclose()
    return {**row, "registered": registered}


def _erasures(count: int) -> str:
    return "1 erasure" if count == 1 else f"{count} erasures"


def _state(head: Head, taken: bool) -> str:
    if head.paused:
        return "paused"
    if head.error is not None:
        return "stopped"
    return "running" if taken else "idle"


async def _row(source: Source, view: View, head: Head, state: str) -> dict[str, Any]:
    ours = head.log == await source.log_id()
    return {
        "projection": head.name,
        "version": head.version,
        "generation": head.generation,
        "state": state if ours else "of another log",
        "checkpoint": head.checkpoint,
        "lag": await source.lag(head.selection, head.checkpoint) if ours else None,
        "events": head.events,
        "skipped": head.skipped,
        "error": head.error,
        "failed_at": head.failed_at,
        "updated": moment(head.updated),
        "age": age(source.fabric.log.now() / 1e9 - head.updated.timestamp()),
        "view": view.place,
        "owes": await owed(source, head) if ours else 0,
    }


@command("rebuild")
@click.argument("target")
@store_option
def rebuild_command(invocation: Invocation, target: str, store: Path | None) -> None:
    """Make a view anew from the whole log, beside the one there is, then put it in its place.

    TARGET as for run. Until then the view there is stays as it is, and current where somebody runs it. With state, or
    state:SCOPE, the server fills its buckets anew, in their place.
    """
    if is_state(target):
        examine_buckets(invocation, target, state.rebuild)
        return
    if is_seals(target):
        raise InvalidInputError(NEVER)
    projection = load_projection(target)
    chosen = chosen_store(invocation, store)

    async def rebuild() -> int:
        async with source_of(invocation) as source:
            return await runner_of(source, projection, chosen).rebuild()

    say_where(invocation, projection.name, "checkpoint", wait(rebuild()), "was rebuilt up to event")


@command("verify")
@click.argument("target")
@public_keys_option
@store_option
def verify_command(invocation: Invocation, target: str, keys: Sequence[str], store: Path | None) -> None:
    """Compare a view with one made anew from the log; fail if they differ.

    TARGET as for run; the view may be run meanwhile. With state, or state:SCOPE, compares the buckets that the server
    fills; with seals, the log with its seals, as `audit verify` does.
    """
    if is_seals(target):
        verify_seals(invocation, keys=keys)
        return
    if keys:
        raise InvalidInputError("--public-key is for seals alone: leave it out")
    if is_state(target):
        examine_buckets(invocation, target, state.verify)
        return
    projection = load_projection(target)
    chosen = chosen_store(invocation, store)

    async def verify() -> dict[str, Any]:
        async with source_of(invocation) as source:
            verdict = await runner_of(source, projection, chosen).verify()
        fields = {"equal": verdict.equal, "checkpoint": verdict.checkpoint, "rows": verdict.rows}
        fields |= {"trimmed": verdict.trimmed}
        return {"projection": projection.name, **fields, "found": verdict.found, "expected": verdict.expected}

    row = wait(verify())
    if invocation.json:
        invocation.output.object({**row, "found": _plain(row["found"]), "expected": _plain(row["expected"])})
    elif row["equal"]:
        rows = str(row["rows"])
        if row["trimmed"]:
            rows += f" of {row['rows'] + row['trimmed']}: the others are no longer in the log"
        invocation.output.text(f"as of event {row['checkpoint']}, its rows ({rows}) are what the log says")
    if not row["equal"]:
        found, expected = (visible(str(row[name] or "nothing")) for name in ("found", "expected"))
        remedy = "begin another one, in another directory" if projection.store == KIND else "rebuild it"
        raise ProjectionError(
            f"the view of {projection.name} is not what the log says: it has {found} where {expected} should be; "
            f"{remedy}",
            projection=projection.name,
        )


@command("pause")
@click.argument("name")
@store_option
def pause_command(invocation: Invocation, name: str, store: Path | None) -> None:
    """Leave a view where it is, whoever runs it, until it is resumed."""
    _pause(invocation, name, store, paused=True)


@command("resume")
@click.argument("name")
@store_option
def resume_command(invocation: Invocation, name: str, store: Path | None) -> None:
    """Let a view that was paused go on."""
    _pause(invocation, name, store, paused=False)


def _pause(invocation: Invocation, name: str, store: Path | None, *, paused: bool) -> None:
    chosen = chosen_store(invocation, store)

    async def pause(stores: Stores) -> int:
        view = await stores.live(name)
        if view is None:
            raise NotFoundError(f"there is no view of {name!r} in {chosen.root}")
        try:
            await view.pause(paused)
            return (await view.head()).checkpoint
        finally:
            await view.aclose()

    async def change() -> int:
        async with source_of(invocation) as source:
            return await looking(partial(pause, Stores(source, chosen)))

    what = "is paused after event" if paused else "goes on after event"
    say_where(invocation, name, "checkpoint", wait(change()), what)


@command("remove")
@click.argument("name")
@store_option
def remove_command(invocation: Invocation, name: str, store: Path | None) -> None:
    """Remove a view. Its projection can make it again from the log."""
    chosen = chosen_store(invocation, store)

    async def remove() -> None:
        async with source_of(invocation) as source:
            stores = Stores(source, chosen)
            view = await stores.live(name)
            if view is None:
                raise NotFoundError(f"there is no view of {name!r} in {chosen.root}")
            await view.aclose()
            registered = view_name(name, stores, view.kind)
            lease = source.lease(registered)
            if await lease.taken():
                raise ConflictError(
                    name, expected=None, actual=None, message=f"{name} is being run: stop it first; nothing was removed"
                )
            await stores.remove(name)
            await lease.forget()
            await Erasures(source, name, registered).unregister()

    wait(remove())
    if invocation.json:
        invocation.output.object({"projection": name, "removed": True})
    else:
        invocation.output.text(f"the view of {name} is removed")


async def _place(store: Stores, name: str) -> str | None:
    view = await store.live(name)
    if view is None:
        return None
    await view.aclose()
    return view.place


def _plain(row: Sequence[Any] | None) -> list[Any] | None:
    return None if row is None else [cell if isinstance(cell, str | int | float | None) else str(cell) for cell in row]


projections_command = group(
    "projections",
    list_command,
    run_command,
    status_command,
    rebuild_command,
    verify_command,
    pause_command,
    resume_command,
    remove_command,
    help="Run, rebuild and verify views derived from the log.",
)
