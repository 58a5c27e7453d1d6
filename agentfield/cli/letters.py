"""Which dead letters a command means: by number, or by agent, handler and key.

Owns: those options, and finding the letters. Must not know: what is done with them. Invariant: a number that stands for
no letter is an error before anything is done to any.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

import click

from agentfield.agent.reasoner import check_name
from agentfield.errors import DecodeError, NotFoundError
from agentfield.fabric.fabric import Fabric
from agentfield.memory.reacting.letters import Letter
from agentfield.pattern import Pattern

logger = logging.getLogger("agentfield.cli")


class Choice(NamedTuple):
    """What letters must have to be meant; None is anything."""

    agent: str | None
    handler: str | None
    key: Pattern | None

    @property
    def is_all(self) -> bool:
        """Whether every letter is meant."""
        return self == (None, None, None)

    async def letters(self, fabric: Fabric) -> AsyncIterator[Letter]:
        """The letters that are meant, the oldest first."""
        async for record in fabric.deadletters.all(self.agent or "*", self.handler or "*"):
            try:
                letter = Letter.of(record)
            except DecodeError as error:
                logger.warning("skipped: %s", error)
                continue
            if self.key is None or (letter.key is not None and self.key.matches(letter.key)):
                yield letter


def choice_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options that choose letters; its function gets them as the one argument ``choice``."""

    @functools.wraps(function)
    def with_choice(*args: Any, agent: str | None, handler: str | None, key: str | None, **options: Any) -> Any:
        choice = Choice(
            None if agent is None else check_name(agent, what="agent"),
            None if handler is None else check_name(handler, what="handler"),
            None if key is None else Pattern.parse(key),
        )
        return function(*args, choice=choice, **options)

    for option in (
        click.option("--key", metavar="PATTERN", help="Only of keys that match the pattern."),
        click.option("--handler", metavar="NAME", help="Only of handlers of this name."),
        click.option("--agent", metavar="NAME", help="Only of this agent."),
    ):
        with_choice = option(with_choice)
    return with_choice


async def chosen(fabric: Fabric, numbers: Sequence[int], choice: Choice) -> list[Letter]:
    """The letters with these numbers or, without any, those that were chosen; in the order of their events in the log.

    Raises :class:`NotFoundError` for a number that stands for none.
    """
    if numbers:
        found = [await letter_of(fabric, number) for number in dict.fromkeys(numbers)]
    else:
        found = [letter async for letter in choice.letters(fabric)]
    return sorted(found, key=lambda letter: (letter.revision or 0, letter.number))


async def letter_of(fabric: Fabric, number: int) -> Letter:
    """The letter with this number. Raises :class:`NotFoundError`."""
    record = await fabric.deadletters.get(number)
    if record is None:
        raise NotFoundError(f"there is no dead letter {number} (any more): `agentfield deadletters list` shows them")
    return Letter.of(record)


def check_meant(numbers: Sequence[int], every: bool, choice: Choice) -> None:
    """Raises a usage error unless letters are named in just one way."""
    context = click.get_current_context()
    if numbers and (every or not choice.is_all):
        raise click.UsageError("give numbers, or --all with --agent, --handler or --key, not both", context)
    if not numbers and not every:
        raise click.UsageError("say which: their numbers, or --all", context)
