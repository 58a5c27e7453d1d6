"""The options by which a command says which scope it means.

Owns: ``--scope`` with ``--scope-id``, and their short forms. Must not know: entries, events. Invariant: a command gets
one scope, or None when the user named none; naming two is wrong usage.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import click

from agentfield.memory.addressing import AnyScope
from agentfield.naming import shown
from agentfield.scope import GLOBAL, RESOLUTION, Scope, check_scope_kind

EVERYWHERE: tuple[AnyScope, ...] = tuple((kind, None) for kind in RESOLUTION)
"""Every scope there is."""

_NAMED = 5
"""Scopes that an error message names one by one."""


def scope_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the scope options; its function gets them as the one argument ``scope``."""

    @functools.wraps(function)
    def with_scope(*args: Any, scope: str | None, scope_id: str | None, **options: Any) -> Any:
        short = {kind: options.pop(f"{kind}_scope") for kind in RESOLUTION}
        return function(*args, scope=_chosen(scope, scope_id, short), **options)

    short_forms = [
        click.option(f"--{kind}", f"{kind}_scope", metavar="ID", help=f"Short for --scope {kind} --scope-id ID.")
        for kind in RESOLUTION
        if kind != "global"
    ]
    options = [
        click.option("--scope", type=click.Choice(RESOLUTION), metavar="KIND", help=f"One of {', '.join(RESOLUTION)}."),
        click.option("--scope-id", metavar="ID", help="Which workflow, session or actor."),
        *short_forms,
        click.option("--global", "global_scope", is_flag=True, help="Short for --scope global."),
    ]
    for option in reversed(options):
        with_scope = option(with_scope)
    return with_scope


def to_write(scope: AnyScope | None) -> Scope:
    """The one scope that a write goes to: the global one unless another was named."""
    if scope is None:
        return GLOBAL
    kind, id = scope
    if id is None:
        raise click.UsageError(f"--scope {kind} does not say which one: add --scope-id ID", click.get_current_context())
    return Scope(kind, id)


def to_read(scope: AnyScope | None) -> tuple[AnyScope, ...]:
    """The scopes that a command looks at: all there are unless one was named."""
    return EVERYWHERE if scope is None else (scope,)


def option_for(scope: Scope) -> str:
    """The option that names a scope, as one would type it in a shell."""
    return "--global" if scope == GLOBAL else f"--{scope.kind} {shlex.quote(scope.id)}"


def choices(scopes: Sequence[Scope]) -> str:
    """The options, one of which names the scope that is meant."""
    options = [option_for(scope) for scope in scopes]
    left = len(options) - _NAMED
    if left > 0:
        return f"{', '.join(options[:_NAMED])} … `agentfield ls` lists the other {left}"
    return " or ".join(filter(None, (", ".join(options[:-1]), options[-1])))


def named(scope: Scope) -> str:
    """A scope as a sentence names it."""
    return "the global scope" if scope.kind == "global" else f"{scope.kind} {shown(scope.id)}"


def _chosen(kind: str | None, id: str | None, short: dict[Any, Any]) -> AnyScope | None:
    named: list[tuple[str, str | None]] = [(kind, id)] if kind is not None else []
    given = {each: value for each, value in short.items() if value is not None and value is not False}
    named += [(each, None if each == "global" else value) for each, value in given.items()]
    if len(named) > 1 or (id is not None and kind is None):
        problem = "two scopes are named: choose one" if len(named) > 1 else "--scope-id needs --scope"
        raise click.UsageError(problem, click.get_current_context())
    if not named:
        return None
    chosen, chosen_id = named[0]
    if chosen == "global" and chosen_id is None:
        return "global", GLOBAL.id
    if chosen_id is None:
        return check_scope_kind(chosen), None
    scope = Scope.of(chosen, chosen_id)
    return scope.kind, scope.id
