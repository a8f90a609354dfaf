"""The operator benchmark: cases, other people's operators, timing, and the script for a GPU machine."""
