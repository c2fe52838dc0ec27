import io
import itertools
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image, ImageChops

from gateway_ui.input import attachments, images
from gateway_ui.input.attached import Attachment
from gateway_ui.input.attachments import attach, attach_all, described, endings, hint, inline_bytes, too_much
from tests.marks import needs_peak
from tokenwire import inline, user
from tokenwire.cli.meter import size
from tokenwire.v1.generation_service_pb2 import Model

MB = 1024 * 1024
ALL = ["text", "image", "pdf", "audio", "video"]
IMAGES_IN_WORDS = "images (PNG, JPEG, WebP, GIF and more)"
TEXT_IN_WORDS = "text files of any kind (TXT, CSV, JSON, code)"
AT_MOST = "at most 4.1 MB in one conversation"
IMAGES = {"png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "avif"}

ON_ITS_SIDE = Image.Exif()
ON_ITS_SIDE[0x0112] = 6


def picture(form: str, width: int = 8, height: int = 8, mode: str = "RGB", **options: Any) -> bytes:
    written = io.BytesIO()
    Image.new(mode, (width, height), "blue").save(written, form, **options)
    return written.getvalue()


def photo(form: str, width: int, height: int, noise: int = 30, mode: str = "RGB", **options: Any) -> bytes:
    """A picture as hard to write small as one of a camera's: a coarse picture beneath fine noise."""
    dice = random.Random(1)
    coarse = Image.frombytes("RGB", (40, 30), dice.randbytes(3600)).resize((width, height), Image.Resampling.BICUBIC)
    fine = Image.effect_noise((width, height), noise).convert("RGB")
    written = io.BytesIO()
    Image.blend(coarse, fine, 0.3).convert(mode).save(written, form, **options)
    return written.getvalue()


def shown(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def refusal(name: str, data: bytes, kinds: Sequence[str]) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are what is looked at
        attach(name, data, kinds)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [([], set()), (["image"], IMAGES), (["pdf"], {"pdf"}), (["pdf", "smell"], {"pdf"})],
)
def test_only_what_the_model_takes_is_offered(kinds: list[str], wanted: set[str]) -> None:
    assert set(endings(kinds)) == wanted


def test_text_and_video_are_offered_too() -> None:
    wanted = "txt md csv tsv json xml html py js ts java c cpp go rs sh yaml toml log".split()  # noqa: SIM905 - short
    assert set(wanted) <= set(endings(["text"]))
    assert {"mp4", "mov", "webm", "mpeg"} <= set(endings(["video"]))
    assert len(endings(ALL)) == len(set(endings(ALL)))


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ([], ""),
        (["pdf"], "Files: PDF; at most 4.1 MB in one conversation"),
        (
            ["text", "image", "pdf"],
            f"Files: {IMAGES_IN_WORDS}, PDF and {TEXT_IN_WORDS}; {AT_MOST}; larger images are shrunk",
        ),
    ],
)
def test_what_can_be_sent_is_told_before_it_is(kinds: list[str], told: str) -> None:
    assert hint(kinds) == told


def test_the_limit_is_the_services_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENWIRE_MAX_INLINE_BYTES", str(20 * MB))
    assert hint(["pdf"]).endswith("at most 20.9 MB in one conversation")
    assert attach("a.mp4", bytes(20 * MB), ["video"]).size == 20 * MB
    monkeypatch.setenv("TOKENWIRE_MAX_INLINE_BYTES", "a lot")
    assert attachments.limit() == 4 * MB


def test_the_usual_limit_is_the_services_own() -> None:
    from service.settings import Settings  # noqa: PLC0415 - the page may not know it, its test may

    assert Settings().max_inline_bytes == attachments._USUAL_LIMIT_BYTES


def test_a_model_that_takes_no_inline_data_is_offered_no_files() -> None:
    assert attachments.kinds(Model(input_kinds=["text", "image"])) == ["text", "image"]
    assert attachments.kinds(Model(input_kinds=["text"], unsupported_fields=["messages.parts.inline_data"])) == []


