"""The page's drawer: which model, and only what that model can take. What is unset isn't sent."""

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from tokenwire import struct
from tokenwire.v1.config_pb2 import GenerationConfig, GoogleSearch, Tool
from tokenwire.v1.generation_service_pb2 import CallerUsage, GenerateRequest, Model

from .input import attachments
from .input.schemas import read_schema
from .input.tools import read_tools

_ARTICLE_SECONDS_PER_LETTER = 0.02

_MOST = 2**31 - 1
# What an int32 holds.

_DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Choices:
    """What the sidebar says."""

    request: GenerateRequest
    # Model, system instruction, settings and tools, to be asked with.
    trouble: str
    # What is wrong with one of them, in words for a person; empty: nothing.
    borders: bool
    seconds_per_letter: float
    # 0: as it comes.


@dataclass(frozen=True, slots=True)
class _Number:
    """A setting that is a number: its name in GenerationConfig, its label and its range."""

    name: str
    label: str
    least: float
    most: float
    step: float
    # 1: only whole numbers can be used.
    help: str

    @property
    def whole(self) -> bool:
        return self.step == 1

    def takes(self, value: float) -> bool:
        """Whether it can be asked with this number."""
        return self.least <= value <= self.most and (not self.whole or float(value).is_integer())

    def refusal(self, value: float) -> str:
        """Say why a number can't be used."""
        kind = "a whole number from " if self.whole else ""
        return f"{self.label} is {_told(value)}; must be {kind}{_told(self.least)} to {_told(self.most)}."


# In pairs, as they stand beside each other.
_NUMBERS = (
    _Number("temperature", "Temperature", 0.0, 2.0, 0.1, "Lower is more predictable."),
    _Number("top_p", "Top P", 0.01, 1.0, 0.05, "Samples from the most probable tokens that make up this share."),
    _Number("top_k", "Top K", 1, 1000, 1, "Samples from so many of the most probable tokens."),
    _Number("seed", "Seed", -_MOST, _MOST, 1, "The same seed and question give the same answer, as far as possible."),
    _Number("max_output_tokens", "Longest answer", 1, _MOST, 1, "In tokens, thoughts included."),
    _Number("thinking_budget", "Thinking budget", -1, _MOST, 1, "In tokens. 0: no thinking. -1: the model decides."),
    _Number("presence_penalty", "Presence penalty", -2.0, 1.99, 0.1, "Above 0: rather says something new."),
    _Number("frequency_penalty", "Frequency penalty", -2.0, 1.99, 0.1, "Above 0: repeats itself less."),
)

_OF_THINKERS = {"thinking_budget", "include_thoughts"}

# The fields that take words.
_WRITTEN = ("system", "schema", "tools")

_UNSET: dict[str, Any] = {
    "system": "",
    **{one.name: None for one in _NUMBERS},
    "thoughts": False,
    "stops": [],
    "json": False,
    "schema": "",
    "search": False,
    "tools": "",
}
"""What the fields say, by their names, when nothing was chosen. Each conversation has its own; how an answer is drawn
is the same for all.
"""


def account(usage: Iterable[CallerUsage]) -> None:
    """Say whom the service takes us for, and how much of what is limited has been used."""
    for one in usage:
        limited = (
            f"{quota.used:,} of {quota.limit:,} {quota.name.replace('_', ' ')}"
            for quota in one.quotas
            if quota.HasField("limit")
        )
        said = " · ".join(map(html.escape, (f"You are {one.caller}", *limited)))
        st.html(f'<div class="tw-state">{said}</div>')


def chosen(of: str, models: Iterable[Model]) -> Model:
    """Give the model that the picker of the conversation `of` shows, also before it is drawn.

    One without a name where none is on offer.
    """
    offered = {model.name: model for model in models}
    return offered.get(st.session_state.get(_key(of, "model"), ""), next(iter(offered.values()), Model()))


def restore(of: str, settings: Mapping[str, Any], models: Iterable[Model]) -> None:
    """Have the fields of the conversation `of`, before they are drawn, say what is kept of it."""
    for name, unset in _UNSET.items():
        st.session_state[_key(of, name)] = settings.get(name, unset)
    st.session_state[_key(of, "model")] = None
    prefer(of, settings, models)


def say_again(of: str) -> None:
    """Have the browser be told once more what the fields of the conversation `of` say, before they are drawn.

    What one run has drawn may never reach it where another one follows at once. A field that then comes without its
    value would begin with another one, which counts as chosen.
    """
    for name in ("model", *_UNSET):
        if (key := _key(of, name)) in st.session_state:
            st.session_state[key] = st.session_state[key]


