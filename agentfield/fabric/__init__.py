"""NATS, and nothing else: the only package that imports its client."""
