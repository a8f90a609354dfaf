"""How figures and tables are drawn and written: style, axes, labels, Markdown, LaTeX and CSV."""
