"""Weights & Biases: the live mirror, `ratplus sync`, and the workspace."""
