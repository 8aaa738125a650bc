"""What a picture of the embedded world shows, read from its pixels; the eyes of the grader."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from components.data.scenes import BACKGROUNDS, COLOURS, SHAPES
from components.data.world import outline

F32 = npt.NDArray[np.float32]

_PALETTE = np.asarray(list(COLOURS.values()), dtype=np.float32)  # (8, 3)
_COLOUR_NAMES = tuple(COLOURS)
_GREYS = np.asarray([c[0] for c in BACKGROUNDS.values()], dtype=np.float32)
_BACKGROUND_NAMES = tuple(BACKGROUNDS)

_LARGEST_SIDE = 96  # pixels; bigger pictures are reduced first
_COLOURFUL = 46.0  # chroma (max - min of RGB) that no background reaches, even with noise
_BACKGROUND_REACH = 42.0  # grey levels between a background and its name
_COLOUR_REACH = 72.0  # RGB distance between an object's colour and its name
_SMALLEST = 0.011  # of the picture's area: less is a speck, not an object (a small star covers 0.025)
_SMALL_BELOW = 0.364  # longest side, of the picture's: between small (up to 0.325) and large (from 0.405)
_SIDES = (0.2, 0.62)  # outside of this an object is neither small nor large
_CENTRE = 0.115  # a centre lies nearer to the middle than this, a corner further on both axes
_OVERLAP = 0.62  # less than this is no shape of the vocabulary
_GRID = 20  # samples a side at which templates are compared
_REACH = 0.68  # the grid spans this far from the centre, in units of the object's longest side
_FINE = 80  # template samples a side before blurring
_BLURS = (0.45, 0.95)  # pixels: an antialiased edge and a soft one

_AXIS = (((np.arange(_GRID, dtype=np.float32) + 0.5) / _GRID) * 2 - 1) * _REACH
#: RGB to luma and two colour differences; JPEG keeps luma sharp and halves the others' resolution, so luma
#: counts more when a pixel's share is found.
_LUMA = np.array([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]], dtype=np.float32)
_SHARPNESS = _LUMA.T @ np.diag(np.array([9, 1, 1], dtype=np.float32)) @ _LUMA
_STIFFNESS = np.array([1e-3, 3, 3, 3, 3, 3, 3, 3, 3], dtype=np.float32)  # ridge of the background's fit
_CROSS = ndimage.generate_binary_structure(2, 1)
_BLOCK = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Seen:
    """One object: its attributes (``None`` where unclear), centre and longest side as fractions."""

    shape: str | None
    colour: str | None
    size: str | None
    place: str | None
    x: float
    y: float
    side: float
    overlap: float


@dataclass(frozen=True)
class Sight:
    """All that a picture shows; objects from the largest to the smallest."""

    background: str | None
    objects: tuple[Seen, ...]

    def describe(self) -> str:
        things = [
            " ".join(word or "unclear" for word in (o.size, o.colour, o.shape))
            + f" at {o.place or f'({o.x:.2f}, {o.y:.2f})'}"
            for o in self.objects
        ]
        return f"{', '.join(things) or 'no object'} on {self.background or 'an unclear background'}"


def look(image: npt.NDArray[np.uint8] | Image.Image) -> Sight:
    """Read a picture (RGB, ``uint8`` of H x W x 3, or PIL); never fails on its content."""
    pixels = _pixels(image)
    height, width = pixels.shape[:2]
    chroma = pixels.max(axis=2) - pixels.min(axis=2)
    name, ground = _background(pixels, chroma)
    if ground is None:
        return Sight(name, ())
    cover, which, colours = _unmix(pixels, chroma, ground)
    if cover is None:
        return Sight(name, ())
    middle = ground[height // 2, width // 2, 0]
    solid = cover > 0.5
    objects: list[tuple[float, Seen]] = []
    for index, colour in enumerate(colours):
        own = solid & (which == index) if len(colours) > 1 else solid
        labels, number = ndimage.label(own, _CROSS)
        if not number:
            continue
        areas = np.bincount(labels.ravel(), minlength=number + 1)
        large = [i for i in range(1, number + 1) if areas[i] >= _SMALLEST * height * width]
        reach = _grown(labels, large) if large else labels
        mass = cover if len(colours) == 1 else np.where(which == index, cover, 0)
        for label in large:
            seen = _object(np.where(reach == label, mass, 0).astype(np.float32), colour, float(middle))
            if seen is not None:
                objects.append((float(areas[label]), seen))
    objects.sort(key=lambda pair: -pair[0])
    # a small blot with neither a shape nor a colour is a trace of compression beside an object
    objects = [(area, o) for area, o in objects if o.shape or o.colour or area > objects[0][0] / 3]
    return Sight(name, tuple(seen for _, seen in objects[:16]))


def _pixels(image: npt.NDArray[np.uint8] | Image.Image) -> F32:
    if not isinstance(image, Image.Image):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"grader: expected uint8 pixels of shape (height, width, 3), found {image.dtype} of {image.shape}"
            )
        if max(image.shape[:2]) <= _LARGEST_SIDE:
            return image.astype(np.float32)
        image = Image.fromarray(image, "RGB")
    image = image.convert("RGB")
    if max(image.size) > _LARGEST_SIDE:
        image = image.resize((64, 64), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float32)


def _background(pixels: F32, chroma: F32) -> tuple[str | None, F32 | None]:
    """The background's name and a smooth grey fit of it (H x W x 1)."""
    height, width = chroma.shape
    dull = chroma < 36
    if dull.mean() < 0.05:  # little background is left, and compression has tinted it
        dull = chroma < 70
    if dull.mean() < 0.05:
        return None, None
    tone = pixels.mean(axis=2)
    level = float(np.median(tone[dull]))
    dull &= np.abs(tone - level) < 34
    if dull.mean() < 0.05:
        return None, None
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    one = np.float32(1)
    terms = np.stack(np.broadcast_arrays(one, x, y, x * y, x * x, y * y, x * x * y, y * y * x, x * x * y * y))
    terms = terms.reshape(len(terms), -1)
    known = terms[:, dull.ravel()]
    square = known @ known.T + np.diag(_STIFFNESS)
    fit = np.linalg.solve(square, known @ (tone[dull] - level))
    ground = (fit @ terms).reshape(height, width, 1) + level
    nearest = int(np.argmin(np.abs(_GREYS - level)))
    known_level = abs(float(_GREYS[nearest]) - level) <= _BACKGROUND_REACH
    return (_BACKGROUND_NAMES[nearest] if known_level else None), ground.astype(np.float32)


