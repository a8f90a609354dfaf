"""Typed configuration of a cell, one module a section: plain dataclasses, no torch and no Hydra."""
