"""Sweep folders as data frames: loading, aggregation over seeds, tasks, samples and the paper's numbers."""
