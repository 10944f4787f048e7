"""Faults of tensor sessions."""

from __future__ import annotations

from mutants.mutant import Mutant

HEAD = "from edgecore_reference import tensors\nfrom edgecore_reference.tensors import OnnxSession\n"


def _tensor(name: str, fault: str, checks: str, hooks: str) -> Mutant:
    return Mutant(name, fault, tuple(checks.split()), HEAD + hooks)


MUTANTS = (
    _tensor(
        "inputs_by_place",
        "feeds are taken in the order in which they come, whatever their names",
        "tensor.specs",
        """
@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    if len(feeds) != len(self.inputs):
        return was(self, feeds)
    return was(self, dict(zip((s.name for s in self.inputs), feeds.values())))
""",
    ),
    _tensor(
        "outputs_in_another_order",
        "outputs have each other's names",
        "tensor.values",
        """
@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    found = was(self, feeds)
    return dict(zip(found, reversed(found.values())))
""",
    ),
    _tensor(
        "missing_input_is_zero",
        "an input that is missing is taken for zeros",
        "tensor.wrong_feeds",
        """
@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    batch = next((len(f) for f in feeds.values()), 1)
    zeros = {
        s.name: np.zeros([n if isinstance(n, int) else batch for n in s.shape], s.dtype) for s in self.inputs
    }
    return was(self, {**zeros, **feeds})
""",
    ),
    _tensor(
        "surplus_input_ignored",
        "an input that the model does not have is ignored",
        "tensor.wrong_feeds",
        """
@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    known = {s.name for s in self.inputs}
    return was(self, {n: f for n, f in feeds.items() if n in known})
""",
    ),
    _tensor(
        "type_cast_in_silence",
        "an input of another type is cast",
        "tensor.wrong_feeds",
        """
@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    types = {s.name: s.dtype for s in self.inputs}
    return was(self, {n: f.astype(types[n]) if n in types else f for n, f in feeds.items()})
""",
    ),
    _tensor(
        "shape_made_to_fit",
        "an input of another shape is cut or filled until it fits",
        "tensor.wrong_feeds",
        """
@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    fitted = dict(feeds)
    for spec in self.inputs:
        if spec.name in feeds:
            feed = feeds[spec.name]
            shape = [
                n if isinstance(n, int) else (feed.shape[axis] if axis < feed.ndim else 1)
                for axis, n in enumerate(spec.shape)
            ]
            if list(feed.shape) != shape:
                fitted[spec.name] = np.resize(feed, shape).astype(feed.dtype)
    return was(self, fitted)
""",
    ),
    _tensor(
        "shape_is_a_fault",
        "an input of another shape raises whatever the runtime raises",
        "tensor.wrong_feeds",
        """
@instead(tensors, "check_feeds")
def check_feeds(was, inputs, feeds):
    try:
        was(inputs, feeds)
    except BadRequest as error:
        if "shape" in error.what:
            raise RuntimeError("incompatible shapes") from None
        raise
""",
    ),
    _tensor(
        "batch_fixed",
        "of a batch the first element alone is computed, and repeated",
        "tensor.dynamic_shapes",
        """
@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    found = was(self, feeds)
    dynamic = [s for s in self.inputs if s.shape and isinstance(s.shape[0], str)]
    size = next((feeds[s.name].shape[0] for s in dynamic if s.name in feeds and feeds[s.name].ndim), 0)
    return {
        n: np.repeat(o[:1], size, axis=0) if size > 1 and o.ndim and o.shape[0] == size else o
        for n, o in found.items()
    }
""",
    ),
    _tensor(
        "halves_in_silence",
        "float32 models are computed in float16",
        "tensor.values",
        """
@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    return {
        n: o.astype(np.float16).astype(o.dtype) if o.dtype == np.float32 else o for n, o in was(self, feeds).items()
    }
""",
    ),
    _tensor(
        "wider_outputs",
        "outputs are float64 where float32 is declared",
        "tensor.operators",
        """
@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    return {n: o.astype(np.float64) if o.dtype == np.float32 else o for n, o in was(self, feeds).items()}
""",
    ),
    _tensor(
        "one_call_late",
        "a call answers what the one before it asked, where shapes agree",
        "tensor.history",
        """
@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    found = was(self, feeds)
    before, self.before = getattr(self, "before", found), found
    fits = all(before[n].shape == o.shape for n, o in found.items())
    return before if fits else found
""",
    ),
    _tensor(
        "softmax_over_everything",
        "Softmax sums over the whole tensor, not over its axis",
        "tensor.operators",
        """
from onnx.reference.ops.op_softmax import Softmax

@instead(Softmax, "_run")
def run(was, self, X, axis=None):
    found = np.exp(X - X.max())
    return (found / found.sum(),)
""",
    ),
    _tensor(
        "division_rounds_down",
        "integer division rounds down instead of towards zero",
        "tensor.operators",
        """
from onnx.reference.ops.op_div import Div

@instead(Div, "_run")
def run(was, self, a, b):
    return (np.floor_divide(a, b),) if a.dtype.kind in "iu" else was(self, a, b)
""",
    ),
    _tensor(
        "nan_becomes_zero",
        "NaN and infinity in an answer become numbers",
        "tensor.operators",
        """
@instead(OnnxSession, "__call__")
def call(was, self, feeds):
    return {n: np.nan_to_num(o) if o.dtype.kind == "f" else o for n, o in was(self, feeds).items()}
""",
    ),
    _tensor(
        "unsupported_becomes_zeros",
        "an operator that is not supported answers zeros",
        "tensor.operators",
        """
from onnx.reference.ops.op_gather import Gather

@instead(Gather, "_run")
def run(was, self, x, indices, axis=None):
    return (np.zeros_like(was(self, x, indices, axis=axis)[0]),)
""",
    ),
    _tensor(
        "fixed_shapes_ignored",
        "shapes that convert was asked to fix stay open",
        "tensor.fixed_shapes",
        """
@instead(tensors, "fix_shape")
def fix_shape(was, graph, name, shape):
    pass
""",
    ),
)
