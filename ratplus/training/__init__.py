"""One optimisation run, on one device or on several ranks."""
