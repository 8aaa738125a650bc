"""Every mode that a picture can come in, to 8-bit sRGB.

Two steps, so that a picture can be reduced in size between them: :func:`plain` leaves one of ``RGB``, ``RGBA``,
``L``, ``LA`` and ``CMYK``, 8 bits a channel, still in the source's colours; :func:`srgb` applies the ICC profile
(perceptual intent) and lays transparency over white. :func:`reduced` is what may stand between them.

Large pictures are worked on in strips where Pillow alone would hold two or three copies: the result is the same.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageCms

_PLAIN = frozenset({"RGB", "RGBA", "L", "LA", "CMYK"})
_SPACES = {"RGB": "RGB", "RGBA": "RGB", "L": "GRAY", "LA": "GRAY", "CMYK": "CMYK"}  # ICC's name of a mode's colours
_PROFILE_BYTES = 8_000_000  # a larger profile is ignored; printers' have up to three million
_SAME = 2  # a profile that changes no colour by more than this, of 255, is taken to be sRGB
_CACHED = 32  # transforms: one takes milliseconds to build and few profiles make up the web
_LARGE = 1 << 22  # pixels from which on memory counts for more than time
_STRIP = 1 << 18  # pixels of a strip


def plain(image: Image.Image) -> Image.Image:
    """The loaded picture in a mode with 8 bits a channel, without a palette."""
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        return ImageChops.invert(image)  # Pillow takes every such JPEG for one of Adobe's, which store the inverse
    if image.mode in _PLAIN:
        if "transparency" in image.info and image.mode == "RGB":
            return _with_key_as_alpha(image)
        return image.convert("RGBA" if image.mode != "L" else "LA") if "transparency" in image.info else image
    if image.mode.startswith("I;16"):  # the high byte, as Pillow does for 16 bits a channel
        return _grey(image, lambda part: (np.asarray(part) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        return _stretched(image)
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(image, lab, _srgb_profile(), outputMode="RGB")
    if image.mode in ("PA", "La") or "transparency" in image.info:
        return image.convert("RGBA" if image.mode != "La" else "LA")
    return image.convert("RGBA" if image.mode == "RGBa" else "L" if image.mode == "1" else "RGB")


def srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A plain picture in sRGB, opaque. A profile that is damaged or of other channels is ignored.

    Args:
        image: as :func:`plain` gives it.
        profile: the ICC profile that was embedded in the file.
    """
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    transform = _transform(profile, image.mode) if profile and len(profile) <= _PROFILE_BYTES else None
    if alpha is not None:
        image = image.convert("RGB" if image.mode == "RGBA" else "L")
    if transform is not None:
        image = transform.apply(image)
    image = image if image.mode == "RGB" else image.convert("RGB")
    if alpha is None or alpha.getextrema() == (255, 255):
        return image
    return Image.composite(image, Image.new("RGB", image.size, "white"), alpha)


def reduced(image: Image.Image, target: tuple[int, int]) -> Image.Image:
    """A plain picture brought to ``target`` (width, height) with a Lanczos filter; a large one with alpha is changed.

    For pictures with alpha Pillow makes a second picture, colours times alpha. Of a large one that is done in place,
    strip by strip, and its channels are reduced one after the other.
    """
    if image.mode != "RGBA" or image.width * image.height < _LARGE:
        return image.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)
    for box in _strips(image):
        part = image.crop(box).convert("RGBa")
        image.paste(Image.frombytes("RGBA", part.size, part.tobytes()), box)
    channels = [image.getchannel(name).resize(target, Image.Resampling.LANCZOS) for name in "RGBA"]
    return Image.merge("RGBa", channels).convert("RGBA")


def changes(profile: bytes | None, mode: str) -> bool:
    """Whether :func:`srgb` applies the profile to a picture of this mode."""
    return bool(profile) and len(profile or b"") <= _PROFILE_BYTES and _transform(profile or b"", mode) is not None


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _grey(image: Image.Image, values: Callable[[Image.Image], npt.NDArray[np.uint8]]) -> Image.Image:
    """A grey picture, its values (h, w) made of one strip after the other."""
    grey = Image.new("L", image.size)
    for box in _strips(image):
        grey.paste(Image.fromarray(values(image.crop(box))), box)
    return grey


def _stretched(image: Image.Image) -> Image.Image:
    """Numbers without a stated range, stretched between their extremes."""

    def numbers(part: Image.Image) -> npt.NDArray[np.float32]:
        return np.nan_to_num(np.array(part, dtype=np.float32), copy=False, posinf=0.0, neginf=0.0)

    def stretched(part: Image.Image) -> npt.NDArray[np.uint8]:
        values = (numbers(part) - low) * scale
        levels: npt.NDArray[np.uint8] = np.nan_to_num(values, copy=False).clip(0, 255, out=values).astype(np.uint8)
        return levels

    with np.errstate(over="ignore", invalid="ignore"):  # of extremes too far apart for 32 bits
        low = min(numbers(image.crop(box)).min() for box in _strips(image))
        high = max(numbers(image.crop(box)).max() for box in _strips(image)) - low
        scale = np.float32(255.0) / max(high, np.float32(1e-30))
        return _grey(image, stretched)


def _with_key_as_alpha(image: Image.Image) -> Image.Image:
    """The colour that stands for transparency becomes alpha, in place."""
    alpha = Image.new("L", image.size)
    for box in _strips(image):
        alpha.paste(image.crop(box).convert("RGBA").getchannel("A"), box)
    image.putalpha(alpha)
    del image.info["transparency"]
    return image


@functools.lru_cache(maxsize=1)
def _srgb_profile() -> Any:
    return ImageCms.createProfile("sRGB")


@functools.lru_cache(maxsize=_CACHED)
def _transform(profile: bytes, mode: str) -> Any:
    """From the profile's colours to sRGB, or None where nothing is to be done. Safe for several threads at once."""
    channels = {"RGBA": "RGB", "LA": "L"}.get(mode, mode)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(
            source, _srgb_profile(), channels, "RGB", renderingIntent=ImageCms.Intent.PERCEPTUAL
        )
        probe = _probe(channels)
        moved = np.asarray(transform.apply(probe), dtype=np.int16) - np.asarray(probe.convert("RGB"), dtype=np.int16)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return None if channels != "CMYK" and int(np.abs(moved).max()) <= _SAME else transform


def _probe(mode: str) -> Image.Image:
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.array([0, 32, 64, 96, 128, 160, 192, 224, 255], dtype=np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * len(mode), indexing="ij"), axis=-1)
    return Image.fromarray(grid.reshape(1, -1, len(mode)), mode)
