"""A test session leaves nothing running, even when it is killed."""

import secrets
import subprocess
import sys
from pathlib import Path

import psutil

from tests.support import processes, wait_until

# A session that starts a process which detaches itself, says its id, and waits to be killed.
SESSION = f"""
import os, subprocess, sys
from tests.support import processes
os.environ[processes.SESSION_VARIABLE] = sys.argv[1]
with processes.guarded(sys.argv[1]):
    sleeper = [{sys.executable!r}, "-c", "import time; time.sleep(60)"]
    print(subprocess.Popen(sleeper, start_new_session=True).pid, flush=True)
    sys.stdin.read()
"""


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_what_a_killed_session_started_ends_with_it() -> None:
    name = secrets.token_hex(8)
    command = [sys.executable, "-c", SESSION, name]
    root = Path(__file__).parents[2]
    session = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
    try:
        with session:
            assert session.stdout is not None
            pid = int(session.stdout.readline())
            assert [process.pid for process in processes.survivors(name)] == [pid]
            session.kill()
        wait_until(lambda: not runs(pid), within=10, what="the detached process is gone")
    finally:
        processes.end(processes.survivors(name))
