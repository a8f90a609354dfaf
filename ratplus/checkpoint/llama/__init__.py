"""Models of the Llama family: config.json, weights and tokenizers of Hugging Face folders, and GGUF files."""
