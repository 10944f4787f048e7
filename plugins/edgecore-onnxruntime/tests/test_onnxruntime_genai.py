"""onnxruntime_genai loads a converted folder as it is, continues a text as the oracle does, and reads it as we do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecore.checkpoint import Oracle, open_checkpoint
from edgecore_onnxruntime import folder

from support.divergence import some_tokens
from support.lines import lines
from support.tiny import SPECIAL, train_tokenizer

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
genai = pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai: bootstrap.py test --only onnxruntime")
GOLDENS = Path(__file__).parents[3] / "tests/checkpoint/goldens"
NAMES = [
    "rope-llama3", "multi-query-own-head-dim", "mistral-window", "mistral-own-head-dim", "qwen2-windows", "qwen3-tied",
    "qwen3-new-style-windows", "gemma3-old-style", "phi3-longrope-new-style", "phi3-window", "bitnet-packed",
    "gemma3-new-style-soft-caps",
]  # fmt: skip
"""Every family, with windows where it has them: the prompt is longer than they are."""
PROMPT, MORE = 30, 10
MESSAGES = [{"role": "user", "content": "What is the sea?"}]


def source_of(name: str, root: Path, **config: Any) -> Path:
    """A golden with a tokenizer, and with other values in its config."""
    source = root / "hf"
    shutil.copytree(GOLDENS / name, source, ignore=shutil.ignore_patterns("*.npz"))
    train_tokenizer(288).save(str(source / "tokenizer.json"))
    named = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "pad_token": SPECIAL[2]}
    (source / "tokenizer_config.json").write_text(json.dumps(named))
    if config:
        (source / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text()) | config))
    return source


def continued(source: Path, count: int, more: int = MORE) -> tuple[list[int], list[int]]:
    """A prompt, and what the oracle goes on with, to a token that ends a generation."""
    with open_checkpoint(source) as model:
        prompt, wanted = some_tokens(model.decoder, count), list[int]()
        context = Oracle(model.decoder, model.tensors, resident=True).context()
        logits = context.prefill(prompt)
        while len(wanted) < more and not set(wanted) & model.tokenizer.eos_ids:
            wanted.append(int(logits.argmax()))
            logits = context.step(wanted[-1])
    return prompt, wanted


def generated(out: Path, prompt: Sequence[int], more: int = MORE) -> list[int]:
    """GenAI's own loop, greedy, to the end of a generation."""
    model = genai.Model(str(out))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + more, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array(prompt, np.int32))
    found: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_family_is_continued_as_the_oracle_does(name: str, onnxruntime: Any, tmp_path: Path) -> None:
    source = source_of(name, tmp_path)
    onnxruntime.convert(source, tmp_path / "out", "f32")
    prompt, wanted = continued(source, PROMPT)
    assert generated(tmp_path / "out", prompt) == wanted


def test_a_text_that_grows_past_longropes_border_is_computed_anew_where_genai_knows_it(
    onnxruntime: Any, tmp_path: Path
) -> None:
    changed = {"original_max_position_embeddings": 4096, "max_position_embeddings": 8192}
    source = source_of("phi3-longrope-new-style", tmp_path, **changed)
    made = onnxruntime.convert(source, tmp_path / "out", "f32")
    assert made.notes == ()
    prompt, wanted = continued(source, 4092)
    assert generated(tmp_path / "out", prompt) == wanted


def test_a_text_is_read_and_written_as_by_our_tokenizer(onnxruntime: Any, tiny: Path, tmp_path: Path) -> None:
    onnxruntime.convert(tiny, tmp_path / "out")
    theirs, ours = genai.Tokenizer(genai.Model(str(tmp_path / "out"))), folder.open_tokenizer(tmp_path / "out")
    told = theirs.apply_chat_template(json.dumps(MESSAGES), add_generation_prompt=True)
    assert list(theirs.encode(told)) == ours.encode_chat(MESSAGES)
    hard = [line for line in lines(SPECIAL) if "\0" not in line]
    read = {line: ours.encode(line, add_special=False, parse_special=True) for line in hard}
    # Its own engine splits " 7" otherwise where digits stand alone behind several spaces.
    assert sum(list(theirs.encode(line)) != found for line, found in read.items()) < len(hard) / 10
    assert sum(theirs.decode(found) != ours.decode(found) for found in read.values()) < 10
