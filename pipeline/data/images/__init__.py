"""The only door to image codecs. Pixels are uint8; axis letters: H W pixels, C red, green, blue."""
