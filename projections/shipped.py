"""The projections that come with agentfield, by name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Final, NamedTuple

from projections.projection import Projection


class Shipped(NamedTuple):
    """Where a projection is defined, and what it is for in one line."""

    module: str
    kind: str
    summary: str


SHIPPED: Final[Mapping[str, Shipped]] = MappingProxyType(
    {
        "timeline": Shipped("timeline", "Timeline", "who did what, with full-text search over values"),
        "metrics": Shipped("metrics", "Metrics", "rates, sizes, hot keys and writers"),
        "archive": Shipped("archive", "Archive", "the log as Parquet files, for DuckDB, and so that it may be trimmed"),
        "seals": Shipped("seals", "Seals", "signed evidence of what the log holds, in a stream of its own"),
    }
)


def shipped(name: str) -> Projection | None:
    """The projection of that name, or None if none that ships is called so."""
    found = SHIPPED.get(name)
    if found is None:
        return None
    kind: type[Projection] = getattr(import_module(f"projections.{found.module}"), found.kind)
    return kind()
