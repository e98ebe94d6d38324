"""The contract is documented, complete, compatible with its past, and its stubs are current."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import protovalidate
import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from google.protobuf.message import Message
from packaging.requirements import Requirement

from vision_sae.v1 import (
    attribution_service_pb2,
    catalog_service_pb2,
    description_pb2,
    description_service_pb2,
    edit_pb2,
    generation_service_pb2,
    image_pb2,
    intervention_service_pb2,
    label_job_service_pb2,
    search_service_pb2,
    target_pb2,
)

ROOT = Path(__file__).resolve().parents[2]

# rpc -> (the caller streams, the server streams)
UNARY, FROM_SERVER, BOTH_WAYS = (False, False), (False, True), (True, True)
RPCS = {
    "CatalogService": {
        "GetServerInfo": UNARY,
        "ListModels": UNARY,
        "GetModel": UNARY,
        "ListDictionaries": UNARY,
        "GetDictionary": UNARY,
        "ListFeatures": UNARY,
        "GetFeature": UNARY,
    },
    "AttributionService": {"Encode": UNARY, "Attribute": UNARY, "StreamAttribute": BOTH_WAYS},
    "InterventionService": {"Intervene": UNARY, "StreamIntervene": BOTH_WAYS},
    "SearchService": {"SearchPatches": UNARY, "SearchFeatures": UNARY},
    "DescriptionService": {
        "DescribeFeature": UNARY,
        "ScoreDescription": UNARY,
        "UpdateDescription": UNARY,
    },
    "GenerationService": {"Generate": FROM_SERVER},
    "LabelJobService": {
        "CreateLabelJob": UNARY,
        "GetLabelJob": UNARY,
        "ListLabelJobs": UNARY,
        "CancelLabelJob": UNARY,
        "WatchLabelJob": FROM_SERVER,
    },
}


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """`proto/generate.py`, with its pinned tools installed."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "proto" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.tool("buf").exists(), (
        "buf is missing: pip could not install proto/requirements.txt"
    )
    return module


@pytest.fixture(scope="module")
def files(generate: ModuleType) -> list[FileDescriptorProto]:
    """The files of `vision_sae.v1`, with their comments."""
    everything = FileDescriptorSet.FromString(generate.image(source_info=True))
    return [file for file in everything.file if file.package == "vision_sae.v1"]


def test_protos_stubs_and_image_agree(generate: ModuleType) -> None:
    generate.check()


def test_a_stale_stub_is_noticed(generate: ModuleType) -> None:
    fresh = generate.stubs()
    name = "tensor_pb2.pyi"
    fresh[name] = fresh[name].replace(b"D_TYPE_FLOAT32", b"D_TYPE_FLOAT33")
    assert "D_TYPE_FLOAT33" in generate.differences(fresh)


def test_every_rpc_of_the_design_is_there(files: list[FileDescriptorProto]) -> None:
    found = {
        service.name: {
            rpc.name: (rpc.client_streaming, rpc.server_streaming) for rpc in service.method
        }
        for file in files
        for service in file.service
    }
    assert found == RPCS


def test_everything_is_documented(files: list[FileDescriptorProto]) -> None:
    undocumented = [name for file in files for name in _undocumented(file)]
    assert not undocumented, f"no comment above: {undocumented}"


def test_v1_stays_compatible_with_the_committed_image(generate: ModuleType) -> None:
    generate.breaking()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("optional float scale = 4 ", "optional double scale = 4 "),
        ("repeated int64 shape = 2 ", "repeated int64 shape = 7 "),
        ("D_TYPE_FLOAT16 = 2;", "D_TYPE_HALF = 2;"),
    ],
)
def test_a_breaking_change_is_refused(
    generate: ModuleType, tmp_path: Path, before: str, after: str
) -> None:
    protos = tmp_path / "proto"
    shutil.copytree(ROOT / "proto", protos, ignore=shutil.ignore_patterns(".venv"))
    tensor = protos / "vision_sae" / "v1" / "tensor.proto"
    assert before in tensor.read_text()
    tensor.write_text(tensor.read_text().replace(before, after))

    done = subprocess.run(
        [generate.tool("buf"), "breaking", "--against", generate.IMAGE],
        cwd=protos,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode != 0
    assert "tensor.proto" in done.stdout


def test_the_base_install_admits_no_runtime_older_than_the_stubs() -> None:
    """protobuf and grpcio refuse, at import, stubs of a newer generator."""
    stubs = ROOT / "vision_sae" / "v1"
    protobuf = re.search(r"Protobuf Python Version: (\S+)", (stubs / "tensor_pb2.py").read_text())
    grpcio = re.search(
        r"GRPC_GENERATED_VERSION = '(\S+)'", (stubs / "search_service_pb2_grpc.py").read_text()
    )
    assert protobuf
    assert grpcio
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    for name, generated in (("protobuf", protobuf[1]), ("grpcio", grpcio[1])):
        floor = next(clause.version for clause in needs[name] if clause.operator == ">=")
        assert _numbers(floor) >= _numbers(generated), f"{name}>={generated} in pyproject.toml"


def test_the_stubs_import_nothing_heavy() -> None:
    modules = sorted(path.stem for path in (ROOT / "vision_sae" / "v1").glob("*_pb2*.py"))
    program = (
        f"import sys; from vision_sae.v1 import {', '.join(modules)};"
        "print(sorted({'torch', 'numpy', 'faiss', 'PIL', 'protovalidate'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


DICTIONARY = "dictionaries/dinov2-s.blocks.8.update"
FEATURE = f"{DICTIONARY}/features/12"
IMAGE = image_pb2.Image(data=b"not looked into here")
ABLATE = edit_pb2.Edit(feature=FEATURE, operation=edit_pb2.EDIT_OPERATION_ABLATE)
TEXT = target_pb2.Target(text=target_pb2.TextTarget(text="a dog"))
CONTRAST = target_pb2.Target(contrast=target_pb2.ContrastTarget(positive=TEXT, negative=TEXT))


@pytest.mark.parametrize(
    "request_",
    [
        catalog_service_pb2.GetServerInfoRequest(),
        catalog_service_pb2.ListModelsRequest(),
        catalog_service_pb2.ListFeaturesRequest(parent=DICTIONARY),
        catalog_service_pb2.GetFeatureRequest(name=FEATURE),
        attribution_service_pb2.EncodeRequest(image=IMAGE, dictionary=DICTIONARY),
        attribution_service_pb2.AttributeRequest(
            image=IMAGE, dictionaries=[DICTIONARY], target=CONTRAST
        ),
        intervention_service_pb2.InterveneRequest(
            plan=intervention_service_pb2.InterventionPlan(edits=[ABLATE]),
            images=[intervention_service_pb2.InterventionImage(image=IMAGE)],
        ),
        search_service_pb2.SearchPatchesRequest(feature=FEATURE),
        search_service_pb2.SearchPatchesRequest(
            dictionary=DICTIONARY, region=search_service_pb2.ImageRegion(image=IMAGE)
        ),
        search_service_pb2.SearchFeaturesRequest(text="striped"),
        description_service_pb2.DescribeFeatureRequest(feature=FEATURE),
        description_service_pb2.ScoreDescriptionRequest(feature=FEATURE, text="striped"),
        description_service_pb2.UpdateDescriptionRequest(
            description=description_pb2.Description(name=f"{FEATURE}/description", text="striped")
        ),
        search_service_pb2.SearchFeaturesRequest(feature=FEATURE),
        label_job_service_pb2.CreateLabelJobRequest(
            label_job=label_job_service_pb2.LabelJob(
                features=label_job_service_pb2.FeatureUnits(dictionary=DICTIONARY)
            )
        ),
        label_job_service_pb2.GetLabelJobRequest(name="labelJobs/zoo"),
        label_job_service_pb2.ListLabelJobsRequest(),
        label_job_service_pb2.CancelLabelJobRequest(name="labelJobs/zoo"),
        label_job_service_pb2.WatchLabelJobRequest(name="labelJobs/zoo"),
        generation_service_pb2.GenerateRequest(
            settings=generation_service_pb2.GenerationSettings(model="models/sdxl-turbo")
        ),
        label_job_service_pb2.CreateLabelJobRequest(
            label_job=label_job_service_pb2.LabelJob(
                neurons=label_job_service_pb2.NeuronUnits(
                    model="models/dinov2-s", sites=["blocks.*.mlp"]
                )
            )
        ),
    ],
    ids=lambda request_: type(request_).__name__,
)
def test_the_plainest_request_is_valid(request_: Message) -> None:
    protovalidate.validate(request_)


@pytest.mark.parametrize(
    ("request_", "field", "rule"),
    [
        (catalog_service_pb2.GetFeatureRequest(), "name", "feature.name"),
        (
            catalog_service_pb2.GetFeatureRequest(name=f"{DICTIONARY}/features/-1"),
            "name",
            "feature.name",
        ),
        (catalog_service_pb2.GetModelRequest(name="models/../etc"), "name", "model.name"),
        (
            catalog_service_pb2.ListModelsRequest(page_size=1001),
            "page_size",
            "int32.gte_lte",
        ),
        (attribution_service_pb2.EncodeRequest(dictionary=DICTIONARY), "image", "required"),
        (
            attribution_service_pb2.EncodeRequest(image=image_pb2.Image(), dictionary=DICTIONARY),
            "image.data",
            "bytes.min_len",
        ),
        (
            attribution_service_pb2.AttributeRequest(
                image=IMAGE,
                dictionaries=[DICTIONARY],
                target=target_pb2.Target(
                    contrast=target_pb2.ContrastTarget(positive=CONTRAST, negative=TEXT)
                ),
            ),
            "target.contrast",
            "contrast.depth",
        ),
        (search_service_pb2.SearchPatchesRequest(text="striped"), "", "search_patches.dictionary"),
        (search_service_pb2.SearchPatchesRequest(dictionary=DICTIONARY), "query", "required"),
        (search_service_pb2.SearchFeaturesRequest(), "query", "required"),
        (
            description_service_pb2.ScoreDescriptionRequest(feature=FEATURE),
            "text",
            "string.min_len",
        ),
        (
            description_service_pb2.UpdateDescriptionRequest(
                description=description_pb2.Description(
                    name=f"{FEATURE}/description", text="x" * 501
                )
            ),
            "description.text",
            "string.max_len",
        ),
        (
            description_service_pb2.DescribeFeatureRequest(feature=FEATURE, request_id="twice"),
            "request_id",
            "string.uuid",
        ),
        (label_job_service_pb2.CreateLabelJobRequest(), "label_job", "required"),
        (
            label_job_service_pb2.CreateLabelJobRequest(label_job=label_job_service_pb2.LabelJob()),
            "label_job.units",
            "required",
        ),
        (label_job_service_pb2.WatchLabelJobRequest(name="zoo"), "name", "label_job.name"),
        (image_pb2.Box(x0=2, y0=0, x1=2, y1=1), "", "box.area"),
        (image_pb2.Region(), "shape", "required"),
        (
            edit_pb2.Edit(feature=FEATURE, operation=edit_pb2.EDIT_OPERATION_ADD),
            "",
            "edit.value",
        ),
    ],
)
def test_a_bad_request_names_the_field_and_the_rule(
    request_: Message, field: str, rule: str
) -> None:
    violations = [violation.proto for violation in protovalidate.collect_violations(request_)]
    found = [
        (".".join(e.field_name for e in v.field.elements) if v.field else "", v.rule_id)
        for v in violations
    ]
    assert (field, rule) in found


def _numbers(version: str) -> tuple[int, ...]:
    """Release numbers, at least three: 6.31 is (6, 31, 0)."""
    numbers = [int(part) for part in version.split(".")]
    return (*numbers, *[0] * (3 - len(numbers)))


def _undocumented(file: FileDescriptorProto) -> Iterator[str]:
    """Names in `file` without a comment above them. Paths are those of SourceCodeInfo: the field
    number in the descriptor, then the index, from the outside in."""
    documented = {
        tuple(place.path)
        for place in file.source_code_info.location
        if place.leading_comments.strip()
    }
    for path, name in _named(file):
        if path not in documented:
            yield f"{file.name}: {name}"


def _named(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    for i, service in enumerate(file.service):
        yield (6, i), service.name
        yield from _members((6, i, 2), service.name, [rpc.name for rpc in service.method])
    for i, message in enumerate(file.message_type):
        yield from _in_message((4, i), message)
    for i, enum in enumerate(file.enum_type):
        yield from _in_enum((5, i), enum)


def _in_message(
    path: tuple[int, ...], message: DescriptorProto
) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, message.name
    yield from _members((*path, 2), message.name, [field.name for field in message.field])
    # A proto3 `optional` is a oneof, too, but nobody wrote it.
    synthetic = {field.oneof_index for field in message.field if field.proto3_optional}
    written = ["" if i in synthetic else oneof.name for i, oneof in enumerate(message.oneof_decl)]
    yield from _members((*path, 8), message.name, written)
    for i, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _in_message((*path, 3, i), nested)
    for i, enum in enumerate(message.enum_type):
        yield from _in_enum((*path, 4, i), enum)


def _in_enum(
    path: tuple[int, ...], enum: EnumDescriptorProto
) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, enum.name
    yield from _members((*path, 2), enum.name, [value.name for value in enum.value])


def _members(
    path: tuple[int, ...], owner: str, names: Sequence[str]
) -> Iterator[tuple[tuple[int, ...], str]]:
    for i, name in enumerate(names):
        if name:
            yield (*path, i), f"{owner}.{name}"
