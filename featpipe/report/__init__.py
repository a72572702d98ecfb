"""One page that shows what a head can do, where it errs, and whether its figures may be believed.

>>> from featpipe.report import write_report
>>> write_report("heads/photos-logreg", "embeddings/photos", "report.html")   # doctest: +SKIP
"""

from featpipe.report.page import write_report

__all__ = ["write_report"]
