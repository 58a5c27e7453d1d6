"""No process of a test session outlives it.

Every process that a session starts, however deep or detached, inherits one environment variable that names the session.
That finds whatever was left behind, at the session's end and, by a guard that waits for the session's own death, also
when it was killed before it could clean up.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

SESSION_VARIABLE = "AGENTFIELD_TEST_SESSION"

_END_WITHIN = 5.0


def survivors(session: str) -> list[psutil.Process]:
    """Return the processes that were started with that session's variable, without the one that asks."""
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and _belongs(process, session)]


def end(processes: list[psutil.Process]) -> None:
    """Kill them and wait until they are gone."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=_END_WITHIN)


@contextmanager
def guarded(session: str) -> Iterator[None]:
    """Have a process wait for this one's end, in whatever way it comes, and then end what the session left."""
    guard = subprocess.Popen(
        [sys.executable, "-m", __name__, session],
        stdin=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != SESSION_VARIABLE},
        start_new_session=True,
    )
    try:
        yield
    finally:
        if guard.stdin is not None:
            guard.stdin.close()
        guard.wait()


def _belongs(process: psutil.Process, session: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(SESSION_VARIABLE) == session
    except (psutil.Error, OSError):  # gone meanwhile, or somebody else's
        return False


if __name__ == "__main__":
    sys.stdin.read()  # returns when the last writer of the pipe, the test session, is gone
    end(survivors(sys.argv[1]))
