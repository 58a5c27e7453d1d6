"""The table of commands, and the group that loads a command's module when the command is run.

Owns: which commands there are, in which order the help lists them, and where each one lives. Must not know: what they
do. Invariant: a command's summary here is the first line of its own help; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import click

from agentfield.cli import ending
from agentfield.cli.invocation import SHARED, SharedOption
from agentfield.version import __version__


class Entry(NamedTuple):
    """Where a command is defined, under the name ``<command>_command``, and what it does in one line."""

    module: str
    summary: str


COMMANDS: Final[Mapping[str, Entry]] = MappingProxyType(
    {
        "up": Entry("server", "Start the embedded server, if it is not running."),
        "down": Entry("server", "Stop the embedded server."),
        "status": Entry("status", "Show the server, its streams and the agents that are alive."),
        "run": Entry("run", "Serve every agent in the given files or modules."),
        "call": Entry("call", "Call a reasoner of an agent and print its result."),
        "get": Entry("entries", "Print the value of a key."),
        "set": Entry("entries", "Store a value under a key and print its revision."),
        "delete": Entry("entries", "Take a key's value away; its history stays."),
        "ls": Entry("entries", "List current entries."),
        "history": Entry("events", "Show what happened to a key, or to every key of a pattern."),
        "why": Entry("why", "Show what led to a value, back to the root."),
        "as-of": Entry("past", "Show what a key held, or what there was, in the past."),
        "diff": Entry("past", "Show how entries differ between two points in the past."),
        "revert": Entry("past", "Make keys what they were at a point in the past."),
        "tail": Entry("events", "Show changes as they happen, until Ctrl-C."),
        "replay": Entry("replay", "Print the past once more, copy it, or run handlers on it."),
        "timeline": Entry("views", "Show who did what, by words, agent, execution, scope or time."),
        "metrics": Entry("views", "Show how much is written, by whom, and which keys are hot."),
        "projections": Entry("projections", "Run, rebuild and verify views derived from the log."),
        "archive": Entry("archive", "Show what is archived, and trim the log to what is needed."),
        "audit": Entry("audit", "Seal the log, verify it, export it, and report from it."),
        "deadletters": Entry("deadletters", "Show, replay or drop events that handlers have given up on."),
        "handlers": Entry("handlers", "Show the handlers there are, and forget those that are gone."),
        "doctor": Entry("doctor", "Look for what is wrong, and say what to do about it."),
        "personal": Entry("privacy", "Show or set which values of the namespace are personal."),
        "erase": Entry("privacy", "Erase the personal values of a session, an actor, a workflow or a pattern."),
    }
)

_EXIT_STATUS: Final = (
    f"Exit status: {ending.DONE} done, {ending.FAILED} failed, {ending.WRONG_USAGE} wrong usage, "
    f"{ending.NOT_FOUND_OR_CONFLICT} not found or conflict, {ending.INTERRUPTED} interrupted."
)


class _Commands(click.Group):
    """The commands of the table, each loaded when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Loads a command; None if there is no such."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"agentfield.cli.commands.{COMMANDS[cmd_name].module}")
        found: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command that is meant; for a name that is none, the error says which one is like it."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            from difflib import get_close_matches  # no command that there is needs it

            near = get_close_matches(name, COMMANDS, n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {name!r}.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without loading any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; Ctrl-C and a closed pipe end it before click can comment on them."""
        with ending.quietly():
            return super().invoke(ctx)


@click.group(
    "agentfield",
    cls=_Commands,
    params=[SharedOption(name) for name in SHARED],
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    epilog=_EXIT_STATUS,
    context_settings={"help_option_names": ["--help", "-h"]},
)
@click.version_option(__version__, message="agentfield %(version)s")
@click.pass_context
def root(context: click.Context) -> None:
    """Shared memory for multi-agent systems: look into it, change it, run agents on it."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(ending.WRONG_USAGE)
