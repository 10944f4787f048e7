"""Chat templates are programs from strangers: they run in jinja2's sandbox, in a process that is ended in time.

The sandbox keeps a template from Python. It cannot keep one from looping for ever, or from doubling a list forty times
and comparing it with another, all of it legal and some of it inside one call to C. So a helper process renders, and the
caller watches its time and memory. It stays for the next turn of the conversation (starting it takes 0.15 s) and ends
with the caller, whose pipe it reads from.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import IO, Any

from edgecore.contract.errors import BadRequest, CorruptModel, EdgecoreError

SECONDS = 10.0
"""For one rendering; real templates take milliseconds."""
MEMORY = 256 << 20
"""Bytes that a rendering may add."""
_START_SECONDS = 60.0


def render_guarded(
    template: str, variables: Mapping[str, Any], *, seconds: float = SECONDS, memory: int = MEMORY
) -> str:
    """The rendered template. Raises `BadRequest` when the template refuses the messages, `CorruptModel` when it is
    broken, reaches for Python, or was stopped."""
    try:
        request = json.dumps({"template": template, "variables": variables, "seconds": seconds})
    except (TypeError, ValueError) as error:
        raise BadRequest(
            f"messages are not plain data: {error}", supported='{"role": "user", "content": "..."}'
        ) from None
    with _helper_lock:
        answer = _helper().ask(request, seconds, memory)
    if "text" in answer:
        return answer["text"]
    raise _ERRORS[answer["error"]](answer["what"])


_ERRORS: dict[str, type[EdgecoreError]] = {"refused": BadRequest, "broken": CorruptModel}


class _Helper:
    """The rendering process and the thread that reads its answers."""

    def __init__(self) -> None:
        code = "import sys; sys.path[:] = sys.argv[1:]; from edgecore.checkpoint.chat import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._await(_START_SECONDS, sys.maxsize)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: str, seconds: float, memory: int) -> dict[str, str]:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pipe.write(request + "\n")
            pipe.flush()
            answer: dict[str, str] = json.loads(self._await(seconds, memory))
        except BaseException:
            self.end()  # whatever it was doing, its answer must not be taken for the next one's
            raise
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _read(self) -> None:
        lines = self._process.stdout
        assert lines is not None
        try:
            for line in lines:
                self._answers.put(line)
        except ValueError:  # closed by `end`
            pass
        self._answers.put("")

    def _await(self, seconds: float, memory: int) -> str:
        import psutil

        until = time.monotonic() + seconds
        process = psutil.Process(self._process.pid)
        most = _resident(process) + memory
        while True:
            try:
                line = self._answers.get(timeout=0.01)
            except queue.Empty:
                if time.monotonic() > until:
                    raise CorruptModel(f"the chat template was stopped after {seconds:g} seconds") from None
                if _resident(process) > most:
                    raise CorruptModel(f"the chat template was stopped at {memory >> 20} MB of memory") from None
                continue
            if not line:
                raise CorruptModel("the chat template ended the process that rendered it")
            return line


def _resident(process: Any) -> int:
    import psutil

    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


_helper_lock = threading.Lock()
_helpers: list[_Helper] = []


def _helper() -> _Helper:
    if not _helpers or not _helpers[0].alive:
        _helpers[:] = [_Helper()]
    return _helpers[0]


@atexit.register
def _end_helper() -> None:
    for helper in _helpers:
        if helper.alive:
            helper.end()


def serve() -> None:
    """The helper's side: one request a line, one answer a line, until the caller is gone."""
    requests, answers = _utf8(sys.stdin), _utf8(sys.stdout)
    answers.write("ready\n")
    answers.flush()
    for line in requests:
        request = json.loads(line)
        # Should the caller be killed meanwhile: this watchdog needs neither the caller nor the interpreter's lock.
        faulthandler.dump_traceback_later(request["seconds"] + 1, exit=True)
        answer = _answer(request["template"], request["variables"])
        faulthandler.cancel_dump_traceback_later()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _utf8(stream: Any) -> IO[str]:
    stream.reconfigure(encoding="utf-8", newline="\n")
    made: IO[str] = stream
    return made


def _answer(template: str, variables: Mapping[str, Any]) -> dict[str, str]:
    from jinja2 import TemplateError, TemplateSyntaxError
    from jinja2.exceptions import SecurityError

    try:
        return {"text": render(template, variables)}
    except SecurityError as error:
        return {"error": "broken", "what": f"the chat template reaches for what it may not: {error}"}
    except TemplateSyntaxError as error:
        return {"error": "broken", "what": f"the chat template is broken at line {error.lineno}: {error.message}"}
    except TemplateError as error:
        return {"error": "refused", "what": f"the chat template refuses these messages: {error}"}
    except (MemoryError, RecursionError, OverflowError) as error:
        return {"error": "broken", "what": f"the chat template asks for too much: {error or type(error).__name__}"}
    except Exception as error:
        what = f"the chat template fails on these messages: {type(error).__name__}: {error}"
        return {"error": "refused", "what": what}


def render(template: str, variables: Mapping[str, Any]) -> str:
    """Renders as transformers does (`chat_template_utils`): its trimming and helpers, `tools` and `documents` null."""
    given = {"tools": None, "documents": None, **variables}
    if isinstance(messages := given.get("messages"), list):
        given["messages"] = [_with_reasoning(message) for message in messages]
    rendered: str = _compiled(template).render(given)
    return rendered


_REASONING = ("reasoning_content", "thinking", "reasoning")


def _with_reasoning(message: Any) -> Any:
    """A message with its reasoning under every name that templates read."""
    if not isinstance(message, Mapping):
        return message
    said = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    return message if said is None else {"thinking": said, **message, "reasoning_content": said}


@lru_cache(maxsize=4)
def _compiled(template: str) -> Any:
    """Compiling takes longer than rendering, and every turn of a conversation renders the same template."""
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}` marks the assistant's words for training; here they are only words."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    class TemplateNamespace(Namespace):
        """jinja2's own takes any attribute name; one with underscores is a way out of the sandbox."""

        def __init__(*args: Any, **attributes: Any) -> None:
            for name in (attributes := dict(*args[1:], **attributes)):
                _refuse_private(name)
            Namespace.__init__(args[0], attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_private(name)
            super().__setitem__(name, value)

    class TemplateDict:
        """`dict`, of which a template may have two things."""

        def __call__(self, *args: Any, **items: Any) -> dict[Any, Any]:
            return dict(*args, **items)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    def _refuse_private(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"the namespace attribute {name!r}")

    def strftime_now(form: str) -> str:
        from datetime import datetime

        return datetime.now().strftime(form)

    def raise_exception(message: str) -> str:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
               sort_keys: bool = False) -> str:  # fmt: skip
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["namespace"] = TemplateNamespace
    environment.globals["dict"] = TemplateDict()
    environment.globals["strftime_now"] = strftime_now
    return environment.from_string(template)
