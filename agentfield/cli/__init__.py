"""The command line: ``agentfield``, and ``python -m agentfield``.

Owns: the process around a command: its streams, its exit code, the one line that an error becomes. The only package
that prints or exits. Invariants: no traceback of agentfield's ever reaches a user; ``--help`` loads neither the NATS
client nor Pydantic, and a command only what it needs. A command group is one file in
``commands`` and one line in ``root``; what several of them need, or one too much of, lies beside.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Runs the command that the process's arguments name, and exits."""
    gc.disable()  # a quarter of a short command's time, and it finds nothing while things load; commands run with it
    from agentfield.cli import ending  # after this module: a Ctrl-C while the rest is loading is quiet too

    _prepare_streams()
    sys.exit(ending.code_of(_run))


def _run() -> int:
    from agentfield.cli.root import root

    code = root.main(prog_name="agentfield", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _prepare_streams() -> None:
    """Whatever is printed can be printed: a closed stream swallows it, one that is not UTF-8 shows escapes."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it lives as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
