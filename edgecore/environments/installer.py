"""uv where it is present, venv and pip elsewhere; both with the package index that the user configured for pip or
uv."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from edgecore.contract.errors import BackendUnavailable

SHOWN_LINES = 12


class Installer:
    """Fills one environment."""

    def __init__(self, folder: Path, on_line: Callable[[str], None]) -> None:
        self.folder = folder
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self._on_line = on_line
        self._uv = _find_uv()

    def create(self) -> None:
        """An empty environment of the caller's Python version."""
        if self._uv:
            self._run([self._uv, "venv", "--allow-existing", "--python", sys.executable, str(self.folder)])
        else:
            self._run([sys.executable, "-I", "-m", "venv", str(self.folder)])

    def install(self, requirements: Sequence[str], *, dependencies: bool = True) -> None:
        """Requirements as on a command line; `-e PATH` for an editable one. Raises `BackendUnavailable`."""
        words = [word for r in requirements for word in (["-e", r[3:]] if r.startswith("-e ") else [r])]
        if not dependencies:
            words.append("--no-deps")
        if self._uv:
            flags, variables = _index_for_uv()
            self._run(
                [self._uv, "pip", "install", "--no-sources", *flags, "--python", str(self.python), *words], variables
            )
        else:
            self._run([str(self.python), "-I", "-m", "pip", "install", "--no-input", *words])

    def site(self) -> tuple[str, ...]:
        """Folders of packages."""
        code = "import json, sysconfig as s; print(json.dumps([s.get_path('purelib'), s.get_path('platlib')]))"
        answer = subprocess.run([str(self.python), "-I", "-c", code], capture_output=True, text=True, check=True)
        return tuple(dict.fromkeys(json.loads(answer.stdout)))

    def packages(self) -> tuple[str, ...]:
        """What is installed, as requirements that would install the same again."""
        from importlib.metadata import distributions

        pins = []
        for found in distributions(path=list(self.site())):
            url = json.loads(found.read_text("direct_url.json") or "{}").get("url", "")
            pins.append(f"{found.name} @ {url}" if url else f"{found.name}=={found.version}")
        return tuple(sorted(pins, key=str.lower))

    def _run(self, command: Sequence[str], environ: dict[str, str] | None = None) -> None:
        """Run with its lines passed on. However this is left, the installer does not outlive it."""
        variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        last: deque[str] = deque(maxlen=SHOWN_LINES)
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**variables, **(environ or {})},
            text=True,
            errors="replace",
        ) as process:
            try:
                assert process.stdout
                for line in process.stdout:
                    last.append(line.rstrip())
                    self._on_line(line.rstrip())
                status = process.wait()
            except BaseException:
                process.kill()
                raise
        if status != 0:
            shown = "".join(f"\n    {line}" for line in last if line.strip())
            raise BackendUnavailable(f"`{' '.join(command)}` failed:{shown}")


def _find_uv() -> str | None:
    beside = Path(sys.executable).with_name("uv.exe" if os.name == "nt" else "uv")
    return shutil.which("uv") or (str(beside) if beside.is_file() else None)


def _index_for_uv() -> tuple[list[str], dict[str, str]]:
    """Flags and variables: uv does not read pip's configuration, and its users expect one. In variables, because URLs
    may carry passwords."""
    from edgecore.sources.package_index import read_configuration

    found = read_configuration()
    variables = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # As pip: the best version of all indexes.
    if found.index_urls:
        variables["UV_DEFAULT_INDEX"], *extra = found.index_urls
        variables["UV_INDEX"] = " ".join(extra)
    if found.find_links:
        variables["UV_FIND_LINKS"] = ",".join(found.find_links)
    if found.trusted_hosts:
        variables["UV_INSECURE_HOST"] = " ".join(found.trusted_hosts)
    if found.certificates:
        variables["SSL_CERT_FILE"] = found.certificates
    if os.environ.get("PIP_CONSTRAINT"):
        variables["UV_CONSTRAINT"] = os.environ["PIP_CONSTRAINT"]
    return [] if found.index_urls else ["--no-index"], variables
