"""How the cells of a sweep are run: by a pool of processes here, by SLURM or by Ray."""
