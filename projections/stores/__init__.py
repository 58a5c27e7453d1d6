"""The stores that views live in: files in one directory, of whichever kind a projection asks for."""

from projections.stores.directory import Directory, open_store

__all__ = ["Directory", "open_store"]