# ---- text, PDF, audio, video


@pytest.mark.parametrize(
    ("name", "data", "mime_type"),
    [
        ("a.pdf", b"%PDF-1.7", "application/pdf"),
        ("a.pdf", b"\n%PDF-1.7", "application/pdf"),
        ("a.mp3", b"ID3", "audio/mpeg"),
        ("A.M4A", b"x", "audio/mp4"),
        ("a.mp4", b"x", "video/mp4"),
        ("a.mov", b"x", "video/quicktime"),
        ("a.webm", b"x", "video/webm"),
        ("a.mpeg", b"x", "video/mpeg"),
        ("notes.txt", b"hello", "text/plain"),
        ("a.csv", b"a,b\n1,2", "text/plain"),
        ("a.py", b"print()", "text/plain"),
        ("a.json", '{"ü": 1}'.encode(), "text/plain"),
        # No ending, or one that nobody knows: what is text is text.
        ("Makefile", b"all:\n", "text/plain"),
        ("a.zig", b"pub fn main", "text/plain"),
    ],
)
def test_other_files_go_by_their_names_and_as_they_came(name: str, data: bytes, mime_type: str) -> None:
    attached = attach(name, data, ALL)
    assert (attached.name, attached.part, attached.note) == (name, inline(data, mime_type), "")
    assert attached.size == len(data)


@pytest.mark.parametrize(
    ("data", "text", "note"),
    [
        (b"\xef\xbb\xbfgr\xc3\xbc\xc3\x9fe", "grüße", ""),
        ("grüße".encode("utf-16"), "grüße", "a.txt: sent as UTF-8, was UTF-16"),
        (b"\xfe\xff\x00h\x00i", "hi", "a.txt: sent as UTF-8, was UTF-16"),
    ],
)
def test_a_byte_order_mark_says_how_to_read_a_text(data: bytes, text: str, note: str) -> None:
    attached = attach("a.txt", data, ["text"])
    assert (attached.part, attached.note) == (inline(text.encode(), "text/plain"), note)


@pytest.mark.parametrize(
    ("name", "data", "kinds", "words"),
    [
        ("a.png", picture("PNG"), [], "a.png can't be sent: this model isn't known to take any files."),
        ("a.pdf", b"%PDF-", ["image"], "a.pdf can't be sent: this model takes images (PNG, JPEG, WebP, GIF and more)."),
        ("a.txt", b"x", ["pdf"], "a.txt can't be sent: this model takes PDF."),
        (
            "a.mp4",
            b"x",
            ["text", "pdf"],
            "a.mp4 can't be sent: this model takes PDF and text files of any kind (TXT, CSV, JSON, code).",
        ),
        (
            "a.docx",
            b"PK\x03\x04\0\0",
            ["text", "pdf"],
            "a.docx can't be sent: this model takes PDF and text files of any kind (TXT, CSV, JSON, code).",
        ),
        ("a.png", b"", ["image"], "a.png is empty."),
        ("a.txt", b"", ["text"], "a.txt is empty."),
        ("a.txt", b"\xef\xbb\xbf", ["text"], "a.txt is empty."),
        *(
            (
                "a.txt",
                data,
                ["text"],
                "a.txt can't be sent: its text isn't in UTF-8. Save it as UTF-8, and send that.",
            )
            for data in (b"gr\xfc\xdfe", b"a\0b", b"\xff\xfea", b"h\0i\0")
        ),
        *(
            (
                name,
                "Größe,Preis\r\n1,2 €".encode("cp1252"),
                ["text", "image"],
                f"{name} can't be sent: its text isn't in UTF-8. Save it as UTF-8, and send that.",
            )
            for name in ("a.csv", "a", "a.zig")
        ),
        ("a.png", b"hello", ["image"], "a.png can't be sent: it can't be read as an image."),
        ("a.png", picture("PNG")[:-20], ["image"], "a.png can't be sent: it can't be read as an image."),
        ("a.jpg", photo("JPEG", 900, 900)[:-9000], ["image"], "a.jpg can't be sent: it can't be read as an image."),
        # Formats that are none of a camera's: Pillow would start Ghostscript for this one.
        ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n", ["image"], "a.png can't be sent: it can't be read as an image."),
        ("a.pdf", b"hello", ["pdf"], "a.pdf can't be sent: it is no PDF, whatever its name says."),
        ("a.wav", bytes(4 * MB + 1), ["audio"], "a.wav is too large: 4.2 MB, at most 4.1 MB can be sent."),
        *(
            (
                name,
                data,
                ["image"],
                f"{name} can't be sent: this page can't read HEIC. Save it as JPEG, and send that.",
            )
            for name, data in (("a.heic", b"x"), ("a.HEIF", b"x"), ("a.jpg", b"\0\0\0\x18ftypheic\0\0"))
        ),
        ("a" * 90 + ".wav", b"x", ["pdf"], "a" * 60 + "…" + "a" * 15 + ".wav can't be sent: this model takes PDF."),
    ],
)
def test_a_file_that_cannot_be_sent_is_refused_in_words(name: str, data: bytes, kinds: list[str], words: str) -> None:
    assert refusal(name, data, kinds) == words


