import io

import pytest
from PIL import Image

from gateway_ui.attachments import MAX_MEGABYTES, attach, endings
from tokenwire import inline


def picture(form: str) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (8, 8), "blue").save(written, form)
    return written.getvalue()


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [([], set()), (["text"], set()), (["text", "image", "video"], {"png", "jpg", "jpeg", "webp"}), (["pdf"], {"pdf"})],
)
def test_only_what_the_model_takes_is_offered(kinds: list[str], wanted: set[str]) -> None:
    assert set(endings(kinds)) == wanted


@pytest.mark.parametrize(
    ("name", "form", "mime_type"),
    [
        ("a.png", "PNG", "image/png"),
        ("A.JPG", "JPEG", "image/jpeg"),
        ("a.webp", "WEBP", "image/webp"),
        # By its bytes, whatever its name says.
        ("a.png", "JPEG", "image/jpeg"),
    ],
)
def test_an_image_is_sent_as_what_it_is(name: str, form: str, mime_type: str) -> None:
    assert attach(name, picture(form), ["image"]) == inline(picture(form), mime_type)


@pytest.mark.parametrize(
    ("name", "data", "mime_type"), [("a.pdf", b"%PDF-1.7", "application/pdf"), ("a.mp3", b"ID3", "audio/mpeg")]
)
def test_other_files_go_by_their_names(name: str, data: bytes, mime_type: str) -> None:
    assert attach(name, data, ["pdf", "audio"]) == inline(data, mime_type)


@pytest.mark.parametrize(
    ("name", "data", "kinds", "words"),
    [
        ("a.png", picture("PNG"), ["text"], "a.png can't be sent: this model takes text only."),
        ("a.pdf", b"%PDF-", ["image"], "a.pdf can't be sent: this model takes files that end in png, jpg, jpeg, webp."),
        ("a.png", b"", ["image"], "a.png is empty."),
        ("a.png", b"hello", ["image"], "a.png can't be sent: it can't be read as an image."),
        ("a.png", picture("PNG")[:-20], ["image"], "a.png can't be sent: it can't be read as an image."),
        (
            "a.png",
            picture("GIF"),
            ["image"],
            "a.png can't be sent: it is image/gif; PNG, JPEG or WebP is wanted.",
        ),
        ("a.pdf", b"hello", ["pdf"], "a.pdf can't be sent: it is no PDF, whatever its name says."),
        (
            "a.wav",
            bytes(MAX_MEGABYTES * 1024 * 1024 + 1),
            ["audio"],
            "a.wav is too large: 7.0 MB, at most 7 MB can be sent.",
        ),
    ],
)
def test_a_file_that_cannot_be_sent_is_refused_in_words(name: str, data: bytes, kinds: list[str], words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are what is looked at
        attach(name, data, kinds)
    assert str(caught.value) == words
