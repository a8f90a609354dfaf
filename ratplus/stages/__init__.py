"""The stages of a cell: their ids, their work, and what is recorded when one fails."""
