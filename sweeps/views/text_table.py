"""Rows of figures as aligned plain text, whatever the terminal's width: figures must not be cut."""

from __future__ import annotations


def columns(rows: list[dict]) -> str:
    """Format rows as lines below a header, with numbers to the right; a key that a row lacks is left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([_word(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    right = [all(_is_number(row[name]) for row in rows if name in row) for name in names]
    return "\n".join(
        "  ".join(w.rjust(n) if r else w.ljust(n) for w, n, r in zip(line, widths, right)).rstrip() for line in lines
    )


def _word(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(value) -> bool:
    if isinstance(value, bool):
        return False  # `float` would take it
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
