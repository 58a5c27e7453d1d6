"""The stores that views live in: files in one directory, buckets on the server, or both."""

from projections.stores.bucket import Buckets
from projections.stores.directory import Directory, open_store
from projections.stores.everywhere import Stores

__all__ = ["Buckets", "Directory", "Stores", "open_store"]
