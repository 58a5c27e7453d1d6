"""Measurements against raw NATS, side by side in one run, printed as ratios."""
