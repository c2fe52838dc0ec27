"""Images that go along with a question: read, turned upright, and shrunk to what a model uses. Sizes are in bytes."""

import io
import math
import threading

from PIL import ExifTags, Image

from tokenwire import inline
from tokenwire.cli.meter import size

from .attached import Attachment, at_least, short

_MIB = 1024 * 1024

LONGEST_SIDE = 3072
"""In pixels. Gemini scales larger images down to 3072 x 3072 by itself, so that more is sent in vain.

https://firebase.google.com/docs/ai-logic/input-file-requirements
"""

_KEPT_BYTES = _MIB
"""An image up to this size is sent as it came. Each follow-up question sends it again, so that larger ones soon fill
a request.
"""

_SMALLER_SIDES = (LONGEST_SIDE, 2048, 1536, 1024, 768)
_JPEG_QUALITY = 85

_STRIP_ROWS = 256
"""Of what is sent, that are made at once."""

_LANCZOS_REACH = 3
"""In pixels of the smaller picture: how far away what is mixed into one of its pixels may be."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the orientation that a camera noted: what turns the picture upright."""

_MOST_DECODED_BYTES = 256 * _MIB
"""What decoding an image may take. All else that is done with it takes less than half of this beside it."""

_BYTES_PER_PIXEL = {"WEBP": 16, "AVIF": 10, "TIFF": 10}
_USUAL_BYTES_PER_PIXEL = 4
_BYTES_PER_PIXEL_OF_PROGRESSIVE_JPEG = 7
"""What decoding takes, at most: four for the picture, whatever its mode, and what a format's reader holds beside that.
Tests measure it. A plain JPEG takes less.
"""

_ONE_AT_A_TIME = threading.Lock()
"""Held while an image is decoded, so that this memory is taken once, however many people send images at once."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Those that Pillow may try: some of its other readers start programs or are hardly ever looked after. What it calls
MPO are JPEGs of phones with a second picture inside.
"""

_SENT_AS_THEY_ARE = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_FORMATS_BY_TYPE = {mime_type: form for form, mime_type in _SENT_AS_THEY_ARE.items()}


