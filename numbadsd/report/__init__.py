"""One HTML page from the records: the answer, the experiments, the evidence."""

from numbadsd.report.page import build_page, write_page

__all__ = ["build_page", "write_page"]
