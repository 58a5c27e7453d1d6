"""``personal`` and ``erase``: what is personal, and making it unreadable for good."""

from __future__ import annotations

import getpass
from collections.abc import Sequence

import click

from agentfield.amount import number_of
from agentfield.cli import ending
from agentfield.cli.confirming import confirmed, yes_option
from agentfield.cli.connecting import remembering
from agentfield.cli.invocation import LOOKING_BACK, Invocation, command
from agentfield.cli.output import Output, moment
from agentfield.cli.scopes import scope_options
from agentfield.cli.waiting import wait
from agentfield.errors import InvalidInputError
from agentfield.memory.addressing import AnyScope
from agentfield.memory.personal.erasing import ErasureReceipt, Tally
from agentfield.memory.personal.private import target_of
from agentfield.naming import shown
from agentfield.privacy import KINDS, PrivacyPolicy

_SHOWN_RANGES = 5
"""Ranges of revisions that a line for people shows."""
_WHAT = (*KINDS, "pattern")


@command("personal")
@click.argument("action", type=click.Choice(["show", "set", "off"]), metavar="[show|set|off]", default="show")
@click.argument("scopes", metavar="[SCOPE]...", nargs=-1)
@click.option(
    "--pattern", "patterns", metavar="PATTERN", multiple=True, help="Keys that are personal, in any scope; repeatable."
)
def personal_command(invocation: Invocation, action: str, scopes: Sequence[str], patterns: Sequence[str]) -> None:
    """Show or set which values of the namespace are personal.

    SET names it all anew: scopes (workflow, session, actor) that are personal as a whole, and patterns of keys. Their
    values are encrypted from then on; what was written before stays as it is. OFF: nothing is personal any more.
    """
    if action != "set" and (scopes or patterns):
        raise click.UsageError(f"{action!r} takes no scopes and no --pattern; `set` does", click.get_current_context())
    if action == "set" and not (scopes or patterns):
        raise InvalidInputError("name at least one scope or --pattern; `agentfield personal off` ends encryption")
    policy = PrivacyPolicy.of(scopes, patterns)

    async def look() -> PrivacyPolicy:
        async with remembering(invocation, founds=action == "set") as memory:
            if action == "show":
                return await memory.personal()
            return await memory.set_personal(scopes, patterns)

    policy = wait(look())
    if action == "set":
        invocation.output.note("from now on; what was written before stays readable in the history")
    if invocation.json:
        invocation.output.object({name: value for name, value in policy.fields().items() if name != "v"})
    else:
        invocation.output.text(f"personal: {policy}")


@command("erase", takes=LOOKING_BACK)
@click.argument("what", type=click.Choice(_WHAT), metavar=f"{{{'|'.join(_WHAT)}}}")
@click.argument("name", metavar="ID_OR_PATTERN")
@click.option("--by", metavar="NAME", help="Who asks for it, for the receipt.  [default: the user's name]")
@yes_option
@scope_options
def erase_command(
    invocation: Invocation, what: str, name: str, by: str | None, yes: bool, scope: AnyScope | None
) -> None:
    """Erase the personal values of a session, an actor, a workflow or a pattern.

    Deletes what is there now, destroys the keys by which the values are encrypted in every copy of the log, and prints
    a receipt. A pattern is looked for in every scope unless one is named. Values that were written in plain stay
    readable in the history; if there are any, or a view could not be told, the exit status is 1, after everything else
    was done.
    """
    if what != "pattern" and scope is not None:
        raise click.UsageError(f"{what} {shown(name)} is a scope by itself: name no other", click.get_current_context())
    pattern, (kind, id) = (name, scope or (None, None)) if what == "pattern" else ("*", (what, name))
    target = target_of(pattern, kind, id)
    if not confirmed(f"Erase {target} for good? Nobody can bring it back.", yes=yes):
        invocation.output.note("nothing was erased")
        return

    async def erase() -> ErasureReceipt:
        async with remembering(invocation) as memory:
            return await memory.erase(pattern, kind, id, by=by or _user())

    receipt = wait(erase())
    if invocation.json:
        invocation.output.object(receipt.model_dump(mode="json"))
    else:
        _print(receipt, invocation.output)
    if not receipt.complete:
        click.get_current_context().exit(ending.FAILED)


def _print(receipt: ErasureReceipt, output: Output) -> None:
    rows = [
        ("what", receipt.erased),
        ("at", moment(receipt.at)),
        ("by", receipt.by or "-"),
        ("deleted", f"{number_of(receipt.deleted, 'entry', 'entries')} that had a value"),
        ("keys", ", ".join(receipt.keys) or "none: nothing of it was encrypted with a key that was still there"),
        *((tally.fate, _counted(tally)) for tally in receipt.tallies),
        *((f"view {name}", answer) for name, answer in sorted(receipt.views.items())),
        ("looked at", f"every revision up to {receipt.up_to}" if receipt.looked_from == 1 else _part(receipt)),
        ("not known", receipt.not_known),
        ("receipt", f"erasure_receipt_{receipt.id}"),
    ]
    width = max(len(name) for name, _ in rows) + 1
    for name, text in rows:
        output.line((name.ljust(width), "dim"), text)
    if not (receipt.keys or receipt.tallies):
        output.note("nothing was ever stored there, as far as was looked: is the name right?")
    if receipt.looked_from > 1:
        output.note(
            f"NOT looked at: what was trimmed off the log before revision {receipt.looked_from}, and is in no archive "
            "at hand; what was written in plain then stays readable in it: name it (--archive) and erase again"
        )
    for answer, meaning in _OWED.items():
        if views := sorted(name for name, said in receipt.views.items() if said == answer):
            output.note(f"NOT dropped yet by {', '.join(views)}: {meaning}")
    if not receipt.journals_renewed:
        output.note("NOT covered: the servers' journals may hold the keys until they are cut; erase again later")
    for tally in receipt.left:
        values = number_of(tally.events, "value")
        output.note(f"NOT covered, and readable in the history: {values}, {_REASONS[tally.fate]}")


def _part(receipt: ErasureReceipt) -> str:
    return f"revisions {receipt.looked_from} to {receipt.up_to}, and what is left of those before"


_OWED = {
    "not running": "run it, and it does so first of all (`agentfield projections status` says which owe it)",
    "told": "it is still at it",
    "failed": "its log says why; it tries again when it is run anew",
}

_REASONS = {
    "not personal": "stored in plain since it was not personal, or not yet",
    "key still in use": "encrypted with a key that others share (erase their scope), or written while this ran",
}


def _counted(tally: Tally) -> str:
    ranges = [str(first) if first == last else f"{first}–{last}" for first, last in tally.revisions[:_SHOWN_RANGES]]
    more = "" if tally.complete and len(tally.revisions) <= _SHOWN_RANGES else ", …"
    revisions = "revision" if tally.events == 1 else "revisions"
    return f"{number_of(tally.events, 'event')}, {revisions} {', '.join(ranges)}{more}"


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        return None
