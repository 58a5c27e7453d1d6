"""Archive: the log as Parquet files in a directory, and reading on from them where the log has been trimmed.

Owns: the files, their columns and names, what may be taken for an archive of which log. Must not know: who writes one
and when, what an event means to memory. Needs the package pyarrow, which the extra ``parquet`` brings, and imports it
only when an archive is opened.

Invariant: a directory holds consecutive stretches of one log, each message once and byte for byte, whatever dies.
"""
