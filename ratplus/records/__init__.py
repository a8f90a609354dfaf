"""The files that stages leave in a sweep folder, and how they are written and read; torch-free."""
