"""Facts that are written on a stream itself, among its metadata: what it is for, and whether it may be added to.

Owns: how they are named there. Whoever may update a stream may change them; a stream's messages are not touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentfield.fabric.faults import Fault, error_of
from agentfield.fabric.jetstream import api
from agentfield.fabric.wire.connection import Connection

_OURS = "agentfield-"
"""What the names of our facts begin with."""


def as_metadata(facts: Mapping[str, str]) -> dict[str, str]:
    """The facts as a stream's configuration holds them."""
    return {f"{_OURS}{name}": value for name, value in facts.items()}


def facts_in(config: Mapping[str, Any]) -> dict[str, str]:
    """The facts in a stream's configuration."""
    metadata: Mapping[str, str] = config.get("metadata") or {}
    return {name.removeprefix(_OURS): value for name, value in metadata.items() if name.startswith(_OURS)}


async def facts_of(connection: Connection, stream: str) -> dict[str, str]:
    """What is written on a stream. Raises :class:`UnavailableError` and its kin."""
    try:
        return facts_in((await api(connection, f"STREAM.INFO.{stream}"))["config"])
    except Fault as fault:
        raise error_of(fault, f"looking at {stream}") from None


async def describe(connection: Connection, stream: str, facts: Mapping[str, str]) -> None:
    """Write these facts on a stream, at once and as a whole; others stay, and an empty one is taken off."""
    try:
        config: dict[str, Any] = (await api(connection, f"STREAM.INFO.{stream}"))["config"]
        metadata = {**(config.get("metadata") or {}), **as_metadata(facts)}
        kept = {name: value for name, value in metadata.items() if value}
        await api(connection, f"STREAM.UPDATE.{stream}", {**config, "metadata": kept})
    except Fault as fault:
        raise error_of(fault, f"describing {stream}") from None