# ---- images


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
def test_a_small_image_is_sent_as_it_came(name: str, form: str, mime_type: str) -> None:
    attached = attach(name, picture(form), ["image"])
    assert (attached.part, attached.note) == (inline(picture(form), mime_type), "")


def test_a_photo_of_a_phone_is_shrunk_and_said_to_be() -> None:
    data = photo("JPEG", 4032, 3024, quality=96)
    assert len(data) > 5 * MB
    attached = attach("IMG_1.jpg", data, ["image"])
    assert attached.part.inline_data.mime_type == "image/jpeg"
    assert shown(attached.part.inline_data.data).size == (3072, 2304)
    assert attached.size < 2 * MB
    assert attached.note == (
        f"IMG_1.jpg: shrunk from 4,032 x 3,024 to 3,072 x 2,304 pixels ({size(len(data))}, now {size(attached.size)})"
    )


def test_a_png_of_seven_megabytes_fits() -> None:
    data = photo("PNG", 2200, 1600)
    assert len(data) > 7 * MB
    attached = attach("big.png", data, ["image"])
    assert attached.part.inline_data.mime_type == "image/jpeg"
    assert attached.size < 2 * MB
    assert shown(attached.part.inline_data.data).size == (2200, 1600)
    assert attached.note == f"big.png: converted from PNG to JPEG ({size(len(data))}, now {size(attached.size)})"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright_and_loses_its_metadata(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "the camera's maker"
    upright = Image.new("RGB", (60, 30), "white")
    upright.paste("red", (0, 0, 30, 15))  # above, to the left
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how a camera that is held so would write it
    turned = upright.transpose(Image.Transpose(back[orientation])) if orientation in back else upright
    written = io.BytesIO()
    turned.save(written, "JPEG", exif=exif, quality=95)
    attached = attach("a.jpg", written.getvalue(), ["image"])
    seen = shown(attached.part.inline_data.data)
    assert seen.size == (60, 30)
    red = [seen.convert("RGB").getpixel((x, y)) for x, y in ((10, 5), (50, 5), (10, 25))]
    assert [color[1] < 100 for color in red if isinstance(color, tuple)] == [True, False, False]
    if orientation > 1:
        assert not seen.getexif()
        assert attached.note == f"a.jpg: turned upright ({size(len(written.getvalue()))}, now {size(attached.size)})"


def test_what_shines_through_stays_so() -> None:
    data = photo("PNG", 3600, 900, mode="RGBA")
    image = shown(data)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    written = io.BytesIO()
    image.save(written, "PNG")
    attached = attach("a.png", written.getvalue(), ["image"])
    seen = shown(attached.part.inline_data.data)
    assert (attached.part.inline_data.mime_type, seen.mode, seen.size) == ("image/webp", "RGBA", (3072, 768))


def test_a_screenshot_that_is_too_wide_stays_a_png() -> None:
    attached = attach("a.png", picture("PNG", 5000, 100), ["image"])
    assert attached.part.inline_data.mime_type == "image/png"
    assert shown(attached.part.inline_data.data).size == (3072, 61)
    assert re.fullmatch(r"a.png: shrunk from 5,000 x 100 to 3,072 x 61 pixels \([^()]*\)", attached.note)


@pytest.mark.parametrize(("form", "ending"), [("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tiff"), ("AVIF", "avif")])
def test_other_formats_are_converted_and_said_to_be(form: str, ending: str) -> None:
    attached = attach(f"a.{ending}", photo(form, 64, 48), ["image"])
    assert attached.part.inline_data.mime_type == "image/png"
    assert shown(attached.part.inline_data.data).size == (64, 48)
    assert re.fullmatch(rf"a.{ending}: converted from {form} to PNG \([^()]*, now [^()]*\)", attached.note)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_of_moving_pictures_the_first_is_sent_and_said_to_be(form: str) -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    written = io.BytesIO()
    frames[0].save(written, form, save_all=True, append_images=frames[1:], lossless=True)
    attached = attach("a.gif", written.getvalue(), ["image"])
    first = shown(attached.part.inline_data.data)
    assert not getattr(first, "is_animated", False)
    red, green, blue = first.convert("RGB").tobytes()[:3]
    assert (red > 250, green < 5, blue < 5) == (True, True, True)
    assert attached.note.endswith("; only its first picture is sent")


def test_a_photo_that_is_only_written_smaller_is_told_as_that() -> None:
    data = photo("JPEG", 2000, 1500, noise=200, quality=100)
    attached = attach("a.jpg", data, ["image"])
    assert attached.note == f"a.jpg: compressed ({size(len(data))}, now {size(attached.size)})"


@pytest.mark.parametrize(("form", "converted"), [("TIFF", ", converted from TIFF to JPEG"), ("JPEG", "")])
def test_all_that_was_done_to_a_photo_is_told(form: str, converted: str) -> None:
    done = rf"turned upright, shrunk from 300 x 4,000 to 230 x 3,072 pixels{converted} \([^()]*\)"
    data = photo(form, 4000, 300, exif=ON_ITS_SIDE)
    assert re.fullmatch(f"a: {done}", attach("a", data, ["image"]).note)


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "a", "a.txt", "a.mp4", "a.JPG.download"])
def test_what_an_image_is_called_decides_nothing(name: str) -> None:
    assert attach(name, picture("JPEG"), ["image"]).part == inline(picture("JPEG"), "image/jpeg")
    attached, problems = attach_all([(name, photo("JPEG", 1600, 1200, quality=95))] * 9, ["image"])
    assert (len(attached), problems) == (9, [])


