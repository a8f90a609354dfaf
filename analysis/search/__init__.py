"""The report of `ratplus search`, from its `search.json` alone: page, tables and figures."""

from ratplus.analysis.search.report import Report, write_report

__all__ = ["Report", "write_report"]
