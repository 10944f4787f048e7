"""An option may belong to models of one task: those of the other are refused it, and its plugin never sees it there."""

from __future__ import annotations

import pytest

from support.cli import edgecore
from support.models import write_onnx
from support.plugins import MANIFEST, write_plugin
from support.tiny import tiny_llama

MORE = """
[[formats]]
name = "toy-tensors"
task = "tensor"

[[claims]]
task = "tensor"
families = ["onnx-opset-21"]
formats = ["toy-tensors"]
precisions = ["f16"]
devices = ["cpu"]

[[options.convert]]
name = "vectors"
type = "str"
default = "same"
task = "text"

[[options.convert]]
name = "layout"
type = "str"
default = "nchw"
task = "tensor"

[[options.convert]]
name = "depth"
type = "int"
default = 3

[[options.run]]
name = "kv_cache"
type = "str"
task = "text"

[[options.run]]
name = "streams"
type = "int"
task = "tensor"
"""
HOOKS = """
@hookimpl
def edgecore_convert(source, out, format, precision, options, limits, progress):
    raise BadRequest("given: " + ", ".join(sorted(options)))
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    text = MANIFEST.format(name="toy", contract="1.0", package="edgecore_toy", distribution="edgecore-toy")
    text = text.replace('"huggingface"]', '"huggingface", "onnx"]') + MORE
    return write_plugin(tmp_path_factory.mktemp("toy"), manifest=text, hooks=HOOKS)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"text": tiny_llama(folder / "m"), "tensor": write_onnx(folder / "matmul.onnx")}


@pytest.mark.parametrize(
    ("verb", "task", "option", "said", "supported"),
    [
        ("convert", "text", "layout=nhwc", "option 'layout' of backend 'toy' is for tensor models", "vectors, depth"),
        ("convert", "tensor", "vectors=f32", "option 'vectors' of backend 'toy' is for text models", "layout, depth"),
        ("build", "text", "layout=nhwc", "option 'layout' of backend 'toy' is for tensor models", "vectors, depth"),
        ("run", "text", "streams=2", "option 'streams' of backend 'toy' is for tensor models", "kv_cache"),
    ],
)
def test_an_option_of_the_other_task_is_refused_before_any_work(toy, models, verb, task, option, said, supported):
    more = ("-p", "x") if verb == "run" else ()
    result = edgecore(verb, models[task], "--backend", toy, "-O", option, *more, "--json")
    assert result.code == 2, result.err
    assert said in result.json["what"]
    assert result.json["what"].endswith(f"and this is a {task} model")
    assert result.json["supported"] == supported


@pytest.mark.parametrize(("task", "given"), [("text", "depth, vectors"), ("tensor", "depth, layout")])
def test_a_plugin_is_given_the_options_of_the_models_task_with_their_defaults(toy, models, task, given):
    result = edgecore("convert", models[task], "--backend", toy, "--allow-unverified", "--json")
    assert result.json["what"] == f"given: {given}"


def test_the_backends_page_says_whose_an_option_is(toy):
    lines = edgecore("backends", toy).out.splitlines()
    tasks = {line.split()[1].rstrip("="): line.split()[2] for line in lines if line.startswith("-O ")}
    assert tasks == {"vectors": "text", "layout": "tensor", "depth": "all", "kv_cache": "text", "streams": "tensor"}


def test_a_task_that_there_is_not_is_named_with_its_file(tmp_path):
    text = MANIFEST.format(name="toy", contract="1.0", package="edgecore_toy", distribution="edgecore-toy")
    wrong = MORE.replace('task = "text"', 'task = "txt"')
    plugin = write_plugin(tmp_path / "p", manifest=text + wrong)
    result = edgecore("backends", plugin)
    assert result.code != 0
    assert "'txt'" in result.err
    assert "text, tensor" in result.err


def test_allow_fallback_is_the_option_of_that_name() -> None:
    from edgecore.cli._models import making

    assert making({"allow_fallback": True, "options": {"soc": "x"}}).options == {"soc": "x", "allow_fallback": "true"}
    assert making({"allow_fallback": False, "options": {}}).options == {}