def test_a_pdf_is_one_without_its_ending() -> None:
    assert attach("report", b"%PDF-1.7", ["pdf"]).part == inline(b"%PDF-1.7", "application/pdf")
    assert attach("a.txt", b"A PDF begins with %PDF-", ALL).part.inline_data.mime_type == "text/plain"


@pytest.mark.parametrize("text", ["BM", "BMW and others", "GIF89a is a format", "RIFF", "II*"])
def test_text_that_begins_like_an_image_is_text(text: str) -> None:
    assert attach("a.txt", text.encode(), ALL).part == inline(text.encode(), "text/plain")


def test_the_two_pictures_of_some_phones_are_sent_as_one_jpeg() -> None:
    first = Image.new("RGB", (20, 20), "red")
    written = io.BytesIO()
    first.save(written, "MPO", save_all=True, append_images=[Image.new("RGB", (20, 20), "blue")])
    attached = attach("a.jpg", written.getvalue(), ["image"])
    assert attached.part.inline_data.mime_type == "image/jpeg"
    assert shown(attached.part.inline_data.data).format == "JPEG"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I;16"])
def test_every_mode_of_colour_can_be_shrunk(mode: str) -> None:
    written = io.BytesIO()
    image = Image.new("L", (4000, 40), 128)
    if mode == "I;16":
        image = image.convert("I").point(lambda value: value * 257).convert("I;16")
    else:
        image = image.convert(mode)
    image.save(written, "JPEG" if mode == "CMYK" else "PNG")
    seen = shown(attach("a.png", written.getvalue(), ["image"]).part.inline_data.data).convert("L")
    assert seen.size == (3072, 31)
    grey = seen.getpixel((1500, 15))
    assert mode == "1" or (isinstance(grey, int | float) and abs(grey - 128) < 8)


