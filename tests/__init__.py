"""The tests: `unit` mirrors the source, `integration` runs on one real server, `cluster` on three."""
