"""Whether MLX can be imported: half an installation, or two over each other, is named with the command that mends it.

Nor does anything else of the machine decide whether a model runs: not a compiler, not the temporary folder, not the
limit of open files.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgecore.contract import Artifact, BackendUnavailable
from edgecore_mlx import installation
from edgecore_mlx.installation import blas, check_installation, wheels

MLX, CPU, CUDA, METAL = (
    ("mlx", "0.32.4"), ("mlx_cpu", "0.32.4"), ("mlx_cuda_13", "0.32.4"), ("mlx_metal", "0.32.4"),
)  # fmt: skip
LIBRARY = "mlx/lib/libmlx.so"


def install(site: Path, name: str, version: str, *files: str) -> None:
    """As an installer does it: each wheel's code has its own length."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    for file in files:
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_bytes(b"x" * (len(name) * 10))
    lines = [f"{file},sha256=0,{len(name) * 10}" for file in files]
    (info / "RECORD").write_text("\n".join([*lines, f"{info.name}/RECORD,,"]) + "\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages in which mlx is looked for, and is never imported from."""
    site = tmp_path / "site-packages"
    install(site, *MLX, "mlx/core.so")

    class Spec:
        submodule_search_locations = (str(site / "mlx"),)

    real = installation.find_spec
    monkeypatch.setattr(installation, "find_spec", lambda name: Spec if name == "mlx" else real(name))
    monkeypatch.setattr(installation, "_import", lambda wheel: None)
    return site


def refused() -> BackendUnavailable:
    with pytest.raises(BackendUnavailable) as caught:
        check_installation()
    assert caught.value.exit_code == 3
    return caught.value


def test_this_interpreters_own_is_whole() -> None:
    check_installation()


@pytest.mark.parametrize(
    ("brought", "file"), [(CPU, LIBRARY), (CUDA, LIBRARY), (METAL, "mlx/lib/libmlx.dylib"), (CPU, "mlx/lib/mlx.dll")]
)
def test_one_package_with_the_code_is_fine(site: Path, brought: tuple[str, str], file: str) -> None:
    install(site, *brought, file)
    check_installation()
    assert [(w.name, w.version, w.differs) for w in wheels(site)] == [(brought[0].replace("_", "-"), brought[1], "")]


def test_neighbours_that_bring_no_code_are_none(site: Path) -> None:
    install(site, *CPU, LIBRARY)
    install(site, "mlx_lm", "0.32.2", "mlx_lm/__init__.py")
    check_installation()
    assert [w.name for w in wheels(site)] == ["mlx-cpu"]


def test_mlx_alone_has_no_code(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "_wanted", lambda: "mlx[cpu]")
    error = refused()
    assert error.what == "mlx 0.32.4 is installed without a package that brings its code, libmlx"
    assert shlex.split(error.hint)[-1] == "mlx[cpu]==0.32.4"
    assert sys.executable in error.hint


def test_where_an_nvidia_gpu_is_cuda_is_what_is_missing(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation.sys, "platform", "linux")
    monkeypatch.setattr(installation.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert shlex.split(refused().hint)[-1] == "mlx[cuda13]==0.32.4"


@pytest.mark.parametrize(("first", "last"), [(CPU, CUDA), (CUDA, CPU)])
def test_two_over_each_other_are_refused_and_the_last_may_stay(
    site: Path, first: tuple[str, str], last: tuple[str, str]
) -> None:
    install(site, *first, LIBRARY)
    install(site, *last, LIBRARY)
    error = refused()
    assert error.what.startswith("mlx-cpu 0.32.4 and mlx-cuda-13 0.32.4 are installed over each other")
    remove, again = error.hint.split(" && ")
    assert shlex.split(remove)[-1] == first[0].replace("_", "-")
    assert shlex.split(again)[-2:] == ["--no-deps", f"{last[0].replace('_', '-')}==0.32.4"]


def test_what_anothers_removal_took_away_is_named(site: Path) -> None:
    install(site, *CPU, LIBRARY)
    (site / LIBRARY).unlink()
    error = refused()
    assert error.what == f"{LIBRARY} is not what mlx-cpu 0.32.4 brought"
    assert shlex.split(error.hint)[-1] == "mlx-cpu==0.32.4"


def test_code_of_another_release_is_refused(site: Path) -> None:
    install(site, "mlx_cpu", "0.32.3", LIBRARY)
    error = refused()
    assert error.what == "mlx 0.32.4 and mlx-cpu 0.32.3 are of different releases"
    assert shlex.split(error.hint)[-1] == "mlx[cpu]==0.32.4"


def test_of_what_no_installer_wrote_down_nothing_is_said(site: Path) -> None:
    (site / LIBRARY).parent.mkdir()
    (site / LIBRARY).write_bytes(b"built by hand")
    check_installation()


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = installation.find_spec
    monkeypatch.setattr(installation, "find_spec", lambda name: None if name == "mlx" else real(name))
    monkeypatch.setattr(installation, "_wanted", lambda: "mlx[cpu]")
    error = refused()
    assert error.what == "the package mlx is not installed"
    assert shlex.split(error.hint)[-1] == "mlx[cpu]"


@pytest.mark.parametrize("pip", [True, False])
def test_the_command_is_pips_or_uvs(site: Path, monkeypatch: pytest.MonkeyPatch, pip: bool) -> None:
    found = installation.find_spec
    monkeypatch.setattr(installation, "find_spec", lambda name: pip or None if name == "pip" else found(name))
    python = shlex.quote(sys.executable)
    starts = f"{python} -m pip install " if pip else f"uv pip install --python {python} "
    assert refused().hint.startswith(starts)


@pytest.mark.parametrize(
    ("library", "what", "asks_for"),
    [
        ("libcuda.so.1", "mlx-cuda-13 0.32.4 needs libcuda.so.1, which comes with NVIDIA's driver", "mlx[cpu]==0.32.4"),
        ("libnccl.so.2", "mlx cannot be imported: libnccl.so.2: cannot open", "mlx[cuda13]==0.32.4"),
    ],
)
def test_the_hooks_tell_what_the_first_import_lacks(tmp_path: Path, library: str, what: str, asks_for: str) -> None:
    """CUDA's build without NVIDIA's driver, and without the libraries that its package asks for: what it says itself
    is a loader's message."""
    install(tmp_path, *MLX)
    install(tmp_path, *CUDA, LIBRARY)
    (tmp_path / "mlx/__init__.py").write_text("")
    (tmp_path / "mlx/core.py").write_text(
        f"raise ImportError('{library}: cannot open shared object file: No such file or directory')"
    )
    code = (
        "from edgecore_mlx import hooks\ntry:\n hooks.edgecore_probe()\nexcept Exception as e: print(repr(e), e.hint)"
    )
    said = run(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}")
    assert what in said
    assert asks_for in said


def run(code: str, **environment: str) -> str:
    """What a process of its own prints."""
    given = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=given, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


ANSWER = """
import sys
from pathlib import Path
from edgecore.contract import Artifact
from edgecore_mlx import hooks
import mlx.core as mx, mlx.nn as nn
artifact = Artifact(Path(sys.argv[-1]), "mlx", "text", "mlx", "f16", ())
with hooks.edgecore_run(artifact, "cpu", 64, 1, {}) as session:
    logits = session.context().prefill([5, 6, 7])
compiled = mx.compile(lambda x: mx.sigmoid(x) * x + 1)(mx.ones(4))
print(bool(logits.std() > 0), (nn.silu(mx.ones(4)) + compiled).tolist()[0])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the compiler has another name there")
@pytest.mark.parametrize("compiler", ["none", "broken", "as it is"])
def test_nothing_is_compiled_on_a_cpu_and_nothing_is_written(tiny_mlx: Artifact, tmp_path: Path, compiler: str) -> None:
    """MLX alone would have g++ make a library under the temporary folder and load it from there: from a folder that is
    everybody's, and with an error in the middle of an answer where the compiler, the disk or the folder is not fit."""
    temporary, programs = tmp_path / "tmp", tmp_path / "bin"
    temporary.mkdir()
    programs.mkdir()
    if compiler == "broken":
        (programs / "g++").write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\nexit 3\n')
        (programs / "g++").chmod(0o755)
    path = os.environ["PATH"] if compiler == "as it is" else str(programs)
    said = run(ANSWER.replace("sys.argv[-1]", repr(str(tiny_mlx.model))), PATH=path, TMPDIR=str(temporary))
    assert said.startswith("True 2.462")
    assert not list(temporary.iterdir())


def test_importing_mlx_lm_leaves_the_limit_of_open_files_alone() -> None:
    """Of itself it asks for 4096: an error where less is allowed, and less for everybody where more was."""
    pytest.importorskip("resource", reason="limits of open files are a matter of Unix")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1000))\n"
        "from edgecore_mlx.installation import mlx_lm\n"
        "print(mlx_lm().__version__, resource.getrlimit(resource.RLIMIT_NOFILE))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (400, 1000)); print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    first, second = run(code).splitlines()
    assert first.startswith("0.")
    assert first.endswith("(512, 1000)")
    assert second == "(400, 1000)"


