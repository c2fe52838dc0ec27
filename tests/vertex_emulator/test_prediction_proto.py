"""Our description of Google's messages, compared with Google's own."""

import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from vertex_emulator.protos import prediction_pb2 as ours

GOOGLE = "google.cloud.aiplatform."
ROOTS = ("GenerateContentRequest", "GenerateContentResponse", "CountTokensRequest", "CountTokensResponse")


@pytest.fixture(scope="module", params=["v1beta1", "v1"])
def google(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"google.cloud.aiplatform_{request.param}.types.prediction_service")


def simple(name: str) -> str:
    """A type's name without its package; proto-plus marks Python's own words with an underscore."""
    for package in ("vertex_emulator.", f"{GOOGLE}v1beta1.", f"{GOOGLE}v1.", "google.type."):
        name = name.removeprefix(package)
    return name


def described(field: FieldDescriptor) -> tuple[object, ...]:
    kind = field.message_type or field.enum_type
    oneof = field.containing_oneof
    return (
        field.name.rstrip("_"),
        field.number,
        field.type,
        simple(kind.full_name) if kind is not None else None,
        field.is_repeated,
        field.has_presence,
        oneof.name if oneof is not None else None,
    )


def compare_enum(mine: EnumDescriptor, theirs: EnumDescriptor, exact: bool) -> Iterator[str]:
    mine_values = {value.name: value.number for value in mine.values}
    their_values = {value.name: value.number for value in theirs.values}
    if exact and mine_values != their_values:
        yield f"{mine.full_name}: {mine_values} is not {their_values}"
    for name in mine_values.keys() & their_values.keys():
        if mine_values[name] != their_values[name]:
            yield f"{mine.full_name}.{name}: {mine_values[name]} is not {their_values[name]}"
    if mine.is_closed:
        yield f"{mine.full_name} is closed: a number that it doesn't name would be lost"


def compare(mine: Descriptor, theirs: Descriptor, exact: bool, seen: set[str]) -> Iterator[str]:
    if mine.full_name in seen or mine.full_name.startswith("google."):
        return
    seen.add(mine.full_name)
    their_fields = {field.number: field for field in theirs.fields}
    for field in mine.fields:
        other = their_fields.get(field.number)
        if other is None:
            if exact:
                yield f"{field.full_name} = {field.number}: Google has no such field"
            continue
        if described(field) != described(other):
            yield f"{field.full_name}: {described(field)} is not {described(other)}"
            continue
        if field.message_type is not None and other.message_type is not None:
            yield from compare(field.message_type, other.message_type, exact, seen)
        if field.enum_type is not None and other.enum_type is not None and field.enum_type.full_name not in seen:
            seen.add(field.enum_type.full_name)
            if not field.enum_type.full_name.startswith("google."):
                yield from compare_enum(field.enum_type, other.enum_type, exact)


def test_every_message_field_and_enum_is_googles(google: ModuleType) -> None:
    # v1 lacks some of v1beta1; what both have must agree.
    exact = google.__name__.startswith("google.cloud.aiplatform_v1beta1")
    seen: set[str] = set()
    differences: list[str] = []
    for root in ROOTS:
        theirs = getattr(google, root)
        mine = ours.DESCRIPTOR.message_types_by_name[root]
        differences += compare(mine, theirs.pb(theirs()).DESCRIPTOR, exact, seen)
    assert differences == []
    if exact:
        unreached = set(all_messages(ours.DESCRIPTOR.message_types_by_name.values())) - seen
        assert unreached == set()


def all_messages(messages: object) -> Iterator[str]:
    for message in messages:  # type: ignore[attr-defined]  # descriptors' collections have no common type
        yield message.full_name
        yield from all_messages(message.nested_types)


def test_a_renumbered_field_would_be_noticed() -> None:
    mine, theirs = ours.Blob.DESCRIPTOR, ours.FunctionResponseBlob.DESCRIPTOR
    assert list(compare(mine, theirs, True, set())) == []
    assert list(compare(theirs, mine, True, set())) == [
        "vertex_emulator.FunctionResponseBlob.display_name = 4: Google has no such field"
    ]
    assert list(compare(ours.FileData.DESCRIPTOR, ours.Blob.DESCRIPTOR, True, set())) != []
