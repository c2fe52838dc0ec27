"""Takes what installs packages out of an image's Python, and compiles its standard library, for the Containerfile."""

import compileall
import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path

for name in ("pip", "setuptools", "_distutils_hack", "pkg_resources", "wheel", "ensurepip"):
    found = importlib.util.find_spec(name)
    if found is not None and found.origin is not None:
        package = Path(found.origin).parent
        for metadata in package.parent.glob(f"{name}-*-info"):
            shutil.rmtree(metadata)
        for at_start in package.parent.glob("distutils-precedence.pth"):  # of setuptools, which it would miss
            at_start.unlink()
        shutil.rmtree(package)
for folder in {Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))}:
    for pattern in ("pip*", "wheel*", "easy_install*"):
        for script in folder.glob(pattern):
            script.unlink()

if not compileall.compile_dir(sysconfig.get_path("stdlib"), quiet=1, workers=0):
    raise SystemExit("some of the standard library can't be compiled")
