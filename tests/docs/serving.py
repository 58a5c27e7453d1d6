"""Agents of the examples and of the documentation, each served by a process of its own, as a user would."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.waiting import wait_until

PROJECT = Path(__file__).parents[2]
AGENTFIELD = (sys.executable, "-m", "agentfield")
STAND_IN = "examples.stand_in:answer"

_START = 30.0
"""Seconds for a process to import everything and connect, on a busy machine."""
_END = 20.0


def environment_on(url: str, namespace: str, model: str = STAND_IN) -> dict[str, str]:
    """Return the environment of a user who works on that server."""
    return {
        **os.environ,
        "AGENTFIELD_NATS_URL": url,
        "AGENTFIELD_NAMESPACE": namespace,
        "AGENTFIELD_AI_MODEL": model,
        "PYTHONPATH": str(PROJECT),
    }


class Serving:
    """``agentfield run`` with some files: a process, and what it says."""

    def __init__(self, files: Sequence[Path], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        self._files = files
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*AGENTFIELD, "run", *files],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_ready(self) -> None:
        """Return when every agent made in the files is served."""
        names = [name for file in self._files for name in re.findall(r'Agent\("([^"]+)"\)', file.read_text())]
        assert names, f"no agent is made in {self._files}"

        def all_serve() -> bool:
            said = self.said()
            if self._process.poll() is not None:
                raise RuntimeError(f"agentfield run ended with code {self._process.returncode}:\n{said}")
            return all(f"agent {name} serves" in said for name in names)

        wait_until(all_serve, within=_START, what=f"{', '.join(names)} served")

    def said(self) -> str:
        """Return everything the process has printed."""
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        """End it as Ctrl-C would, and check that it ended well."""
        if self._process.poll() is None:
            self._process.terminate()
        assert self._process.wait(_END) == 0, self.said()

    def dispose(self) -> None:
        """Kill it if it still runs."""
        self._process.kill()
        self._process.wait()
