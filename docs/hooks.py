"""The site publishes the JSON schema of conformance reports from where the suite has it, so that there is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

SCHEMA = "conformance/edgecore_conformance/evidence/report.schema.json"


def on_files(files: Files, config: Any) -> Files:
    """Under a name with its version: a later version stands beside it."""
    text = (Path(config["config_file_path"]).parent / SCHEMA).read_text(encoding="utf-8")
    version = json.loads(text)["properties"]["schema_version"]["const"]
    files.append(File.generated(config, f"schemas/conformance-report-{version}.json", content=text))
    return files
