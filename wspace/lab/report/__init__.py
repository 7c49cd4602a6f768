"""The report of an experiment: figures, tables, and what was found in words, from results.json."""

from wspace.lab.report.page import write_report

__all__ = ["write_report"]
