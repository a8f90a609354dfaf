"""What a pattern, a model and a training run cost, counted rather than measured; torch-free."""
