"""Views derived from the memory's log, each one a fold over its events.

A projection owns no state of its own that the log cannot give back: it can be thrown away and rebuilt by replaying the
log from the start, and a rebuilt view equals the one it replaces. This package stands on top of `agentfield`; only
``source`` knows more of it than its public names, and nothing here speaks to the server by itself.
"""

from projections.projection import Projection
from projections.runner import Runner
from projections.source import Source
from projections.stores import Buckets, open_store
from projections.view import Head, Store, View

__all__ = ["Buckets", "Head", "Projection", "Runner", "Source", "Store", "View", "open_store"]
