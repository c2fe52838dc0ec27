"""Every Python example of the README and of docs/ passes `mypy --strict`, as it would in a reader's editor."""

import asyncio
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Always the same, since mypy's cache remembers paths.
FOLDER = ROOT / "build" / "snippets"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def examples(page: str) -> dict[int, str]:
    """Line number -> example."""
    found = re.finditer(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return {page.count("\n", 0, match.start()) + 2: match[1] for match in found}


async def checked(*files: Path) -> str:
    """What mypy says of them, if anything."""
    # With the settings and the cache of `make check`: without it this takes half a minute.
    flags = ("--strict", f"--cache-dir={ROOT / '.mypy_cache'}", "--no-error-summary")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mypy", *flags, *map(str, files)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    return told.decode()


@pytest.mark.timeout(300)  # without a cache mypy reads LangChain's and Google's packages first
async def test_every_python_example_passes_mypy_strict() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    files = [FOLDER / "wrong.py"]
    files[0].write_text("from tokenwire import Client\n\nClient().generate('x', config={'temperture': 0.0})\n")
    for page in PAGES:
        for line, example in examples(page.read_text()).items():
            files.append(FOLDER / f"{re.sub(r'[^a-z0-9]', '_', page.stem.lower())}_line_{line}.py")
            files[-1].write_text(example)
    told = (await checked(*files)).splitlines()
    assert [line for line in told if "wrong.py" in line], "mypy has not looked"
    assert [line for line in told if "wrong.py" not in line] == []
