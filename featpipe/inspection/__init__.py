"""What a head looks at: maps of evidence for its classes, and the training images nearest by.

>>> from featpipe.inspection import explain
>>> found = explain(["ant.jpg"], "heads/photos-logreg")   # doctest: +SKIP
"""

from featpipe.inspection.records import ClassMap, Explained, Explanation, Neighbour, Seen
from featpipe.inspection.run import ExplainOptions, explain

__all__ = [
    "ClassMap",
    "ExplainOptions",
    "Explained",
    "Explanation",
    "Neighbour",
    "Seen",
    "explain",
]
