"""A smaller backbone of one that is there: chosen, measured, written, and compared.

>>> from featpipe.quantization import quantize
>>> report = quantize("efficientnet_lite0", "photos/")   # doctest: +SKIP
>>> report.cosine_mean                                   # doctest: +SKIP
0.9958
"""

from featpipe.quantization.compare import Comparison
from featpipe.quantization.report import QuantizeReport, Variant
from featpipe.quantization.run import QuantizeOptions, quantize
from featpipe.quantization.sample import draw_sample

__all__ = [
    "Comparison",
    "QuantizeOptions",
    "QuantizeReport",
    "Variant",
    "draw_sample",
    "quantize",
]
