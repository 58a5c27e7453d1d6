"""Golden histories: logs as they were once recorded, byte for byte, and what they mean for ever.

Each ``<name>.jsonl`` holds the messages of a log as a server gave them, one a line; ``<name>.json`` the events that
they are, the keys of what is encrypted in it, and the state that they fold to. Neither is ever changed: a new form of
event gets a new recording, made by ``python -m tests.histories.record <name>``.
"""
