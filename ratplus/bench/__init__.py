"""Benchmarks of whole models: what is measured, how, and of which models."""

import ratplus.training  # noqa: F401  (it shortens the import of Lightning, which must come later)
