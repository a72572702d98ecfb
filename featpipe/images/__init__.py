"""From a file's bytes to the square of pixels that a backbone reads."""

from featpipe.images.decode import (
    MAX_PIXELS,
    Decoded,
    decode_image,
    decoder_versions,
    image_size,
    square_of,
    thumbnail,
    whole_picture,
)
from featpipe.images.geometry import Box, crop_box
from featpipe.images.resize import short_weights

__all__ = [
    "MAX_PIXELS",
    "Box",
    "Decoded",
    "crop_box",
    "decode_image",
    "decoder_versions",
    "image_size",
    "short_weights",
    "square_of",
    "thumbnail",
    "whole_picture",
]
