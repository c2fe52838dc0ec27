"""The callers file: what it says, and every mistake by its line."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission.callers import ANYBODY, Caller, Callers, CallersError, Issuer

GOOD = """\
[defaults]
longest_deadline = 120
labels = { team = "none" }

[issuers.google]
issuer = "https://accounts.google.com"
audience = "https://tokenwire.example"
keys = "https://www.googleapis.com/oauth2/v3/certs"
algorithms = ["RS256"]
name = "email"

[issuers.cluster]
issuer = "https://kubernetes.default.svc.cluster.local"
audience = ["tokenwire", "another"]
keys = "/etc/tokenwire/jwks.json"
algorithms = ["RS256", "ES256"]
admit = "all"

[callers.billing]
api_keys = ["billing", "old-billing"]
certificates = ["spiffe://example/billing"]
tokens.google = ["billing@project.iam.gserviceaccount.com"]
models = ["gemini-3.8-flash"]
labels = { team = "billing" }

[callers.search]
tokens = { cluster = ["system:serviceaccount:search:default"] }
longest_deadline = 30.5
"""


def test_what_a_file_says() -> None:
    found = Callers.parse(GOOD, "callers.toml")
    billing = Caller(
        name="billing", models=frozenset({"gemini-3.8-flash"}), longest_deadline=120, labels={"team": "billing"}
    )
    search = Caller(name="search", longest_deadline=30.5, labels={"team": "none"})
    assert found.by_api_key == {"billing": billing, "old-billing": billing}
    assert found.by_certificate == {("uri", "spiffe://example/billing"): billing}
    assert found.by_token == {
        ("google", "billing@project.iam.gserviceaccount.com"): billing,
        ("cluster", "system:serviceaccount:search:default"): search,
    }
    google, cluster = found.issuers
    assert google == Issuer(
        name="google",
        issuer="https://accounts.google.com",
        audience=("https://tokenwire.example",),
        keys="https://www.googleapis.com/oauth2/v3/certs",
        algorithms=("RS256",),
        claim="email",
    )
    assert (cluster.claim, cluster.admits_all, cluster.audience) == ("sub", True, ("tokenwire", "another"))
    assert found.unnamed("cluster:x") == Caller(name="cluster:x", longest_deadline=120, labels={"team": "none"})


def test_an_empty_file_is_refused_since_somebody_may_be_writing_it() -> None:
    with pytest.raises(CallersError, match=r"^f: it is empty: callers, issuers or defaults are wanted$"):
        Callers.parse(" \n", "f")
    assert Callers().unnamed("a") == Caller(name="a")
    assert ANYBODY.models is None


WRONG = [
    ("[callers.a]\nmodel = ['x']\napi_keys = ['a']", 2, "[callers.a] there is no 'model': some of models, "),
    ("[callers.a]\napi_keys = ['a']\nstreams = -1", 3, "streams is -1: a whole number, 0 or more, is wanted"),
    ("[callers.a]\napi_keys = ['a']\ntokens_per_day = 1.5", 3, "tokens_per_day is 1.5: a whole number"),
    ("[callers.a]\napi_keys = ['a']\nadmin = 1", 3, "admin is 1: true or false is wanted"),
    ("[callers.a]\napi_keys = ['a']\nlongest_deadline = -1", 3, "longest_deadline is -1: a number of seconds, above 0"),
    ("[callers.a]\napi_keys = ['a']\nlongest_deadline = true", 3, "longest_deadline is True: a number of seconds"),
    ("[callers.a]\napi_keys = ['a']\nlongest_deadline = nan", 3, "longest_deadline is nan: a number of seconds"),
    ("[callers.a]\napi_keys = 'a'", 2, "api_keys is 'a': a list of texts, not empty, is wanted"),
    ("[callers.a]\napi_keys = []", 2, "api_keys is []: a list of texts"),
    ("[callers.a]\napi_keys = ['a']\nlabels = { Team = 'x' }", 3, "labels is {'Team': 'x'}: labels of lower-case"),
    (
        "[callers.a]\napi_keys = ['tw_" + "a" * 43 + "']",
        2,
        "api_keys is ['tw_...']: the name of a key, as tokenwire keys list tells it, and not the key itself, is wanted",
    ),
    ("[defaults]\n\n[caller.a]\nx = 1", 3, "there is no 'caller': defaults, issuers and callers are wanted"),
    ("\n\n[callers.a]\nmodels = ['x']", 3, "'a' has no proof: some of api_keys, tokens, certificates are wanted"),
    ("[callers.a]\napi_keys = ['k']\n[callers.b]\napi_keys = ['k']", 4, "'k' is 'a''s already: each proof has one"),
    ("[callers.a]\ntokens.none = ['k']", 2, "there is no [issuers.none]"),
    ("[callers.a]\ntokens = ['k']", 2, "tokens is ['k']: a table such as { google"),
    ("[callers.'a b']\napi_keys = ['k']", 1, "'a b' is no name: up to 63 letters, digits"),
    ("[callers]\na = 1", 2, "a table [callers.a] is wanted"),
    ("callers = 1", 1, "tables such as [callers.NAME] are wanted"),
    ("[caller.a]\napi_keys = ['a']", 1, "there is no 'caller': defaults, issuers and callers are wanted"),
    ("[defaults]\napi_keys = ['a']", 2, "there is no 'api_keys': some of models, streams, "),
    ("[issuers.i]\nissuer = 'x'", 1, "'i' lacks audience, keys, algorithms"),
    (
        "[issuers.i]\nissuer = 'x'\naudience = 'y'\nkeys = 'http://k.example'\nalgorithms = ['RS256']",
        4,
        "keys is 'http://k.example': an https:// address, or the path of a file, is wanted",
    ),
    (
        "[issuers.i]\nissuer = 'x'\naudience = 'y'\nkeys = 'k'\nalgorithms = ['HS256']",
        5,
        "algorithms is ['HS256']: some of RS256, RS384,",
    ),
    (
        "[issuers.i]\nissuer = 'x'\naudience = 'y'\nkeys = 'k'\nalgorithms = ['RS256']\nadmit = 'some'",
        6,
        'admit is \'some\': "listed" or "all" is wanted',
    ),
]


@pytest.mark.parametrize(("text", "line", "told"), WRONG)
def test_a_mistake_is_told_by_its_line(text: str, line: int, told: str) -> None:
    with pytest.raises(CallersError) as caught:
        Callers.parse(text, "callers.toml")
    first = str(caught.value).splitlines()[0]
    assert first.startswith(f"callers.toml:{line}: ")
    assert told in first


def test_all_mistakes_are_told_at_once_and_those_of_toml_by_its_own_words() -> None:
    with pytest.raises(CallersError) as caught:
        Callers.parse("[callers.a]\nx = 1\ny = 2\n[callers.b]\nz = 3\napi_keys = [1]\n", "f")
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["2", "3", "1", "5", "6", "4"]
    with pytest.raises(CallersError, match=r"^f: Invalid value \(at line 2, column 5\)$"):
        Callers.parse("[callers.a]\nx = \n", "f")


def test_the_examples_of_the_manual_can_be_read() -> None:
    page = (Path(__file__).parents[3] / "docs/operations.md").read_text()
    examples = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(examples) == 3
    for text in examples:
        assert Callers.parse(text, "f").by_name
    # They are parts of one file.
    assert Callers.parse("\n".join(examples), "f").by_name.keys() == {"billing", "search", "mesh", "reports"}


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ("jwks.json", "/etc/tokenwire/jwks.json"),
        ("keys/jwks.json", "/etc/tokenwire/keys/jwks.json"),
        ("/run/jwks.json", "/run/jwks.json"),
        ("https://issuer.example/jwks.json", "https://issuer.example/jwks.json"),
    ],
)
def test_a_path_of_keys_begins_where_the_callers_file_is(keys: str, wanted: str) -> None:
    text = f'[issuers.a]\nissuer = "i"\naudience = "b"\nkeys = "{keys}"\nalgorithms = ["RS256"]\n'
    (issuer,) = Callers.parse(text, "/etc/tokenwire/callers.toml").issuers
    assert issuer.keys == wanted


@pytest.mark.parametrize("text", ["x = " + "9" * 5000, "x = " + "[" * 3000])
def test_what_no_parser_can_take_is_refused(text: str) -> None:
    with pytest.raises(CallersError, match=r"^f: "):
        Callers.parse(text, "f")


def test_an_issuer_has_one_table() -> None:
    table = "issuer = 'x'\naudience = 'y'\nkeys = 'k'\nalgorithms = ['RS256']\n"
    with pytest.raises(CallersError) as caught:
        Callers.parse(f"[issuers.a]\n{table}[issuers.b]\n{table}", "f")
    assert [line.split(": ", 2)[0] for line in str(caught.value).splitlines()] == ["f:2", "f:7"]


NAMES = st.sampled_from(
    ["callers", "issuers", "defaults", "a", "api_keys", "tokens", "models", "labels", "keys", "name"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_whatever_the_tables_hold_they_are_read_or_refused_in_words(tables: dict[str, object]) -> None:
    def loads(_: str) -> dict[str, object]:
        return tables

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tomllib, "loads", loads)
        told = _wrong(Callers.parse)
    assert all(line.startswith("f:1: ") for line in told.splitlines())


def _wrong(parse: Callable[[str, str], Callers]) -> str:
    """What is told of a file; nothing, where it can be read."""
    try:
        parse("x", "f")
    except CallersError as error:
        return str(error)
    return ""
