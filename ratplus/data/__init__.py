"""Data: token streams on disk, sampling as a pure function of (seed, step, rank), and the stacked-recall task."""