def prefer(of: str, settings: Mapping[str, Any], models: Iterable[Model]) -> None:
    """Have the picker show a conversation's model if none is picked, else the first: as soon as it is on offer."""
    names, key = [one.name for one in models], _key(of, "model")
    if names and st.session_state.get(key) not in names:
        # Said in any case: the browser would go on showing what was picked before.
        st.session_state[key] = settings["model"] if settings.get("model") in names else names[0]


def settings(of: str) -> dict[str, Any]:
    """Give what the fields of the conversation `of` say by now, as JSON can hold it."""
    said = {name: st.session_state[_key(of, name)] for name in _UNSET if _key(of, name) in st.session_state}
    model = st.session_state.get(_key(of, "model"))
    return {**said, "model": model} if model else said


def usable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give those settings that another conversation can begin with: all but the numbers that can't be used."""
    refused = {one.name for one in _NUMBERS if settings.get(one.name) is not None and not one.takes(settings[one.name])}
    return {name: value for name, value in settings.items() if name not in refused}


def is_set(settings: Mapping[str, Any]) -> bool:
    """Whether any of these settings, but for the model, says more than what a new conversation begins with."""
    return any(settings.get(name, unset) != unset for name, unset in _UNSET.items())


def drawer(of: str, models: Sequence[Model]) -> Choices:
    """Draw it for the conversation `of`, by its id."""
    model = chosen(of, models)
    _pick(of, models, model)
    lines = "".join(f"<div>{html.escape(line)}</div>" for line in _about(model) if line)
    facts = f"<summary>What it takes</summary>{lines}" if lines else ""
    st.html(f'<details class="tw-about" data-model="{html.escape(model.name)}">{facts}</details>')
    how = "How the model is to behave"
    system = st.text_area("System instruction", **_field(of, "system"), placeholder=how, height=80)
    problems: list[str] = []
    with st.expander("Settings", key="settings"):
        config = GenerationConfig(**_numbers(of, model, problems))
        _thinking(of, model, config)
        config.stop_sequences.extend(_stop_sequences(of))
        if _takes(model, "response_mime_type"):
            _form_of_answer(of, config, problems, schema=_takes(model, "response_schema"))
        tools = _tools(of, model, problems)
    borders = st.toggle("Mark the chunks", key="borders", help="A ruled line between the pieces, as they came.")
    smooth = st.toggle("Letter by letter", key="smooth", help="Shows the text evenly, and hurries when it is late.")
    pace = _pace() if smooth else 0.0
    request = GenerateRequest(model=model.name, system_instruction=system.strip(), tools=tools)
    if config.ListFields():
        request.config.CopyFrom(config)
    return Choices(request, " ".join(problems), borders, pace)


def _key(of: str, name: str) -> str:
    """The key of a field. It names the conversation: a browser may tell late what a field of another one said."""
    return f"{name}-{of}"


def _field(of: str, name: str) -> dict[str, Any]:
    """What makes a field one of a conversation's. It says the same again where a model has come that takes it."""
    return {"key": _key(of, name), "persist_state": "session"}


def _pick(of: str, models: Sequence[Model], model: Model) -> None:
    """Draw the picker, which shows this model. What was picked stays so while the service is away."""
    key = _key(of, "model")
    if not models:
        if key in st.session_state:
            st.session_state[key] = st.session_state[key]  # else Streamlit forgets what isn't drawn
        st.session_state.away = True
        st.selectbox("Model", [], key="no-model", disabled=True, placeholder="the service's default")
        return
    # A picker that wasn't drawn before is told to the browser only if it is set, and would show the first model.
    if st.session_state.pop("away", False) or st.session_state.get(key) != model.name:
        st.session_state[key] = model.name
    st.selectbox("Model", [one.name for one in models], key=key)


def _about(model: Model) -> Iterator[str]:
    """What a model can take, line by line; nothing of what isn't known."""
    able = [f"Takes {', '.join(model.input_kinds)}"] if model.input_kinds else []
    yield " · ".join([*able, *["thinks"] * model.thinking, *["calls tools"] * model.tools])
    limits = ((model.max_input_tokens, "in"), (model.max_output_tokens, "out"))
    known = [f"{limit:,} {way}" for limit, way in limits if limit]
    yield f"Tokens: {', '.join(known)}" if known else ""
    said = [f"{name}: {value}" for name, value in sorted(model.metadata.items()) if isinstance(value, str)]
    yield " · ".join([*filter(None, [model.provider]), *said])
    yield attachments.hint(attachments.kinds(model))


