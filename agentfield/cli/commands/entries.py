"""``get``, ``set``, ``delete`` and ``ls``: what memory holds now.

Reads look into every scope unless one is named, since whoever asks at a command line runs in none. Writes go to the
global scope unless one is named.
"""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Sequence

import click

from agentfield.cli.connecting import connected, remembering
from agentfield.cli.invocation import Command, Invocation, command
from agentfield.cli.kinds import DURATION, Count, value_of
from agentfield.cli.output import Output, age, shortened, size
from agentfield.cli.scopes import choices, named, scope_options, to_read, to_write
from agentfield.cli.waiting import wait
from agentfield.codec import Record, decode_entry, reference_of
from agentfield.errors import InvalidInputError, NotFoundError
from agentfield.event import Entry
from agentfield.fabric.fabric import Fabric
from agentfield.header import check_ttl
from agentfield.key import check_key
from agentfield.memory.addressing import AnyScope
from agentfield.memory.moment import Instant
from agentfield.memory.resolving import Resolver
from agentfield.memory.state import live_entries
from agentfield.memory.time_travel.past import whole
from agentfield.naming import shown
from agentfield.pattern import Pattern
from agentfield.scope import Scope

_COLUMNS = ("scope", "id", "key", "value", "revision", "age", "writer")

_NEGATIVE = re.compile(r"-\.?\d")
_MARK = "\0"
"""Cannot be part of an argument, so it is nobody's own."""


@command("get")
@click.argument("key")
@scope_options
def get_command(invocation: Invocation, key: str, scope: AnyScope | None) -> None:
    """Print the value of a key.

    A string is printed bare, anything else as JSON. Without a scope, every scope is searched, and the one entry found
    is printed; if several hold the key, nothing is printed and the error says how to choose. With --json: the value
    with its revision, scope, time and writer.
    """
    check_key(key)

    async def get() -> Entry:
        async with connected(invocation) as fabric:
            return only(key, await entries_of(fabric, Pattern.parse(key), to_read(scope)), scope)

    show(wait(get()), invocation.output)


class _WithNumbers(Command):
    """A command whose arguments may be negative numbers, which are no options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Marks negative numbers, so that they do not look like options to click."""
        options = [param for param in self.params if isinstance(param, click.Option) and not param.is_flag]
        with_value = {name for option in options for name in option.opts}
        marked = [
            _MARK + arg if _NEGATIVE.match(arg) and before not in with_value else arg
            for before, arg in zip(["", *args], args, strict=False)
        ]
        return super().parse_args(ctx, marked)


@command("set", kind=_WithNumbers)
@click.argument("key")
@click.argument("value")
@click.option("--string", is_flag=True, help="Take VALUE as a string, whatever it looks like.")
@click.option("--ttl", type=DURATION, metavar="TIME", help="Let the entry expire: after seconds, or such as 15m or 2h.")
@click.option(
    "--if-revision",
    type=Count(min=0),
    metavar="N",
    help="Write only if the key is at this revision; 0: only if it was never written.",
)
@scope_options
def set_command(
    invocation: Invocation,
    key: str,
    value: str,
    string: bool,
    ttl: float | None,
    if_revision: int | None,
    scope: AnyScope | None,
) -> None:
    """Store a value under a key and print its revision.

    VALUE is taken as JSON if it is valid JSON, else as a string: 42 is a number, '"42"' and --string 42 are strings.
    If it is -, it is read from standard input, without the newline at its end. Without a scope, the global one.
    """
    check_key(key)
    if ttl is not None:
        check_ttl(ttl)
    target = to_write(scope)
    text = _standard_input() if value == "-" else value.removeprefix(_MARK)
    content = text if string else value_of(text)

    async def store() -> int:
        async with remembering(invocation, founds=True) as memory:
            return await memory.set(key, content, target.kind, target.id, ttl=ttl, if_revision=if_revision)

    revision = wait(store())
    if invocation.json:
        invocation.output.object({"key": key, "scope": target.kind, "scope_id": target.id, "revision": revision})
    else:
        invocation.output.text(str(revision))


