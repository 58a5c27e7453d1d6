"""Ending the demo from outside: Ctrl-C, SIGTERM and the terminal's end all come out as KeyboardInterrupt.

Owns: the one handler of these signals. Invariant: they interrupt neither what starts processes nor what cleans them up,
so nothing is left behind that nobody knows of.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class Endings:
    """What happens on a signal: at first, and between the blocks below, KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self._arrived = False
        self._react: Callable[[], object] = _interrupt
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def complete(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in a loop of its own; a signal cancels it, and comes out when it has ended."""

        async def cancellable() -> T:
            task, loop = asyncio.current_task(), asyncio.get_running_loop()
            assert task is not None
            with self._reacting(lambda: loop.call_soon_threadsafe(task.cancel)):
                return await coroutine

        with self.held():
            try:
                return asyncio.run(cancellable())
            except asyncio.CancelledError:
                raise KeyboardInterrupt from None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let a signal wait until the block is through."""
        with self._reacting(lambda: None):
            yield
        if self._arrived:
            self._react()

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """Forget signals while the block cleans up, which takes seconds at most."""
        with self._reacting(lambda: None):
            yield
        self._arrived = False

    @contextmanager
    def _reacting(self, react: Callable[[], object]) -> Iterator[None]:
        before, self._react = self._react, react
        try:
            if self._arrived:
                react()
            yield
        finally:
            self._react = before

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._arrived = True
        self._react()


def _interrupt() -> None:
    raise KeyboardInterrupt
