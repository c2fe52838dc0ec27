"""Files that go along with a question: what a model takes, and whether a file is that."""

import io
from collections.abc import Iterable
from pathlib import PurePath

from PIL import Image

from tokenwire import inline
from tokenwire.v1.content_pb2 import Part

# What providers take in the request itself; bigger ones have to go by reference.
MAX_MEGABYTES = 7

# Streamlit asks without what it has refused itself, so it is to refuse next to nothing: `attach` says why.
UPLOAD_MEGABYTES = 4 * MAX_MEGABYTES

_MEGABYTE = 1024 * 1024

# By the input kind of ListModels: endings of file names, and what each is.
_TYPES = {
    "image": {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp"},
    "pdf": {"pdf": "application/pdf"},
    "audio": {"wav": "audio/wav", "mp3": "audio/mpeg", "flac": "audio/flac", "ogg": "audio/ogg", "aac": "audio/aac"},
}


def endings(kinds: Iterable[str]) -> list[str]:
    """Of file names, for a model that takes these kinds of input; none where it takes no files."""
    return [ending for kind in kinds for ending in _TYPES.get(kind, {})]


def attach(name: str, data: bytes, kinds: Iterable[str]) -> Part:
    """Make a part of a file for a model that takes these kinds of input.

    Raises ValueError, in words for a person, where it can't be sent.
    """
    kinds = list(kinds)
    ending = PurePath(name).suffix.lower().removeprefix(".")
    wanted = ", ".join(endings(kinds))
    if not wanted:
        raise ValueError(f"{name} can't be sent: this model takes text only.")
    if ending not in endings(kinds):
        raise ValueError(f"{name} can't be sent: this model takes files that end in {wanted}.")
    if not data:
        raise ValueError(f"{name} is empty.")
    if len(data) > MAX_MEGABYTES * _MEGABYTE:
        size = len(data) / _MEGABYTE
        raise ValueError(f"{name} is too large: {size:.1f} MB, at most {MAX_MEGABYTES} MB can be sent.")
    return inline(data, _type(name, ending, data))


def _type(name: str, ending: str, data: bytes) -> str:
    if ending in _TYPES["image"]:
        return _image_type(name, data)
    if ending == "pdf" and not data.startswith(b"%PDF-"):
        raise ValueError(f"{name} can't be sent: it is no PDF, whatever its name says.")
    return next(types[ending] for types in _TYPES.values() if ending in types)


def _image_type(name: str, data: bytes) -> str:
    """Tell it by the bytes, since providers refuse an image whose type isn't what was said."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.verify()
            found = Image.MIME.get(image.format or "", "")
    # Each format's reader has errors of its own.
    except Exception as error:
        raise ValueError(f"{name} can't be sent: it can't be read as an image.") from error
    if found not in _TYPES["image"].values():
        raise ValueError(f"{name} can't be sent: it is {found or 'of an unknown type'}; PNG, JPEG or WebP is wanted.")
    return found
