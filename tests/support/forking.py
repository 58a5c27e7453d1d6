"""Short commands of the command line, without what the start of each costs: nearly all of that is imports.

A command is forked from a process that has imported the command line (``programs/template.py``). What users have is
still what is tested: the first command of each name is a process of the installed script, and so is every one whose
environment has something of its own to say to an interpreter that starts. Templates live until :func:`end`.
"""

import io
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Final

import click

from agentfield.cli.root import COMMANDS, root

SCRIPT = Path(sysconfig.get_path("scripts")) / "agentfield"

STARTED_WITH: Final[Mapping[str, str]] = {"PYTHONUNBUFFERED": "", "PYTHONWARNINGS": "error"}
"""What a command finds in its environment, beside that of the tests, if it is to be forked.

Not unbuffered, even where the tests are: whether a line is there at once is for the command to see to.
"""

_TEMPLATE = Path(__file__).parent / "programs" / "template.py"
_FOR_INTERPRETERS = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_")
"""How the names begin of variables that are read when a process starts, and never again."""
_END_WITHIN = 10.0
_PIECE = 65536
_Outputs = tuple[io.FileIO, io.FileIO]

_idle: list["Template"] = []
_named: set[tuple[str, ...]] = set()
"""The commands there have been."""


def run(
    arguments: Sequence[str], *, environment: Mapping[str, str], directory: Path | None, given: bytes, within: float
) -> subprocess.CompletedProcess[bytes]:
    """Run a command of the installed script to its end, as :func:`subprocess.run` does when it captures what is said.

    Raises subprocess.TimeoutExpired, and the command is killed, if it does not end in time.
    """
    command = [str(SCRIPT), *arguments]
    if not _can_be_forked(arguments, environment):
        return subprocess.run(
            command, input=given, capture_output=True, timeout=within, env=environment, cwd=directory, check=False
        )
    try:
        template = _idle.pop()
    except IndexError:  # one that is busy is not waited for: commands that run side by side may wait for one another
        template = Template(SCRIPT)
    asked = {"arguments": arguments, "environment": environment, "directory": str(directory or Path.cwd())}
    try:
        done = subprocess.CompletedProcess(command, *template.run(asked, given, within))
    except TimeoutError:
        _idle.append(template)
        raise subprocess.TimeoutExpired(command, within) from None
    _idle.append(template)
    return done


def end() -> None:
    """End the templates."""
    while _idle:
        _idle.pop().end()


def _can_be_forked(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    first = next((at for at, argument in enumerate(arguments) if argument in COMMANDS), None)
    if first is None:
        return False
    grouped = isinstance(root.get_command(click.Context(root), arguments[first]), click.Group)
    name = tuple(arguments[first : first + 1 + grouped])
    if name not in _named:
        _named.add(name)
        return False
    return _for_interpreters(environment) == _for_interpreters(_environment())


@cache
def _environment() -> dict[str, str]:
    """The environment of every template: that of the first, for tests change their own."""
    return {**os.environ, **STARTED_WITH}


def _for_interpreters(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_FOR_INTERPRETERS)}


class Template:
    """A process that forks for runs of a script, one after the other."""

    def __init__(self, script: Path) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(_TEMPLATE), str(script)],
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,  # the kind of stream that its children have
                stderr=subprocess.PIPE,
                env=_environment(),
            )

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def run(self, asked: Mapping[str, object], given: bytes, within: float) -> tuple[int, bytes, bytes]:
        """Run it to its end. Returns its exit code, below zero if a signal ended it, and what it has said.

        Raises TimeoutError, and it is killed, if it does not end in time.
        """
        until = time.monotonic() + within
        with ExitStack() as ours:
            with ExitStack() as theirs:
                stdin, to_stdin = _pipe(theirs, ours)
                from_stdout, stdout = _pipe(ours, theirs)
                from_stderr, stderr = _pipe(ours, theirs)
                answers, request = socket.socketpair()
                ours.enter_context(answers)
                theirs.enter_context(request)
                with self._there():
                    passed = [end.fileno() for end in (stdin, stdout, stderr, request)]
                    socket.send_fds(self._control, [b"!"], passed)
            told = ours.enter_context(answers.makefile("rb"))
            with self._there():
                answers.sendall(json.dumps(asked).encode())
                answers.shutdown(socket.SHUT_WR)
                child = _number(told.readline())
            try:
                said = _exchange(given, to_stdin, (from_stdout, from_stderr), until)
                answers.settimeout(max(0.001, until - time.monotonic()))
                with self._there():
                    return (_number(told.readline()), *said)
            except TimeoutError:
                os.kill(child, signal.SIGKILL)
                answers.settimeout(None)
                answers.recv(_PIECE)  # it is gone
                raise

    def end(self) -> None:
        """End the process."""
        self._control.close()
        said = self._process.communicate(timeout=_END_WITHIN)
        assert (self._process.returncode, *said) == (0, b"", b""), said

    @contextmanager
    def _there(self) -> Iterator[None]:
        try:
            yield
        except ConnectionError:
            self._control.close()
            _, said = self._process.communicate(timeout=_END_WITHIN)
            how = f"the template has ended with code {self._process.returncode}"
            raise RuntimeError(f"{how}:\n{said.decode()}") from None


def _number(line: bytes) -> int:
    if not line:
        raise ConnectionResetError
    return int(line)


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[io.FileIO, io.FileIO]:
    """A pipe, and who closes each of its ends."""
    reading, writing = os.pipe()
    return reader.enter_context(io.FileIO(reading, "rb")), writer.enter_context(io.FileIO(writing, "wb"))


def _exchange(
    given: bytes, stdin: io.FileIO, outputs: tuple[io.FileIO, io.FileIO], until: float
) -> tuple[bytes, bytes]:
    """Give it what it reads, and take what it says until it says no more. Raises TimeoutError."""
    os.set_blocking(stdin.fileno(), False)
    said: dict[object, bytes] = dict.fromkeys(outputs, b"")
    with selectors.DefaultSelector() as selector:
        selector.register(stdin, selectors.EVENT_WRITE)
        for output in outputs:
            selector.register(output, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, until - time.monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                if key.fileobj is stdin:
                    try:
                        given = given[stdin.write(given[:_PIECE]) or 0 :]
                    except BrokenPipeError:  # it does not want more
                        given = b""
                    if not given:
                        selector.unregister(stdin)
                        stdin.close()
                elif piece := os.read(key.fd, _PIECE):
                    said[key.fileobj] += piece
                else:
                    selector.unregister(key.fileobj)
    first, second = outputs
    return said[first], said[second]
