"""``python -m benchmarks``: measure, side by side in one run, and print what was found beside what is asked for."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping

from rich.console import Console

from agentfield.version import __version__
from benchmarks import (
    archiving,
    cached,
    concurrent,
    contention,
    crowd,
    expiring,
    handlers,
    past,
    projecting,
    single,
    starting,
    together,
    verifying,
)
from benchmarks.report import Table
from benchmarks.surroundings import Surroundings, surroundings

Benchmark = Callable[[Surroundings], Awaitable[Table]]

BENCHMARKS: Mapping[str, Benchmark] = {
    "set": single.writing,
    "get": single.reading,
    "concurrent": concurrent.concurrent,
    "get_many": together.get_many,
    "set_many": together.set_many,
    "transaction": together.transaction,
    "cached": cached.get_cached,
    "applied": cached.applied,
    "latency": handlers.latency,
    "handled": handlers.handled,
    "crowd": crowd.crowd,
    "projected": projecting.projected,
    "projecting-memory": projecting.memory_of_projecting,
    "increments": contention.increments,
    "expiring": expiring.expiring,
    "as_of": past.as_of,
    "history": past.history,
    "verify": verifying.verifying,
    "archive": archiving.archived,
    "import": starting.importing,
    "up": starting.up,
    "idle": starting.idle,
}


def main() -> None:
    """Run the named benchmarks, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run: {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller amounts")
    parser.add_argument("--json", action="store_true", help="one JSON object a line for each benchmark")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    failed = asyncio.run(_run(arguments.names or list(BENCHMARKS), quick=arguments.quick, as_json=arguments.json))
    if failed:
        sys.exit(f"broke off: {', '.join(failed)}")


async def _run(names: list[str], *, quick: bool, as_json: bool) -> list[str]:
    """Run these one after the other; return those that broke off. To miss a target is not to break off."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # so that servers are stopped
    console = Console(width=None if sys.stdout.isatty() else 130)
    if not as_json:
        load = os.getloadavg()[0]
        console.print(
            f"agentfield {__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, load {load:.1f}"
            f"{', quick' if quick else ''}"
        )
    failed = []
    for name in names:
        try:
            async with surroundings(quick=quick) as here:
                table = await BENCHMARKS[name](here)
        except Exception:  # noqa: BLE001  # whatever it was: the others can still be measured
            traceback.print_exc()
            failed.append(name)
            continue
        if as_json:
            print(json.dumps({"benchmark": name, **table.as_object()}), flush=True)
        else:
            console.print()
            table.show(console)
    return failed


if __name__ == "__main__":
    main()
