"""The plugin under test, as checks reach for it: always through workers, always with a deadline, artifacts made once.

A check that needs an artifact gets it from `artifact`, which converts and quantizes as a user's command would, without
the core's own verdict: judging is the suite's business.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from edgecore.contract.artifacts import Artifact, Made
from edgecore.contract.errors import EdgecoreError, UnsupportedPrecision, WorkerCrashed
from edgecore.contract.hookspecs import ConvertLimits, Probe, ProbedDevice
from edgecore.contract.options import Value, resolve
from edgecore.contract.precisions import Precision
from edgecore.contract.progress import Progress, no_progress
from edgecore.contract.sessions import TensorSession, TextSession
from edgecore.registry import Entry
from edgecore.workers import Backend, connect
from edgecore_conformance.known import Known

CALIBRATION = 2500
"""Characters of the calibration text at level quick: one of the chunks of 512 tokens that quantizers measure."""


class Bench:
    """One run's device half. Closing it ends the worker; what it made stays under `work` until the run is over."""

    def __init__(self, entry: Entry, known: Known, work: Path) -> None:
        self.entry, self.known, self.work = entry, known, work
        self.manifest = known.manifest
        """As far as it is about the device of the run."""
        self.stage = ""
        """What a row was doing when it ended: `convert`, `quantize`, `open`, `run`."""
        self._until = time.monotonic() + 3600
        self._backend: Backend | None = None
        self._artifacts: dict[tuple[str, str, str], Artifact] = {}
        self.made: dict[tuple[str, str], Artifact] = {}
        """What checks made in another way than `artifact` does, and share."""

    @property
    def device(self) -> str:
        return self.known.device

    def begin(self, seconds: float) -> None:
        """A row begins: its deadline runs."""
        self._until = time.monotonic() + seconds
        self.stage = "run"

    @property
    def left(self) -> float:
        """Seconds until the row's deadline, at least one: what calls of the backend are given."""
        return max(1.0, self._until - time.monotonic())

    def backend(self) -> Backend:
        """The worker that rows share. One that died is replaced."""
        if self._backend is None:
            self._backend = connect(self.entry)
        return self._backend

    def forget(self) -> None:
        """End the shared worker; the next row gets a new one."""
        if self._backend is not None:
            with suppress(EdgecoreError):
                self._backend.close()
            self._backend = None

    close = forget

    @contextmanager
    def fresh(self, **how: object) -> Iterator[Backend]:
        """A worker of this row's own (`connect`'s arguments)."""
        with connect(self.entry, **how) as backend:  # type: ignore[arg-type]
            yield backend

    @cached_property
    def probed(self) -> Probe | EdgecoreError:
        """What probe answers or raises, asked once a run, in a worker of its own: what the header says of the device,
        rows are held to."""
        try:
            with self.fresh() as backend:
                return backend.probe(deadline=60.0)
        except EdgecoreError as error:
            return error

    @property
    def found(self) -> ProbedDevice | None:
        """The device of this run as probe has it; None where probe raises, or does not name it."""
        devices = () if isinstance(self.probed, EdgecoreError) else self.probed.devices
        return next((d for d in devices if d.name == self.device), None)

    @property
    def missing(self) -> bool:
        """Whether probe says that the device of this run is not here. Only then is a row `unavailable` because a call
        raised `DeviceUnavailable`: else any check could be dodged by raising it."""
        return self.found is not None and self.found.available is False

    def folder(self, purpose: str) -> Path:
        """A new empty folder."""
        for number in range(10_000):
            made = self.work / f"{purpose}-{number}"
            with suppress(FileExistsError):
                made.mkdir(parents=True)
                return made
        raise AssertionError("ten thousand folders of one purpose")

    def precision(self, name: str) -> Precision:
        """As the manifest declares it. Raises `UnsupportedPrecision`."""
        for precision in self.manifest.precisions:
            if precision.name == name:
                return precision
        raise UnsupportedPrecision(f"{name!r}", supported=", ".join(p.name for p in self.manifest.precisions))

    def finest(self, format: str = "") -> Precision:
        """What convert makes with the most bits, at most 16 where there is such: the artifact that most checks run. Of
        those claimed in a format, where one is named."""
        made = [p for p in self.manifest.precisions_of("text") if p.by != "quantize"]
        made = [p for p in made if format in ("", *self.manifest.formats_of("text", p.name))] or made
        halves = [p for p in made if p.bits == 16]
        return next((p for p in halves if p.recommended), (halves or sorted(made, key=lambda p: -p.bits))[0])

    @cached_property
    def fixed_shapes(self) -> bool:
        """Whether the device takes no tensor model with an open dimension, and says so (`UnsupportedModel`): then those
        of the checks are converted with fixed shapes. Tried once a run; a CPU takes what the model leaves open."""
        from edgecore_conformance import tensor_models

        return self.device != "cpu" and tensor_models.refuses_open_shapes(self)

    def options(self, verb: str, task: str = "text") -> dict[str, Value]:
        """The declared defaults of a task."""
        return resolve(self.manifest.options_of(verb), {}, verb, self.entry.name, task)

    def format_for(self, precision: str, task: str = "text") -> str:
        """What convert is asked for, as the core asks: the first format that claims the precision on this device. Where
        nothing is claimed, the first that is declared."""
        claimed = self.manifest.formats_of(task, precision) or self.manifest.formats_of(task)
        return claimed[0] if claimed else next(f.name for f in self.manifest.formats if f.task == task)

    def limits(self, task: str = "text", source: Path | None = None) -> ConvertLimits:
        """What conversions are asked for: language models for an emulated device hold few tokens, tensor models have
        fixed shapes where the device takes no others."""
        if task == "text":
            return ConvertLimits(max_context=self.known.max_context)
        from edgecore_conformance import tensor_models

        return ConvertLimits(shapes=tensor_models.fixed(source) if source and self.fixed_shapes else {})

    def artifact(
        self, fixture: str, precision: str = "", format: str = "", *, on_progress: Progress = no_progress
    ) -> Artifact:
        """The fixture in a precision, by default the finest, and in a format, by default the core's choice for it; made
        once a run."""
        wanted = self.precision(precision) if precision else self.finest(format)
        key = (fixture, wanted.name, format or self.format_for(wanted.name))
        if key not in self._artifacts:
            self._artifacts[key] = self._made(fixture, wanted, key[2], on_progress)
        return self._artifacts[key]

    def _made(self, fixture: str, precision: Precision, format: str, progress: Progress) -> Artifact:
        if precision.by == "quantize":
            base = self.artifact(fixture, format=format, on_progress=progress)
            self.stage = "quantize"
            out = self.folder(f"{fixture}-{precision.name}")
            made = self.backend().quantize(
                artifact=base,
                out=out,
                precision=precision.name,
                calibration=self.calibration() if self.calibrates(precision) else None,
                options=self.options("quantize"),
                deadline=self.left,
                on_progress=progress,
            )
            self.stage = "run"
            return self.sealed(out, made, precision.name, fixture, format=base.format)
        self.stage = "convert"
        out = self.folder(f"{fixture}-{precision.name}")
        made = self.backend().convert(
            source=self.known.fixture(fixture),
            out=out,
            format=format,
            precision=precision.name,
            options=self.options("convert"),
            limits=self.limits(),
            deadline=self.left,
            on_progress=progress,
        )
        self.stage = "run"
        return self.sealed(out, made, precision.name, fixture, format=format)

    def calibrates(self, precision: Precision) -> bool:
        """Whether calibration data are given: always where required, at level full also where they are optional."""
        return precision.calibration == "required" or (
            precision.calibration == "optional" and self.known.level == "full"
        )

    def calibration(self) -> Path:
        """Text that no check scores; its beginning alone at level quick, because every quantizer reads it anew."""
        from edgecore_conformance import fixtures

        whole = fixtures.calibration_text()
        if self.known.level == "full":
            return whole
        part = self.work / "calibration.txt"
        if not part.is_file():
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(whole.read_text(encoding="utf-8")[:CALIBRATION], encoding="utf-8")
        return part

    def sealed(
        self, out: Path, made: Made, precision: str, fixture: str = "", task: str = "text", format: str = ""
    ) -> Artifact:
        """What a call wrote, as an artifact with sizes and digests; in the format that the core asks for, where none is
        named."""
        files = tuple(
            replace(f, size=(out / f.path).stat().st_size, sha256=sha256_of(out / f.path)) for f in made.files
        )
        family, context = "", 0
        if task == "text" and fixture:
            from edgecore.checkpoint import open_checkpoint

            with open_checkpoint(self.known.fixture(fixture)) as model:
                family = model.decoder.family
            context = self.known.context(fixture)
        return Artifact(
            path=out, backend=self.entry.name, task=task, format=format or self.format_for(precision, task),
            precision=precision, files=files, id=f"conformance-{out.name}", family=family, context_length=context,
            weights=made.weights, requires=made.requires, notes=made.notes,
        )  # fmt: skip

    @contextmanager
    def session(
        self,
        artifact: Artifact,
        *,
        backend: Backend | None = None,
        context_length: int | None = None,
        threads: int | None = None,
        options: Mapping[str, Value] | None = None,
    ) -> Iterator[TextSession | TensorSession]:
        """An open session on the device of this run."""
        self.stage = "open"
        opened = (backend or self.backend()).open(
            artifact,
            device=self.device,
            context_length=context_length,
            threads=threads,
            options={**self.options("run", artifact.task), **(options or {})},
            deadline=self.left,
        )
        self.stage = "run"
        try:
            yield opened
        finally:
            with suppress(WorkerCrashed):
                opened.close()

    @contextmanager
    def text_session(
        self, fixture: str, precision: str = "", context_length: int | None = None, threads: int | None = None
    ) -> Iterator[TextSession]:
        """A session on a text fixture."""
        artifact = self.artifact(fixture, precision)
        with self.session(artifact, context_length=context_length, threads=threads) as opened:
            assert isinstance(opened, TextSession)
            yield opened

    def clean(self) -> None:
        """Remove everything that was made."""
        shutil.rmtree(self.work, ignore_errors=True)


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
