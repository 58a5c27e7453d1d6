"""The demo runs as its first lines promise: by itself, in a minute, and without a trace."""

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from examples.support.processes import AGENTS
from tests.docs.serving import PROJECT
from tests.support.waiting import wait_until

_MARK = "DEMO_OF_TEST"
_PROMISED = 60.0


class Demo:
    """A run of the demo: its output, its files and its processes."""

    def __init__(self, directory: Path, *arguments: str, model: str = "") -> None:
        self.files = directory / "files"
        self.files.mkdir()
        self._output = directory / "output"
        self._mark = secrets.token_hex(8)
        self.environment = {
            **os.environ,
            "TMPDIR": str(self.files),
            "AGENTFIELD_HOME": str(directory / "users-home"),
            "AGENTFIELD_NATS_URL": "nats://127.0.0.1:1",  # the user's own server, which the demo leaves alone
            "AGENTFIELD_NAMESPACE": "users",
            "AGENTFIELD_AI_MODEL": model,
            _MARK: self._mark,
        }
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "examples.support.demo", *arguments],
                cwd=PROJECT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        return self._output.read_text()

    def wait_until_said(self, text: str) -> None:
        wait_until(lambda: text in self.said() or self._process.poll() is not None, within=_PROMISED, what=repr(text))
        assert text in self.said()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait_end(self) -> int:
        return self._process.wait(_PROMISED)

    def processes(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._started(process)]

    def agent(self, name: str) -> psutil.Process:
        file = f"{name.replace('-', '_')}.py"
        (found,) = (process for process in self.processes() if process.cmdline()[-1].endswith(file))
        return found

    def assert_no_trace(self) -> None:
        assert self.processes() == []
        assert list(self.files.iterdir()) == []

    def dispose(self) -> None:
        for process in self.processes():
            process.kill()
        self._process.wait()

    def _started(self, process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == self._mark
        except (psutil.Error, OSError):
            return False


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    """Return a function that starts the demo; whatever it leaves is ended after the test."""
    started: list[Demo] = []

    def start(*arguments: str, model: str = "") -> Demo:
        started.append(Demo(tmp_path, *arguments, model=model))
        return started[-1]

    yield start
    for each in started:
        each.dispose()


def test_it_shows_the_run_the_state_and_the_past_and_leaves_no_trace(demo: Callable[..., Demo]) -> None:
    run = demo()
    assert run.wait_end() == 0, run.said()
    said = run.said()

    assert "a stand-in, not a model" in said
    for agent in AGENTS:
        assert re.search(rf"^ +(\d+ .*)?{agent} ", said, re.MULTILINE), f"{agent} is not seen to do anything:\n{said}"
    # Who reacted to what: the escalation is because of the routing, and that because of triage or history.
    (routed,) = re.findall(r"^ *(\d+) ← \d+ +routing-agent +workflow ticket-1001 +ticket_1001_team", said, re.MULTILINE)
    assert re.search(rf"← {routed} +escalation-handler +workflow ticket-1001 +ticket_1001_escalated", said)
    for noted in ("CASE-1001 opened with P1", "CASE-1004 opened with P2", "ada wrote before: 1001", "paged everybody"):
        assert f"“{noted}" in said
    assert "“INC-" in said
    assert '"earlier": ["1001"]' in said
    listed, past = said.partition("What is in memory now")[2].split("How one key came to its value")
    for scope in ("workflow  ticket-1004", "session  ada", "actor  analytics-agent", "global  -"):
        assert scope in listed
    assert len(re.findall(r"^\S+Z r\d+ global support_trend ", past, re.MULTILINE)) == 4
    took = re.search(r"^Done in ([\d.]+) s\. The demo's processes and data are gone\.$", said, re.MULTILINE)
    assert took is not None
    assert float(took[1]) < _PROMISED
    run.assert_no_trace()
    assert not Path(run.environment["AGENTFIELD_HOME"]).exists(), "the user's own home was touched"


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "Server"),
        (signal.SIGINT, "tickets come in at once"),
        (signal.SIGTERM, "tickets come in at once"),
        (signal.SIGHUP, "tickets come in at once"),
    ],
)
def test_ended_from_outside_it_leaves_no_trace(demo: Callable[..., Demo], number: signal.Signals, moment: str) -> None:
    run = demo()
    run.wait_until_said(moment)
    run.signal(number)
    assert run.wait_end() == 130, run.said()
    assert "Interrupted" in run.said()
    assert "Traceback" not in run.said()
    run.assert_no_trace()


def test_an_agent_that_dies_is_named(demo: Callable[..., Demo]) -> None:
    run = demo()
    wait_until(lambda: len(run.processes()) > len(AGENTS), within=_PROMISED, what="the agents are started")
    run.agent("routing-agent").kill()
    assert run.wait_end() == 1
    assert "The demo failed: routing-agent ended with code -9" in run.said()
    run.assert_no_trace()


def test_a_model_that_cannot_be_used_is_said_in_a_sentence(demo: Callable[..., Demo]) -> None:
    run = demo(model="no_such_module:model")
    assert run.wait_end() == 1
    assert "Model   no_such_module:model" in run.said()
    assert "the model 'no_such_module:model' cannot be imported" in run.said()
    assert "Traceback" not in run.said()
    run.assert_no_trace()


def test_what_it_keeps_can_be_looked_at_with_the_commands_it_shows(demo: Callable[..., Demo]) -> None:
    run = demo("--keep")
    assert run.wait_end() == 0, run.said()
    shown = run.said().partition("To look around:")[2]
    commands = [line.strip() for line in shown.splitlines() if line.startswith("    ")]
    assert len(commands) == 9
    assert [process.name() for process in run.processes()] == ["nats-server"]

    # Only the command that follows goes on until Ctrl-C, which it gets here after two seconds.
    limited = [
        re.sub(r"^(.* tail [^#]*)#.*$", r"timeout --signal=INT 2 \1 || test $? = 124", line) for line in commands
    ]
    script = "\n".join(["set -e", *limited])
    shell = subprocess.run(["bash", "-c", script], cwd=PROJECT, env=run.environment, capture_output=True, text=True)
    assert shell.returncode == 0, shell.stderr
    assert "AGENTFIELD_MEMORY" in shell.stdout
    assert '"tickets":4' in shell.stdout
    run.assert_no_trace()
