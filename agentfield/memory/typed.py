"""Typed values: binding keys to Pydantic models."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from agentfield.memory.base import Base
from agentfield.schema import Upcast, schema_of


class Typed(Base):
    """The operation that binds."""

    def schema(
        self,
        pattern: str,
        model: type[BaseModel],
        *,
        name: str | None = None,
        version: int = 1,
        upcast: Mapping[int, Upcast] | None = None,
    ) -> None:
        """Bind the keys that match a pattern to a Pydantic model, in every scope, for this memory and all its views.

        From then on, a write under such a key takes an instance of the model, or data that validates as one; what is
        stored is the model's JSON, and anything else is refused before it is sent, with :class:`InvalidInputError`.
        Reads and events give instances. ``get(…, as_type=…)`` with another type gives what is stored as that type.

        Each event names the schema (``name``, by default the model's) and its ``version``. ``upcast`` maps a version n
        to a plain function that makes the data of version n + 1 out of its, as JSON values; a read lifts older data
        with it, step by step. Data that names no schema counts as version 1. Data of a newer version, or of another
        schema, is a :class:`DecodeError`. Of several patterns that match a key, one that is just this key counts;
        otherwise the key cannot be used until the patterns are told apart.

        Works at import time. Raises :class:`InvalidInputError` for what could never work.
        """
        self.schemas.bind(schema_of(pattern, model, name=name, version=version, upcast=upcast))
