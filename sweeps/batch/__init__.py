"""The batch system: what it is asked and told, and `jobs.json`, which says what was submitted."""
