"""Faults of the light half, and of isolation: the manifest says one thing and the hooks do another."""

from __future__ import annotations

from mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        "runtime_imported_at_import",
        "importing the package loads the runtime",
        ("manifest.imports",),
        package="import numpy\n",
    ),
    Mutant(
        "hooks_imported_at_import",
        "importing the package imports the hooks, and all that they import",
        ("manifest.imports",),
        package="from edgecore_mutant import hooks\n",
    ),
    Mutant(
        "writes_at_import",
        "importing the package writes a file into the user's home",
        ("manifest.imports",),
        package="""
            from pathlib import Path

            (Path.home() / ".edgecore-mutant").write_text("imported")
            """,
    ),
    Mutant(
        "probe_slow",
        "the probe takes a second and a half",
        ("manifest.probe",),
        """
import time

@hookimpl
def edgecore_probe():
    time.sleep(1.5)
    return truthful.edgecore_probe()
""",
    ),
    Mutant(
        "probe_writes_a_file",
        "the probe leaves a file in the home of edgecore or of the user",
        ("manifest.probe_effects",),
        """
import os

@hookimpl
def edgecore_probe():
    home = Path(os.environ.get("HOME") or Path.home())
    home.mkdir(parents=True, exist_ok=True)
    (home / ".edgecore-mutant-probe").write_text("probed")
    return truthful.edgecore_probe()
""",
    ),
    Mutant(
        "probe_writes_into_its_package",
        "the probe writes what it found beside the plugin's own code",
        ("manifest.probe_effects",),
        """
@hookimpl
def edgecore_probe():
    Path(__file__).with_name("probed.json").write_text("{}")
    return truthful.edgecore_probe()
""",
    ),
    Mutant(
        "probe_leaves_a_thread_of_another_process",
        "the probe starts a process, and leaves it running",
        ("manifest.probe_effects",),
        """
import subprocess, sys

@hookimpl
def edgecore_probe():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    return truthful.edgecore_probe()
""",
    ),
    Mutant(
        "probe_knows_no_device_of_the_manifest",
        "devices are called one thing in the manifest and another in the probe",
        ("manifest.probe",),
        """
@hookimpl
def edgecore_probe():
    return replace(truthful.edgecore_probe(), devices=(ProbedDevice("host", True, "numpy"),))
""",
    ),
    Mutant(
        "probe_raises_for_a_missing_device",
        "a device that is not here is an exception of the probe",
        ("manifest.probe",),
        """
@hookimpl
def edgecore_probe():
    raise DeviceUnavailable("there is no gpu")
""",
        (('help = "numpy, through the BLAS that it was built with"', '[[devices]]\nname = "gpu"'),),
    ),
    Mutant(
        "device_denied_where_it_is_there",
        "what it cannot run it blames on a missing device, which its probe calls available",
        ("text.logits",),
        """
@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    if artifact.family == "gemma3":
        raise DeviceUnavailable("the device does not answer")
    return truthful.edgecore_run(artifact, device, context_length, threads, options)
""",
        cells={"family": "gemma3"},
    ),
    Mutant(
        "probe_without_versions",
        "the probe does not say which runtime it found",
        ("manifest.probe",),
        """
@hookimpl
def edgecore_probe():
    return replace(truthful.edgecore_probe(), versions={})
""",
    ),
    Mutant(
        "logits_declared_absent",
        "logits are declared absent, and given",
        ("manifest.absent",),
        manifest=(("logits = true", "logits = false"),),
    ),
    Mutant(
        "logits_declared_and_absent",
        "logits are declared, and refused",
        ("text.logits", "text.score"),
        """
from edgecore_reference.text import OracleSession

@instead(OracleSession, "score")
def score(was, self, tokens):
    raise CannotDo("no logits")
""",
    ),
    Mutant(
        "benchmark_declared_and_absent",
        "a native benchmark is declared, and there is no such hook",
        ("manifest.hooks",),
        manifest=(("native_benchmark = false", "native_benchmark = true"),),
    ),
    Mutant(
        "benchmark_undeclared",
        "a native benchmark is declared absent, and there is one",
        ("manifest.hooks",),
        base="timer",
        manifest=(("native_benchmark = true", "native_benchmark = false"),),
    ),
    Mutant(
        "quantize_declared_and_absent",
        "a precision is made by quantize, and there is no such hook",
        ("manifest.hooks",),
        manifest=(('name = "bf16"\nbits = 16\nby = "convert"', 'name = "bf16"\nbits = 16\nby = "quantize"'),),
    ),
    Mutant(
        "quantize_undeclared",
        "a hook quantizes, and no precision is made by it",
        ("manifest.hooks",),
        """
@hookimpl
def edgecore_quantize(artifact, out, precision, calibration, options, progress):
    raise UnsupportedPrecision("none", supported="none")
""",
    ),
    Mutant(
        "source_declared_and_refused",
        "GGUF files are declared as sources, and refused",
        ("convert.opens",),
        """
@hookimpl
def edgecore_convert(source, out, format, precision, options, limits, progress):
    if source.suffix == ".gguf":
        raise UnsupportedModel("a GGUF file", supported="a Hugging Face folder")
    return truthful.edgecore_convert(source, out, format, precision, options, limits, progress)
""",
        makes=True,
    ),
    Mutant(
        "precision_declared_and_refused",
        "bf16 is declared, and refused",
        ("convert.opens",),
        """
@hookimpl
def edgecore_convert(source, out, format, precision, options, limits, progress):
    if precision == "bf16":
        raise UnsupportedPrecision("bf16", supported="f32, f16")
    return truthful.edgecore_convert(source, out, format, precision, options, limits, progress)
""",
        makes=True,
    ),
    Mutant(
        "family_claimed_and_refused",
        "gemma3 is claimed, and refused",
        ("text.logits",),
        """
@hookimpl
def edgecore_convert(source, out, format, precision, options, limits, progress):
    if "gemma3" in (source / "config.json").read_text():
        raise UnsupportedModel("gemma3", supported="llama")
    return truthful.edgecore_convert(source, out, format, precision, options, limits, progress)
""",
        cells={"family": "gemma3"},
        makes=True,
    ),
    Mutant(
        "option_refused",
        "a value that the manifest declares is refused",
        ("manifest.options",),
        """
@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    if options["chunk"] > 1024:
        raise BadRequest("chunk", supported="up to 1024")
    return truthful.edgecore_run(artifact, device, context_length, threads, options)
""",
        cells={"option": "chunk"},
    ),
    Mutant(
        "native_file_refused",
        "files of a declared format are opened only where this plugin wrote them",
        ("manifest.formats",),
        """
@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    if artifact.native:
        raise UnsupportedModel("a file that this backend did not make", supported="its own artifacts")
    return truthful.edgecore_run(artifact, device, context_length, threads, options)
""",
    ),
    Mutant(
        "device_taken_for_another",
        "a device that nobody has is replaced by one that is there",
        ("manifest.absent",),
        """
@hookimpl
def edgecore_run(artifact, device, context_length, threads, options):
    return truthful.edgecore_run(artifact, "cpu", context_length, threads, options)
""",
    ),
)
