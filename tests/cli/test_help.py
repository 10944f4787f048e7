"""What costs nothing must stay free: help and listing load no runtime and no numpy."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from edgecore.cli import COMMANDS

from support.cli import edgecore


@pytest.mark.parametrize("arguments", [["--help"], ["backends"], ["backends", "--json"]])
def test_help_and_listing_import_no_runtime_and_no_numpy(arguments):
    code = (
        "import sys\n"
        "from edgecore.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'numpy', 'llama_cpp', 'onnx', 'openvino', 'mlx', 'tokenizers', 'jinja2', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command_with_one_line():
    result = edgecore("--help")
    assert result.code == 0
    for name, text in COMMANDS.items():
        assert name in result.out
        assert text.split()[0] in result.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name):
    result = edgecore(name, "--help")
    assert result.code == 0, result.err
    assert "Usage: edgecore" in result.out


def test_a_misspelt_command_names_the_nearest():
    result = edgecore("quantise", "x")
    assert result.code == 2
    assert "quantize" in result.err


@pytest.mark.skipif(
    find_spec("edgecore_conformance") is not None,
    reason="needs an environment without the conformance suite: python3 bootstrap.py test --only core",
)
def test_the_conformance_suite_names_its_installation_when_it_is_missing():
    result = edgecore("conformance", "run")
    assert result.code == 2
    assert "install" in result.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_the_command_back(shell):
    result = edgecore("completion", shell)
    assert result.code == 0
    assert "_EDGECORE_COMPLETE" in result.out


def test_completion_offers_the_commands():
    result = edgecore(_EDGECORE_COMPLETE="bash_complete", COMP_WORDS="edgecore qu", COMP_CWORD="1")
    assert {"quantize", "quickstart"} <= {line.split(",")[-1] for line in result.out.split()}
