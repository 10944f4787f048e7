"""openvino_genai loads a converted folder as it is and continues a text as the oracle does, by both of its ways."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from edgecore.checkpoint import Oracle, open_checkpoint

from support.bare_ir import EXACT, some_tokens
from support.tiny import train_tokenizer

genai = pytest.importorskip("openvino_genai", reason="needs openvino-genai: python3 bootstrap.py test --only openvino")
GOLDENS = Path(__file__).parents[3] / "tests/checkpoint/goldens"
NAMES = [
    "rope-llama3", "multi-query-own-head-dim", "mistral-window", "qwen2-windows", "qwen3-tied", "gemma3-old-style",
    "phi3-longrope-new-style", "phi3-window", "bitnet-packed", "gemma3-new-style-soft-caps",
]  # fmt: skip
"""Every family, with windows where it has them: the prompt is longer than they are."""
PROMPT, MORE = 30, 10


@pytest.fixture(scope="module", params=NAMES)
def converted(request: pytest.FixtureRequest, openvino: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder, a prompt and what the oracle goes on with."""
    root = tmp_path_factory.mktemp(request.param)
    source = root / "hf"
    shutil.copytree(GOLDENS / request.param, source, ignore=shutil.ignore_patterns("*.npz"))
    train_tokenizer(288).save(str(source / "tokenizer.json"))
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    (source / "tokenizer_config.json").write_text(json.dumps(named))
    openvino.convert(source, root / "ir", "f32")
    with open_checkpoint(source) as model:
        prompt = some_tokens(model.decoder, PROMPT)
        context = Oracle(model.decoder, model.tensors, resident=True).context()
        logits, wanted = context.prefill(prompt), []
        for _ in range(MORE):
            wanted.append(int(logits.argmax()))
            logits = context.step(wanted[-1])
    return request.param, root / "ir", prompt, wanted


@pytest.mark.parametrize("attention", ["SDPA", "PA"])
def test_every_family_is_continued_as_the_oracle_does(converted: Any, attention: str) -> None:
    name, folder, prompt, wanted = converted
    if attention == "PA" and "soft-caps" in name:
        with pytest.raises(RuntimeError, match="No ScaledDotProductAttention operation"):
            genai.LLMPipeline(folder, "CPU", ATTENTION_BACKEND=attention, **EXACT)
        return
    pipeline = genai.LLMPipeline(folder, "CPU", ATTENTION_BACKEND=attention, **EXACT)
    settings = genai.GenerationConfig(max_new_tokens=MORE, do_sample=False, ignore_eos=True)
    answer = pipeline.generate(ov.Tensor(np.array([prompt], np.int64)), settings)
    assert list(answer.tokens[0]) == wanted
