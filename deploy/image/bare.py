"""Takes what installs packages out of an image's Python, and compiles its standard library, for the Containerfile."""

import compileall
import importlib.util
import shutil
import sysconfig
from pathlib import Path

for name in ("pip", "setuptools", "pkg_resources", "wheel", "ensurepip"):
    found = importlib.util.find_spec(name)
    if found is not None and found.origin is not None:
        package = Path(found.origin).parent
        for metadata in package.parent.glob(f"{name}-*.dist-info"):
            shutil.rmtree(metadata)
        shutil.rmtree(package)
for name in ("pip*", "wheel", "easy_install*"):
    for script in Path(sysconfig.get_path("scripts")).glob(name):
        script.unlink()

if not compileall.compile_dir(sysconfig.get_path("stdlib"), quiet=1, workers=0):
    raise SystemExit("some of the standard library can't be compiled")
