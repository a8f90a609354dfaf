"""A sweep from composed cells to its report: as the verbs run it, and within a time limit."""
