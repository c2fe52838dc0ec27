"""Files that go along with a question: what a model takes, and how each file becomes a part that fits.

Sizes are in bytes; people are told a MB of 1,000,000 of them, as browsers show.
"""

import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import PurePath

from tokenwire import inline
from tokenwire.cli.meter import size
from tokenwire.v1.content_pb2 import Message, Part
from tokenwire.v1.generation_service_pb2 import Model

from . import images
from .attached import Attachment, at_least, at_most, short

UPLOAD_MEGABYTES = 28
"""What a browser may send to the page. Far more than goes on to the model, since images are shrunk here."""

_MIB = 1024 * 1024

_LIMIT_VARIABLE = "TOKENWIRE_MAX_INLINE_BYTES"
_USUAL_LIMIT_BYTES = 4 * _MIB

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
    shown = short(name)
    if not _wanted(kinds):
        raise ValueError(f"{shown} can't be sent: this model isn't known to take any files.")
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
        return images.attach(name, data, most)
    note = ""
    if kind == "text":
        data, note = _text(shown, data)
    elif kind == "pdf" and not _is_pdf(data):
        raise ValueError(f"{shown} can't be sent: it is no PDF, whatever its name says.")
    if len(data) > most:
        raise ValueError(f"{shown} is too large: {at_least(len(data))}, at most {at_most(most)} can be sent.")
    return Attachment(name, inline(data, _MIME_TYPES.get(kind) or _TYPES[kind][ending]), note)


def _kind(ending: str, data: bytes) -> str:
    """What a file is: by its bytes where those tell it, else by the ending of its name; empty: nobody knows."""
    if images.is_image(data):
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
        sizes = ", ".join(f"{short(one.name)} {size(one.size)}" for one in attached)
        earlier = f", beside {size(before)} of earlier files" if before else ""
        together = at_least(sum(one.size for one in attached))
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
            one = attach(name, data, kinds, most=most_image if images.is_image(data) else None)
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
        f"The files of this conversation are too large together: {at_least(held)}, at most {_limit_words()} can be "
        "sent. Start a new conversation, or send fewer."
    )


def described(part: Part, name: str = "") -> str:
    """Give a file in one line, as plain text: its name where that is known, what it is, and its size."""
    blob = part.inline_data
    kind = {"application/pdf": "PDF", "text/plain": "text"}.get(blob.mime_type, blob.mime_type)
    return " · ".join([*filter(None, [name]), kind, size(len(blob.data))])


def _limit_words() -> str:
    return at_most(limit()).replace(".0 MB", " MB")


def _wanted(kinds: Collection[str]) -> str:
    words = [text for kind, text in _WORDS.items() if kind in kinds]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


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


def _is_pdf(data: bytes) -> bool:
    return b"%PDF-" in data[:1024]


def _is_heic(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS
