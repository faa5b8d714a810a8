"""The protocol's files: generated code is current, both generate requests are alike, every field is explained."""

import runpy
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor

from jaxserve.v1 import generate_pb2, inference_pb2, options_pb2, prompt_pb2

ROOT = Path(__file__).resolve().parents[2]
FILES = (generate_pb2, inference_pb2, options_pb2, prompt_pb2)


def test_generated_code_is_what_the_protos_give(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "scripts" / "gen_protos"))["generate"](tmp_path)
    fresh = {path.name: path.read_text() for path in (tmp_path / "jaxserve" / "v1").iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / "jaxserve" / "v1").glob("*_pb2*")}
    assert fresh == committed, "run scripts/gen_protos and commit what it writes"


def test_both_generate_requests_have_the_same_fields() -> None:
    def fields(message: Descriptor) -> list[object]:
        return [(f.name, f.number, f.type, f.is_repeated, f.has_presence) for f in message.fields]

    unary, stream = generate_pb2.GenerateRequest.DESCRIPTOR, generate_pb2.GenerateStreamRequest.DESCRIPTOR
    assert fields(unary) == fields(stream)


def test_every_request_scalar_whose_zero_is_not_its_default_has_presence() -> None:
    zero_is_default = {"ignore_eos", "include_stop_string", "include_prompt_token_ids", "role", "content"}
    messages = [m for f in FILES for m in f.DESCRIPTOR.message_types_by_name.values()]
    requests = [m for m in messages if m.name.endswith(("Request", "Options", "Prompt", "Message"))]
    bare = {f.name for m in requests for f in m.fields if not f.is_repeated and not f.has_presence}
    assert bare == zero_is_default


@pytest.mark.parametrize("path", sorted((ROOT / "proto").rglob("*.proto")), ids=lambda path: path.name)
def test_every_declaration_has_a_comment_before_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        text = line.strip()
        declares = text.endswith(("{", ";")) or text.endswith("{}")
        exempt = text.startswith(("syntax", "package", "import", "//"))
        if declares and not exempt:
            assert lines[number - 1].strip().startswith("//"), f"{path.name}:{number + 1} has no comment"


def test_enums_and_services_are_named_after_the_buf_style() -> None:
    for file in FILES:
        assert file.DESCRIPTOR.package == "jaxserve.v1"
        for enum in file.DESCRIPTOR.enum_types_by_name.values():
            prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in enum.name).lstrip("_")
            assert all(value.name.startswith(prefix + "_") for value in enum.values)
            assert enum.values_by_number[0].name == prefix + "_UNSPECIFIED"
    used: set[str] = set()
    for service in inference_pb2.DESCRIPTOR.services_by_name.values():
        assert service.name.endswith("Service")
        for method in service.methods:
            names = (method.input_type.name, method.output_type.name)
            assert names == (f"{method.name}Request", f"{method.name}Response")
            assert used.isdisjoint(names)
            used.update(names)
