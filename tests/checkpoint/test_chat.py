"""Chat templates render as transformers renders them, and a hostile one is stopped."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil
import pytest

from edgecore.checkpoint import open_checkpoint
from edgecore.checkpoint.chat import render_guarded
from edgecore.contract.errors import BadRequest, CannotDo, CorruptModel

from support.tiny import tiny_llama

USER = [{"role": "user", "content": 'What is 2 < 3?\nSay it — "plainly" 🙂'}]


def test_the_models_own_template_makes_the_prompt(tmp_path: Path) -> None:
    tokenizer = open_checkpoint(tiny_llama(tmp_path)).tokenizer
    prompt = tokenizer.apply_chat(USER)
    assert prompt == f"<|im_start|>user\n{USER[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat(USER, add_generation_prompt=False) == prompt.removesuffix("<|im_start|>assistant\n")
    ids = tokenizer.encode(prompt, add_special=False, parse_special=True)
    assert (ids.count(1), ids.count(2)) == (2, 1)


def test_the_template_may_lie_in_a_file_or_among_named_ones(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = [
        {"name": "tools", "template": "no"},
        {"name": "default", "template": "yes {{ bos_token }}"},
    ]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert open_checkpoint(folder).tokenizer.apply_chat(USER) == "yes <|im_start|>"
    (folder / "chat_template.jinja").write_text("file {{ eos_token }}")
    assert open_checkpoint(folder).tokenizer.apply_chat(USER) == "file <|im_end|>"


def test_a_model_without_a_template_cannot_chat(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    model = open_checkpoint(folder)
    assert model.chat_template is None
    with pytest.raises(CannotDo, match="no chat template"):
        model.tokenizer.apply_chat(USER)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("  {% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),
        ("{{ {'b': '<é>', 'a': [1]} | tojson }}", '{"b": "<é>", "a": [1]}'),
        ("{{ [1, 2] | tojson(indent=1) }}", "[\n 1,\n 2\n]"),
        ("{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}"
         "{% endfor %}", "013"),
        ("{% generation %}a{% endgeneration %}b", "ab"),
        ("{% set ns = namespace(x=1) %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}", "4"),
        ("{{ tools is none }} {{ documents is none }} {{ other is defined }}", "True True False"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ 'a b'.split()[-1] ~ dict(a=1).a }}", "b1"),
        ("{{ messages[0]['content'] }}", USER[0]["content"]),
    ],
)  # fmt: skip
def test_templates_have_what_transformers_gives_them(template: str, expected: str) -> None:
    assert render_guarded(template, {"messages": USER}) == expected


def test_a_template_that_refuses_the_messages_says_why() -> None:
    with pytest.raises(BadRequest, match="roles must alternate"):
        render_guarded("{{ raise_exception('roles must alternate') }}", {})


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ messages.append(1) }}",
        "{{ ''['__class__'] }}{{ (''|attr('__class__')).x }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends '/etc/passwd' %}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ '{x.__init__.__globals__}'.format_map({'x': cycler}) }}",
        "{{ messages | map(attribute='__class__.__mro__') | list }}",
        "{{ dict.__call__.__func__.__globals__ }}",
        "{{ joiner.__init__.__builtins__ }}",
        "{{ namespace(**{'_x': 1}) }}",
        "{% set ns = namespace() %}{% set ns._private = 1 %}",
        "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
        "{{ caller.__globals__ }}{{ undefined.__init__.__globals__ }}",
        "{% for m in messages %}{{ loop.__init__.__globals__ }}{% endfor %}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{{ messages[0].items().__class__.__base__ }}",
    ],
)
def test_a_template_cannot_reach_python_or_files(template: str) -> None:
    with pytest.raises((BadRequest, CorruptModel)):
        render_guarded(template, {"messages": USER})


@pytest.mark.parametrize(
    "template",
    [
        "{{ '%s' | format(messages | attr('__class__')) }}",
        "{{ messages | map('attr', '__class__') | map('string') | join }}",
        "{{ messages | attr('\\x5f\\x5fclass\\x5f\\x5f') ~ '' }}",
        "{{ lipsum.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__closure__ }}",
        "{{ dict.fromkeys.__func__ }}",
        "{{ (messages | groupby('role') | first).__class__ }}",
    ],
)
def test_what_is_not_for_templates_is_nothing(template: str) -> None:
    """As in transformers: an attribute that the sandbox hides is undefined, and undefined prints as no text."""
    assert render_guarded(template, {"messages": USER}) == ""


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(10**12) %}{% endfor %}",
        "{{ 'a' * 10**11 }}",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=1, y=1) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
        "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
        "{{ '%9999999999d' | format(1) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ (9 ** 9999999) ** 9999 }}",
        "{{ 'x' * 10**12 }}",
        "{{ [1] * 10**10 }}",
        "{{ range(10**9) | list | length }}",
        "{{ 'x' | center(10**10) }}",
        "{{ 'x\\ny' | indent(10**10) }}",
        "{{ '{:>99999999999}'.format('x') }}",
        "{{ [[[1]]] | tojson(indent=10**10) }}",
        "{{ 'x'.ljust(10**10) }}",
        "{{ lipsum(n=10**8) }}",
        "{{ ('a' * 10**8).replace('a', 'b' * 1000) }}",
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% for x in [[]] recursive %}{{ loop([[]]) }}{% endfor %}",
        "{{ " + "(" * 50000 + "1" + ")" * 50000 + " }}",
        "{{ " + "[" * 300 + "]" * 300 + " }}",
        "{{ " + "-" * 30000 + "1 }}",
        "{% if true %}" * 3000 + "{% endif %}" * 3000,
        "{% set ns = namespace(l=[1]) %}{% for i in range(40) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
        "{% set x %}{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}{% endset %}{{ x }}",
    ],
)
def test_a_template_that_loops_for_ever_or_fills_memory_is_stopped(template: str) -> None:
    began = time.monotonic()
    with pytest.raises((BadRequest, CorruptModel), match="chat template"):
        render_guarded(template, {}, seconds=1.0, memory=100 << 20)
    assert time.monotonic() - began < 30
    assert render_guarded("still {{ 'here' }}", {}) == "still here"


def test_messages_that_are_not_plain_data_are_refused() -> None:
    with pytest.raises(BadRequest, match="plain data"):
        render_guarded("x", {"messages": [{"content": object()}]})


def test_a_killed_caller_leaves_no_renderer_behind() -> None:
    exponential = (
        "{% set ns = namespace(x=1, y=1) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
        "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}"
    )
    code = "import sys; from edgecore.checkpoint.chat import render_guarded; render_guarded(sys.argv[1], {}, seconds=3)"
    caller = psutil.Popen([sys.executable, "-c", code, exponential])
    deadline = time.monotonic() + 30
    while not (helpers := caller.children()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.0)  # by now it renders
    caller.kill()
    caller.wait()
    assert psutil.wait_procs(helpers, timeout=20)[1] == []
