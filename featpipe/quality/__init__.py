"""What may make a figure untrue: images that are copies of others, splits that differ."""

from featpipe.quality.cleaning import KINDS, Cleaning, Problem, clean
from featpipe.quality.findings import Findings, inspect
from featpipe.quality.looks import Looks, look_at
from featpipe.quality.near import NearDuplicates, find_near_duplicates
from featpipe.quality.shift import Shift, measure_shift
from featpipe.quality.threshold import Threshold

__all__ = [
    "KINDS",
    "Cleaning",
    "Findings",
    "Looks",
    "NearDuplicates",
    "Problem",
    "Shift",
    "Threshold",
    "clean",
    "find_near_duplicates",
    "inspect",
    "look_at",
    "measure_shift",
]
