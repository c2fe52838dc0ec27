"""What can't be meant in the files of callers is told in the log, by its line, and nobody is refused for it."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from service.admission import api_keys
from service.admission.identity import Identity, IdentityError
from service.admission.remarks import MOST

CALLERS = """
[defaults]
models = ["small", "gone"]

[callers.billing]
api_keys = ["billing", "lost"]
models = ["small"]

[callers.search]
api_keys = ["search"]

[callers.sales]
api_keys = ["sales"]
streams = 3
models = [
  "typo", "large",
]
"""


STRANGER = "the API key {id} is of stranger, which has no entry in {file}: it is let in, with what [defaults] say"


class Log:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, text: str, *values: object) -> None:
        self.said.append(text % values)

    def warn(self, text: str, *values: object) -> None:
        self.warned.append(text % values)


def identity(folder: Path, text: str, log: Log, **known: Any) -> Identity:
    path = folder / "callers.toml"
    path.write_text(text)
    known = {"keys": str(folder / "keys"), "offered": ("small", "large")} | known
    return Identity(callers=str(path), say=log.say, warn=log.warn, **known)


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, api_keys.Key]:
    """By the names of their callers."""
    path = str(tmp_path / "keys")
    return {name: api_keys.new(path, name)[0] for name in ("billing", "search", "sales", "stranger")}


def test_each_thing_that_cannot_be_meant_is_told_by_its_line(tmp_path: Path, keys: dict[str, api_keys.Key]) -> None:
    log = Log()
    identity(tmp_path, CALLERS, log)
    file = tmp_path / "callers.toml"
    assert log.warned == [
        f"{file}:3: [defaults] models names 'gone', which no provider offers here: small, large are on offer",
        f"{file}:15: [callers.sales] models names 'typo', which no provider offers here: small, large are on offer",
        f"{file}:6: [callers.billing] api_keys names 'lost', which isn't in {tmp_path / 'keys'}",
        f"{tmp_path / 'keys'}: {STRANGER.format(id=keys['stranger'].id, file=file)}",
    ]


@pytest.mark.usefixtures("keys")
def test_what_changes_is_looked_at_anew(tmp_path: Path) -> None:
    log = Log()
    found = identity(tmp_path, '[callers.stranger]\napi_keys = ["billing", "search", "sales"]\n', log)
    assert log.warned == []
    (tmp_path / "callers.toml").write_text('[callers.all]\napi_keys = ["billing", "search", "sales", "stranger", "b"]')
    found.refresh()
    assert log.warned == [
        f"{tmp_path / 'callers.toml'}:2: [callers.all] api_keys names 'b', which isn't in {tmp_path / 'keys'}"
    ]
    assert len(log.said) == 1
    api_keys.new(str(tmp_path / "keys"), "b")
    found.refresh()
    assert len(log.warned) == 1


@pytest.mark.usefixtures("keys")
def test_where_there_are_no_entries_at_all_nothing_is_missed(tmp_path: Path) -> None:
    log = Log()
    Identity(keys=str(tmp_path / "keys"), offered=("small",), say=log.say, warn=log.warn)
    assert log.warned == []


def test_without_a_file_of_keys_the_flag_is_told(tmp_path: Path) -> None:
    log = Log()
    identity(tmp_path, '[callers.a]\napi_keys = ["a"]\n', log, keys="")
    assert log.warned == [
        f"{tmp_path / 'callers.toml'}:2: [callers.a] api_keys names 'a', which is in no file: --api-keys is wanted"
    ]


def test_a_file_full_of_them_does_not_flood_the_log(tmp_path: Path) -> None:
    log = Log()
    identity(tmp_path, "".join(f'[callers.c{n}]\napi_keys = ["k{n}"]\n' for n in range(2_000)), log, keys="")
    assert len(log.warned) == MOST + 1
    assert log.warned[-1] == f"{tmp_path / 'callers.toml'}: there are more like these"


def test_a_proof_that_nobody_can_give_is_refused_by_its_line(tmp_path: Path) -> None:
    """A mistake that has callers refused who should be let in: better at the start than with their calls."""
    text = '[callers.a]\nstreams = 1\ncertificates = ["a.example"]\n\n[callers.b]\ncertificates = ["b.example"]\n'
    with pytest.raises(IdentityError) as caught:
        identity(tmp_path, text, Log(), keys="")
    file = tmp_path / "callers.toml"
    assert [line.partition(" certificates are")[0] for line in str(caught.value).splitlines()] == [
        f"{file}:3: [callers.a]",
        f"{file}:6: [callers.b]",
    ]
    with pytest.raises(IdentityError, match=r"callers.toml:3: \[callers.a\] there is no \[issuers.ours\]"):
        identity(tmp_path, '[callers.a]\nstreams = 1\ntokens.ours = ["a"]\n', Log(), keys="")


def _refuse(*_: Any, **__: Any) -> int:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize("mended", ["chmod", "nothing that is seen"])
@pytest.mark.usefixtures("keys")
def test_a_file_that_cannot_be_read_is_told_once_and_read_when_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mended: str
) -> None:
    """Else a key goes on working that was revoked meanwhile."""
    log = Log()
    file = tmp_path / "keys"
    found = Identity(keys=str(file), say=log.say, warn=log.warn)
    file.write_text("")
    with monkeypatch.context() as closed:
        closed.setattr(os, "open", _refuse)
        file.chmod(0)
        for _ in range(3):
            found.refresh()
    assert log.warned == [f"not taken, and as before: TOKENWIRE_API_KEYS is '{file}': Permission denied"]
    assert log.said == []
    if mended == "chmod":
        file.chmod(0o600)
    for _ in range(3):
        found.refresh()
    assert log.said == ["callers are read anew: 0 API keys, 0 issuers"]
    with monkeypatch.context() as closed:
        closed.setattr(os, "open", _refuse)
        file.chmod(0o400)
        found.refresh()
    assert len(log.warned) == 2


@pytest.mark.usefixtures("keys")
def test_only_what_is_taken_is_said_to_be(tmp_path: Path) -> None:
    """And in the words of people: "1 API key"."""
    log = Log()
    (tmp_path / "jwks.json").write_text("{}")
    issuer = (
        '[issuers.ours]\nissuer = "https://a"\naudience = "b"\nalgorithms = ["RS256"]\n'
        f'keys = "{tmp_path}/jwks.json"\n[callers.stranger]\ntokens.ours = ["a"]\n'
    )
    found = identity(tmp_path, issuer, log)
    found.refresh()
    assert log.said == []
    (tmp_path / "jwks.json").write_text("[]")
    found.refresh()
    (tmp_path / "callers.toml").write_text("[junk")
    found.refresh()
    assert log.said == []
    api_keys.revoke(str(tmp_path / "keys"), next(iter(api_keys.listed(str(tmp_path / "keys")))).id)
    found.refresh()
    assert log.said == ["callers are read anew: 3 API keys, 1 issuer"]


@pytest.mark.usefixtures("keys")
async def test_files_are_read_anew_when_that_is_asked_for_whatever_they_look_like(tmp_path: Path) -> None:
    log = Log()
    found = identity(tmp_path, '[callers.stranger]\napi_keys = ["billing"]\n', log)
    for _ in range(3):
        await found.follow()
    assert log.said == []
    await found.follow(anew=True)
    assert log.said == ["callers are read anew: 4 API keys, 0 issuers"]
