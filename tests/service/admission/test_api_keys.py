"""API keys and the command that makes them."""

import re
import stat
import threading
from pathlib import Path

import pytest

from service import keys
from service.admission import api_keys


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def run(*argv: str) -> int:
    return keys.main(argv, prog="tokenwire keys")


def test_a_key_is_told_once_and_kept_as_a_hash(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("new", "billing", "--file", str(path)) == 0
    told = capsys.readouterr()
    secret = told.out.strip()
    assert re.fullmatch(r"tw_[\w-]{43}", secret)
    assert secret not in told.err
    assert secret not in path.read_text()
    (kept,) = api_keys.parse(path.read_text(), "f").values()
    assert kept.hash == api_keys.hashed(secret)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert run("list", "--file", str(path)) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == [kept.id, "billing"]
    assert run("revoke", kept.id, "--file", str(path)) == 0
    assert capsys.readouterr().out == f"{kept.id} of billing is revoked; a running server knows within seconds.\n"
    assert path.read_text() == ""


def test_keys_made_at_the_same_time_are_all_kept(path: Path) -> None:
    made: list[str] = []

    def make() -> None:
        made.extend(api_keys.new(str(path), "a")[0].id for _ in range(5))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.id for key in api_keys.listed(str(path))} == set(made)
    assert len(made) == 40


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["new", "a b"], "'a b' is no name: up to 63 letters, digits and any of . _ @ - are wanted"),
        (["revoke", "none"], "{path} has no key 'none': `tokenwire keys list` tells them"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], told: str
) -> None:
    path.touch()
    assert run(*argv, "--file", str(path)) == 1
    assert capsys.readouterr().err == f"tokenwire keys: {told.format(path=path)}\n"
    assert path.read_text() == ""


def test_a_file_that_is_missing_is_told(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("list", "--file", str(path)) == 1
    assert capsys.readouterr().err == f"tokenwire keys: {path}: No such file or directory\n"
    monkeypatch.delenv("TOKENWIRE_API_KEYS", raising=False)
    assert run("list") == 1
    assert "--file FILE or TOKENWIRE_API_KEYS is wanted" in capsys.readouterr().err


HASH = "0" * 64


@pytest.mark.parametrize(
    "line",
    ["nonsense", f"id billing 2026-01-01 {HASH}", f"abcdef a/b 2026-01-01 {HASH}", f"abcdef a 2026-01-01 {HASH}0"],
)
def test_a_line_that_is_no_key_is_told_by_its_number(line: str) -> None:
    with pytest.raises(api_keys.KeysError, match=r"^f:2: no key: ID NAME YYYY-MM-DD SHA256 is wanted"):
        api_keys.parse(f"\n{line}\n", "f")


def test_a_key_stands_there_once() -> None:
    line = f"abcdef a 2026-01-01 {HASH}\n"
    with pytest.raises(api_keys.KeysError, match=r"^f:2: the same key as abcdef: each stands there once$"):
        api_keys.parse(line + line, "f")


def test_a_file_of_another_kind_is_told_once_and_one_that_is_spoilt_not_without_end(tmp_path: Path) -> None:
    path = str(tmp_path / "keys")
    with pytest.raises(api_keys.KeysError) as caught:
        api_keys.parse('[callers.billing]\napi_keys = ["billing"]\nstreams = 3\n' * 7, path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: it is no file of API keys")
    assert "--callers" in line
    api_keys.new(path, "billing")
    spoilt = Path(path).read_text() + "spoilt\n" * 1000
    with pytest.raises(api_keys.KeysError) as caught:
        api_keys.parse(spoilt, path)
    told = str(caught.value).splitlines()
    assert len(told) == 21
    assert told[0].startswith(f"{path}:2: no key: ")
    assert told[-1] == f"{path}: there are more like these"
