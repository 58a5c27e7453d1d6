"""Stores of a view that is never made anew: the archive and the seals, each of which holds what nothing else does."""

from __future__ import annotations

from typing import ClassVar, NoReturn

from agentfield import InvalidInputError
from projections.view import Fold, Head


class KeptStore:
    """What such stores have in common: one generation, and a refusal, with its reason, of all that would replace it."""

    never: ClassVar[str]
    """Why, and what to do instead."""

    async def building(self, name: str) -> None:
        """None: there is one generation."""

    async def scratch(self, kind: str, head: Head, prepare: Fold) -> NoReturn:
        """Refused."""
        raise InvalidInputError(self.never)

    async def switch(self, name: str, generation: int) -> None:
        """Refused."""
        raise InvalidInputError(self.never)

    async def discard(self, name: str, generation: int) -> None:
        """Refused."""
        raise InvalidInputError(self.never)

    async def tidy(self, name: str) -> None:
        """Nothing to do."""