@command("delete")
@click.argument("key")
@click.option("--if-revision", type=Count(min=0), metavar="N", help="Only if the key is at this revision.")
@scope_options
def delete_command(invocation: Invocation, key: str, if_revision: int | None, scope: AnyScope | None) -> None:
    """Take a key's value away; its history stays.

    Without a scope, in the global one. It is an error if the key has no value there.
    """
    check_key(key)
    target = to_write(scope)

    async def delete() -> None:
        async with remembering(invocation) as memory:
            if await memory.delete(key, target.kind, target.id, if_revision=if_revision):
                return
        async with connected(invocation) as fabric:
            others = await entries_of(fabric, Pattern.parse(key), to_read(None)) if scope is None else []
            raise NotFoundError(f"there is no {shown(key)} in {named(target)}{_elsewhere(others)}")

    wait(delete())
    if invocation.json:
        invocation.output.object({"key": key, "scope": target.kind, "scope_id": target.id, "deleted": True})
    else:
        invocation.output.text(f"deleted from {named(target)}")


@command("ls")
@click.argument("pattern", default="*")
@scope_options
def ls_command(invocation: Invocation, pattern: str, scope: AnyScope | None) -> None:
    """List current entries.

    PATTERN is a key in which * stands for one or more characters; quote it. Without one: every key. Without a scope:
    every scope there is.
    """
    parsed = Pattern.parse(pattern)

    async def listed() -> None:
        async with connected(invocation) as fabric:
            await show_all(fabric, parsed, to_read(scope), invocation.output)

    wait(listed())


def show(entry: Entry, output: Output) -> None:
    """Print one entry: its value for people, all of it for programs."""
    if output.as_json:
        output.object(entry.model_dump(mode="json"))
    else:
        output.value(entry.value)


async def show_all(
    fabric: Fabric, pattern: Pattern, scopes: Sequence[AnyScope], output: Output, at: Instant | None = None
) -> None:
    """Print the entries there are, or were at an instant."""
    if output.as_json:
        for entry in sorted(await entries_of(fabric, pattern, scopes, at), key=_order):
            output.object(entry.model_dump(mode="json"))
        return
    now = fabric.log.now() if at is None else at.nanoseconds
    rows = sorted([await _row(fabric, record, now) async for record in _records(fabric, pattern, scopes, at)])
    if rows:
        output.table(_COLUMNS, rows, right=("revision", "age"), shrink="value", name="key")
    else:
        output.note(f"no entry {'matches' if at is None else 'matched'} {shown(pattern.text)}")


def _order(entry: Entry) -> tuple[str, str, str]:
    return entry.scope, entry.scope_id, entry.key


async def _row(fabric: Fabric, record: Record, now: int) -> tuple[str, ...]:
    """A line of the list. A value that is so large that it lies in an object is not fetched for it."""
    reference = reference_of(record)
    if reference is None:
        entry = await Resolver(fabric).entry(record)
    else:
        entry = decode_entry(record._replace(content=b"null"), fabric.subjects)
    return (
        entry.scope,
        "-" if entry.scope == "global" else entry.scope_id,
        entry.key,
        shortened(entry.value) if reference is None else f"({size(reference.size)})",
        str(entry.revision),
        age((now - record.timestamp) / 1e9),
        entry.writer.agent or "-",
    )


def _records(fabric: Fabric, pattern: Pattern, scopes: Sequence[AnyScope], at: Instant | None) -> AsyncIterator[Record]:
    records = live_entries(fabric, [pattern], scopes, at=at)
    return records if at is None else whole(fabric, records, at)


async def entries_of(
    fabric: Fabric, pattern: Pattern, scopes: Sequence[AnyScope], at: Instant | None = None
) -> list[Entry]:
    """The entries there are, or were at an instant."""
    resolver = Resolver(fabric)
    return [await resolver.entry(record) async for record in _records(fabric, pattern, scopes, at)]


def only(key: str, entries: Sequence[Entry], scope: AnyScope | None, *, then: bool = False) -> Entry:
    """The one entry of a key. Raises NotFoundError if there is none, InvalidInputError if the scope is left open."""
    if len(entries) == 1:
        return entries[0]
    if entries:
        verb = "was" if then else "is"
        raise InvalidInputError(
            f"{shown(key)} {verb} in {len(entries)} scopes: choose one with {choices(_scopes(entries))}"
        )
    kind, id = scope or (None, None)
    where = "any scope" if kind is None else f"any {kind}" if id is None else named(Scope(kind, id))
    raise NotFoundError(f"there {'was then' if then else 'is'} no {shown(key)} in {where}")


def _scopes(entries: Sequence[Entry]) -> list[Scope]:
    return [Scope(entry.scope, entry.scope_id) for entry in entries]


def _elsewhere(entries: Sequence[Entry]) -> str:
    return f"; it is elsewhere: choose with {choices(_scopes(entries))}" if entries else ""


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"standard input is not UTF-8 text ({error}): encode it first") from None
