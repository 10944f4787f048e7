"""What chat templates are asked to render, here and by the script that made the record."""

from __future__ import annotations

from datetime import datetime
from typing import Any

NOW = datetime(2026, 2, 3, 4, 5, 6)
SPECIAL = {"bos_token": "<BOS>", "eos_token": "<EOS>", "unk_token": "<UNK>", "pad_token": "<PAD>"}
ODD = (
    'What is 2 < 3 & "x"?\n\n\tSay it — plainly \u00a0🙂👩\u200d👩\u200d👧 नमस्ते שלום '
    "{{ 7 * 7 }} {% raw %} <|im_end|> </s> [/INST]  "
)
WEATHER = {"name": "weather", "arguments": {"town": "Zürich", "days": 2}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [{"role": "user", "content": ODD}],
    "system": [{"role": "system", "content": "  Be brief.\n"}, {"role": "user", "content": "Hi"}],
    "turns": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "  Yes.\n"},
        {"role": "user", "content": ODD},
        {"role": "assistant", "content": "No. é"},
        {"role": "user", "content": ""},
    ],
    "turns without a system": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "1"},
    ],
    "ends with the assistant": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."},
    ],
    "reasoning": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes.", "reasoning": "hm"},
        {"role": "user", "content": "More"},
        {"role": "assistant", "content": "No.", "reasoning_content": "hm, hm"},
    ],
    "tool call": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "abcdefgh1", "type": "function", "function": WEATHER}],
        },
        {"role": "tool", "tool_call_id": "abcdefgh1", "name": "weather", "content": '{"sky": "blå"}'},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Thanks"},
    ],
    "content in parts": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "ho"}]}],
    "two users": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "nothing": [],
}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The sky "there" <soon>, à la carte.',
            "parameters": {
                "type": "object",
                "properties": {
                    "town": {"type": "string", "description": "Where"},
                    "days": {"type": "integer", "enum": [1, 2]},
                },
                "required": ["town"],
            },
        },
    }
]
