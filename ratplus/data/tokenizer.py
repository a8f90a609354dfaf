"""Tokenizers. A tokenizer is anything with encode, decode, eos_id and vocab_size."""

from __future__ import annotations

import numpy as np


class ByteTokenizer:
    """UTF-8 bytes as ids 0..255 and end-of-text as 256; needs no file and never fails."""

    name = "bytes"
    eos_id = 256
    vocab_size = 257

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def encode_array(self, text: str) -> np.ndarray:
        """Like encode, as uint16."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.uint16)

    def decode(self, ids) -> str:
        """Text of ids; end-of-text and ids of other symbols are left out."""
        return bytes(i for i in ids if 0 <= i < 256).decode("utf-8", errors="replace")
