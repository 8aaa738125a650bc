"""Whether one picture is a copy of another: their sketches are laid over each other, then compared block by block.

The two are aligned by an affine warp that maximises their enhanced correlation (Evangelidis and Psarakis 2008,
OpenCV's ``findTransformECC``), coarse to fine, as they are or mirrored. A copy was turned, cropped, framed,
resized, brightened or written over: the warp is small, one gamma curve explains the brightness, and nearly all
blocks then agree in structure, brightness and colour. Different pictures of one thing do not agree like that.

A graphic (much of it perfectly flat) differs from another by a little detail only, such as the hand of a clock, so
there every block must agree; and where there is hardly any structure nothing is said to be a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from components.data.sketches import COLOUR_SIDE, SIDE, planes

_COARSE = SIDE // 2
_RIM = 6  # of the 64 pixels: where a frame may be, left out of the alignment
_BLOCK = 8
_BLOCKS = SIDE // _BLOCK
_MIN_VALID = 48  # pixels of a block that both pictures show
_STRUCTURE = 5.0  # standard deviation of the grey values of a block; below it is flat
_FLAT_STEP = 2.0  # grey values between neighbours; below it a pixel lies in a flat area
_LEAST = 0.5  # correlation of the coarse alignment below which two pictures are not compared further
_GRAPHIC = 0.25  # share of such pixels from which on a picture is a graphic; photographs have 0.15 at most

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Limits:
    """What is still a copy.

    ``turn`` in degrees; ``scale`` the most in any direction, and its inverse the least; ``shift`` of the centre and
    ``overlap`` as shares of the side and area; ``gamma`` as ``scale``. A block agrees when its correlation, its
    difference in brightness (0..255) and in colour (Cb and Cr) are within ``correlation``, ``level``, ``colour``;
    ``agreeing`` is the share of blocks that must; of a graphic all must, and within half of ``level`` and ``colour``.
    Where blocks disagree the others must correlate the better: the median is ``median_correlation`` at least, and
    ``for_disagreeing`` more for all blocks, in proportion. ``structured`` is the number of blocks (of 64) with
    structure that are needed to say anything.

    Two graphics that are near by hash and thumbnail are two pictures nevertheless when a block is further apart than
    ``detail_level`` or ``detail_colour``, or brightness agrees only by a ``detail_gamma`` or more.
    """

    turn: float = 12.0
    scale: float = 1.4
    shift: float = 0.15
    overlap: float = 0.6
    gamma: float = 1.8
    correlation: float = 0.7
    level: float = 10.0
    colour: float = 14.0
    agreeing: float = 0.85
    structured: int = 12
    median_correlation: float = 0.95
    for_disagreeing: float = 0.3
    gamma_graphic: float = 1.05
    detail_level: float = 8.0
    detail_colour: float = 14.0
    detail_gamma: float = 1.15


@dataclass(frozen=True)
class Comparison:
    """How two aligned pictures agree: the share of blocks, and the median correlation of those with structure."""

    agreeing: float
    median_correlation: float
    structured: int
    graphic: bool
    small: bool  # the warp is within the limits, and the two overlap enough
    gamma: float
    level: float  # the most that two blocks differ in brightness, 0..255
    colour: float  # ... and in colour

    def copy(self, limits: Limits) -> bool:
        """Whether this is a copy."""
        gamma = limits.gamma_graphic if self.graphic else limits.gamma
        return (
            self.small
            and 1 / gamma <= self.gamma <= gamma
            and self.structured >= limits.structured
            and self.agreeing >= (1.0 if self.graphic else limits.agreeing)
            and self.median_correlation >= limits.median_correlation + limits.for_disagreeing * (1 - self.agreeing)
        )

    def another(self, limits: Limits) -> bool:
        """Whether these are two graphics that differ in a detail, although all else is the same."""
        apart = self.level > limits.detail_level or self.colour > limits.detail_colour
        apart |= not 1 / limits.detail_gamma < self.gamma < limits.detail_gamma
        return self.graphic and self.small and self.structured >= limits.structured and apart


def compare(some: Bytes, other: Bytes, limits: Limits) -> Comparison | None:
    """Compare two sketches (``SKETCH_BYTES``,); None where they cannot be laid over each other."""
    (one, two), (one_colour, two_colour) = planes(np.stack([some, other]))
    best: tuple[float, Floats, bool] | None = None
    for mirrored in (False, True):
        found = _align_coarse(one[:, ::-1] if mirrored else one, two)
        if found is not None and found[0] > (best[0] if best else _LEAST) and _small(found[1], limits):
            best = (*found, mirrored)
    if best is None:
        return None
    if best[2]:
        one, one_colour = one[:, ::-1], one_colour[:, ::-1]
    first, second = one.astype(np.float32), two.astype(np.float32)
    warp = _align(first, second, best[1])
    return None if warp is None else _agreement(first, second, one_colour, two_colour, warp, limits)


def _align_coarse(one: Bytes, two: Bytes) -> tuple[float, Floats] | None:
    size = (_COARSE, _COARSE)
    first, second = (cv2.resize(x.astype(np.float32), size, interpolation=cv2.INTER_AREA) for x in (one, two))
    found = _ecc(np.asarray(first, np.float32), np.asarray(second, np.float32), np.eye(2, 3, dtype=np.float32), 30, 5)
    if found is None:
        return None
    correlation, small = found
    # pixel centres of the coarse grid lie half a fine pixel off
    warp = small.copy()
    warp[:, 2] = 2 * small[:, 2] + 0.5 - small[:, :2] @ np.array([0.5, 0.5], dtype=np.float32)
    return correlation, warp


def _align(one: Floats, two: Floats, start: Floats) -> Floats | None:
    found = _ecc(one, two, start, 25, 3)
    return None if found is None else found[1]


def _ecc(one: Floats, two: Floats, start: Floats, steps: int, blur: int) -> tuple[float, Floats] | None:
    """The correlation reached, and the warp that takes places in ``two`` to places in ``one``."""
    side = len(one)
    mask = np.zeros((side, side), dtype=np.uint8)
    rim = _RIM * side // SIDE
    mask[rim:-rim, rim:-rim] = 1
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, steps, 1e-4)
    try:
        correlation, warp = cv2.findTransformECCWithMask(
            two, one, mask, np.ones_like(mask), start.copy(), cv2.MOTION_AFFINE, criteria, blur
        )
    except cv2.error:  # no convergence, or a flat picture
        return None
    return float(correlation), np.asarray(warp, dtype=np.float32)


def _agreement(
    one: Floats, two: Floats, one_colour: Bytes, two_colour: Bytes, warp: Floats, limits: Limits
) -> Comparison | None:
    laid = _warped(one, warp, SIDE)
    shown = cv2.warpAffine(
        np.ones_like(one), warp, (SIDE, SIDE), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, borderValue=0.0
    )
    shown = np.asarray(cv2.erode(shown, np.ones((3, 3), dtype=np.uint8)))
    inside = shown > 0
    if not inside.any():
        return None
    gamma = _gamma(laid[inside], two[inside])
    toned: Floats = (255 * (np.clip(laid, 0, 255) / 255) ** gamma).astype(np.float32)
    count = _sums(shown)
    looked_at = count >= _MIN_VALID
    n = np.maximum(count, 1)
    mean_one, mean_two = _sums(toned * shown) / n, _sums(two * shown) / n
    var_one = np.maximum(_sums(toned * toned * shown) / n - mean_one**2, 0)
    var_two = np.maximum(_sums(two * two * shown) / n - mean_two**2, 0)
    together = _sums(toned * two * shown) / n - mean_one * mean_two
    # the constant is the variance of noise: blocks with little structure correlate little for no reason
    correlation = (together + 4) / np.sqrt((var_one + 4) * (var_two + 4))
    strength = np.sqrt(np.maximum(var_one, var_two))
    structured = (strength >= _STRUCTURE) & looked_at
    apart = np.abs(mean_one - mean_two)
    graphic = max(_flat_share(one), _flat_share(two)) >= _GRAPHIC
    strict = 0.5 if graphic else 1.0
    agree = apart <= strict * limits.level
    colour = _colour_apart(one_colour, two_colour, warp)
    agree &= colour <= strict * limits.colour
    agree &= (correlation >= limits.correlation) | (strength < _STRUCTURE)
    return Comparison(
        agreeing=float((agree & looked_at).sum() / max(1, looked_at.sum())),
        median_correlation=float(np.median(correlation[structured])) if structured.any() else 1.0,
        structured=int(structured.sum()),
        graphic=graphic,
        small=_small(warp, limits) and float(shown.mean()) >= limits.overlap,
        gamma=gamma,
        level=float(apart[looked_at].max(initial=0)),
        colour=float(colour[looked_at].max(initial=0)),
    )


def _warped(image: npt.NDArray[np.generic], warp: Floats, side: int) -> Floats:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    laid = cv2.warpAffine(image.astype(np.float32), warp, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(laid, dtype=np.float32)


def _gamma(one: Floats, two: Floats) -> float:
    """The exponent that brings the brightness of one picture nearest to the other's."""
    middle = (one > 12) & (one < 243) & (two > 12) & (two < 243)
    if middle.sum() < 64:
        return 1.0
    x, y = np.log(one[middle] / 255), np.log(two[middle] / 255)
    return float(np.clip(np.median(y / x), 0.25, 4.0))


