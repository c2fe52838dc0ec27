"""A conversation as a file: JSON that loses nothing, Markdown to read, HTML to share."""

import base64
import html
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from tokenwire.cli.meter import size
from tokenwire.endings import finish
from tokenwire.v1.content_pb2 import ROLE_TOOL, Blob, Part
from tokenwire.v1.generation_service_pb2 import Grounding

from .conversation import Conversation, Exchange
from .words import one_line, pretty

RUNNING = "The answer was still being written: it is incomplete here."

_NAME_LENGTH = 60
"""Characters of the longest file name, its ending included: 240 bytes at most, where file systems allow 255."""
_UNNAMED = "conversation"
# What Windows takes for devices, with any ending. Digits such as ¹ are plain ones by then.
_RESERVED = re.compile(r"con|prn|aux|nul|conin|conout|clock|(com|lpt)\d")

# What browsers draw, and can't be a document with contents of its own.
_IMAGES = {"image/png", "image/jpeg", "image/webp", "image/gif"}


def file_name(conversation: Conversation, ending: str) -> str:
    """Give a file name that tells which conversation it is, such as "what-is-baseball.md"; `ending` has no dot.

    It holds letters, digits and hyphens of any script, and is fit for every system.
    """
    name = unicodedata.normalize("NFKC", conversation.name).lower()
    # Marks belong to their letters, as in Hindi and Thai.
    name = unicodedata.normalize("NFC", re.sub("['\N{RIGHT SINGLE QUOTATION MARK}]", "", name))
    name = "".join(letter if unicodedata.category(letter)[0] in "LMN" else "-" for letter in name)
    name = re.sub("-+", "-", name)[: _NAME_LENGTH - len(ending) - 1].strip("-") or _UNNAMED
    if _RESERVED.fullmatch(name):
        name = f"{_UNNAMED}-{name}"
    return f"{name}.{ending}"


def as_json(conversation: Conversation) -> str:
    """Give all of it: messages, settings and ends as protobuf's JSON, and when each chunk came.

    "exchanges" are those shown, oldest first; "alternatives" all others. "parent" is the id of the exchange before.
    "files" are the names of the question's files, in the order of its parts with `inlineData`.
    """
    path = conversation.path()
    shown = set(path)
    whole = {
        "title": conversation.name,
        "exchanges": [_record(one) for one in path],
        "alternatives": [_record(one) for one in conversation.exchanges[:] if one not in shown],
    }
    return json.dumps(whole, ensure_ascii=False, indent=2)


def as_markdown(conversation: Conversation, close: Callable[[str], str] = str) -> str:
    """Give what was said, for reading; bytes are only named.

    `close` gives Markdown an end to what it leaves open: else all that stands behind it would be a part of that.
    """
    return "\n\n".join(block for one in conversation.path() for block in _blocks(one, close)) + "\n"


def escaped(text: str) -> str:
    """Give a text as HTML that looks as it was written."""
    return f'<div class="text" dir="auto">{html.escape(text)}</div>'


def as_html(conversation: Conversation, render: Callable[[str], str] = escaped, style: str = "") -> str:
    """Give what was said as one file for a browser: no scripts, and nothing is fetched from anywhere.

    `render` makes harmless HTML of an answer's Markdown, and `style` is the CSS for that. What the file's policy
    refuses is refused besides: a browser may still connect to where a frame or a hint in it would lead.
    """
    title = html.escape(conversation.name)
    exchanges = "\n".join(_article(one, render) for one in conversation.path())
    return _PAGE.format(title=title, style=_STYLE + style, exchanges=exchanges)


def _record(exchange: Exchange) -> dict[str, object]:
    # Asked first: it may end while the rest is read, and then not all of the answer would be there.
    complete = exchange.complete
    return {
        "id": exchange.id,
        "parent": None if exchange.parent is None else exchange.parent.id,
        "complete": complete,
        "asked": MessageToDict(exchange.asked),
        "files": exchange.names,
        "messages": [MessageToDict(exchange.question), MessageToDict(exchange.answer)],
        "grounding": [MessageToDict(one) for one in exchange.groundings[:]],
        "completed": None if exchange.meter.completed is None else MessageToDict(exchange.meter.completed),
        "problem": exchange.problem,
        "chunks": [
            {"kind": piece.kind, "after": round(piece.after, 6), "characters": len(piece.text)}
            for piece in exchange.pieces[:]
        ],
    }


