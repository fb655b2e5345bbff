"""The results of a run as one self-contained HTML page."""

from histoweave.report.html import write_html

__all__ = ["write_html"]
