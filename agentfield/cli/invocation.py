"""What every command shares: the options that may stand before or after its name, and where its output goes.

Owns: those options, their precedence (after the name wins) and the class of our commands. Must not know: any command.
Invariant: an option that means nothing to a command is wrong usage, wherever it stands.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

import click

from agentfield.cli.ending import WRONG_USAGE
from agentfield.cli.kinds import DURATION
from agentfield.cli.output import Output

SHARED: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "url": {
            "metavar": "URL",
            "help": "The NATS server.  [default: $AGENTFIELD_NATS_URL, $NATS_URL, or the embedded server]",
        },
        "namespace": {
            "metavar": "NAME",
            "help": "The namespace.  [default: $AGENTFIELD_NAMESPACE, or agentfield]",
        },
        "timeout": {
            "type": DURATION,
            "metavar": "TIME",
            "help": "How long an operation may take: seconds, or such as 2m.  [default: 15; for a call, 300]",
        },
        "archive": {
            "metavar": "DIRECTORY",
            "help": "Where what was trimmed off the log is kept.  [default: $AGENTFIELD_ARCHIVE]",
        },
        "json": {"is_flag": True, "help": "Print one JSON object a line on stdout."},
    }
)
"""The shared options by name."""

CONNECTED: Final = ("url", "namespace", "timeout", "json")
"""What a command takes that talks to a server."""

LOOKING_BACK: Final = ("url", "namespace", "archive", "timeout", "json")
"""What a command takes that reads the past."""

PATIENCE: Final = 15.0
"""Seconds an operation may take unless ``--timeout`` says otherwise, as in the library."""

_CONNECT: Final = 5.0
"""Seconds within which a server that is there answers a newcomer."""


@dataclass
class Invocation:
    """The shared options of one run."""

    url: str | None = None
    namespace: str | None = None
    timeout: float | None = None
    json: bool = False
    archive: str | None = None

    @cached_property
    def output(self) -> Output:
        """Where the command prints."""
        return Output(as_json=self.json)

    @property
    def patience(self) -> float:
        """Seconds that one operation may take."""
        return PATIENCE if self.timeout is None else self.timeout

    @property
    def connect_patience(self) -> float:
        """Seconds that connecting may take: as long as any operation for whoever said how long that is."""
        return _CONNECT if self.timeout is None else self.timeout


class SharedOption(click.Option):
    """One of the shared options; its value goes to the :class:`Invocation`."""

    def __init__(self, name: str) -> None:
        super().__init__([f"--{name}"], expose_value=False, callback=_remember, **SHARED[name])


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    invocation = context.ensure_object(Invocation)
    if _given(value) and parameter.name is not None:
        setattr(invocation, parameter.name, value)


def _given(value: Any) -> bool:
    return value is not None and value is not False


class _Sharing(click.Command):
    """What takes the shared options it names, and lists them apart in its help."""

    def __init__(self, *args: Any, takes: Sequence[str] = CONNECTED, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.takes = tuple(takes)
        self.params.extend(SharedOption(name) for name in takes)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the command's own options, then those that every command has."""
        own: list[tuple[str, str]] = []
        shared: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                (own if parameter.expose_value else shared).append(record)
        for title, records in (("Options", own), ("Common options, before or after the command", shared)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Command(_Sharing):
    """A command of ours."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command, unless an option before its name means nothing to it.

        What is loaded by now is not looked through for garbage, now or at the end; what the command makes is.
        """
        invocation = ctx.ensure_object(Invocation)
        for name in SHARED:
            if _given(getattr(invocation, name)) and name not in self.takes:
                raise click.UsageError(f"--{name} has no meaning for {self.name!r}", ctx)
        gc.freeze()
        gc.enable()
        return super().invoke(ctx)


class CommandGroup(_Sharing, click.Group):
    """A command that has commands of its own; the shared options may stand before, between and after their names."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, subcommand_metavar="COMMAND [ARGS]...", **attributes)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, and before them the commands."""
        self.format_commands(ctx, formatter)
        super().format_options(ctx, formatter)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of their definition."""
        return list(self.commands)


def command(
    name: str, *, takes: Sequence[str] = CONNECTED, kind: type[Command] = Command
) -> Callable[[Callable[..., Any]], Command]:
    """Makes a function a command; its docstring is the help. The :class:`Invocation` is its first argument."""

    def make(function: Callable[..., Any]) -> Command:
        return click.command(name, cls=kind, takes=takes)(click.pass_obj(function))

    return make


def group(name: str, *commands: Command, help: str) -> CommandGroup:
    """Makes one command of several. Without the name of one of them it shows its help and fails."""

    @click.pass_context
    def without_any(context: click.Context) -> None:
        if context.invoked_subcommand is None:
            click.echo(context.get_help(), err=True)
            context.exit(WRONG_USAGE)

    return CommandGroup(name, commands=list(commands), help=help, callback=without_any, invoke_without_command=True)
