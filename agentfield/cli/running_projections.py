"""Running projections until a signal: each by itself, so that one that fails stops alone."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Sequence
from typing import Any

from agentfield.cli.ending import WithDetails
from agentfield.cli.invocation import Invocation
from agentfield.cli.traces import users_frames
from agentfield.errors import AgentFieldError, ProjectionError
from projections.runner import Runner

logger = logging.getLogger("agentfield.projections")


async def bring_up_to_date(runners: Sequence[Runner], invocation: Invocation) -> None:
    """Bring one view after the other up to date. Raises one error for all that failed, when all have had their turn."""
    failures = []
    for runner in runners:
        try:
            checkpoint = await runner.catch_up()
            await check_not_paused(runner, checkpoint)
            say_where(invocation, runner.name, "checkpoint", checkpoint, "is current up to event")
        except ProjectionError as error:
            failures.append(error)
    if failures:
        raise _all_of(failures)


async def check_not_paused(runner: Runner, checkpoint: int) -> None:
    """Raises :class:`ProjectionError` if the view could not be brought further than this since it is paused."""
    async with runner.opened() as view:
        if (await view.head()).paused:
            raise ProjectionError(
                f"{runner.name} is paused after event {checkpoint}: `agentfield projections resume {runner.name}` "
                "lets it go on",
                projection=runner.name,
            )


async def run_all(runners: Sequence[Runner]) -> None:
    """Run them until a signal, or until the last of them has stopped by itself."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()

    def stop() -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(each)  # a second one ends at once
        told.set()

    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, stop)
    tasks = [asyncio.create_task(_one(runner), name=f"run {runner.name}") for runner in runners]
    waiting = asyncio.create_task(told.wait())
    try:
        running: set[asyncio.Task[Any]] = set(tasks)
        while running and not told.is_set():
            await asyncio.wait({*running, waiting}, return_when=asyncio.FIRST_COMPLETED)
            running = {task for task in running if not task.done()}
        if told.is_set():
            return
        raise _all_of([error for task in tasks if (error := task.result()) is not None])
    finally:
        for task in (*tasks, waiting):
            task.cancel()
        await asyncio.gather(*tasks, waiting, return_exceptions=True)


async def _one(runner: Runner) -> AgentFieldError | None:
    """Run one until it fails; what it failed with is told at once, since others may run on for long."""
    try:
        await runner.run()
    except AgentFieldError as error:
        logger.error("%s", error, exc_info=error.__cause__ if _steps(error) else None)
        return error
    return None


def _all_of(failures: Sequence[AgentFieldError]) -> AgentFieldError:
    """One error for all; with the steps through the user's code if there is just one."""
    if len(failures) == 1:
        return WithDetails(str(failures[0]), steps) if (steps := _steps(failures[0])) else failures[0]
    return AgentFieldError(f"{len(failures)} projections stopped: " + "; ".join(map(str, failures)))


def _steps(error: AgentFieldError) -> tuple[str, ...]:
    """The steps through the user's code; none where it was a store that could not go on."""
    return () if error.__cause__ is None else users_frames(error.__cause__, or_last=False)


def say_where(invocation: Invocation, name: str, field: str, value: int, what: str) -> None:
    """Print where a view stands, in words or as an object."""
    if invocation.json:
        invocation.output.object({"projection": name, field: value})
    else:
        invocation.output.text(f"{name} {what} {value}")
