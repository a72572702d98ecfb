"""From a file's bytes to the square of pixels that a backbone reads."""

from featpipe.images.decode import (
    MAX_PIXELS,
    Decoded,
    decode_image,
    decoder_versions,
    image_size,
    thumbnail,
)

__all__ = ["MAX_PIXELS", "Decoded", "decode_image", "decoder_versions", "image_size", "thumbnail"]
