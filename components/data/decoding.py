"""From the bytes of a picture to its pixels, upright and in sRGB, without more memory than they need.

Pillow reads the header of every picture, and most pictures. Two forms go another way: a JPEG that is to be smaller is
decoded at a reduced scale; and WebP, of which Pillow holds four copies with alpha, is decoded by OpenCV, which holds
two at most and comes to the same pixels by the same library.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, Image

from components.contracts.records import CollectReason
from components.data import headers, webp
from components.data.colour import changes, plain, reduced, srgb
from components.data.guard import Refusal

Box = tuple[int, int, int, int]  # x, y, width, height in pixels
Pixels = npt.NDArray[np.uint8]
_PASSES = 20  # over max_pixels: what the scans of a progressive JPEG may add up to; usual ones have ten
_STRIP = 1 << 18  # pixels that are worked on at once
_NEARLY = 1.25  # reduced further by at most this after the scaled decode, a picture needs no filter against aliasing
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Opened:
    """A picture whose header was read and found to be within the limits."""

    image: Image.Image  # not loaded
    kind: str  # a key of `headers.ENDINGS`
    body: bytes
    orientation: int  # EXIF's, 1..8; 1 where the decoder applies it by itself
    size: tuple[int, int]  # as seen


def opened(body: bytes, max_pixels: int) -> Opened:
    """The picture in ``body``, nothing of it decoded.

    Raises:
        Refusal: ``NOT_AN_IMAGE``, ``TOO_MANY_PIXELS`` or ``TRUNCATED``.
    """
    kind = headers.kind_of(body)
    if kind not in headers.ENDINGS:
        raise Refusal(CollectReason.NOT_AN_IMAGE, f"no picture format that is read: {kind}")
    Image.init()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # threads are the stages' business
    try:
        if kind == "TIFF":
            body = headers.first_page(body)
        image = Image.open(io.BytesIO(body), formats=[kind])
        # of a TIFF the size is as seen and the decoder turns it
        orientation = 1 if kind == "TIFF" else _orientation(image.info.get("exif"))
        pixels = headers.most_pixels(body, kind, image.width * image.height)
    except Image.DecompressionBombError as error:
        raise Refusal(CollectReason.TOO_MANY_PIXELS, "more pixels than any limit allows") from error
    except Exception as error:  # Pillow's readers raise nearly everything on damaged data
        raise Refusal(CollectReason.TRUNCATED, "the picture's header ends early or is damaged") from error
    if pixels > max_pixels:
        raise Refusal(
            CollectReason.TOO_MANY_PIXELS,
            f"{image.width}x{image.height} pixels announced, {pixels} at most in one piece; {max_pixels} are decoded",
        )
    if kind == "JPEG" and headers.scans(body, _PASSES * max_pixels / max(pixels, 1)) * pixels > _PASSES * max_pixels:
        raise Refusal(
            CollectReason.TOO_MANY_PIXELS, f"{headers.scans(body)} scans over {image.width}x{image.height} pixels"
        )
    size = (image.height, image.width) if orientation >= 5 else image.size
    return Opened(image, kind, body, orientation, size)


def _orientation(exif: bytes | None) -> int:
    if not exif:
        return 1
    found = Image.Exif()
    try:
        found.load(exif)
        value = found.get(0x0112, 1)
    except Exception:  # Pillow's reader raises nearly everything on damaged data: then nothing is turned
        return 1
    return value if value in _TURNS else 1


def upright(opened: Opened, side: int | None, box: Box | None = None) -> Image.Image | Pixels:
    """The picture as it is seen, in 8-bit sRGB, the shorter side at most ``side`` (None: at full size).

    Args:
        box: the part that is meant, in pixels of the file, cut before it is reduced; what reaches over the border is
            left out, and one that lies beyond it means the whole picture.

    Returns:
        An ``RGB`` image; or, where a JPEG was reduced and nothing else was to be done, the pixels that an encoder
        of OpenCV takes: (height, width, 3), in the order blue, green, red.

    Raises:
        Refusal: ``TOO_MANY_PIXELS`` or ``TRUNCATED``.
    """
    try:
        return _upright(opened, side, box)
    except MemoryError as error:
        raise Refusal(CollectReason.TOO_MANY_PIXELS, "there is not enough memory for its pixels") from error
    except Exception as error:  # decoders raise nearly everything on damaged data
        raise Refusal(CollectReason.TRUNCATED, "the picture's data ends early or is damaged") from error


def _upright(opened: Opened, side: int | None, box: Box | None) -> Image.Image | Pixels:
    image, target = opened.image, None
    profile = image.info.get("icc_profile")
    width, height = image.size
    if box is not None and (inside := _inside(box, image.size)):
        image = image.crop(inside)
        width, height = image.size
    if side is not None and min(width, height) > side:
        share = side / min(width, height)
        target = (max(side, round(width * share)), max(side, round(height * share)))
    if opened.kind == "WEBP" and image is opened.image:
        image = _webp(opened, target)
    elif opened.kind == "JPEG" and target is not None and image is opened.image:
        found = _scaled(opened, target)
        if isinstance(found, Image.Image):
            image = found
        elif opened.orientation == 1 and image.mode == "RGB" and not changes(profile, "RGB"):
            return found
        else:
            image = _image(found)
    image.load()
    image = plain(image)
    if target is not None and image.size != target:
        image = reduced(image, target)
    if opened.orientation != 1:
        image = image.transpose(_TURNS[opened.orientation])
    return srgb(image, profile)


def _inside(box: Box, size: tuple[int, int]) -> Box | None:
    """Left, upper, right and lower end of what of the box lies in a picture of this size."""
    x, y, width, height = box
    right, lower = min(x + width, size[0]), min(y + height, size[1])
    return (x, y, right, lower) if x < right and y < lower else None


def _image(pixels: Pixels) -> Image.Image:
    """The image of grey values, or of blue, green and red (and alpha); the array is not to be used any more."""
    import cv2

    if pixels.ndim == 3:
        code = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        pixels = np.asarray(cv2.cvtColor(pixels, code, dst=pixels), dtype=np.uint8)
    return Image.fromarray(pixels)


# -- JPEG at a reduced scale


def _scaled(opened: Opened, target: tuple[int, int]) -> Image.Image | Pixels:
    """The JPEG decoded at the least scale that is not below ``target`` (width, height), or ``target`` itself.

    Pixels are brought to ``target``, an image need not be and may not be loaded.
    """
    import simplejpeg  # type: ignore[import-untyped]

    image, (width, height) = opened.image, target
    if image.mode in ("RGB", "L"):
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(
                opened.body, "BGR" if image.mode == "RGB" else "GRAY", min_height=height, min_width=width
            )
        except ValueError:
            pass  # it stops at every oddity; Pillow below bears those that leave a picture
        else:
            pixels = pixels.squeeze() if image.mode == "L" else pixels
            if pixels.shape[0] <= _NEARLY * height and pixels.shape[1] <= _NEARLY * width:
                return _cubic(pixels, target)
            return _image(pixels)
    image.draft(image.mode, target)
    return image


def _cubic(pixels: Pixels, target: tuple[int, int]) -> Pixels:
    """Bicubic interpolation, ten times as fast as Pillow's, which filters too."""
    import cv2

    cv2.setNumThreads(1)  # threads are the stages' business
    return np.asarray(cv2.resize(pixels, target, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


# -- WebP


def _webp(opened: Opened, target: tuple[int, int] | None) -> Image.Image:
    """The first picture of a WebP, reduced to ``target`` (width, height) if that is given.

    Raises:
        ValueError: the picture is damaged.
    """
    import cv2

    cv2.setNumThreads(1)  # threads are the stages' business
    size, alpha = opened.image.size, opened.image.mode == "RGBA"
    frame = webp.first_frame(opened.body, size, alpha)
    body = opened.body if frame is None else frame.body
    flags = cv2.IMREAD_UNCHANGED if alpha else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels: Any = cv2.imdecode(np.frombuffer(body, dtype=np.uint8), flags)
    if pixels is None:
        raise ValueError("the data is damaged")
    if alpha and pixels.shape[2] == 3:  # announced, and not there
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2BGRA)
    if frame is not None:
        pixels = frame.on_canvas(pixels, size)
    if pixels.shape[1::-1] != size:
        raise ValueError("the data is of another size than the header says")
    return _image(pixels) if target is None else _filtered(pixels, target)


def _filtered(pixels: Pixels, target: tuple[int, int]) -> Image.Image:
    """What Pillow's Lanczos filter makes of a picture of these channels, one channel after the other; the array is
    not to be used any more."""
    import cv2

    if pixels.shape[2] == 3:
        channels = [reduced(Image.fromarray(cv2.extractChannel(pixels, n)), target) for n in (2, 1, 0)]
        return Image.merge("RGB", channels)
    rows = max(1, _STRIP // pixels.shape[1])
    for top in range(0, len(pixels), rows):  # colours times alpha, rounded as Pillow rounds
        part = pixels[top : top + rows]
        product = part[..., :3] * part[..., 3:].astype(np.uint16) + np.uint16(128)
        part[..., :3] = ((product >> 8) + product) >> 8
    lanczos = Image.Resampling.LANCZOS
    channels = [Image.fromarray(cv2.extractChannel(pixels, n)).resize(target, lanczos) for n in (2, 1, 0, 3)]
    return Image.merge("RGBa", channels).convert("RGBA")
