"""Tables and figures of patterns that select by query: accuracy by what is read, and whether heads find the answer."""
