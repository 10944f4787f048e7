"""Models' own chat templates render as transformers renders them; the record is made by make_templates.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from edgecore.checkpoint.chat import render, render_guarded
from edgecore.contract.errors import BadRequest

from support.conversations import CONVERSATIONS, NOW, SPECIAL, TOOLS

TEMPLATES = Path(__file__).parent / "templates"
NAMES = sorted(file.stem for file in TEMPLATES.glob("*.jinja"))


def variables(key: str) -> dict[str, Any]:
    conversation = key.removesuffix(" prompt").removesuffix(" tools")
    return {
        **SPECIAL,
        "messages": CONVERSATIONS[conversation],
        "tools": TOOLS if " tools" in key else None,
        "add_generation_prompt": key.endswith(" prompt"),
    }


def test_the_record_has_every_family() -> None:
    assert len(NAMES) == 19
    for family in ("meta-llama", "Qwen2.5", "Qwen3", "gemma", "Phi-3", "mistralai", "SmolLM", "DeepSeek"):
        assert any(family in name for name in NAMES), family


@pytest.mark.parametrize("name", NAMES)
def test_a_template_renders_as_in_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    class Frozen(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:
            return NOW

    monkeypatch.setattr("datetime.datetime", Frozen)
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    record = json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8"))
    assert len(record) == 4 * len(CONVERSATIONS)
    for key, expected in record.items():
        if isinstance(expected, str):
            assert render(template, variables(key)) == expected, key
            continue
        with pytest.raises(Exception) as refused:
            render(template, variables(key))
        assert (type(refused.value).__name__, str(refused.value)) == (expected["refused"], expected["what"]), key


@pytest.mark.parametrize("name", [n for n in NAMES if "strftime" not in (TEMPLATES / f"{n}.jinja").read_text("utf-8")])
def test_the_helper_process_renders_the_same(name: str) -> None:
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    for key, expected in json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8")).items():
        if isinstance(expected, str):
            assert render_guarded(template, variables(key)) == expected, key
        else:
            with pytest.raises(BadRequest):
                render_guarded(template, variables(key))


def test_a_refusal_keeps_the_templates_own_words() -> None:
    template = (TEMPLATES / "google-gemma-2-2b-it.jinja").read_text(encoding="utf-8")
    with pytest.raises(TemplateError, match="System role not supported"):
        render(template, variables("system"))
    with pytest.raises(BadRequest, match="System role not supported"):
        render_guarded(template, variables("system"))
