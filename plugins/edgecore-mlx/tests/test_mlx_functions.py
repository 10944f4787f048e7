"""Functions that MLX exported: right answers whatever the memory, an error that names the input for every wrong feed,
and no answer at all where MLX would compute from memory that was never set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest

from edgecore.contract import BadRequest, CannotDo, DoesNotFit, EdgecoreError, TensorSpec, UnsupportedModel
from edgecore_mlx import memory

from support.mlx_functions import WEIGHT, export, feeds, native, product, right, some


@pytest.fixture(scope="module")
def session(mlx: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with mlx.run(native(product(tmp_path_factory.mktemp("mlxfn") / "model.mlxfn", (2, 4, 200)))) as opened:
        yield opened


def test_a_function_runs_where_it_lies_with_its_keywords_as_names(session: Any) -> None:
    assert session.inputs == (
        TensorSpec("input_0", "float32", ("input_0_0", 3)),
        TensorSpec("z", "float32", ("input_0_0", 4)),
    )
    assert session.outputs == (TensorSpec("output_0", "float32", ("input_0_0", 4)),)
    for batch in (2, 4, 200):
        np.testing.assert_allclose(session(feeds(batch))["output_0"], right(feeds(batch)), rtol=1e-6, atol=1e-7)
    assert session.placement.share("cpu") == 1.0
    assert session.placement.source == "runtime-assignment"
    assert session.conditions == {"device": "cpu", "threads": "1"}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"input_0": np.ones((2, 3), np.float64)}, "'input_0' has type float64"),
        ({"input_0": np.ones((2, 5), np.float32)}, r"'input_0' has shape \[2, 5\]"),
        ({"input_0": np.ones(3, np.float32)}, r"'input_0' has shape \[3\]"),
        ({"z": np.ones((4, 4), np.float32)}, r"'z' has shape \[4, 4\]"),
        ({"surplus": np.ones(1, np.float32)}, "no input 'surplus'"),
        ({"input_0": [[1.0, 2.0, 3.0]]}, "'input_0' is no array: list"),
        ({"z": None}, "'z' is missing"),
        (feeds(3), r"'input_0' has shape \[3, 3\]\n  supported: \[2, 3\] or \[4, 3\] or \[200, 3\]"),
    ],
)
def test_a_wrong_feed_is_an_error_that_names_the_input_and_changes_nothing(
    session: Any, wrong: Any, named: str
) -> None:
    with pytest.raises(BadRequest, match=named):
        session(feeds(**wrong))
    np.testing.assert_allclose(session(feeds())["output_0"], right(feeds()), rtol=1e-6)


def read_only(array: Any) -> Any:
    made = array.copy()
    made.setflags(write=False)
    return made


def unaligned(array: Any) -> Any:
    made = np.frombuffer(bytearray(array.nbytes + 1), np.uint8)[1:].view(array.dtype).reshape(array.shape)
    made[:] = array
    return made


@pytest.mark.parametrize(
    "laid",
    [
        np.copy,
        read_only,
        unaligned,
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        lambda a: a[::-1].copy()[::-1],
        lambda a: a.astype(a.dtype.newbyteorder()),
    ],
    ids=["plain", "read-only", "unaligned", "fortran", "strided", "reversed", "other byte order"],
)
def test_how_a_feed_lies_in_memory_does_not_matter(session: Any, laid: Any) -> None:
    fed = {name: laid(array) for name, array in feeds(4).items()}
    answer = session(fed)["output_0"]
    np.testing.assert_allclose(answer, right(feeds(4)), rtol=1e-6)
    assert all(np.array_equal(fed[name], array) for name, array in feeds(4).items()), "feeds are not written to"


def test_answers_are_the_callers_to_keep_and_to_write_to(session: Any) -> None:
    first = session(feeds(4))["output_0"]
    kept = first.copy()
    session(feeds(4, z=np.full((4, 4), 9, np.float32)))
    assert np.array_equal(first, kept)
    assert first.flags.owndata
    assert first.flags.writeable
    assert first.flags.c_contiguous
    first[:] = 0
    np.testing.assert_allclose(session(feeds(4))["output_0"], kept)


def test_outputs_that_are_inputs_constants_or_each_other_share_no_memory(mlx: Any, tmp_path: Path) -> None:
    weight = mx.array(WEIGHT)
    path = export(tmp_path / "shared.mlxfn", lambda x: (x, weight, x, weight.T), mx.zeros((3,)))
    with mlx.run(native(path)) as session:
        fed = {"input_0": np.arange(3, dtype=np.float32)}
        answers = session(fed)
        for number, answer in enumerate(answers.values()):
            answer[:] = 7 + number
        assert fed["input_0"].tolist() == [0, 1, 2]
        again = session(fed)
    assert [answer.flat[0] for answer in answers.values()] == [7, 8, 9, 10]
    assert again["output_0"].tolist() == again["output_2"].tolist() == [0, 1, 2]
    assert np.array_equal(again["output_1"], WEIGHT)
    assert np.array_equal(again["output_3"], WEIGHT.T)
    assert again["output_3"].flags.c_contiguous


def test_a_feed_that_is_gone_after_the_call_is_not_read_by_the_next(session: Any) -> None:
    for _ in range(50):
        session(feeds(200))
    np.testing.assert_allclose(session(feeds(2))["output_0"], right(feeds(2)), rtol=1e-6)


def test_a_closed_session_says_so(mlx: Any, tmp_path: Path) -> None:
    opened = mlx.run(native(product(tmp_path / "model.mlxfn")))
    opened.close()
    opened.close()
    with pytest.raises(BadRequest, match="closed"):
        opened(feeds())


@pytest.mark.parametrize(
    "dtype",
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 bfloat16 complex64".split(),
)
def test_types_go_through_to_the_last_bit(mlx: Any, tmp_path: Path, dtype: str) -> None:
    fed = some(dtype)
    kind = getattr(mx, "bool_" if dtype == "bool" else dtype)
    zeros = mx.zeros((2, 3), kind, stream=mx.cpu)
    path = export(tmp_path / "same.mlxfn", lambda x: (x, mx.transpose(x), mx.concatenate([x, x])), zeros)
    with mlx.run(native(path)) as session:
        assert [spec.dtype for spec in (*session.inputs, *session.outputs)] == [dtype] * 4
        answers = session({"input_0": fed})
    assert {answer.dtype for answer in answers.values()} == {fed.dtype}
    assert answers["output_0"].tobytes() == fed.tobytes()
    assert answers["output_1"].tobytes() == fed.T.copy().tobytes()
    assert answers["output_2"].tobytes() == fed.tobytes() * 2


def test_numbers_of_float64_are_not_rounded(mlx: Any, tmp_path: Path) -> None:
    path = export(tmp_path / "wide.mlxfn", lambda x: x * x, mx.array([1.0], mx.float64))
    with mlx.run(native(path)) as session:
        assert session({"input_0": np.array([1 + 2**-40])})["output_0"][0] == (1 + 2**-40) ** 2


def test_scalars_and_arrays_of_nothing_go_in_and_out(mlx: Any, tmp_path: Path) -> None:
    given = (mx.array(1.0), mx.zeros((0, 3)), mx.zeros((), mx.bfloat16))
    path = export(tmp_path / "small.mlxfn", lambda s, e, b: (s + 1, e * s, e.sum(), b), *given)
    with mlx.run(native(path)) as session:
        assert [spec.shape for spec in session.inputs] == [(), (0, 3), ()]
        nothing, two = np.zeros((0, 3), np.float32), np.array(2, ml_dtypes.bfloat16)
        answers = session({"input_0": np.array(2, np.float32), "input_1": nothing, "input_2": two})
    assert [answer.shape for answer in answers.values()] == [(), (0, 3), (), ()]
    assert [answers[name].item() for name in ("output_0", "output_2", "output_3")] == [3, 0, 2]


def test_a_function_of_nothing_answers(mlx: Any, tmp_path: Path) -> None:
    with mlx.run(native(export(tmp_path / "none.mlxfn", lambda: mx.arange(3) + 1))) as session:
        assert session.inputs == ()
        assert session({})["output_0"].tolist() == [1, 2, 3]
        with pytest.raises(BadRequest, match="no input 'x'"):
            session({"x": np.ones(1)})


def test_a_keyword_may_be_called_as_a_positional_input_would(mlx: Any, tmp_path: Path) -> None:
    path = export(tmp_path / "odd.mlxfn", lambda x, input_0: x - input_0, mx.zeros(2), input_0=mx.zeros(2))
    with mlx.run(native(path)) as session:
        assert [spec.name for spec in session.inputs] == ["positional_input_0", "input_0"]
        fed = {"positional_input_0": np.full(2, 5, np.float32), "input_0": np.full(2, 3, np.float32)}
        assert session(fed)["output_0"].tolist() == [2, 2]


def several(path: Path) -> Path:
    def function(x: mx.array, y: mx.array | None = None) -> Any:
        return x * 2 if y is None else (x + y, x)

    with mx.exporter(str(path), function) as exporter:
        exporter(mx.zeros((2,)))
        exporter(mx.zeros((2,)), y=mx.zeros((2,)))
        exporter(mx.zeros((5,)))
        exporter(mx.zeros((2,), mx.int32))
    return path


def test_functions_of_several_signatures_are_chosen_by_number(mlx: Any, tmp_path: Path) -> None:
    artifact = native(several(tmp_path / "several.mlxfn"))
    with mlx.run(artifact) as first, mlx.run(artifact, signature=2) as second, mlx.run(artifact, signature=3) as third:
        assert first.inputs == (TensorSpec("input_0", "float32", ("input_0_0",)),)
        assert first({"input_0": np.ones(5, np.float32)})["output_0"].tolist() == [2] * 5
        assert [spec.name for spec in second.inputs] == ["input_0", "y"]
        assert len(second.outputs) == 2
        assert second(dict.fromkeys(("input_0", "y"), np.ones(2, np.float32)))["output_0"].tolist() == [2, 2]
        assert third({"input_0": np.ones(2, np.int32)})["output_0"].dtype == np.int32
    with pytest.raises(
        BadRequest, match=r"no signature 4\n  supported: 1: input_0: float32 .*; 3: input_0: int32 \[2\]"
    ):
        mlx.run(artifact, signature=4)


def test_a_combination_of_shapes_that_was_not_traced_is_refused(mlx: Any, tmp_path: Path) -> None:
    path = tmp_path / "pairs.mlxfn"
    with mx.exporter(str(path), lambda x, y: (x.sum(), y.sum())) as exporter:
        exporter(mx.zeros((2,)), mx.zeros((3,)))
        exporter(mx.zeros((4,)), mx.zeros((5,)))
    with mlx.run(native(path)) as session:
        assert session.inputs[1].shape == ("input_1_0",)
        with pytest.raises(
            BadRequest, match=r"shapes \[2\], \[5\] were never traced together\n.*\[2\], \[3\]; \[4\], \[5\]"
        ):
            session({"input_0": np.ones(2, np.float32), "input_1": np.ones(5, np.float32)})


THREADS = """
import sys
import os
import subprocess
import sys
from pathlib import Path
from threading import Thread
import numpy as np
from edgecore_mlx.functions import open_session
from support.mlx_functions import feeds, native, right

