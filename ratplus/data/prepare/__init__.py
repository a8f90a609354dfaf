"""Preparing a corpus from many or large files: reading them, and tokenizing them into shards."""
