"""What is measured of a picture."""

from __future__ import annotations

import io

import imagehash
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from components.data.guard import Refusal
from components.data.hashing import measure, phash, phash_bytes, sharpness, spread_and_entropy


def photo(seed: int, width: int = 400, height: int = 300) -> Image.Image:
    """Soft random colours with sharp shapes on them, so that no frequency is empty."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height), 3)
    draw = ImageDraw.Draw(soft)
    for _ in range(6):
        x, y = rng.integers(0, width), rng.integers(0, height)
        draw.ellipse([x, y, x + rng.integers(20, 120), y + rng.integers(20, 120)], fill=tuple(rng.integers(0, 256, 3)))
    return soft


def jpeg(image: Image.Image, quality: int = 90, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, **options)
    return out.getvalue()


def grey(image: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(image.convert("L"))


def bits(one: int, other: int) -> int:
    return (one ^ other).bit_count()


def test_the_second_hash_is_that_of_the_mirror_image() -> None:
    for seed in range(20):
        plain, mirrored = phash(grey(photo(seed)))
        assert plain != mirrored
        of_mirror = phash(grey(ImageOps.mirror(photo(seed))))
        assert bits(plain, of_mirror[1]) <= 1 and bits(mirrored, of_mirror[0]) <= 1


def test_a_symmetric_picture_is_its_own_mirror_image() -> None:
    rng = np.random.default_rng(0)
    half = rng.integers(0, 256, (64, 32), dtype=np.uint8)
    plain, mirrored = phash(np.concatenate([half, half[:, ::-1]], axis=1))
    assert plain == mirrored


def test_hashes_are_those_of_imagehash_but_for_a_bit_or_two() -> None:
    distances = []
    for seed in range(40):
        theirs = int(str(imagehash.phash(photo(seed))), 16)
        distances.append(bits(phash(grey(photo(seed)))[0], theirs))
        assert bits(phash_bytes(jpeg(photo(seed)))[0], theirs) <= 6
    assert np.mean(distances) < 1.5 and max(distances) <= 6


def test_hashes_stay_near_when_the_picture_is_compressed_or_made_smaller() -> None:
    distances = []
    for seed in range(40):
        plain, _ = phash(grey(photo(seed)))
        distances.append(bits(plain, phash_bytes(jpeg(photo(seed), 30))[0]))
        distances.append(bits(plain, phash(grey(photo(seed).resize((200, 150), Image.Resampling.LANCZOS)))[0]))
    assert np.mean(distances) < 1 and np.mean(np.array(distances) <= 3) > 0.97
    others = [bits(phash(grey(photo(s)))[0], phash(grey(photo(s + 1)))[0]) for s in range(40)]
    assert min(others) > 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_files_are_hashed_as_they_are_seen(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photo(orientation), exif=exif)
    seen = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert bits(phash_bytes(data)[0], phash(grey(seen))[0]) <= 2


@pytest.mark.parametrize(
    ("name", "mode"), [("PNG", "RGB"), ("PNG", "L"), ("GIF", "P"), ("JPEG", "L"), ("JPEG", "CMYK")]
)
@pytest.mark.parametrize("size", [(640, 480), (40, 30), (1, 1)])
def test_other_files_and_small_ones_are_hashed_too(name: str, mode: str, size: tuple[int, int]) -> None:
    out = io.BytesIO()
    photo(3, *size).convert(mode).save(out, name)
    plain, mirrored = phash_bytes(out.getvalue())
    assert 0 <= plain < 2**64 and 0 <= mirrored < 2**64
    if min(size) > 1 and mode != "CMYK":
        assert bits(plain, phash(grey(photo(3, *size)))[0]) <= 6


@pytest.mark.parametrize("cut", [3, 200])
def test_what_is_no_picture_is_refused(cut: int) -> None:
    with pytest.raises(Refusal):
        phash_bytes(jpeg(photo(1))[:cut])
    with pytest.raises(Refusal):
        phash_bytes(b"no picture")
    with pytest.raises(Refusal, match="pixels"):
        phash_bytes(jpeg(photo(1)), max_pixels=1000)


def test_sharpness_falls_with_blur_and_does_not_depend_on_size() -> None:
    picture = photo(5, 512, 512)
    values = [sharpness(grey(picture.filter(ImageFilter.GaussianBlur(radius)))) for radius in (0, 2, 4, 8)]
    assert values == sorted(values, reverse=True) and values[0] > 5 * values[-1]
    large = photo(5, 512, 512).resize((2048, 2048), Image.Resampling.LANCZOS)
    assert sharpness(grey(large)) == pytest.approx(values[0], rel=0.25)  # unreduced: a twentieth
    assert sharpness(grey(Image.new("L", (30, 3000), 7))) == 0


def test_spread_and_entropy_are_those_of_the_histogram() -> None:
    assert spread_and_entropy(np.full((8, 8), 3, dtype=np.uint8)) == (0, 0)
    assert spread_and_entropy(np.array([[0, 255]], dtype=np.uint8)) == (127.5, 1)
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert spread_and_entropy(every) == (pytest.approx(every.std()), 8)
    assert spread_and_entropy(grey(photo(2)))[0] == pytest.approx(grey(photo(2)).std())


def test_measures_have_their_shapes() -> None:
    picture = photo(1, 96, 60)
    found = measure(picture, (48, 24))
    assert (found.kept_width, found.kept_height, found.bucket) == (96, 60, "48x24")
    assert (len(found.pixels), len(found.thumb)) == (48 * 24 * 3, 16 * 16 * 3)
    assert found.pixels == ImageOps.fit(picture, (48, 24), Image.Resampling.LANCZOS).tobytes()
    assert found.grey_std == pytest.approx(grey(picture).astype(float).std(), rel=1e-4)
    flat = measure(Image.new("RGB", (40, 40), "red"), (32, 32))
    assert flat.grey_std == flat.sharpness == flat.entropy == 0
