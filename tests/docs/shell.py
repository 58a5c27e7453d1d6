"""Console blocks as the documents write them: ``$ command`` and what it prints, run in a shell and compared.

What differs from run to run (times, ages, addresses, process numbers, generated ids) may be anything of its kind, and
so may the width of columns. A line that is only ``…`` stands for any number of lines.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.docs.markdown import Block
from tests.support.ports import free_ports
from tests.support.waiting import wait_until

_PATIENCE = 30.0
_REPEATABLE = re.compile(r"agentfield (get|ls|history|status|deadletters list|handlers list)\b")
"""Commands that only look: they are repeated while what they show is still on its way there."""

_CHANGING = (
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "<time>"),
    (re.compile(r"\b\d\d:\d\d:\d\d\b"), "<time>"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "<id>"),
    (re.compile(r"nats://127\.0\.0\.1:\d+"), "<url>"),
    (re.compile(r"nats-server \d+\.\d+\.\d+"), "nats-server <version>"),
    (re.compile(r"process \d+"), "process <number>"),
    (re.compile(r"(?<=\s)\d+[smhd](?=\s)"), "<age>"),
    (re.compile(r"(?<=\s)[\d.]+ k?B(?=\s|$)"), "<size>"),
    (re.compile(r"(?<=\s)/\S*?/(?=(jetstream|server\.log)$)"), "<home>/"),
)
_EXAMPLE_PORT = "14222"
"""The port on which the documents start a server; tests take one that is free."""


class Shell:
    """A directory, an environment, and the processes that were started in the background."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._directory = directory
        self._environment = environment
        self._port = str(free_ports(1)[0])
        self._background: list[tuple[str, subprocess.Popen[bytes]]] = []

    def write(self, name: str, text: str) -> None:
        """Save a file that a document shows."""
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace(_EXAMPLE_PORT, self._port))

    def play(self, block: Block) -> None:
        """Run the commands of a block. Raises AssertionError, with the place, where one prints something else."""
        for line, command, expected in _commands(block):
            place = f"{block.document}:{line}: {command}"
            actual = command.replace(_EXAMPLE_PORT, self._port)
            if (exported := re.fullmatch(r"export (\w+)=(\S+)", actual)) is not None:
                self._environment[exported[1]] = exported[2].replace("$PWD", str(self._directory))
            elif (forgotten := re.fullmatch(r"unset (\w+)", actual)) is not None:
                self._environment.pop(forgotten[1], None)
            elif actual.endswith(" &"):
                self._start(place, actual.removesuffix(" &"), expected)
            elif actual == "kill %1":
                self._end(*self._background.pop(0))
            else:
                self._run(place, actual, expected)

    def close(self) -> None:
        """End what was started in the background, and check that it ended well."""
        while self._background:
            self._end(*self._background.pop())

    def dispose(self) -> None:
        """Kill whatever is left."""
        for _, process in self._background:
            process.kill()
            process.wait()

    def _run(self, place: str, command: str, expected: list[str]) -> None:
        deadline = time.monotonic() + (_PATIENCE if _REPEATABLE.match(command) else 0)
        while True:
            ran = subprocess.run(
                ["bash", "-c", command],
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_PATIENCE,
            )
            if _agree(expected, ran.stdout):
                break
            if time.monotonic() > deadline:
                shown = "\n".join(expected)
                raise AssertionError(f"{place}\nprinted\n{ran.stdout}\ninstead of\n{shown}")
        failed_as_shown = any(line.startswith("error:") for line in expected)
        assert (ran.returncode != 0) == failed_as_shown, f"{place}: exit status {ran.returncode}\n{ran.stdout}"

    def _start(self, place: str, command: str, expected: list[str]) -> None:
        assert expected, f"{place}: show what it prints when it is ready, so that one knows when to go on"
        log = self._directory / f".background-{len(self._background)}-{time.monotonic_ns()}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._background.append((place, process))

        def has_said_it() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"{place}: ended with code {process.returncode}:\n{log.read_text()}")
            return _agree([*expected, "…"], log.read_text())

        wait_until(has_said_it, within=_PATIENCE, what=f"{place} prints {expected}")

    def _end(self, place: str, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)
        assert process.wait(_PATIENCE) == 0, f"{place}: ended with code {process.returncode}"


def user_environment(home: Path) -> dict[str, str]:
    """Return the environment of somebody who has just installed agentfield here, with a home of its own."""
    scripts = str(Path(sys.executable).parent)
    return {**os.environ, "AGENTFIELD_HOME": str(home), "PATH": os.pathsep.join([scripts, os.environ["PATH"]])}


def _commands(block: Block) -> Iterator[tuple[int, str, list[str]]]:
    """Each command with its line and the lines that it is to print."""
    lines = list(enumerate(block.text.splitlines(), block.line))
    assert lines[0][1].startswith("$ "), f"{block.place}: a console block begins with a command"
    while lines:
        number, text = lines.pop(0)
        command = text.removeprefix("$ ")
        while command.endswith("\\"):
            command = command.removesuffix("\\") + lines.pop(0)[1].lstrip()
        expected = []
        while lines and not lines[0][1].startswith("$ "):
            expected.append(lines.pop(0)[1])
        yield number, command.partition("   # ")[0].rstrip(), expected


def _agree(expected: Sequence[str], actual: str) -> bool:
    """Whether an output is what a document shows."""
    return _all_alike(list(expected), actual.splitlines())


def _all_alike(expected: list[str], printed: list[str]) -> bool:
    if not expected:
        return not printed
    if expected[0] == "…":
        return any(_all_alike(expected[1:], printed[skipped:]) for skipped in range(len(printed) + 1))
    return bool(printed) and _alike(expected[0], printed[0]) and _all_alike(expected[1:], printed[1:])


def _alike(expected: str, printed: str) -> bool:
    """Whether two lines are the same, but for what ``…`` stands for and what differs from run to run."""
    return any(
        re.fullmatch(re.escape(form(expected)).replace("…", ".*"), form(printed)) for form in (_narrowed, _settled)
    )


def _narrowed(line: str) -> str:
    """The line without the width of its columns."""
    return " ".join(line.split())


def _settled(line: str) -> str:
    """The line with everything that differs from run to run named by its kind."""
    for changing, name in _CHANGING:
        line = changing.sub(name, line)
    return _narrowed(line)
