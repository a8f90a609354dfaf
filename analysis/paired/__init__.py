"""Differences that can be trusted: evaluations compared item by item, within a sweep and between sweeps."""
