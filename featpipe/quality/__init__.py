"""What may make a figure untrue: images that are copies of others, splits that differ."""

from featpipe.quality.choosing import TAKEN, Choice, choose, removal_list
from featpipe.quality.cleaning import KINDS, Cleaning, Problem, clean
from featpipe.quality.findings import Findings, inspect
from featpipe.quality.journal import Move
from featpipe.quality.looks import Looks, look_at
from featpipe.quality.moving import Moved, move
from featpipe.quality.near import NearDuplicates, find_near_duplicates
from featpipe.quality.returning import Returned, move_back
from featpipe.quality.sheet import draw_sheet
from featpipe.quality.shift import Shift, measure_shift
from featpipe.quality.threshold import Threshold

__all__ = [
    "KINDS",
    "TAKEN",
    "Choice",
    "Cleaning",
    "Findings",
    "Looks",
    "Move",
    "Moved",
    "NearDuplicates",
    "Problem",
    "Returned",
    "Shift",
    "Threshold",
    "choose",
    "clean",
    "draw_sheet",
    "find_near_duplicates",
    "inspect",
    "look_at",
    "measure_shift",
    "move",
    "move_back",
    "removal_list",
]
