"""What a picture's file says of its origin, in any of the formats that are sent: that a machine drew it, and which.

The standard places: XMP with IPTC's ``DigitalSourceType`` (IPTC Photo Metadata Standard 2023.1), which picture managers
and platforms read, in PNG, JPEG and WebP; EXIF ``Software`` in JPEG and WebP; and text chunks in PNG, which `file` and
image viewers show. The prompt is not in it, nor who asked. Anybody can take it out, or write it into another picture.
"""

from __future__ import annotations

import html
import io
import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from components.contracts.errors import InputError

Format = Literal["png", "jpeg", "webp"]
# IPTC's term for a picture made by a trained model, as C2PA and the IPTC photo metadata standard use it
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
MAX_PIXELS = 64_000_000  # of a file that is read
_SOFTWARE = 0x0131  # EXIF tag
_MAX_XMP = 64 * 1024  # bytes
_NAMESPACE = "urn:atelier:provenance:1"
_ATTRIBUTE = re.compile(
    r'\b(?:atelier:(\w{1,32})|(?:Iptc4xmpExt:)?(DigitalSourceType)|xmp:(CreatorTool))="([^"]{0,512})"'
)
_FIELDS = ("model", "model_version", "seed", "request_id", "style")


def encode(
    pixels: NDArray[np.uint8],
    format: Format,
    quality: int,
    *,
    model: str,
    version: str,
    seed: int,
    request_id: str,
    style: str | None = None,
) -> bytes:
    """``pixels`` (H, W, 3, 0..255) as a file that says its origin.

    Args:
        quality: 0 to 100, of JPEG and WebP; PNG loses nothing.
    """
    said = {"model": model, "model_version": version, "seed": str(seed), "request_id": request_id}
    said |= {"style": style} if style else {}
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if format == "png":
        info = PngInfo()
        for name, value in ({"Software": "Atelier", "digitalSourceType": DIGITAL_SOURCE_TYPE} | said).items():
            info.add_text(name, value)
        info.add_itxt("XML:com.adobe.xmp", _xmp(said).decode())
        image.save(buffer, "PNG", pnginfo=info)
        return buffer.getvalue()
    exif = Image.Exif()
    exif[_SOFTWARE] = "Atelier"
    if format == "jpeg":
        image.save(buffer, "JPEG", quality=quality, exif=exif, xmp=_xmp(said))
    else:
        image.save(buffer, "WEBP", quality=quality, exif=exif, xmp=_xmp(said))
    return buffer.getvalue()


def read_provenance(data: bytes) -> dict[str, str]:
    """What a PNG, JPEG or WebP file says of its origin, by the names that :func:`encode` writes; {} for nothing.

    Raises:
        InputError: it is no such file.
    """
    with open_picture(data) as image:
        info = dict(image.info)
        software = image.getexif().get(_SOFTWARE) if image.format != "PNG" else None
    known = ("Software", "digitalSourceType", *_FIELDS)
    found = {name: info[name] for name in known if isinstance(info.get(name), str)}
    if isinstance(software, str):
        found.setdefault("Software", software)
    xmp = info.get("xmp", b"")
    text = xmp[:_MAX_XMP].decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp)[:_MAX_XMP]
    for field, source_type, tool, value in _ATTRIBUTE.findall(text):  # no XML parser reads what strangers wrote
        name = field or ("digitalSourceType" if source_type else "Software" if tool else "")
        if name in known:
            found.setdefault(name, html.unescape(value))
    return found


def read_pixels(data: bytes) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of a PNG, JPEG or WebP file.

    Raises:
        InputError: it is no such file, is damaged, or has more than :data:`MAX_PIXELS` pixels.
    """
    with open_picture(data) as image:
        try:
            return np.asarray(image.convert("RGB"))
        except Exception as error:
            raise InputError(f"The picture cannot be decoded: {error}", expected="a whole file") from error


def open_picture(data: bytes) -> Image.Image:
    """The picture in ``data``, its size checked, not decoded yet.

    Raises:
        InputError: as :func:`read_pixels`.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
    except UnidentifiedImageError as error:
        raise InputError("This is no picture that can be read", expected="a PNG, JPEG or WebP file") from error
    except Exception as error:  # Pillow's readers raise many kinds on damaged files, and for bombs
        raise InputError(f"The picture cannot be read: {error}", expected="a whole PNG, JPEG or WebP file") from error
    if image.width * image.height > MAX_PIXELS:
        raise InputError(
            f"The picture has {image.width} x {image.height} pixels", expected=f"at most {MAX_PIXELS:,} in all"
        )
    return image


def _xmp(said: dict[str, str]) -> bytes:
    attributes = {
        "Iptc4xmpExt:DigitalSourceType": DIGITAL_SOURCE_TYPE,
        "xmp:CreatorTool": "Atelier",
        **{f"atelier:{name}": value for name, value in said.items()},
    }
    written = "\n   ".join(f'{name}="{_escaped(value)}"' for name, value in attributes.items())
    return f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
   xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
   xmlns:xmp="http://ns.adobe.com/xap/1.0/"
   xmlns:atelier="{_NAMESPACE}"
   {written}/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>""".encode()


def _escaped(value: str) -> str:
    kept = "".join(c for c in value if c.isprintable()).encode("utf-8", "replace").decode()
    return html.escape(kept, quote=True)
