"""What a head reaches without transfer: the figures that a result has to stand beside."""

from featpipe.baselines.comparison import Baseline, Baselines, compare_with_baselines

__all__ = ["Baseline", "Baselines", "compare_with_baselines"]
