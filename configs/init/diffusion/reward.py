"""Your reward. One number a picture; None where it does not apply. Every column of the data is a keyword."""

import numpy as np

EDGE = 3  # pixels


def score(images, prompts, **row):
    """1 for a picture whose margin is of one colour, as a cut-out needs it; less the more its margin varies."""
    return [1 - 4 * float(np.std(margin(image), axis=0).mean()) for image in images]


def margin(image):
    """The pixels (n, 3) of the four edges, 0 to 1."""
    pixels = np.asarray(image.convert("RGB"), dtype=float) / 255
    inside = np.zeros(pixels.shape[:2], dtype=bool)
    inside[EDGE:-EDGE, EDGE:-EDGE] = True
    return pixels[~inside]