def _takes(model: Model, name: str) -> bool:
    if name in _OF_THINKERS and not model.thinking:
        return False
    return f"config.{name}" not in model.unsupported_fields


def _numbers(of: str, model: Model, problems: list[str]) -> dict[str, Any]:
    """Draw those that the model takes, in pairs, and give what can be used of them, by their names.

    Streamlit is told no range: it would go on showing what is out of it, and say nothing of it here.
    """
    numbers = [one for one in _NUMBERS if _takes(model, one.name)]
    values: dict[str, Any] = {}
    for left in range(0, len(numbers), 2):
        refused = []
        for column, one in zip(st.columns(2, vertical_alignment="bottom"), numbers[left : left + 2], strict=False):
            value = column.number_input(
                one.label,
                value=None,
                step=float(one.step),
                # As it is used, not rounded. An int field would take neither 1e3 nor what is larger than it can hold.
                format="%g",
                **_field(of, one.name),
                help=one.help,
                placeholder=f"{model.max_output_tokens:,}"
                if one.name == "max_output_tokens" and model.max_output_tokens
                else _DEFAULT,
            )
            if value is not None and one.takes(value):
                values[one.name] = int(value) if one.whole else value
            elif value is not None:
                refused.append(one.refusal(value))
        # Always there, so that the fields below it stay where they are: somebody may be typing in one.
        below = st.empty()
        if refused:
            with below.container():
                for refusal in refused:
                    _complain(problems, refusal)
    return values


def _told(number: float) -> str:
    """A number as people read it; all its digits, unless it has very many."""
    return f"{number:,.0f}" if float(number).is_integer() and abs(number) < 1e15 else f"{number:,}"


def _thinking(of: str, model: Model, config: GenerationConfig) -> None:
    if _takes(model, "include_thoughts") and st.toggle("Show the thoughts", **_field(of, "thoughts")):
        config.include_thoughts = True


def _stop_sequences(of: str) -> list[str]:
    return st.multiselect(
        "Stop sequences",
        options=[],
        **_field(of, "stops"),
        accept_new_options=True,
        max_selections=5,
        placeholder="none",
        help="The answer ends before the first of these.",
    )


def _form_of_answer(of: str, config: GenerationConfig, problems: list[str], *, schema: bool) -> None:
    if not st.toggle("Answer in JSON", **_field(of, "json")):
        return
    config.response_mime_type = "application/json"
    if not schema:
        return
    example = '{"type": "object", "properties": {...}}'
    text = st.text_area("JSON schema", **_field(of, "schema"), placeholder=example, height=110)
    if text.strip():
        try:
            config.response_schema.CopyFrom(struct(read_schema(text)))
        except ValueError as error:
            _complain(problems, f"The JSON schema can't be used: {error}")


def _tools(of: str, model: Model, problems: list[str]) -> list[Tool]:
    if not model.tools or "tools" in model.unsupported_fields:
        return []
    tools = []
    searches = "tools.google_search" not in model.unsupported_fields
    searching = "The model may search the web by itself; its sources are shown below the answer."
    if searches and st.toggle("Google Search", **_field(of, "search"), help=searching):
        tools.append(Tool(google_search=GoogleSearch()))
    return tools + _functions(of, problems)


def _functions(of: str, problems: list[str]) -> list[Tool]:
    text = st.text_area(
        "Tools",
        **_field(of, "tools"),
        placeholder='[{"name": "weather", "description": "...", "parameters": {...}}]',
        help="Functions that the model may ask for, in Gemini's form or in OpenAI's. Nothing runs them but you.",
        height=110,
    )
    if not text.strip():
        return []
    try:
        declared = read_tools(text)
    except ValueError as error:
        _complain(problems, f"The tools can't be used: {error}")
        return []
    return [Tool(function_declarations=declared)] if declared else []


def _complain(problems: list[str], problem: str) -> None:
    problems.append(problem if problem.endswith(".") else f"{problem}.")
    st.html(f'<div class="tw-problem" role="alert">{html.escape(problems[-1])}</div>')


def _pace() -> float:
    return st.slider("Seconds per letter", 0.005, 0.1, _ARTICLE_SECONDS_PER_LETTER, 0.005, key="pace", format="%.3f")
