"""Asking before something is done that cannot be undone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

yes_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--yes", is_flag=True, help="Do it without asking."
)


def confirmed(question: str, *, yes: bool) -> bool:
    """Whether it is to be done. Where nobody can be asked it must have been said before: else it is wrong usage."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on: add --yes", click.get_current_context())
    return click.confirm(question, err=True)
