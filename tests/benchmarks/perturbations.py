"""Copies of a picture as the web makes them, and the truth about which pictures are copies of each other."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont, ImageOps

SHARED = Path(__file__).parents[3] / "shared" / "data"

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def saved(image: Image.Image, kind: str, quality: int) -> Image.Image:
    """The picture saved in this format and read again."""
    out = io.BytesIO()
    image.save(out, kind, quality=quality)
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The picture saved as JPEG and read again."""
    return saved(image, "JPEG", quality)


def cropped(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """Without this share of the width and of the height, taken from the sides at random."""
    width, height = image.size
    inner = (round(width * (1 - share)), round(height * (1 - share)))
    left, top = (int(rng.integers(0, outer - kept + 1)) for outer, kept in zip(image.size, inner, strict=True))
    return image.crop((left, top, left + inner[0], top + inner[1]))


def watermarked(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Half-transparent white text over two thirds of the width, a ninth of the width high."""
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    place = (image.width / 2, image.height * rng.uniform(0.3, 0.7))
    font = ImageFont.load_default(max(8, image.width // 9))
    ImageDraw.Draw(layer).text(place, "© sample photo", font=font, fill=(255, 255, 255, 150), anchor="mm")
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def framed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """With a border of a twentieth of the side in black, white or red."""
    colour = ((0, 0, 0), (255, 255, 255), (200, 30, 30))[int(rng.integers(3))]
    return ImageOps.expand(image, (round(image.width * 0.05), round(image.height * 0.05)), fill=colour)


def brightened(image: Image.Image, gamma: float) -> Image.Image:
    """With this exponent on the values 0..1."""
    return image.point([round(255 * (value / 255) ** gamma) for value in range(256)] * 3)


def noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """With Gaussian noise of standard deviation 12."""
    values = np.asarray(image, dtype=np.float32) + rng.normal(0, 12, (image.height, image.width, 3))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


CHANGES: dict[str, Change] = {
    "JPEG 30": lambda image, rng: jpeg(image, 30),
    "half size": lambda image, rng: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "3% crop": lambda image, rng: cropped(image, 0.03, rng),
    "10% crop": lambda image, rng: cropped(image, 0.10, rng),
    "mirror": lambda image, rng: ImageOps.mirror(image),
    "watermark": watermarked,
    "5% border": framed,
    "5° rotation": lambda image, rng: image.rotate(5 * _sign(rng), Image.Resampling.BICUBIC),
    "gamma": lambda image, rng: brightened(image, 0.7 if _sign(rng) > 0 else 1.4),
    "noise": noisy,
    "format": lambda image, rng: saved(image, "WEBP", 80),
}

_MORE: dict[str, Change] = {
    "JPEG 60": lambda image, rng: jpeg(image, 60),
    "JPEG 90": lambda image, rng: jpeg(image, 90),
    "three quarters": lambda image, rng: image.resize((image.width * 3 // 4, image.height * 3 // 4)),
    "double size": lambda image, rng: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
    "5% crop": lambda image, rng: cropped(image, 0.05, rng),
    "2° rotation": lambda image, rng: image.rotate(2 * _sign(rng), Image.Resampling.BICUBIC),
    "mirror and crop": lambda image, rng: cropped(ImageOps.mirror(image), 0.05, rng),
    "watermark and JPEG 50": lambda image, rng: jpeg(watermarked(image, rng), 50),
    "gamma and noise": lambda image, rng: noisy(brightened(image, 0.8), rng),
}
TWENTY = CHANGES | _MORE  # for the rival's row: 250 originals by 20


def pictures(name: str, places: list[int]) -> list[Image.Image]:
    """Rows of one of the shared files, over white and in RGB."""
    column = pq.read_table(SHARED / f"{name}.parquet", columns=["bytes"])["bytes"]
    found = []
    for place in places:
        image = Image.open(io.BytesIO(column[place].as_py())).convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        found.append(Image.alpha_composite(white, image).convert("RGB"))
    return found


def column(name: str, of: str) -> list[str]:
    """A text column of one of the shared files."""
    values: list[str] = pq.read_table(SHARED / f"{name}.parquet", columns=[of])[of].to_pylist()
    return values


def pair_figures(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Precision and recall of the pairs in clusters ``found`` (n,) against those in clusters ``truth`` (n,)."""

    def pairs(labels: np.ndarray) -> int:
        sizes = np.unique(labels, return_counts=True)[1].astype(np.int64)
        return int((sizes * (sizes - 1) // 2).sum())

    both = np.unique(np.stack([found, truth]), axis=1, return_inverse=True)[1]
    right = pairs(both)
    return right / max(1, pairs(found)), right / max(1, pairs(truth))


def cluster_precision(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the clusters of two or more that hold copies of one picture only."""
    sizes = np.unique(found, return_counts=True)
    several = sizes[0][sizes[1] > 1]
    pure = sum(len(np.unique(truth[found == label])) == 1 for label in several)
    return pure / max(1, len(several))
