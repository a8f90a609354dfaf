"""Evaluation of a model under a pattern: held-out loss and recall, every metric with its count and standard error."""
