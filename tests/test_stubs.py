"""The committed stubs are those of the protos."""

from pathlib import Path
from typing import Any

import pytest

from tests import stubs
from tokenwire.v1 import config_pb2, content_pb2, generation_service_pb2
from vertex_emulator.protos import control_pb2, prediction_pb2, script_pb2

NAMESPACES = {"tokenwire.v1": "Tokenwire.V1", "vertex_emulator": "VertexEmulator"}

MODULES: list[Any] = [config_pb2, content_pb2, generation_service_pb2, control_pb2, prediction_pb2, script_pb2]


def test_the_committed_stubs_are_current(tmp_path: Path) -> None:
    fresh = {path.relative_to(tmp_path): path.read_bytes() for path in stubs.generate(tmp_path)}
    committed = {path.relative_to(stubs.ROOT): path.read_bytes() for path in stubs.committed()}
    assert fresh.keys() == committed.keys()
    stale = sorted(str(path) for path in fresh if fresh[path] != committed[path])
    assert not stale, f"stale: run `make protos` and commit {stale}"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_proto_says_where_its_code_goes_in_other_languages(module: Any) -> None:
    """Else a plain `protoc --go_out` refuses it, and one file of Java holds all of it."""
    options = module.DESCRIPTOR.GetOptions()
    package = module.DESCRIPTOR.package
    assert options.java_multiple_files
    assert options.java_package == package
    path, _, name = options.go_package.partition(";")
    assert path == str(Path(module.DESCRIPTOR.name).parent)
    assert name == package.replace(".", "").replace("_", "")
    assert options.csharp_namespace == NAMESPACES[package]
    assert options.ruby_package == NAMESPACES[package].replace(".", "::")


def test_no_proto_is_left_out() -> None:
    found = [path for root, pattern, _ in stubs.SETS for path in (stubs.ROOT / root).glob(pattern)]
    assert {path.stem for path in found} == {Path(module.DESCRIPTOR.name).stem for module in MODULES}