def _blocks(exchange: Exchange, close: Callable[[str], str]) -> Iterator[str]:
    ended = exchange.ended
    yield "## Results" if exchange.question.role == ROLE_TOOL else "## Question"
    yield from (_part(part, close, name) for part, name in _named(exchange))
    yield f"## Answer{f' of {exchange.model}' if exchange.model else ''}"
    yield from (_part(part, close) for part in exchange.answer.parts)
    sources = _sources(exchange)
    if sources:
        yield "Sources:"
        yield "\n".join(f"{number}. {source.title} <{source.uri}>" for number, source in enumerate(sources, 1))
    if problem := _problem(exchange, ended=ended):
        yield f"**{problem}**"
    if figures := _figures(exchange):
        yield f"*{figures}*"


def _named(exchange: Exchange) -> Iterator[tuple[Part, str]]:
    """Each part of the question, with its file's name where it has one."""
    names = iter(exchange.names)
    for part in exchange.question.parts:
        yield part, next(names, "") if part.HasField("inline_data") else ""


def _sources(exchange: Exchange) -> list[Grounding.Source]:
    return [source for one in exchange.groundings[:] for source in one.sources]


def _problem(exchange: Exchange, *, ended: bool) -> str:
    return exchange.problem if ended else RUNNING


def _figures(exchange: Exchange) -> str:
    """How the answer ended and came; empty where its end never came."""
    completed = exchange.meter.completed
    return "" if completed is None else " · ".join([finish(completed), *exchange.meter.figures()])


def _part(part: Part, close: Callable[[str], str], name: str = "") -> str:
    match part.WhichOneof("data"):
        case "reasoning":
            return f"<details><summary>Thoughts</summary>\n\n{close(part.reasoning)}\n\n</details>"
        case "inline_data":
            file = f"*{part.inline_data.mime_type}, {size(len(part.inline_data.data))}*"
            return f"{_code(name)}, {file}" if name else file
        case "file_data":
            return f"*{part.file_data.mime_type}, {part.file_data.file_uri}*"
        case "tool_call":
            return f"Calls {_code(part.tool_call.name)}:\n\n{_fenced(part.tool_call.arguments)}"
        case "tool_result":
            return f"Result of {_code(part.tool_result.name)}:\n\n{_fenced(part.tool_result.response)}"
        case _:
            return close(part.text)


def _code(text: str) -> str:
    """Any text in one line of Markdown, as it is."""
    text = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _fenced(value: Struct) -> str:
    return f"```json\n{pretty(value)}\n```"


# ---- HTML


def _article(exchange: Exchange, render: Callable[[str], str]) -> str:
    return "\n".join(["<article>", *_question(exchange), *_answer(exchange, render), "</article>"])


def _question(exchange: Exchange) -> Iterator[str]:
    yield '<section class="question">'
    yield f"<h2>{'Results' if exchange.question.role == ROLE_TOOL else 'Question'}</h2>"
    yield from (_drawn(part, escaped, name) for part, name in _named(exchange))
    yield "</section>"


def _answer(exchange: Exchange, render: Callable[[str], str]) -> Iterator[str]:
    ended = exchange.ended
    yield '<section class="answer">'
    yield f"<h2>Answer{f' of {html.escape(exchange.model)}' if exchange.model else ''}</h2>"
    yield from (_drawn(part, render) for part in exchange.answer.parts)
    if sources := _sources(exchange):
        yield f'<div class="sources">Sources<ol>{"".join(map(_source, sources))}</ol></div>'
    if problem := _problem(exchange, ended=ended):
        yield f'<p class="problem">{html.escape(problem)}</p>'
    if figures := _figures(exchange):
        yield f'<p class="figures">{html.escape(figures)}</p>'
    yield "</section>"