def _unmix(pixels: F32, chroma: F32, ground: F32) -> tuple[F32 | None, npt.NDArray[np.intp], list[F32]]:
    """Each pixel as a share of one of the picture's colours over the background.

    Returns the shares (about 0..1, zero-mean noise left in), the index of each pixel's colour, and the
    colours (RGB).
    """
    height, width = chroma.shape
    none = np.zeros((height, width), dtype=np.intp)
    bright = chroma > _COLOURFUL
    inner = ndimage.binary_erosion(bright, _CROSS, border_value=1)
    if inner.sum() < 0.008 * height * width:
        inner = bright
    inside = pixels[inner]
    if len(inside) < 4:
        return None, none, []
    nearest = ((inside[:, None] - _PALETTE) ** 2).sum(axis=2).argmin(axis=1)
    votes = np.bincount(nearest, minlength=len(_PALETTE))
    level = float(ground.mean())
    found: list[F32] = []
    for index in np.argsort(-votes, kind="stable"):
        if votes[index] < max(4, 0.03 * len(inside), 0.004 * height * width):
            break
        own = inside[nearest == index]
        strength = own.max(axis=1) - own.min(axis=1)
        own = own[strength >= np.quantile(strength, 0.4)]
        colour = np.median(own, axis=0).astype(np.float32)
        found.append(colour)
    found = _pure(found, level)
    if not found:
        return None, none, []
    over = pixels - ground
    shares, misfits = [], []
    for colour in found:
        way = _true_colour(colour, level) - level
        lens = _SHARPNESS @ way
        share = (over @ lens) / float(way @ lens)
        shares.append(share)
        if len(found) > 1:
            misfits.append(((over - np.clip(share, 0, 1.1)[..., None] * way) ** 2).sum(axis=2))
    if len(found) == 1:
        return shares[0].astype(np.float32), none, found
    misfit = np.stack([ndimage.uniform_filter(m, 3) + m for m in misfits])
    which = misfit.argmin(axis=0)
    cover = np.take_along_axis(np.stack(shares), which[None], axis=0)[0]
    return cover.astype(np.float32), which, found


def _pure(colours: list[F32], level: float) -> list[F32]:
    """Without the colours that are only another one's edge over the background."""
    kept: list[F32] = []
    names: set[int] = set()
    for i, colour in enumerate(colours):
        name = _name(colour, level)[0]
        mixed = name in names  # the same colour, thinned by an edge
        for j, other in enumerate(colours):
            if i != j:
                way = other - level
                share = float((colour - level) @ way) / max(float(way @ way), 1.0)
                rest = float(np.linalg.norm(colour - level - share * way))
                mixed |= 0 <= share < 0.9 and rest < 36
        if not mixed:
            kept.append(colour)
            names.add(name)
    return kept


def _name(colour: F32, level: float) -> tuple[int, float, float]:
    """The palette's colour that this is, perhaps thinned by the background: index, share, distance."""
    ways = _PALETTE - level
    shares = np.clip((ways @ (colour - level)) / (ways**2).sum(axis=1), 0.55, 1.0)
    off = np.linalg.norm(colour - level - shares[:, None] * ways, axis=1) + 30 * (1 - shares)
    index = int(off.argmin())
    return index, float(shares[index]), float(off[index])


def _true_colour(colour: F32, level: float) -> F32:
    """The colour as it was before a blur thinned it."""
    index, share, off = _name(colour, level)
    return colour if share > 0.9 or off > _COLOUR_REACH else _PALETTE[index]