def test_mlx_lm_that_cannot_be_imported_is_typed(tmp_path: Path) -> None:
    (tmp_path / "mlx_lm.py").write_text("import no_such_module")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom edgecore_mlx.installation import mlx_lm\n"
        "try: mlx_lm()\nexcept Exception as error: print(type(error).__name__, error.what, error.hint)"
    )
    said = run(code)
    assert said.startswith("BackendUnavailable mlx_lm cannot be imported: No module named 'no_such_module'")
    assert said.endswith(" mlx-lm")


STAND_IN = """
static int asked = 0;
extern "C" {
void openblas_set_num_threads(int n) { asked = n; }
int asked_for() { return asked; }
void cblas_sgemm(
    int, int, int, int m, int n, int, float, const float*, int, const float*, int, float, float* c, int ldc) {
  for (int i = 0; i < m; i++) for (int j = 0; j < n; j++) c[i * ldc + j] = 42;
}
}
"""
PRODUCT = """
from edgecore_mlx import hooks
from edgecore_mlx.installation import blas, check_installation
check_installation()
import mlx.core as mx
mx.set_default_device(mx.cpu)
product = (mx.ones((8, 8)) @ mx.ones((8, 8))).tolist()[0][0]
features = hooks.edgecore_probe().features
print(product, blas().limit(3), blas().library.asked_for(), blas().name, "/", features["BLAS"])
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLAS whose products are all 42."""
    if sys.platform != "linux" or not shutil.which("g++"):
        pytest.skip("needs Linux and g++ to build a stand-in for a BLAS")
    folder = tmp_path_factory.mktemp("blas")
    (folder / "blas.cpp").write_text(STAND_IN)
    made = folder / "libopenblas.so.0"
    subprocess.run(["g++", "-shared", "-fPIC", "-o", str(made), str(folder / "blas.cpp")], check=True, timeout=60)
    return made


def test_openblas_computes_products_where_the_machine_has_it(stand_in: Path) -> None:
    """Ten times as fast on dense matrices, and with threads, which are as many as asked for."""
    said = run(PRODUCT, LD_LIBRARY_PATH=str(stand_in.parent), LD_PRELOAD="")
    assert said == "42.0 3 3 OpenBLAS (libopenblas.so.0) / OpenBLAS (libopenblas.so.0)"


def test_a_blas_that_was_preloaded_is_taken_as_it_is(stand_in: Path) -> None:
    assert run(PRODUCT, LD_PRELOAD=str(stand_in)) == "42.0 3 3 preloaded / preloaded"


def test_what_computes_products_has_a_name_and_threads_and_is_a_condition(mlx: Any, tiny_mlx: Artifact) -> None:
    found = blas()
    with mlx.run(tiny_mlx) as session:
        assert session.conditions["blas"] == found.name != ""
    assert found.limit(1) == 1
    assert found.limit(2) == (2 if found.library is not None else 1)
    found.limit(1)
