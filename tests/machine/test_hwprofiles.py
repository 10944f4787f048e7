"""Profiles are claims about machines: each holds to the schema, each figure has its source, each match is right."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from edgecore.contract.errors import BadRequest
from edgecore.contract.manifest import parse
from edgecore.machine import Machine, facts, match, profile, profiles
from edgecore.machine.profiles import folder, read

FILES = sorted(folder().glob("*.toml"))
V3 = frozenset("popcnt sse4_1 sse4_2 ssse3 avx avx2 bmi1 bmi2 f16c fma abm movbe".split())
V4 = V3 | frozenset("avx512f avx512bw avx512cd avx512dq avx512vl".split())
MACHINE = Machine("Linux", "6", "x86_64", "", frozenset(), 1, 1, 1, 1, 1)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_profile_holds_to_the_schema_and_is_named_as_its_file(path: Path) -> None:
    schema = json.loads((folder() / "schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    data = tomllib.loads(path.read_text())
    assert [error.message for error in Draft202012Validator(schema).iter_errors(data)] == []
    assert data["name"] == path.stem


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_source_of_a_profile_is_used(path: Path) -> None:
    used = set[str]()

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            used.update([value["source"]] if "source" in value else [])
            for item in value.values():
                collect(item)
        elif isinstance(value, list):
            for item in value:
                collect(item)

    data = tomllib.loads(path.read_text())
    collect(data)
    assert used == {source["id"] for source in data["sources"]}


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (replace(MACHINE, features=frozenset("popcnt sse4_1 sse4_2 ssse3".split())), "x86-64-v2"),
        (replace(MACHINE, features=V3, system="Windows", architecture="AMD64"), "x86-64-v3"),
        (replace(MACHINE, features=V4), "x86-64-v4"),
        (replace(MACHINE, features=V4 | {"avx512_vnni"}), "x86-64-v4-vnni"),
        (replace(MACHINE, features=V4 | {"avx512_vnni", "avx512_bf16"}), "x86-64-v4-bf16"),
        (
            replace(MACHINE, features=V4 | {"avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"}),
            "x86-64-amx",
        ),
        (replace(MACHINE, architecture="aarch64", features=frozenset({"asimd"})), "arm64-neon"),
        (
            replace(MACHINE, architecture="aarch64", features=frozenset({"asimd", "asimdhp", "asimddp"})),
            "arm64-dotprod",
        ),
        (
            replace(MACHINE, architecture="aarch64", features=frozenset("asimd asimdhp asimddp i8mm sve".split())),
            "arm64-sve",
        ),
        (
            replace(MACHINE, system="Darwin", architecture="arm64", chip="Apple M2", features=frozenset({"asimd"})),
            "apple-m2",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_most_specific_profile_comes_first(machine: Machine, name: str) -> None:
    assert match(machine)[0].name == name


def test_a_chip_without_a_profile_of_its_own_falls_back_to_its_class() -> None:
    unknown = replace(MACHINE, system="Darwin", architecture="arm64", chip="Apple M9", features=frozenset({"asimd"}))
    assert "apple-silicon" in [p.name for p in match(unknown)]
    assert not [p.name for p in match(unknown) if p.chip]


def test_a_machine_that_nothing_describes_matches_nothing() -> None:
    assert match(replace(MACHINE, architecture="riscv64")) == ()


@pytest.mark.parametrize("name", ["intel-meteor-lake", "intel-arrow-lake", "intel-lunar-lake", "intel-panther-lake"])
def test_a_machine_that_cannot_be_told_from_others_is_matched_by_none_and_found_by_its_name(name: str) -> None:
    npu = profile(name).suited[0]
    assert (npu.backend, npu.device) == ("openvino", "npu")
    assert npu.options["platform"] in ("3720", "4000", "5010"), "what its compiler is told"
    assert name not in [p.name for p in match(replace(MACHINE, features=V3, chip="Intel(R) Core(TM) Ultra 7 155H"))]


@pytest.mark.parametrize(
    ("name", "chip"),
    [
        ("snapdragon-8-gen-1", ("SM8450", 69, 8)),
        ("snapdragon-8-gen-2", ("SM8550", 73, 8)),
        ("snapdragon-8-gen-3", ("SM8650", 75, 8)),
        ("snapdragon-8-elite", ("SM8750", 79, 8)),
        ("snapdragon-8-elite-gen-5", ("SM8850", 81, 8)),
        ("snapdragon-x-elite", ("SC8380XP", 73, 8)),
        ("snapdragon-x2-elite", ("SC8480XP", 81, 8)),
        ("qualcomm-qcs6490", ("QCS6490", 68, 2)),
        ("qualcomm-qcs8550", ("QCS8550", 73, 8)),
    ],
)
def test_a_snapdragon_says_chip_hexagon_version_and_its_fast_memory(name: str, chip: tuple[str, int, int]) -> None:
    npu = profile(name).suited[0]
    assert (npu.backend, npu.device) == ("onnxruntime", "npu")
    assert (npu.options["soc_model"], npu.options["htp_arch"], npu.options["vtcm_mb"]) == chip
    assert name not in [p.name for p in match(replace(MACHINE, architecture="ARM64", features=frozenset({"asimd"})))]


@pytest.mark.parametrize("name", [path.stem for path in FILES if path.stem.startswith("apple-")])
def test_a_mac_is_for_its_gpu_first_by_mlx_and_then_by_llamacpp(name: str) -> None:
    described = profile(name)
    assert [(row.backend, row.device) for row in described.suited[:2]] == [("mlx", "gpu"), ("llamacpp", "gpu")]


def test_this_computer_is_matched_by_its_own_facts() -> None:
    assert all(found.describes(facts()) for found in match())


def test_a_figure_knows_where_it_is_from() -> None:
    bandwidth = profile("apple-m2").memory_bandwidth
    assert bandwidth is not None
    assert bandwidth.value == 100e9
    assert bandwidth.source.url.startswith("https://")


def test_what_suits_a_machine_is_declared_by_the_plugin_that_is_named() -> None:
    plugins = Path(__file__).parents[2] / "plugins"
    manifests = {}
    for path in plugins.glob("edgecore-*/edgecore_*/backend.toml"):
        manifest = parse(tomllib.loads(path.read_text()), str(path))
        manifests[manifest.name] = manifest
    for found in profiles():
        for suited in found.suited:
            if suited.backend in manifests:
                assert manifests[suited.backend].device(suited.device), f"{found.name}: {suited}"


def test_an_unknown_profile_is_an_error_that_lists_those_that_exist() -> None:
    with pytest.raises(BadRequest) as caught:
        profile("commodore-64")
    assert "x86-64-v3" in caught.value.supported


def test_a_profile_of_ones_own_is_read_from_its_path(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(FILES[0].read_text())
    assert profile(str(mine)) == read(FILES[0])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("schema = 2\n", "schema = 2"),
        ("schema = 1\n", "'name'"),
        ("schema = ", "is not TOML"),
        ('schema = 1\nname = "x"\ntitle = "x"\nunits = 3\n', "int"),
        (
            'schema = 1\nname = "x"\ntitle = "x"\n[memory]\nbandwidth = { value = 1.0, source = "rumour" }\n',
            "'rumour'",
        ),
    ],
)
def test_a_bad_profile_is_an_error_that_names_the_file_and_the_field(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(BadRequest) as caught:
        read(path)
    assert "bad.toml" in caught.value.what
    assert named in caught.value.what


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"absent\.toml"):
        read(tmp_path / "absent.toml")
