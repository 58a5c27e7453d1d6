"""A forked command is what a process of its own would be; the tests of the commands rest on it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli.command import Cli
from tests.support.forking import STARTED_WITH, Template

SCRIPT = """
import sys

if __name__ == "__main__":
    exec(sys.argv[1])
"""

STATE = """
import locale, os, signal, stat, threading, time, warnings
streams = (sys.stdin, sys.stdout, sys.stderr)
for fact in (
    __name__, __file__, sys.argv[2:], sys.path, sys.flags, sys.warnoptions, sys.executable, os.getcwd(),
    sorted(os.environ.items()), time.tzname, time.localtime(0), locale.getlocale(), threading.active_count(),
    signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGPIPE), signal.getsignal(signal.SIGTERM),
    [(s.encoding, s.errors, s.line_buffering, s.write_through, s.isatty(), s.name, s.mode) for s in streams],
    [stat.S_IFMT(os.fstat(s.fileno()).st_mode) for s in streams], sorted(os.listdir("/dev/fd")),
    os.getpgid(0), os.getsid(0), os.umask(0o22), sys.stdin.read(),
):
    print(fact)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scripts") / "script"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope="module")
def template(script: Path) -> Iterator[Template]:
    template = Template(script)
    yield template
    template.end()


def asked(program: str, directory: Path, *arguments: str) -> dict[str, Any]:
    environment = {**os.environ, **STARTED_WITH, "TZ": "Asia/Tokyo", "NAME": "grün\udcff"}
    return {"arguments": [program, *arguments], "environment": environment, "directory": str(directory)}


@pytest.mark.parametrize(
    "program",
    [
        STATE,
        "print(sys.stdin.buffer.read()[::-1])",
        "sys.stdin.close(); print('no more')",
        "print('x' * 300_000); print('y' * 300_000, file=sys.stderr)",
        "sys.exit(3)",
        "sys.exit('said')",
        "import os; print('lost'); os._exit(4)",
        "print('kept'); sys.stdout.flush(); import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import os; print('there is nobody'); os.close(1)",
        "import atexit; atexit.register(print, 'at the end'); print('before')",
        "import threading; threading.Timer(0.1, print, ['late']).start(); sys.exit(5)",
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start(); print('left')",
        "import asyncio; asyncio.run(asyncio.to_thread(print, 'from a thread'))",
        "import subprocess; subprocess.run(['sh', '-c', 'echo $NAME $TZ'])",
        "cycle = [open(__file__)]; cycle.append(cycle); del cycle",
        "import warnings; warnings.warn('is an error')",
        "raise KeyboardInterrupt",
    ],
)
def test_it_says_the_same_and_ends_the_same(program: str, script: Path, template: Template, tmp_path: Path) -> None:
    given = b"given" * 50_000
    request = asked(program, tmp_path, "grün", "\udcff", "")
    alone = subprocess.run(
        [sys.executable, script, *request["arguments"]],
        input=given,
        capture_output=True,
        env=request["environment"],
        cwd=tmp_path,
        check=False,
    )
    code, out, err = template.run(request, given, 30)
    last = err.splitlines()[-1:]
    assert (code, out.splitlines(), last) == (
        alone.returncode,
        alone.stdout.splitlines(),
        alone.stderr.splitlines()[-1:],
    )


@pytest.mark.parametrize("first", ["print(1, flush=True)", "os.close(1); os.close(2)"])
def test_it_is_killed_when_its_time_is_over_and_the_next_one_runs(
    first: str, template: Template, tmp_path: Path
) -> None:
    endless = f"import os, time, pathlib; pathlib.Path('pid').write_text(str(os.getpid())); {first}; time.sleep(60)"
    with pytest.raises(TimeoutError):
        template.run(asked(endless, tmp_path), b"", 1)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    assert template.run(asked("print(2)", tmp_path), b"", 30) == (0, b"2\n", b"")


def test_chance_is_not_the_same_for_all(template: Template, tmp_path: Path) -> None:
    chosen = "import random, secrets, uuid; print(random.random(), secrets.token_hex(), uuid.uuid4())"
    once, again = (template.run(asked(chosen, tmp_path), b"", 30)[1].split() for _ in range(2))
    assert not set(once) & set(again)


def test_the_first_of_each_name_and_one_for_another_interpreter_are_processes_of_the_script(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[str] = []

    def noticed(command: list[str], **how: Any) -> Any:
        started.append(" ".join(command[1:]))
        return subprocess.CompletedProcess(command, 0, b"", b"")

    monkeypatch.setattr("tests.support.forking._named", set())
    monkeypatch.setattr(subprocess, "run", noticed)
    cli = Cli({})
    for _ in range(2):
        cli("get", "--help")
        cli("audit", "verify", "--help")
        cli("audit", "seal", "--help")
    cli("--json", "get", "--help")
    cli("--version")
    cli("get", "--help", env={"PYTHONIOENCODING": "ascii"})
    cli("get", "--help", env={"LC_ALL": "C"})
    assert started == [
        "get --help",
        "audit verify --help",
        "audit seal --help",
        "--version",
        "get --help",
        "get --help",
    ]


def test_a_template_that_has_ended_is_no_command_that_failed(script: Path, tmp_path: Path) -> None:
    killed = Template(script)
    os.kill(killed.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="ended with code -9"):
        killed.run(asked("", tmp_path), b"", 30)
