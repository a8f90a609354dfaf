"""Sweeps that are handed on: packs of records and pages without weights, and what a folder need not keep."""
