"""Pattern search: one pattern for each layer or head of a trained model, under a budget, by measured damage.

`units`, `budgets`, `damage`, `solve`, `baselines` and `store` are pure; `probe` runs the model; `run` joins them.
"""
