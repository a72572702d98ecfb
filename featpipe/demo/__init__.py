"""See it work: eight surfaces, 160 images to learn from, 200 to be asked about.

The numbers say how well eight *photographs* are told apart by crops of them; they do not say
how well brick, fur or wood are known in general.
"""

from featpipe.demo.result import Accuracy, Answer, Comparison, DemoResult, NewImage
from featpipe.demo.run import DemoEvent, run_demo

__all__ = [
    "Accuracy",
    "Answer",
    "Comparison",
    "DemoEvent",
    "DemoResult",
    "NewImage",
    "run_demo",
]
