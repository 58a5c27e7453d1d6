"""Whether a Docker daemon can be had for the tests that need one."""

import os
import subprocess
import sys

_ANSWERS_WITHIN = 30.0

_PROBE = """
import sys
from docker.errors import DockerException
from testcontainers.core.docker_client import DockerClient
try:
    DockerClient().client.ping()
except DockerException as error:
    sys.exit(str(error))
"""


def docker_is_required() -> bool:
    """Whether its absence is a failure, as it is where the whole suite has to run."""
    return os.environ.get("AGENTFIELD_TEST_DOCKER") == "required"


def reason_without_docker() -> str | None:
    """Return None when a daemon answers, else why none does.

    The question is asked by a process of its own: after a refused connection the client library leaves a socket open,
    which is a warning, which is an error here.
    """
    command = [sys.executable, "-W", "ignore", "-c", _PROBE]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWERS_WITHIN, check=False)
    except subprocess.TimeoutExpired:
        return f"no Docker daemon answers within {_ANSWERS_WITHIN} s"
    return None if asked.returncode == 0 else f"no Docker daemon answers: {asked.stderr.strip()}"
