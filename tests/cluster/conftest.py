"""For every test beside this file."""

from tests.support.loose_ends import no_loose_ends

__all__ = ["no_loose_ends"]