def is_image(data: bytes) -> bool:
    """Whether its first bytes are those of an image, as far as this page reads such; the rest may still be broken."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS):
            return True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True
    except Exception:  # noqa: BLE001 - each format's reader has errors of its own
        return False


def attach(name: str, data: bytes, most: int) -> Attachment:
    """As it came where it is small enough, else upright, shrunk, and without the camera's metadata.

    What it is, is told by its bytes: providers refuse an image whose type isn't what was said.
    """
    shown = short(name)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            size_before, form, most_pixels = image.size, image.format or "", _most_pixels(image)
            if math.prod(size_before) <= most_pixels:
                image.verify()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        size_before, form, most_pixels = (0, 0), "", _MOST_DECODED_BYTES // _USUAL_BYTES_PER_PIXEL
    # Each format's reader has errors of its own.
    except Exception as error:
        raise ValueError(f"{shown} can't be sent: it can't be read as an image.") from error
    if not 0 < math.prod(size_before) <= most_pixels:
        pixels = f"{size_before[0]:,} x {size_before[1]:,}" if form else "too many"
        raise ValueError(
            f"{shown} can't be sent: it has {pixels} pixels, at most {most_pixels // 1_000_000} million can be read."
        )
    try:
        with _ONE_AT_A_TIME:
            return _fitted(name, data, form, size_before, most)
    except (OSError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise ValueError(f"{shown} can't be sent: it can't be read as an image.") from error


def _most_pixels(image: Image.Image) -> int:
    """How many pixels an image of this format may have."""
    each = _BYTES_PER_PIXEL.get(image.format or "", _USUAL_BYTES_PER_PIXEL)
    if image.info.get("progressive"):
        each = _BYTES_PER_PIXEL_OF_PROGRESSIVE_JPEG
    return _MOST_DECODED_BYTES // each


def _fitted(name: str, data: bytes, form: str, size_before: tuple[int, int], most: int) -> Attachment:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        # The second picture of a phone's MPO is none that moves.
        moving = form != "MPO" and getattr(image, "is_animated", False)
        noted = _orientation(image)
        # A JPEG is decoded at a half or a quarter at once where that is still enough: less memory, and faster.
        image.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
        image.load()
        orientation = _orientation(image)  # of a TIFF this is 1 by now: Pillow turns it by itself
        profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA") else None
        as_it_is = (
            Attachment(name, inline(data, _SENT_AS_THEY_ARE[form]))
            if form in _SENT_AS_THEY_ARE
            and not moving
            and orientation not in _UPRIGHT
            and max(size_before) <= LONGEST_SIDE
            else None
        )
        if as_it_is is not None and len(data) <= min(_KEPT_BYTES, most):
            return as_it_is
        picture = _shrunk(image)
    # From here on nothing is larger than what is sent.
    if orientation in _UPRIGHT:
        picture = picture.transpose(_UPRIGHT[orientation])
    lossless = form not in ("JPEG", "MPO") and len(data) <= 2 * _KEPT_BYTES
    written, mime_type, size_after = _written(picture, min(most, 2 * _KEPT_BYTES), profile, lossless=lossless)
    if as_it_is is not None and len(data) <= min(len(written), most):
        return as_it_is
    if len(written) > most:
        raise ValueError(f"{short(name)} is too large: {at_least(len(written))} even when it is shrunk.")
    upright = size_before[:: -1 if orientation >= 5 else 1]
    done = _done(form, mime_type, upright, size_after, turned=noted in _UPRIGHT)
    sizes = f" ({size(len(data))}, now {size(len(written))})"
    only = "; only its first picture is sent" if moving else ""
    return Attachment(name, inline(written, mime_type), f"{short(name)}: {done}{sizes}{only}")


def _orientation(image: Image.Image) -> int:
    """As its camera noted it; 1 is upright."""
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def _done(form: str, mime_type: str, before: tuple[int, ...], after: tuple[int, ...], *, turned: bool) -> str:
    """What was done to an image: all of it, and nothing else."""
    done = ["turned upright"] if turned else []
    if before != after:
        done.append(f"shrunk from {before[0]:,} x {before[1]:,} to {after[0]:,} x {after[1]:,} pixels")
    was, is_ = ("JPEG" if one == "MPO" else one for one in (form, _FORMATS_BY_TYPE[mime_type]))
    if was != is_:
        done.append(f"converted from {was} to {is_}")
    return ", ".join(done) or "compressed"


def _shrunk(image: Image.Image) -> Image.Image:
    """The picture with at most `LONGEST_SIDE` pixels each way, and with alpha only where something shines through.

    Made strip by strip: each step of it on the whole, as Pillow does it, would be a copy as large as the picture.
    """
    width, height = image.size
    scale = max(1.0, max(image.size) / LONGEST_SIDE)
    to = max(1, round(width / scale)), max(1, round(height / scale))
    down = height / to[1]
    around = math.ceil(_LANCZOS_REACH * down) + 1
    """Rows beside a strip that its own rows are mixed with."""
    whole = Image.new("RGBA" if image.has_transparency_data else "RGB", to)
    for top in range(0, to[1], _STRIP_ROWS):
        below = min(top + _STRIP_ROWS, to[1])
        first, last = max(0, math.floor(top * down) - around), min(height, math.ceil(below * down) + around)
        strip = _plain(image.crop((0, first, width, last)), whole.mode)
        if strip.size[0] != to[0] or scale > 1:
            box = (0, top * down - first, width, min(below * down, height) - first)
            strip = strip.resize((to[0], below - top), Image.Resampling.LANCZOS, box)
        else:
            strip = strip.crop((0, top - first, width, below - first))
        whole.paste(strip, (0, top))
    if whole.mode == "RGBA" and whole.getchannel("A").getextrema()[0] == 255:
        return whole.convert("RGB")
    return whole


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """In red, green and blue, with alpha or without."""
    if image.mode.startswith("I"):  # 16 bits of grey, which a plain conversion would turn white
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    return image.convert(mode)


def _written(
    picture: Image.Image, most: int, profile: bytes | None, *, lossless: bool
) -> tuple[bytes, str, tuple[int, int]]:
    """The largest form that fits into `most` bytes, its media type, and its size in pixels; else the smallest."""
    alpha = picture.mode == "RGBA"
    for side in _SMALLER_SIDES:
        shrunk = picture.copy()
        shrunk.thumbnail((side, side), Image.Resampling.LANCZOS)
        if lossless:
            written = _saved(shrunk, "PNG", icc_profile=profile)
            if len(written) <= min(most, _KEPT_BYTES):
                return written, "image/png", shrunk.size
        form = "WEBP" if alpha else "JPEG"
        written = _saved(shrunk, form, quality=_JPEG_QUALITY, icc_profile=profile)
        if len(written) <= most:
            break
    return written, _SENT_AS_THEY_ARE[form], shrunk.size


def _saved(picture: Image.Image, form: str, **options: object) -> bytes:
    written = io.BytesIO()
    picture.save(written, form, **options)
    return written.getvalue()
