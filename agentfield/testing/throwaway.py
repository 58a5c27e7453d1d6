"""A server for one test session, that is gone with its data when the session is, however that ends.

Owns: the server's home, and the guard, a process that waits for the end of this one: the kernel closes the pipe between
them even after ``kill -9``. Must not know: pytest. Invariant: the guard runs before the server does.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentfield.local import Server, lifecycle
from agentfield.local.config import any_ports

PATIENCE = 2.0
"""Seconds the server gets to end; it is killed then, since its data is thrown away."""
_GUARD_DEADLINE = 20.0


@contextmanager
def throwaway_server(home: Path) -> Iterator[Server]:
    """A server on ports that nobody looks at, with its data in ``home``, which is removed at the end. Blocking.

    Raises UnavailableError and IncompatibleServerError if none can be had; nothing is left then.
    """
    guard = subprocess.Popen(
        [sys.executable, "-P", "-m", "agentfield.testing.throwaway", home],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # who reads the output of a killed session must not wait for the guard
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C at the terminal is for the tests
    )
    try:
        yield lifecycle.ensure(home, choices=zip(any_ports(), any_ports(), strict=False))
    finally:
        try:
            guard.communicate(timeout=_GUARD_DEADLINE)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.communicate()
        dispose(home)


def dispose(home: Path) -> None:
    """Stop the server of that home, if it runs, and remove the home. Blocking."""
    lifecycle.stop(home, patience=PATIENCE)
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.stdin.buffer.read()  # returns when the last writer of the pipe is gone: the session that started this process
    dispose(Path(sys.argv[1]))