def _grown(labels: npt.NDArray[np.int32], keep: list[int]) -> npt.NDArray[np.int32]:
    """The components two pixels wider, so that their soft edges are theirs; the first comer keeps a pixel."""
    chosen = labels if len(keep) == labels.max() else np.where(np.isin(labels, keep), labels, 0)
    for structure in (_BLOCK, _CROSS):
        wider = ndimage.grey_dilation(chosen, footprint=structure)
        chosen = np.where(chosen > 0, chosen, wider)
    return chosen


def _object(mass: F32, colour: F32, level: float) -> Seen | None:
    height, width = mass.shape
    total = float(mass.sum())
    if total < 2:
        return None
    rows, columns = mass.sum(axis=1), mass.sum(axis=0)
    cy = float(rows @ (np.arange(height) + 0.5)) / total
    cx = float(columns @ (np.arange(width) + 0.5)) / total
    # where each shape must lie to have this mass and this centroid
    areas, offsets = _moments()
    sides = np.sqrt(total / areas)
    xs, ys = cx - offsets[:, 0] * sides, cy - offsets[:, 1] * sides
    grid_y = ys[:, None] + _AXIS * sides[:, None] - 0.5
    grid_x = xs[:, None] + _AXIS * sides[:, None] - 0.5
    sampled = _bilinear(np.clip(mass, 0, 1), grid_y, grid_x)
    overlaps = np.zeros(len(SHAPES))
    for blur in _BLURS:
        for i, side in enumerate(sides):
            template = _template(i, round(float(blur / side) * 100))
            union = max(float(np.maximum(sampled[i], template).sum()), 1e-6)
            overlaps[i] = max(overlaps[i], float(np.minimum(sampled[i], template).sum()) / union)
    best = int(overlaps.argmax())
    side = float(sides[best]) / float(np.sqrt(height * width))
    x, y = float(xs[best]) / width, float(ys[best]) / height
    overlap = float(overlaps[best])
    named, _, off = _name(colour, level)
    return Seen(
        shape=SHAPES[best] if overlap >= _OVERLAP else None,
        colour=_COLOUR_NAMES[named] if off <= _COLOUR_REACH else None,
        size=None if not _SIDES[0] < side < _SIDES[1] else "small" if side < _SMALL_BELOW else "large",
        place=_place(x, y),
        x=x, y=y, side=side, overlap=overlap,
    )  # fmt: skip


def _place(x: float, y: float) -> str | None:
    dx, dy = x - 0.5, y - 0.5
    if abs(dx) < _CENTRE and abs(dy) < _CENTRE:
        return "centre"
    if abs(dx) >= _CENTRE and abs(dy) >= _CENTRE:
        return f"{'top' if dy < 0 else 'bottom'} {'left' if dx < 0 else 'right'}"
    return None


def _bilinear(field: F32, rows: F32, columns: F32) -> F32:
    """Samples of the field at each shape's grid: (shapes, rows, columns); zero outside."""
    padded = np.pad(field, 2)
    r = np.clip(rows + 2, 0, padded.shape[0] - 1.001)
    c = np.clip(columns + 2, 0, padded.shape[1] - 1.001)
    r0, c0 = r.astype(np.intp), c.astype(np.intp)
    fr, fc = (r - r0)[:, :, None], (c - c0)[:, None, :]
    i, j = r0[:, :, None], c0[:, None, :]
    top = padded[i, j] * (1 - fc) + padded[i, j + 1] * fc
    bottom = padded[i + 1, j] * (1 - fc) + padded[i + 1, j + 1] * fc
    result: F32 = top * (1 - fr) + bottom * fr
    return result


@lru_cache(maxsize=1)
def _fine_masks() -> F32:
    """Every shape drawn large: (shapes, _FINE, _FINE) over the grid's span."""
    scale = 8
    side = _FINE * scale
    masks = []
    for shape in SHAPES:
        mask = Image.new("L", (side, side), 0)
        points = (np.asarray(outline(shape)) / _REACH + 1) / 2 * side - 0.5
        ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in points], fill=255)
        masks.append(np.asarray(mask.reduce(scale), dtype=np.float32) / 255)
    return np.stack(masks)


@lru_cache(maxsize=1)
def _moments() -> tuple[F32, F32]:
    """Each shape's area and centroid (x, y), its longest side being 1 and its box centred on 0."""
    masks = _fine_masks()
    axis = (((np.arange(_FINE, dtype=np.float32) + 0.5) / _FINE) * 2 - 1) * _REACH
    totals = masks.sum(axis=(1, 2))
    xs = (masks.sum(axis=1) @ axis) / totals
    ys = (masks.sum(axis=2) @ axis) / totals
    return totals * (2 * _REACH / _FINE) ** 2, np.stack([xs, ys], axis=1)


@lru_cache(maxsize=512)
def _template(shape: int, blur: int) -> F32:
    """A shape at the grid, blurred by ``blur`` hundredths of its longest side."""
    sigma = max(blur / 100 * _FINE / (2 * _REACH), 0.01)
    soft = ndimage.gaussian_filter(_fine_masks()[shape], sigma)
    step = _FINE // _GRID
    result: F32 = soft.reshape(_GRID, step, _GRID, step).mean(axis=(1, 3))
    return result
