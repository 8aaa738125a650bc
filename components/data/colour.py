"""Every mode that a picture can come in, to 8-bit sRGB.

Two steps, so that a picture can be reduced in size between them: :func:`plain` leaves one of ``RGB``, ``RGBA``,
``L``, ``LA`` and ``CMYK``, 8 bits a channel, still in the source's colours; :func:`srgb` applies the ICC profile
(perceptual intent) and lays transparency over white.
"""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageCms

_PLAIN = frozenset({"RGB", "RGBA", "L", "LA", "CMYK"})
_SPACES = {"RGB": "RGB", "RGBA": "RGB", "L": "GRAY", "LA": "GRAY", "CMYK": "CMYK"}  # ICC's name of a mode's colours
_PROFILE_BYTES = 8_000_000  # a larger profile is ignored; printers' have up to three million
_SAME = 2  # a profile that changes no colour by more than this, of 255, is taken to be sRGB
_CACHED = 32  # transforms: one takes milliseconds to build and few profiles make up the web


def plain(image: Image.Image) -> Image.Image:
    """The loaded picture in a mode with 8 bits a channel, without a palette."""
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        return ImageChops.invert(image)  # Pillow takes every such JPEG for one of Adobe's, which store the inverse
    if image.mode in _PLAIN:
        return image.convert("RGBA" if image.mode != "L" else "LA") if "transparency" in image.info else image
    if image.mode.startswith("I;16"):  # the high byte, as Pillow does for 16 bits a channel
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):  # no stated range: stretched between its extremes
        values = np.nan_to_num(np.array(image, dtype=np.float32), copy=False, posinf=0.0, neginf=0.0)
        low = values.min()
        with np.errstate(over="ignore", invalid="ignore"):  # of extremes too far apart for 32 bits
            values -= low
            values *= np.float32(255.0) / max(values.max(), np.float32(1e-30))
        return Image.fromarray(np.nan_to_num(values, copy=False).clip(0, 255, out=values).astype(np.uint8))
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
