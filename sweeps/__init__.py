"""Running grids of cells: the command line, composition, launching, status, and the W&B mirror."""