def _drawn(part: Part, render: Callable[[str], str], name: str = "") -> str:  # noqa: PLR0911  # a line for each kind
    match part.WhichOneof("data"):
        case "reasoning" if not part.reasoning:
            return ""  # only a signature
        case "reasoning":
            return f"<details><summary>Thoughts</summary>{render(part.reasoning)}</details>"
        case "inline_data":
            return _embedded(part.inline_data, name)
        case "file_data":
            return f'<p class="file">{html.escape(f"{part.file_data.mime_type}, {part.file_data.file_uri}")}</p>'
        case "tool_call":
            return _card(f"Calls {part.tool_call.name}", part.tool_call.arguments)
        case "tool_result":
            return _card(f"Result of {part.tool_result.name}", part.tool_result.response)
        case _:
            return render(part.text)


def _embedded(blob: Blob, name: str) -> str:
    kind, said = html.escape(blob.mime_type), html.escape(name)
    if blob.mime_type in _IMAGES:
        image = f'<img alt="{said or kind}" src="data:{kind};base64,{base64.b64encode(blob.data).decode()}">'
        return f'<figure>{image}<figcaption class="file" dir="auto">{said}</figcaption></figure>' if name else image
    return f'<p class="file" dir="auto">{f"{said}, " if name else ""}{kind}, {size(len(blob.data))}</p>'


def _card(title: str, value: Struct) -> str:
    return f'<div class="card"><b>{html.escape(title)}</b><pre>{html.escape(pretty(value))}</pre></div>'


def _source(source: Grounding.Source) -> str:
    title, uri = html.escape(source.title or source.uri), html.escape(source.uri)
    try:
        address = urlsplit(source.uri)
        outside = address.scheme in ("http", "https") and bool(address.hostname)
    except ValueError:
        outside = False
    if not outside:
        # Not a place that a browser should be sent to.
        return f"<li>{title} <small>{uri}</small></li>"
    return f'<li><a href="{uri}" rel="noopener noreferrer">{title}</a> <small>{uri}</small></li>'


_STYLE = """
:root { color-scheme: light dark; }
:root { --line: #d4d4d8; --quiet: #52525b; --soft: #f4f4f5; --link: #1d4ed8; --warn: #b45309; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3f3f46; --quiet: #a1a1aa; --soft: #27272a; --link: #93c5fd; --warn: #fbbf24; }
  body { background: #18181b; color: #f4f4f5; }
}
body { font: 1rem/1.6 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
body, pre { overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.3; }
section > h2 { font-size: .85rem; font-weight: 600; color: var(--quiet); margin: 0 0 .25rem; }
section { margin: 1.25rem 0; }
.question { background: var(--soft); border-radius: .5rem; padding: .75rem 1rem; }
.text, pre { white-space: pre-wrap; }
.text { unicode-bidi: plaintext; }
pre, code { direction: ltr; unicode-bidi: isolate; }
img { max-width: 100%; max-height: 24rem; border-radius: .5rem; }
figure { margin: .5rem 0; }
pre { font-size: .85rem; background: var(--soft); border-radius: .5rem; padding: .5rem .75rem; margin: .35rem 0 0; }
table { border-collapse: collapse; }
th, td { border: 1px solid var(--line); padding: .25rem .5rem; }
a { color: var(--link); }
details { border-left: 3px solid var(--line); padding-left: .75rem; margin: .5rem 0; color: var(--quiet); }
summary { cursor: pointer; }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .75rem; margin: .5rem 0; }
.file, .figures, .sources { font-size: .85rem; color: var(--quiet); }
.problem { border-left: 3px solid var(--warn); padding-left: .75rem; }
@media print { body { margin: 0; max-width: none; } section { break-inside: avoid-page; } }
"""

# Styles may stand in the file; images too, as data. Everything else is refused by the browser, whatever an answer says.
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; \
base-uri 'none'; form-action 'none'">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1 dir="auto">{title}</h1>
<main>
{exchanges}
</main>
</body>
</html>
"""
