"""What pictures say of their origin: the same in every format, well-formed, and no way in for what strangers write."""

from __future__ import annotations

import io
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from components.contracts.errors import InputError
from serving.provenance import DIGITAL_SOURCE_TYPE, Format, encode, open_picture, read_pixels, read_provenance

FORMATS: tuple[Format, ...] = ("png", "jpeg", "webp")
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
SAID = {"model": "atelier", "version": "7", "seed": 2**53 - 1, "request_id": "r-1"}


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_says_the_same(format: Format) -> None:
    data = encode(PIXELS, format, 90, **SAID, style="sks")  # type: ignore[arg-type]
    assert read_provenance(data) == {
        "Software": "Atelier",
        "digitalSourceType": DIGITAL_SOURCE_TYPE,
        "model": "atelier",
        "model_version": "7",
        "seed": str(2**53 - 1),
        "request_id": "r-1",
        "style": "sks",
    }
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == format.upper() and image.size == (32, 24)
    seen = read_pixels(data)
    assert seen.shape == PIXELS.shape and (format != "png" or np.array_equal(seen, PIXELS))


@pytest.mark.parametrize("format", FORMATS)
def test_the_xmp_is_what_other_programs_read(format: Format) -> None:
    with Image.open(io.BytesIO(encode(PIXELS, format, 90, **SAID))) as image:  # type: ignore[arg-type]
        xmp = image.info["xmp"]
    tree = ElementTree.fromstring(xmp.decode() if isinstance(xmp, bytes) else xmp)
    described = next(tree.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"))
    assert described.attrib["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"] == DIGITAL_SOURCE_TYPE
    assert described.attrib["{http://ns.adobe.com/xap/1.0/}CreatorTool"] == "Atelier"


def test_quality_matters_where_it_can() -> None:
    for format in ("jpeg", "webp"):
        small, large = (len(encode(PIXELS, format, q, **SAID)) for q in (10, 95))  # type: ignore[arg-type]
        assert small < large


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMATS), st.text(max_size=40), st.text(max_size=40))
def test_no_name_breaks_out_of_its_place(format: Format, model: str, style: str) -> None:
    data = encode(PIXELS, format, 80, model=model, version="1", seed=1, request_id="r", style=style)
    with Image.open(io.BytesIO(data)) as image:
        xmp = image.info["xmp"]
    described = next(ElementTree.fromstring(xmp.decode() if isinstance(xmp, bytes) else xmp).iter(
        "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
    ))  # fmt: skip
    assert described.attrib["{urn:atelier:provenance:1}request_id"] == "r"
    assert read_provenance(data)["digitalSourceType"] == DIGITAL_SOURCE_TYPE


def test_a_picture_of_somebody_else_says_nothing() -> None:
    plain = io.BytesIO()
    Image.fromarray(PIXELS).save(plain, "PNG")
    assert read_provenance(plain.getvalue()) == {}
    other = io.BytesIO()
    info = PngInfo()
    info.add_text("Author", "ada")
    info.add_text("seed", "5")
    Image.fromarray(PIXELS).save(other, "PNG", pnginfo=info)
    assert read_provenance(other.getvalue()) == {"seed": "5"}


BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + b'<!ENTITY b "&a;&a;&a;">' * 50 + b"]><x:xmpmeta>&b;</x:xmpmeta>"


def test_hostile_metadata_is_not_parsed() -> None:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "JPEG", xmp=BOMB + b' atelier:model="&lt;b&gt;" atelier:unknown="x"')
    assert read_provenance(file.getvalue()) == {"model": "<b>"}


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1", b"RIFF\x00\x00\x00\x00WEBP", b"<svg/>"]
)
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(InputError):
        read_provenance(data)
    with pytest.raises(InputError):
        read_pixels(data)


@pytest.mark.parametrize("format", FORMATS)
def test_half_a_file(format: Format) -> None:
    data = encode(PIXELS, format, 90, **SAID)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        read_pixels(data[: len(data) * 2 // 3])


def test_bombs_and_other_formats_are_not_opened() -> None:
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")  # 400 million pixels in 50 KB
    with pytest.raises(InputError, match=r"pixels|exceeds"):
        open_picture(bomb.getvalue())
    for format in ("TIFF", "BMP", "GIF", "ICO", "PPM"):
        file = io.BytesIO()
        Image.fromarray(PIXELS).save(file, format)
        with pytest.raises(InputError, match="no picture"):
            open_picture(file.getvalue())
