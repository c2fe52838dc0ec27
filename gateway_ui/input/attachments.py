"""Files that go along with a question: what a model takes, and how each file becomes a part that fits.

Sizes are in bytes; people are told a MB of 1,000,000 of them, as browsers show.
"""

import io
import math
import os
import re
import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from PIL import ExifTags, Image

from tokenwire import inline
from tokenwire.cli.meter import size
from tokenwire.v1.content_pb2 import Message, Part
from tokenwire.v1.generation_service_pb2 import Model

UPLOAD_MEGABYTES = 28
"""What a browser may send to the page. Far more than goes on to the model, since images are shrunk here."""

_MIB = 1024 * 1024

_LIMIT_VARIABLE = "TOKENWIRE_MAX_INLINE_BYTES"
_USUAL_LIMIT_BYTES = 4 * _MIB

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

_TYPES = {
    "image": dict.fromkeys(("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "avif"), ""),
    "pdf": {"pdf": "application/pdf"},
    "audio": {
        "wav": "audio/wav",
        "mp3": "audio/mpeg",
        "m4a": "audio/mp4",
        "flac": "audio/flac",
        "ogg": "audio/ogg",
        "aac": "audio/aac",
    },
    "video": {
        "mp4": "video/mp4",
        "mov": "video/quicktime",
        "webm": "video/webm",
        "mpeg": "video/mpeg",
        "mpg": "video/mpeg",
        "wmv": "video/wmv",
        "3gp": "video/3gpp",
    },
    # Any text goes as this: models are said to take it, while few other types of text are, and no JSON or XML.
    "text": dict.fromkeys(
        (
            *("txt", "md", "csv", "tsv", "json", "jsonl", "xml", "html", "css", "svg", "tex", "log"),
            *("py", "ipynb", "js", "ts", "jsx", "tsx", "java", "kt", "c", "h", "cpp", "hpp", "cs", "go", "rs", "rb"),
            *("php", "swift", "sh", "sql", "r", "lua", "yaml", "yml", "toml", "ini", "cfg"),
        ),
        "text/plain",
    ),
}
"""By the input kind of ListModels: endings of file names, and what each is sent as. Images and PDFs go by their bytes,
whatever their names say.
"""

_MIME_TYPES = {"pdf": "application/pdf", "text": "text/plain"}
"""Of the kinds that have a single one, whatever a file's name says."""

_WORDS = {
    "image": "images (PNG, JPEG, WebP, GIF and more)",
    "pdf": "PDF",
    "audio": "audio (WAV, MP3, M4A, FLAC, OGG, AAC)",
    "video": "video (MP4, MOV, WebM, MPEG, WMV, 3GP)",
    "text": "text files of any kind (TXT, CSV, JSON, code)",
}
"""The same for people, in the order in which they are told."""

_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}

_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")

_HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that can be sent."""

    name: str
    """As its owner calls it. The part has no room for it, so the page keeps it."""
    part: Part
    note: str = ""
    """What was done to it, in words for a person; empty: it is sent as it came."""
    place: int = 0
    """Which of the files of its question it is, from 0 on."""

    @property
    def size(self) -> int:
        """How many bytes are sent."""
        return len(self.part.inline_data.data)


def limit() -> int:
    """How many bytes the files of one request may have together, those of earlier questions included.

    The page can't ask the service for its limit. It reads the same variable, or takes the service's default; where the
    service has another limit, the service says so.
    """
    try:
        return int(os.environ[_LIMIT_VARIABLE])
    except (KeyError, ValueError):
        return _USUAL_LIMIT_BYTES


def kinds(model: Model) -> list[str]:
    """Give the kinds of input that can be sent to a model as files; none where it says that it takes none."""
    return [] if "messages.parts.inline_data" in model.unsupported_fields else list(model.input_kinds)


def endings(kinds: Iterable[str]) -> list[str]:
    """Of file names, for a model that takes these kinds of input; none where it takes no files."""
    return [ending for kind in kinds for ending in _TYPES.get(kind, {})]


def hint(kinds: Collection[str]) -> str:
    """Give one line to be told before anything is sent: which files, and how large. Empty: it takes no files."""
    wanted = _wanted(kinds)
    if not wanted:
        return ""
    shrunk = "; larger images are shrunk" if "image" in kinds else ""
    return f"Files: {wanted}; at most {_limit_words()} in one conversation{shrunk}"


def attach(name: str, data: bytes, kinds: Collection[str], *, most: int | None = None) -> Attachment:
    """Make a part of a file for a model that takes these kinds of input.

    `most`: bytes that it may have, an image once it is shrunk; None: the limit of a request. Raises ValueError, in
    words for a person, where it can't be sent.
    """
    most = limit() if most is None else most
    shown = _short(name)
    if not _wanted(kinds):
        raise ValueError(f"{shown} can't be sent: this model takes no files.")
    if not data:
        raise ValueError(f"{shown} is empty.")
    ending = PurePath(name).suffix.lower().removeprefix(".")
    kind = _kind(ending, data)
    if ending in ("heic", "heif") or _is_heic(data):
        raise ValueError(f"{shown} can't be sent: this page can't read HEIC. Save it as JPEG, and send that.")
    if kind == "" and "text" in kinds and _reads_as_text(data):
        kind = "text"
    if kind not in kinds:
        raise ValueError(f"{shown} can't be sent: this model takes {_wanted(kinds)}.")
    if kind == "image":
        return _image(name, data, most)
    note = ""
    if kind == "text":
        data, note = _text(shown, data)
    elif kind == "pdf" and not _is_pdf(data):
        raise ValueError(f"{shown} can't be sent: it is no PDF, whatever its name says.")
    if len(data) > most:
        raise ValueError(f"{shown} is too large: {_at_least(len(data))}, at most {_at_most(most)} can be sent.")
    return Attachment(name, inline(data, _MIME_TYPES.get(kind) or _TYPES[kind][ending]), note)


def _kind(ending: str, data: bytes) -> str:
    """What a file is: by its bytes where those tell it, else by the ending of its name; empty: nobody knows."""
    if _is_image_file(data):
        return "image"
    if data.startswith(b"%PDF-"):
        return "pdf"
    return next((kind for kind, types in _TYPES.items() if ending in types), "")


def attach_all(
    files: Iterable[tuple[str, bytes]], kinds: Collection[str], *, before: int = 0
) -> tuple[list[Attachment], list[str]]:
    """Make parts of all files of one question; gives them, and what is wrong, in words for a person.

    `files`: names and bytes. `before`: bytes of files in earlier messages, which go along again (`inline_bytes`). Where
    they don't fit together, images are made smaller; where that doesn't help, the files are refused as a whole.
    """
    files, room = list(files), limit() - before
    attached, problems = _each(files, kinds, None)
    if sum(one.size for one in attached) > room:
        images = [one for one in attached if _is_image(one.part)]
        left = room - sum(one.size for one in attached if not _is_image(one.part))
        if images and left > 0:
            attached, problems = _each(files, kinds, left // len(images))
    if attached and sum(one.size for one in attached) > room:
        sizes = ", ".join(f"{_short(one.name)} {size(one.size)}" for one in attached)
        earlier = f", beside {size(before)} of earlier files" if before else ""
        together = _at_least(sum(one.size for one in attached))
        problems.append(
            f"The files are too large together: {together} ({sizes}){earlier}; at most {_limit_words()} can be sent."
        )
        attached = []
    return attached, problems


def _each(
    files: Sequence[tuple[str, bytes]], kinds: Collection[str], most_image: int | None
) -> tuple[list[Attachment], list[str]]:
    attached, problems = [], []
    for place, (name, data) in enumerate(files):
        try:
            one = attach(name, data, kinds, most=most_image if _is_image_file(data) else None)
            attached.append(replace(one, place=place))
        except ValueError as error:
            problems.append(str(error))
    return attached, problems


def inline_bytes(messages: Iterable[Message]) -> int:
    """Give how many bytes of files these messages hold."""
    return sum(len(part.inline_data.data) for message in messages for part in message.parts)


def too_much(messages: Iterable[Message]) -> str:
    """Say, in words for a person, that the files of these messages are too large for one request; empty: they fit."""
    held = inline_bytes(messages)
    if held <= limit():
        return ""
    return (
        f"The files of this conversation are too large together: {_at_least(held)}, at most {_limit_words()} can be "
        "sent. Start a new conversation, or send fewer."
    )


def described(part: Part, name: str = "") -> str:
    """Give a file in one line, as plain text: its name where that is known, what it is, and its size."""
    blob = part.inline_data
    kind = {"application/pdf": "PDF", "text/plain": "text"}.get(blob.mime_type, blob.mime_type)
    return " · ".join([*filter(None, [name]), kind, size(len(blob.data))])


def _at_least(count: int) -> str:
    """As `size`, but rounded up: what is too large mustn't read as if it just fitted."""
    return size(math.ceil(count / 100_000) * 100_000 if count >= 1_000_000 else count)


def _at_most(count: int) -> str:
    """As `size`, but rounded down: what is said to fit has to."""
    return size(count // 100_000 * 100_000 if count >= 1_000_000 else count)


def _limit_words() -> str:
    return _at_most(limit()).replace(".0 MB", " MB")


def _wanted(kinds: Collection[str]) -> str:
    words = [text for kind, text in _WORDS.items() if kind in kinds]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _short(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:60]}…{name[-19:]}"


# ---- text ------------------------------------------------------------------------------------------------------------


def _text(shown: str, data: bytes) -> tuple[bytes, str]:
    """The text as UTF-8, and a note where it was something else."""
    text = _decoded(data)
    if text is None:
        raise ValueError(f"{shown} can't be sent: its text isn't in UTF-8. Save it as UTF-8, and send that.")
    if not text:
        raise ValueError(f"{shown} is empty.")
    form = next((form for mark, form in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), "")
    return text.encode(), f"{shown}: sent as UTF-8, was UTF-16" if form == "utf-16" else ""


def _decoded(data: bytes) -> str | None:
    """The text that these bytes are; None: they are none."""
    form = next((form for mark, form in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(form)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text  # much that is no text is valid UTF-8 for a while


def _reads_as_text(data: bytes) -> bool:
    """Whether a file of an unknown name is text: in UTF-8, or in one of the older forms, which hold no such bytes."""
    return _decoded(data) is not None or not _NO_TEXT.search(data)


# ---- images ----------------------------------------------------------------------------------------------------------


def _is_image(part: Part) -> bool:
    return part.inline_data.mime_type.startswith("image/")


def _is_image_file(data: bytes) -> bool:
    """Whether its first bytes are those of an image, as far as this page reads such; the rest may still be broken."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS):
            return True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True
    except Exception:  # noqa: BLE001 - each format's reader has errors of its own
        return False


def _is_pdf(data: bytes) -> bool:
    return b"%PDF-" in data[:1024]


def _is_heic(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS


def _image(name: str, data: bytes, most: int) -> Attachment:
    """As it came where it is small enough, else upright, shrunk, and without the camera's metadata.

    What it is, is told by its bytes: providers refuse an image whose type isn't what was said.
    """
    shown = _short(name)
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
        raise ValueError(f"{_short(name)} is too large: {_at_least(len(written))} even when it is shrunk.")
    upright = size_before[:: -1 if orientation >= 5 else 1]
    done = _done(form, mime_type, upright, size_after, turned=noted in _UPRIGHT)
    sizes = f" ({size(len(data))}, now {size(len(written))})"
    only = "; only its first picture is sent" if moving else ""
    return Attachment(name, inline(written, mime_type), f"{_short(name)}: {done}{sizes}{only}")


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
