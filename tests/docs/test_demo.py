"""The demo runs as its first lines promise: by itself, in a minute, and without a trace."""

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
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
def directory(tmp_path: Path) -> Iterator[Path]:
    """Return a directory of this test's own; whatever was started with it in mind is ended."""
    yield tmp_path
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(tmp_path / "files"):
                process.kill()
        except (psutil.Error, OSError):
            continue


def test_it_shows_the_run_the_state_and_the_past_and_leaves_no_trace(directory: Path) -> None:
    demo = Demo(directory)
    assert demo.wait_end() == 0, demo.said()
    said = demo.said()

    assert "a stand-in, not a model" in said
    for agent in AGENTS:
        assert re.search(rf"^ +(\d+ .*)?{agent} ", said, re.MULTILINE), f"{agent} is not seen to do anything:\n{said}"
    # Who reacted to what: the escalation is because of the routing, and that because of triage or history.
    (routed,) = re.findall(r"^ *(\d+) ← \d+ +routing-agent +workflow ticket-1001 +ticket_1001_team", said, re.MULTILINE)
    assert re.search(rf"← {routed} +escalation-handler +workflow ticket-1001 +ticket_1001_escalated", said)
    assert "“INC-" in said
    assert '"earlier": ["1001"]' in said
    listed, past = said.partition("What is in memory now")[2].split("How one key came to its value")
    for scope in ("workflow  ticket-1004", "session  ada", "actor  analytics-agent", "global  -"):
        assert scope in listed
    assert len(re.findall(r"^\S+Z r\d+ global support_trend ", past, re.MULTILINE)) == 4
    took = re.search(r"^Done in ([\d.]+) s\. The demo's processes and data are gone\.$", said, re.MULTILINE)
    assert took is not None
    assert float(took[1]) < _PROMISED
    demo.assert_no_trace()
    assert not Path(demo.environment["AGENTFIELD_HOME"]).exists(), "the user's own home was touched"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["Server", "tickets come in at once"])
def test_ended_from_outside_it_leaves_no_trace(directory: Path, number: signal.Signals, moment: str) -> None:
    demo = Demo(directory)
    demo.wait_until_said(moment)
    demo.signal(number)
    assert demo.wait_end() == 130, demo.said()
    assert "Interrupted" in demo.said()
    assert "Traceback" not in demo.said()
    demo.assert_no_trace()


def test_an_agent_that_dies_is_named(directory: Path) -> None:
    demo = Demo(directory)
    wait_until(lambda: len(demo.processes()) > len(AGENTS), within=_PROMISED, what="the agents are started")
    demo.agent("routing-agent").kill()
    assert demo.wait_end() == 1
    assert "The demo failed: routing-agent ended with code -9" in demo.said()
    demo.assert_no_trace()


def test_a_model_that_cannot_be_used_is_said_in_a_sentence(directory: Path) -> None:
    demo = Demo(directory, model="no_such_module:model")
    assert demo.wait_end() == 1
    assert "Model   no_such_module:model" in demo.said()
    assert "the model 'no_such_module:model' cannot be imported" in demo.said()
    assert "Traceback" not in demo.said()
    demo.assert_no_trace()


def test_what_it_keeps_can_be_looked_at_with_the_commands_it_shows(directory: Path) -> None:
    demo = Demo(directory, "--keep")
    assert demo.wait_end() == 0, demo.said()
    shown = demo.said().partition("To look around:")[2]
    commands = [line.strip() for line in shown.splitlines() if line.startswith("    ")]
    (tail,) = (command for command in commands if "tail" in command)
    assert len(commands) == 9
    assert [process.name() for process in demo.processes()] == ["nats-server"]

    script = "\n".join(
        ["set -e", *(f"timeout 10 {command} || test $? = 124" if command == tail else command for command in commands)]
    )
    ran = subprocess.run(["bash", "-c", script], cwd=PROJECT, env=demo.environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "AGENTFIELD_MEMORY" in ran.stdout
    assert '"tickets":4' in ran.stdout
    demo.assert_no_trace()
