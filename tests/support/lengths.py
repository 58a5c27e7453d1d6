"""How long tests that take chances go on: in short with all the others, longer when asked to."""

import os
from typing import TypeVar

T = TypeVar("T")

LONG = bool(os.environ.get("AGENTFIELD_TEST_LONG"))
"""Set by `make test-long`."""


def length(short: T, long: T) -> T:
    """The one or the other."""
    return long if LONG else short
