"""A process that has imported the command line and forks for each command: ``template.py SCRIPT``.

Nearly all of what a short command costs is the start of Python and the imports, and tests start thousands of them. A
child becomes what the script would be: it gets the command's arguments, environment, directory and streams, runs the
very text of the script as ``__main__``, and ends as the interpreter ends. Its standard streams are those that the
interpreter made when the template started, on pipes and never used.

On stdin is a socket. A message there carries four descriptors: stdin, stdout and stderr of the child, and a socket on
which the rest of the request is read and the child's number and then its exit code are told. The template ends when the
other side of its stdin is closed. The other side is :mod:`tests.support.forking`.
"""

import gc
import importlib
import json
import os
import runpy
import socket
import sys
import threading
import time
from pathlib import Path

_LATER = {"cryptography", "duckdb", "jinja2", "litellm", "pyarrow", "rich", "uvloop"}
"""What only some commands need: it is for them to load it."""


def prepare() -> None:
    """Import what commands are made of."""
    from agentfield.cli.root import COMMANDS

    for entry in COMMANDS.values():
        importlib.import_module(f"agentfield.cli.commands.{entry.module}")
    importlib.import_module("agentfield.cli.connecting")
    if too_much := [*(_LATER & sys.modules.keys()), *threading.enumerate()[1:]]:
        raise RuntimeError(f"the commands cannot be imported without {too_much}")
    gc.freeze()  # else each child, at its end, would look for garbage among what it shares, and copy all of it


def wait_to_become_one(control: socket.socket) -> socket.socket | None:
    """Fork for each request, one at a time. Returns in the child, with its request, and, with None, at the end."""
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 4)
        if not descriptors:
            return None
        streams, request = descriptors[:3], socket.socket(fileno=descriptors[3])
        child = os.fork()
        if child == 0:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            return request
        for stream in streams:
            os.close(stream)
        with request:
            request.sendall(b"%d\n" % child)
            _, status = os.waitpid(child, 0)
            request.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def become(request: socket.socket) -> None:
    """Make this process what a new one would be."""
    with request, request.makefile("rb") as file:
        asked = json.load(file)
    sys.argv[1:] = asked["arguments"]
    os.environ.clear()
    os.environ.update(asked["environment"])
    time.tzset()
    os.chdir(asked["directory"])


if __name__ == "__main__":
    script = sys.argv[1]
    sys.path[0] = str(Path(script).parent)
    prepare()
    with socket.socket(fileno=os.dup(0)) as control:
        request = wait_to_become_one(control)
    if request is not None:
        become(request)
        runpy.run_path(script, run_name="__main__")
