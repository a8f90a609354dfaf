"""What a sweep consists of: composing configs, the grid, and the manifest of a sweep folder."""
