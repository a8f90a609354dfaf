"""Benchmarks of whole models: what is measured, how, and of which models."""
