"""The command line as its users have it: the installed script, run as a process.

Commands that only run to their end may be forked instead: :mod:`tests.support.forking` says which, and why that is the
same.
"""

import json
import os
import pty
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import forking, wait_until
from tests.support.forking import SCRIPT

_DEADLINE = 30.0


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[Any]:
        """What it printed with --json."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def object(self) -> Any:
        """The one object it printed."""
        (found,) = self.objects
        return found

    @property
    def lines(self) -> list[str]:
        """What it printed."""
        return self.out.splitlines()

    @property
    def error(self) -> str:
        """The one line of its error; it printed nothing else."""
        assert (self.out, self.err.count("\n")) == ("", 1), self
        assert self.err.startswith("error: "), self
        return self.err.removeprefix("error: ").rstrip("\n")


class Running:
    """A command that goes on until it is told to stop, and what it has printed so far."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: Path | None) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
            text=True,
            encoding="utf-8",
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((self._process.stdout, self.out), (self._process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def wait_line(self, text: str, *, within: float = _DEADLINE) -> str:
        """Return the first line, on stdout or stderr, that holds the text, as soon as it is there."""

        def found() -> str | None:
            return next((line for line in [*self.out, *self.err] if text in line), None)

        return wait_until(found, within=within, what=f"a line with {text!r} in {self.out} {self.err}")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def end(self, number: signal.Signals | None = None, *, within: float = _DEADLINE) -> Result:
        """Send it a signal if one is given, and return how it ended."""
        if number is not None:
            self.send(number)
        code = self._process.wait(within)
        for reader in self._readers:
            reader.join(within)
        return Result(code, "".join(self.out), "".join(self.err))

    def dispose(self) -> None:
        """Kill it if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self.end()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    @staticmethod
    def _read(stream: Any, lines: list[str]) -> None:
        for line in stream:
            lines.append(line)


class Cli:
    """Runs the script with an environment of its own."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = {**os.environ, **forking.STARTED_WITH, **env}
        self._running: list[Running] = []

    def __call__(
        self,
        *args: str,
        input: str | bytes = b"",
        cwd: Path | None = None,
        command: Sequence[str | Path] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a command to its end: of the script, or of another way to start it."""
        given = input.encode() if isinstance(input, str) else input
        environment = {**self.env, **(env or {})}
        if command is None:
            done = forking.run(args, environment=environment, directory=cwd, given=given, within=_DEADLINE)
        else:
            done = subprocess.run(
                [*command, *args],
                input=given,
                capture_output=True,
                timeout=_DEADLINE,
                env=environment,
                cwd=cwd,
                check=False,
            )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *args: str, cwd: Path | None = None) -> Running:
        """Start a command that goes on."""
        self._running.append(Running([str(SCRIPT), *args], self.env, cwd))
        return self._running[-1]

    def into_closed_pipe(self, *args: str) -> tuple[int, str]:
        """Run a command whose reader is gone already; return its exit code and what it said on stderr."""
        reading, writing = os.pipe()
        os.close(reading)
        try:
            done = subprocess.run(
                [SCRIPT, *args],
                stdout=writing,
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                timeout=_DEADLINE,
                env=self.env,
                check=False,
            )
        finally:
            os.close(writing)
        return done.returncode, done.stderr.decode()

    def on_terminal(self, *args: str, with_notes: bool = False) -> str:
        """Run a command whose output is a terminal of 80 columns, and return what it shows on stdout."""
        ours, terminal = pty.openpty()
        env = {**self.env, "TERM": "xterm-256color", "COLUMNS": "80"}
        env.pop("NO_COLOR", None)
        with subprocess.Popen(
            [SCRIPT, *args], stdin=subprocess.DEVNULL, stdout=terminal, stderr=subprocess.PIPE, env=env
        ) as process:
            os.close(terminal)
            shown = b""
            try:
                while chunk := os.read(ours, 65536):
                    shown += chunk
            except OSError:  # how Linux says that the other side is closed
                pass
            finally:
                os.close(ours)
            _, errors = process.communicate(timeout=_DEADLINE)
            assert process.returncode == 0
            assert with_notes == (errors != b""), errors
        return shown.decode().replace("\r\n", "\n")

    def dispose(self) -> None:
        """End what was started."""
        for running in self._running:
            running.dispose()