opened, done = [], []
def work(session):
    for batch in (2, 4, 200, 2) * 5:
        np.testing.assert_allclose(session(feeds(batch))["output_0"], right(feeds(batch)), rtol=1e-5, atol=1e-6)
    done.append(1)
def all_run(threads):
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
all_run([Thread(target=lambda: opened.append(open_session(native(Path(sys.argv[1])), "cpu", 1, {}))) for _ in range(2)])
all_run([Thread(target=work, args=(session,)) for session in opened * 3])
work(opened[0])
print(len(done))
"""


def test_any_thread_may_open_and_call_and_many_at_once(tmp_path: Path) -> None:
    path = product(tmp_path / "model.mlxfn", (2, 4, 200))
    told = subprocess.run(
        [sys.executable, "-c", THREADS, str(path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "tests")},
        capture_output=True,
        text=True,
    )
    assert told.stdout.strip() == "7", told.stderr


def test_where_mlx_was_in_use_before_other_threads_are_told_so(mlx: Any, tmp_path: Path) -> None:
    mx.eval(mx.zeros(2) + 1)
    said: list[Any] = []

    def work(session: Any) -> None:
        try:
            said.append(session(feeds()))
        except EdgecoreError as error:
            said.append(error)

    with mlx.run(native(product(tmp_path / "model.mlxfn"))) as session:
        thread = Thread(target=work, args=(session,))
        thread.start()
        thread.join()
        assert isinstance(said[0], CannotDo)
        assert "in use in this process before" in said[0].what
        np.testing.assert_allclose(session(feeds())["output_0"], right(feeds()), rtol=1e-6)


def test_more_weights_than_memory_are_refused_before_any_is_read(
    mlx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = product(tmp_path / "model.mlxfn")
    monkeypatch.setattr(memory, "usable_memory", lambda: (100, 40))
    with pytest.raises(DoesNotFit, match=r"model.mlxfn: "):
        mlx.run(native(path))


def test_what_mlx_cannot_compute_is_said_as_such(mlx: Any, tmp_path: Path) -> None:
    path = export(tmp_path / "chol.mlxfn", lambda x: mx.linalg.cholesky(x, stream=mx.cpu), mx.eye(2))
    with mlx.run(native(path)) as session:
        assert session({"input_0": np.eye(2, dtype=np.float32)})["output_0"].tolist() == [[1, 0], [0, 1]]
    path = export(tmp_path / "slice.mlxfn", lambda x: x[:2], mx.zeros((4,)), shapeless=True)
    with pytest.raises(UnsupportedModel, match=r"shapeless=True, and MLX cannot call it.*Slice.*\n.*a trace for each"):
        mlx.run(native(path))
