"""A support desk: agents that share what they know of a ticket. Run it with ``python -m examples.support.demo``."""
