"""The processes of the demo: its agents, and the commands that look at what they do.

Owns: how they are started, and their end. Invariant: when the block of ``agents_running`` is left, in whatever way, no
agent is alive.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from examples.support.endings import Endings

HERE: Final = Path(__file__).parent
PROJECT: Final = HERE.parent.parent
AGENTS: Final = (
    "customer-triage",
    "history-agent",
    "routing-agent",
    "escalation-handler",
    "analytics-agent",
    "system-monitor",
    "incident-response",
    "incident-management",
    "notification-agent",
)
"""Each is in a file called like it."""

COMMAND: Final = (sys.executable, "-m", "agentfield")
"""``agentfield``, with this Python."""

_ELSEWHERE: Final = ("AGENTFIELD_NATS_URL", "NATS_URL", "AGENTFIELD_NAMESPACE")
"""What would lead the demo's processes to another server than its own."""
_GRACE: Final = 10.0
"""Seconds the agents get to finish what they began."""


def environment_for(home: Path, model: str) -> dict[str, str]:
    """Return an environment in which ``agentfield`` uses the server of that home, and agents that model."""
    environment = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    path = os.pathsep.join(filter(None, [str(PROJECT), environment.get("PYTHONPATH")]))
    return environment | {"AGENTFIELD_HOME": str(home), "AGENTFIELD_AI_MODEL": model, "PYTHONPATH": path}


def elsewhere() -> list[str]:
    """Return the variables of this process that name another server or namespace."""
    return [name for name in _ELSEWHERE if os.environ.get(name)]


class AgentProcess:
    """One agent: ``agentfield run <file>``, its output in a file."""

    def __init__(self, name: str, environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._log = log
        file = HERE / f"{name.replace('-', '_')}.py"
        with log.open("wb") as output:
            # A session of its own: Ctrl-C is for the demo, which then ends its agents in good order.
            self._process = subprocess.Popen(
                [*COMMAND, "run", file],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise RuntimeError, with the end of its log, if it has ended."""
        code = self._process.poll()
        if code is not None:
            raise RuntimeError(f"{self.name} ended with code {code}: {self.last_words()}")

    def last_words(self) -> str:
        """Return the end of its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-5:])

    def ask_to_end(self) -> None:
        """Let it finish what it began."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait_end(self, seconds: float) -> None:
        """Return when it has ended, which is enforced after so many seconds."""
        try:
            self._process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def agents_running(environment: Mapping[str, str], logs: Path, endings: Endings) -> Iterator[list[AgentProcess]]:
    """Start every agent; end them all after the block."""
    agents: list[AgentProcess] = []
    try:
        with endings.held():
            for name in AGENTS:
                agents.append(AgentProcess(name, environment, logs / f"{name}.log"))
        yield agents
    finally:
        with endings.ignored():
            for agent in agents:
                agent.ask_to_end()
            deadline = time.monotonic() + _GRACE
            for agent in agents:
                agent.wait_end(deadline - time.monotonic())
