"""What a replay needs of a terminal: how fast, one event after the other, and how far it is.

Owns: ``--pace``, the steps that Enter makes, and the bar. Must not know: what is done with an event. Invariant: nothing
here writes to stdout; a bar is drawn on a terminal alone.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from agentfield.codec import Record
from agentfield.replay.pacing import AsRecorded, AtOnce, Pace

Speed = float | Literal["none", "step"]
"""How fast: so many times as fast as it was, at once, or an event for each Enter."""

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    _Speeds = click.ParamType[Speed]  # generic for type checkers only: at run time, only later versions of click are so
else:
    _Speeds = click.ParamType

_TIMES: Final = re.compile(r"(\d+(?:\.\d+)?)[x×]", re.ASCII)
_HELP: Final = "Enter: the next event; a number: so many; q: stop"


class _Speed(_Speeds):
    """A pace."""

    name = "pace"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Speed:
        """``none``, ``original``, ``step``, or a number with an x."""
        text = str(value)
        if text in ("none", "step"):
            return "none" if text == "none" else "step"
        if text == "original":
            return 1.0
        found = _TIMES.fullmatch(text)
        if found is None or not 0 < float(found[1]) < 1e9:
            self.fail(
                f"{text!r} is no pace: none, original, a factor such as 10x (ten times as fast) or 0.5x, or step",
                param,
                ctx,
            )
        return float(found[1])


PACE: Final = _Speed()

Show = Callable[[Record, Record | None], Awaitable[None]]


def check_pace(speed: Speed, longest: float | None) -> None:
    """Wrong usage: steps where there is no terminal to press Enter on, and a longest pause where nothing pauses."""
    context = click.get_current_context()
    if longest is not None and not isinstance(speed, float):
        raise click.UsageError("--max-pause is for a pace that pauses: add --pace original, or such as 10x", context)
    if speed == "step" and not sys.stdin.isatty():
        raise click.UsageError(
            "--pace step waits for Enter, and here is no terminal to press it on: use --pace original, or such as 10x",
            context,
        )


def pace_of(speed: Speed, longest: float | None, show: Show | None = None) -> Pace:
    """What decides on the turn of each event; ``show`` prints one that has its turn by a step."""
    if isinstance(speed, float):
        return AsRecorded(speed, longest)
    return AtOnce() if speed == "none" else _Stepping(show)


class _Stepping:
    """An event for each Enter, or as many as are asked for."""

    def __init__(self, show: Show | None) -> None:
        self._show = show
        self._granted = 0
        self._begun = False
        self._lines: deque[str] = deque()
        self._partial = ""

    def is_due(self, record: Record) -> bool:
        """Whether it was granted before."""
        return self._granted > 0

    async def turn(self, record: Record, previous: Record | None) -> bool:
        """Wait until somebody grants it; False if they have seen enough."""
        if not self._granted and not await self._ask():
            return False
        self._granted -= 1
        if self._show is not None:
            await self._show(record, previous)
        return True

    async def _ask(self) -> bool:
        while True:
            sys.stdout.flush()
            print(f"{_HELP} " if not self._begun else "", end="> ", file=sys.stderr, flush=True)
            self._begun = True
            line = await self._line()
            if line is None or line.strip() in ("q", "quit"):
                return False
            text = line.strip()
            if not text or (text.isascii() and text.isdigit() and int(text[:9]) > 0):
                self._granted = int(text[:9] or 1)
                return True
            self._begun = False

    async def _line(self) -> str | None:
        """The next line that is typed, without holding a thread that Ctrl-C could not end; None at the end of input."""
        loop = asyncio.get_running_loop()
        descriptor = sys.stdin.fileno()
        while not self._lines:
            readable = asyncio.Event()
            loop.add_reader(descriptor, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(descriptor)
            chunk = os.read(descriptor, 4096)
            if not chunk:
                return None
            *lines, self._partial = (self._partial + chunk.decode(errors="replace")).split("\n")
            self._lines.extend(lines)
        return self._lines.popleft()


class Progress:
    """Is told how far something is: the revision, and how many events that is."""

    def __init__(self, bar: Bar | None = None, task: Any = None, first: int = 0) -> None:
        self._bar = bar
        self._task = task
        self._first = first

    def __call__(self, revision: int, events: int) -> None:
        """It has come so far."""
        if self._bar is not None:
            self._bar.update(self._task, completed=max(0, revision - self._first + 1), events=events)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The bar is out of the way inside: for what is printed meanwhile."""
        if self._bar is None:
            yield
            return
        self._bar.stop()
        try:
            yield
            sys.stdout.flush()
        finally:
            self._bar.start()


@contextmanager
def progress(
    what: str, first: int, last: int | None, *, of: str = "events", hidden: bool = False
) -> Iterator[Progress]:
    """A bar on stderr, if that is a terminal, for going through the revisions from ``first`` to ``last``.

    Without ``last``, it is not known how far that is. ``of`` says what is counted.
    """
    if hidden or not sys.stderr.isatty():
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn(f"{{task.fields[events]:,}} {of}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, redirect_stdout=False, redirect_stderr=False, transient=True) as bar:
        total = None if last is None else max(1, last - first + 1)
        yield Progress(bar, bar.add_task(what, total=total, events=0), first)
