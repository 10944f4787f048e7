"""Makes the record that chat templates are held to: what transformers makes of the same templates and conversations.

Needs transformers, which no test needs, so it runs in an environment of its own, by hand:

    python -m venv goldens && goldens/bin/pip install transformers==5.23.0 jinja2
    PYTHONPATH=tests goldens/bin/python tests/checkpoint/make_templates.py LLAMA_CPP

LLAMA_CPP is llama.cpp's tree (`edgecore_llamacpp.source_package` unpacks one): its `models/templates` are models' own.
"""

from __future__ import annotations

import json
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from support.conversations import CONVERSATIONS, NOW, SPECIAL, TOOLS

HERE = Path(__file__).parent / "templates"
CHOSEN = (
    "meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct", "meta-llama-Llama-3.3-70B-Instruct",
    "Qwen-Qwen2.5-7B-Instruct", "Qwen-QwQ-32B", "Qwen-Qwen3-0.6B", "Qwen3-Coder", "google-gemma-2-2b-it",
    "microsoft-Phi-3.5-mini-instruct", "mistralai-Mistral-Nemo-Instruct-2407", "Mistral-Small-3.2-24B-Instruct-2506",
    "mistralai-Ministral-3-14B-Reasoning-2512", "HuggingFaceTB-SmolLM3-3B", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "ibm-granite-granite-3.3-2B-Instruct", "openai-gpt-oss-120b",
)  # fmt: skip
"""Of the families that `edgecore.checkpoint` reads, and two more that use what those do not."""


class Frozen(datetime):
    """A clock that stands still, because some templates write the day."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return NOW


def main(llama_cpp: Path) -> None:
    from transformers.utils import chat_template_utils

    chat_template_utils.datetime = Frozen
    for name in CHOSEN:
        source = llama_cpp / "models" / "templates" / f"{name}.jinja"
        shutil.copyfile(source, HERE / source.name)
        template = source.read_text(encoding="utf-8")
        expected = {}
        for conversation, messages in CONVERSATIONS.items():
            for tools in (None, TOOLS):
                for prompt in (True, False):
                    key = f"{conversation}{' tools' if tools else ''}{' prompt' if prompt else ''}"
                    try:
                        (text,), _ = chat_template_utils.render_jinja_template(
                            [messages], chat_template=template, tools=tools, add_generation_prompt=prompt, **SPECIAL
                        )
                        expected[key] = text
                    except Exception as error:
                        expected[key] = {"refused": type(error).__name__, "what": str(error)}
        (HERE / f"{name}.json").write_text(json.dumps(expected, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
        print(name, sum(isinstance(e, str) for e in expected.values()), "of", len(expected))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