def _colour_apart(one: Bytes, two: Bytes, warp: Floats) -> Floats:
    """Difference of colour (Cb and Cr added up) by block, after a blur that forgives a small misplacement."""
    ratio = SIDE // COLOUR_SIDE
    small = warp.copy()
    middle = np.full(2, (ratio - 1) / 2, dtype=np.float32)
    small[:, 2] = (warp[:, 2] + warp[:, :2] @ middle - middle) / ratio
    laid = cv2.blur(_warped(one, small, COLOUR_SIDE), (3, 3))
    apart = np.abs(laid - cv2.blur(two.astype(np.float32), (3, 3))).sum(axis=2)
    step = COLOUR_SIDE // _BLOCKS
    result: Floats = apart.reshape(_BLOCKS, step, _BLOCKS, step).mean(axis=(1, 3))
    return result


def _sums(values: npt.NDArray[Any]) -> Floats:
    result: Floats = values.reshape(_BLOCKS, _BLOCK, _BLOCKS, _BLOCK).sum(axis=(1, 3))
    return result


def _flat_share(grey: Floats) -> float:
    down, right = np.abs(np.diff(grey, axis=0))[:, :-1], np.abs(np.diff(grey, axis=1))[:-1]
    return float((np.maximum(down, right) < _FLAT_STEP).mean())


def _small(warp: Floats, limits: Limits) -> bool:
    """Whether a warp is one that copies have. Its linear part must not mirror either: that was asked for apart."""
    linear = warp[:, :2].astype(np.float64)
    if np.linalg.det(linear) <= 0:
        return False
    sizes = np.linalg.svd(linear, compute_uv=False)
    turn = abs(float(np.degrees(np.arctan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1]))))
    centre = np.full(2, (SIDE - 1) / 2)
    shift = float(np.abs(linear @ centre + warp[:, 2] - centre).max()) / SIDE
    return bool(
        1 / limits.scale <= sizes[1] and sizes[0] <= limits.scale and turn <= limits.turn and shift <= limits.shift
    )