@pytest.mark.parametrize(
    ("width", "words"), [(9_400, "it has 9,400 x 9,400 pixels"), (20_000, "it has too many pixels")]
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_before_it_is_read(width: int, words: str) -> None:
    data = picture("PNG", width, width, mode="1")
    assert len(data) < MB
    assert refusal("a.png", data, ["image"]) == (f"a.png can't be sent: {words}, at most 67 million can be read.")


PEAK = """
import sys
from gateway_ui.input.attachments import attach

def peak():
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

data = sys.stdin.buffer.read()
attach("first.png", data[int(sys.argv[1]) :], ["image"])  # what is loaded for the first image
before = peak()
attach("a.png", data[: int(sys.argv[1])], ["image"])
print(peak() - before)
"""


@needs_peak
@pytest.mark.parametrize(
    ("form", "mode", "side", "options"),
    [
        ("PNG", "RGB", 8190, {}),
        ("PNG", "RGBA", 8190, {}),
        ("PNG", "P", 8190, {"transparency": 0}),
        ("PNG", "I;16", 8190, {}),
        ("GIF", "P", 8190, {}),
        ("JPEG", "RGB", 8190, {}),
        # Just too small to be decoded at a half.
        ("JPEG", "RGB", 6100, {"progressive": True, "subsampling": 0}),
        ("WEBP", "RGBA", 4090, {"lossless": True, "method": 0}),
        ("AVIF", "RGB", 5180, {"speed": 10}),
        ("TIFF", "RGB", 5180, {"compression": "tiff_adobe_deflate", "strip_size": 1 << 28, "exif": ON_ITS_SIDE}),
    ],
)
def test_the_largest_image_of_each_format_takes_the_memory_that_is_said(
    form: str, mode: str, side: int, options: dict[str, Any]
) -> None:
    first = picture("PNG", 3500, 40, mode="RGBA")
    data = picture(form, side, side, mode, **options)
    command = [sys.executable, "-c", PEAK, str(len(data))]
    told = subprocess.run(command, input=data + first, capture_output=True, check=True).stdout
    assert int(told) < 1.5 * images._MOST_DECODED_BYTES / MB


def test_images_of_all_tabs_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, alone = images._fitted, []

    def look(*arguments: Any) -> Attachment:
        alone.append(not images._ONE_AT_A_TIME.acquire(blocking=False))
        return fitted(*arguments)

    monkeypatch.setattr(images, "_fitted", look)
    attach("a.png", picture("PNG"), ["image"])
    assert alone == [True]
    assert images._ONE_AT_A_TIME.acquire(blocking=False), "and nobody waits for ever"
    images._ONE_AT_A_TIME.release()


def test_an_image_made_smaller_in_strips_has_no_seams() -> None:
    data = photo("PNG", 4000, 3900, noise=200)
    whole = shown(data).resize((3072, 2995), Image.Resampling.LANCZOS)
    strips = images._shrunk(shown(data))
    assert strips.size == whole.size
    assert max(ImageChops.difference(whole, strips).tobytes()) <= 1


# ---- all files of a question


def test_what_is_wrong_with_each_file_is_told() -> None:
    attached, problems = attach_all([("a.txt", b"hello"), ("b.png", b"x"), ("c.bin", b"\0")], ["text", "image"])
    assert [(one.name, one.part) for one in attached] == [("a.txt", inline(b"hello", "text/plain"))]
    assert problems == [
        "b.png can't be sent: it can't be read as an image.",
        f"c.bin can't be sent: this model takes {IMAGES_IN_WORDS} and {TEXT_IN_WORDS}.",
    ]


def test_images_are_made_smaller_until_they_fit_together() -> None:
    pictures = [(f"{number}.jpg", photo("JPEG", 1600, 1200, quality=85)) for number in range(4)]
    each = len(pictures[0][1])
    room = 2 * each
    attached, problems = attach_all(pictures, ["image"], before=attachments.limit() - room)
    assert not problems
    assert len(attached) == 4
    assert room / 4 < sum(one.size for one in attached) <= room
    assert all(re.search("compressed|shrunk from", one.note) for one in attached)


def test_files_that_do_not_fit_together_are_refused_with_their_sizes() -> None:
    files = [("a.pdf", b"%PDF-" + bytes(2 * MB)), ("b.wav", bytes(3 * MB))]
    attached, problems = attach_all(files, ["pdf", "audio"])
    assert not attached
    assert problems == [
        "The files are too large together: 5.3 MB (a.pdf 2.1 MB, b.wav 3.1 MB); at most 4.1 MB can be sent."
    ]
    _, problems = attach_all(files[:1], ["pdf"], before=3 * MB)
    earlier = "beside 3.1 MB of earlier files"
    assert problems == [
        f"The files are too large together: 2.1 MB (a.pdf 2.1 MB), {earlier}; at most 4.1 MB can be sent."
    ]


def test_files_of_a_whole_conversation_have_the_same_limit() -> None:
    messages = [user("a", inline(bytes(2 * MB), "audio/wav")), user(inline(bytes(2 * MB), "audio/wav"))]
    assert inline_bytes(messages) == 4 * MB
    assert too_much(messages) == ""
    assert too_much([*messages, user(inline(b"x", "audio/wav"))]) == (
        "The files of this conversation are too large together: 4.2 MB, at most 4.1 MB can be sent. "
        "Start a new conversation, or send fewer."
    )


# ---- words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (8, "8 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (1536, "1.5 kB"),
        (9_999, "10 kB"),
        (12_400, "12 kB"),
        (999_499, "999 kB"),
        (999_999, "1.0 MB"),
        (5_449_999, "5.4 MB"),  # as Streamlit's own chip says it
    ],
)
def test_a_size_is_told_as_people_read_it(count: int, words: str) -> None:
    assert size(count) == words


def test_no_file_of_any_bytes_has_a_size_of_nothing() -> None:
    assert not [
        count for count in itertools.chain(range(1, 3000), range(998_000, 1_002_000)) if size(count)[:2] == "0 "
    ]


@pytest.mark.parametrize(
    ("name", "mime_type", "words"),
    [
        ("report.pdf", "application/pdf", "report.pdf · PDF · 8 bytes"),
        ("", "application/pdf", "PDF · 8 bytes"),
        ("a.csv", "text/plain", "a.csv · text · 8 bytes"),
        ("a.mp4", "video/mp4", "a.mp4 · video/mp4 · 8 bytes"),
    ],
)
def test_a_file_is_described_by_name_kind_and_size(name: str, mime_type: str, words: str) -> None:
    assert described(inline(b"12345678", mime_type), name) == words
