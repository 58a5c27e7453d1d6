"""Which NATS servers are new enough, decided in one place for every server that agentfield starts or connects to.

Pure: it compares texts and knows neither binaries nor connections.
"""

from __future__ import annotations

import re

MINIMUM_SERVER = "2.15.1"
"""The oldest nats-server that keeps every promise: atomic batches, schedules, and ``sync_interval: always`` honoured
during block compaction, which earlier 2.14 and 2.15 releases ignored."""

_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(-[0-9A-Za-z.-]+)?")


def find_version(text: str) -> str | None:
    """The first version number in a text, without its ``v``: ``"nats-server: v2.9.10"`` gives ``"2.9.10"``."""
    found = _VERSION.search(text)
    return None if found is None else found.group().removeprefix("v")


def is_supported(version: str) -> bool:
    """Whether a server of that version will do; a pre-release counts as older than its release, nonsense as too old."""
    found, needed = _rank(version), _rank(MINIMUM_SERVER)
    return found is not None and needed is not None and found >= needed


def _rank(version: str) -> tuple[int, int, int, bool] | None:
    parts = _VERSION.fullmatch(version)
    return None if parts is None else (int(parts[1]), int(parts[2]), int(parts[3]), parts[4] is None)
