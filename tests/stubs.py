"""Generates the committed stubs; `python -m tests.stubs [DIRECTORY]` writes them into the tree, or elsewhere.

So is the contract as Envoy reads it, a set of descriptors. One generator, run by `make protos` and by the test that
proves all of this current.
"""

import sys
import sysconfig
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parents[1]

# (import root, proto files below it, where the packages of their stubs go)
SETS = (
    ("protos", "tokenwire/v1/*.proto", "."),
    (".", "vertex_emulator/protos/*.proto", "."),
)

# Envoy writes an error's details as JSON only if it knows their messages, which no message of the contract names.
DESCRIPTORS = Path("deploy/envoy/tokenwire.binpb")
DETAILS = ("google/rpc/status.proto", "google/rpc/error_details.proto")


def generate(target: Path) -> list[Path]:
    """Write the stubs of every proto below `target`, laid out as in the tree; returns their paths."""
    # google/api and google/rpc come from googleapis-common-protos, google/protobuf from grpcio-tools.
    purelib = sysconfig.get_paths()["purelib"]
    builtin = Path(purelib) / "grpc_tools" / "_proto"
    scripts = Path(sysconfig.get_paths()["scripts"])
    plugins = [f"--plugin=protoc-gen-{name}={scripts}/protoc-gen-{name}" for name in ("mypy", "mypy_grpc")]
    for root, pattern, place in SETS:
        protos = sorted((ROOT / root).glob(pattern))
        if not protos:
            continue
        out = target / place
        out.mkdir(parents=True, exist_ok=True)
        for proto in protos:
            arguments = [
                "protoc",
                *plugins,
                f"-I{ROOT / root}",
                f"-I{purelib}",
                f"-I{builtin}",
                f"--python_out={out}",
                f"--mypy_out=quiet:{out}",
                str(proto),
            ]
            if "\nservice " in proto.read_text():
                arguments[-1:-1] = [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}"]
            if protoc.main(arguments) != 0:
                sys.exit(f"protoc failed on {proto.relative_to(ROOT)}")
    _describe(target)
    for path in committed(target):
        # In the wheel the emulator stands below another package.
        if path.suffix in {".py", ".pyi"}:
            path.write_text(path.read_text().replace("from vertex_emulator.protos import", "from . import"))
    return committed(target)


def _describe(target: Path) -> None:
    """Write the contract, and all that it imports, for Envoy."""
    out = target / DESCRIPTORS
    out.parent.mkdir(parents=True, exist_ok=True)
    builtin = Path(sysconfig.get_paths()["purelib"]) / "grpc_tools" / "_proto"
    folders = [f"-I{ROOT}/protos", f"-I{ROOT}/protos/third_party", f"-I{builtin}"]
    contract = sorted(str(path) for path in (ROOT / "protos/tokenwire/v1").glob("*.proto"))
    if protoc.main(["protoc", *folders, "--include_imports", f"--descriptor_set_out={out}", *contract, *DETAILS]) != 0:
        sys.exit(f"protoc failed on {DESCRIPTORS}")


def committed(root: Path = ROOT) -> list[Path]:
    """What stands below `root`: the stubs, and what Envoy reads."""
    folders = [(root / place / pattern).parent for _, pattern, place in SETS]
    return sorted([root / DESCRIPTORS, *(path for folder in folders for path in folder.glob("*_pb2*.py*"))])


if __name__ == "__main__":
    for path in generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT):
        print(path)  # noqa: T201
