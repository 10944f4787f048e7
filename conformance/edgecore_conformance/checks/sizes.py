"""What an artifact's files hold, as the suite itself counts it: names, bytes, bits a weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecore.contract.precisions import OVERSIZE
from edgecore_conformance.observation import Judgement


def judge_files(listed: Mapping[str, Any], found: Mapping[str, int], verdict: Judgement) -> None:
    """What convert and quantize list is what lies there: the store seals what is listed, and drops the rest."""
    verdict.expect(bool(listed), "no file is listed")
    verdict.expect(sorted(listed) == sorted(found), f"listed are {sorted(listed)}, written were {sorted(found)}")
    models = [name for name, (_, role) in listed.items() if role == "model"]
    verdict.expect(len(models) <= 1, f"several files are the model: {', '.join(models)}")
    roles = {role for _, role in listed.values()}
    verdict.expect(roles <= {"model", "weights", "tokenizer", "config", "other"}, f"roles are {sorted(roles)}")
    for name, (size, role) in listed.items():
        verdict.expect(size > 0 or role not in ("model", "weights"), f"{name} is empty")


def weights_facts(weights: Any) -> dict[str, Any] | None:
    """What a plugin says it measured."""
    if weights is None:
        return None
    return {
        "bits_per_weight": weights.bits_per_weight,
        "eligible_bits_per_weight": weights.eligible_bits_per_weight,
        "parameters": weights.parameters,
        "fallbacks": [f.tensor for f in weights.fallbacks],
    }


def tensor_sizes(artifact: Any) -> list[list[Any]] | None:
    """[name, elements, bytes, storage type] as the suite itself reads them in the artifact's files; None for formats
    that the neutral model does not know."""
    from edgecore.checkpoint import open_checkpoint
    from edgecore.contract.errors import EdgecoreError

    try:
        with open_checkpoint(artifact.model) as model:
            return [[t.name, t.elements, t.nbytes, t.storage] for t in model.tensors.values()]
    except (EdgecoreError, OSError):
        return None


def judge_size(facts: Mapping[str, Any], precision: Any, verdict: Judgement) -> None:
    """Bits a weight as the suite counts them in the files, against the name of the precision and against what the
    plugin says."""
    said, tensors = facts["weights"], facts["tensors"]
    nominal = precision.bits + precision.overhead
    origin = f"{OVERSIZE:g} x {nominal:g}, the bits that {precision.name} stands for"
    files = 8 * sum(size for size, role in facts["files"].values() if role in ("model", "weights", "other"))
    if tensors:
        elements = sum(count for _, count, _, _ in tensors)
        inner = [
            (count, size) for name, count, size, _ in tensors if ".layers." in name and name.endswith("_proj.weight")
        ]
        layers = 8 * sum(s for _, s in inner) / sum(c for c, _ in inner)
        whole = 8 * sum(size for _, _, size, _ in tensors) / elements
        verdict.figure("bits a weight, matrices of the layers", layers, OVERSIZE * nominal, "<=", "bits", origin)
        lowest = 0.95 * precision.bits
        verdict.figure(
            "no fewer than its name", layers, lowest, ">=", "bits", f"0.95 x {precision.bits:g} nominal bits"
        )
        verdict.figure("bits a weight, all tensors", whole, unit="bits")
        whole_file = files / elements
        verdict.expect(whole_file > 0.9 * whole, "the files are smaller than the weights in them")
    else:
        elements, layers, whole = (said or {}).get("parameters", 0), None, None
        if elements:
            verdict.figure("bits a weight, whole files", files / elements, unit="bits")
    if said is None:
        return
    said = {**said, **{name: float(said[name]) for name in ("bits_per_weight", "eligible_bits_per_weight")}}
    verdict.figure(
        "said: bits a weight, eligible", said["eligible_bits_per_weight"], OVERSIZE * nominal, "<=", "bits", origin
    )
    if tensors and layers is not None and whole is not None:
        verdict.expect(said["parameters"] == elements, f"says {said['parameters']} weights, there are {elements}")
        _agree(verdict, "bits a weight", said["bits_per_weight"], whole)
        every = [(c, s) for name, c, s, _ in tensors if name.endswith(".weight") and "norm" not in name]
        matrices = 8 * sum(s for _, s in every) / sum(c for c, _ in every)
        near = min((layers, matrices), key=lambda bits: abs(bits - said["eligible_bits_per_weight"]))
        _agree(verdict, "eligible bits a weight", said["eligible_bits_per_weight"], near)
    elif elements:
        # The container and what else lies in the same file: a quarter of a megabyte. Where the graph is a file of its
        # own, that is no weight: the larger of the two is what must be told.
        largest = max(_of_role(facts["files"], role) for role in ("model", "weights"))
        least = (8 * largest - 8 * (1 << 18)) / elements / 1.05
        verdict.figure(
            "said: bits a weight, at least",
            said["bits_per_weight"],
            least,
            ">=",
            "bits",
            "what the files hold, less 256 KiB",
        )
        most = files / elements * 1.02
        verdict.figure(
            "said: bits a weight", said["bits_per_weight"], most, "<=", "bits", "no more than the files hold"
        )


def judge_tensor_size(
    facts: Mapping[str, Any], precision: Any, base_bits: float, elements: int, verdict: Judgement
) -> None:
    """Of a tensor model of so many weights: its files against what it was made from, which had `base_bits`, and what
    the plugin says against the files and the name of the precision."""
    nominal = precision.bits + precision.overhead
    origin = f"{OVERSIZE:g} x {nominal:g}, the bits that {precision.name} stands for"
    stored, before = _stored(facts["files"]), _stored(facts["base"]["files"])
    verdict.figure(
        "bits a weight, files", 8 * stored / elements, 0.95 * precision.bits, ">=", "bits", "0.95 x its bits"
    )
    verdict.figure(
        "size over that of what it was made from", stored / max(before, 1), OVERSIZE * nominal / base_bits, "<=", "",
        f"{origin}, over {base_bits:g}",
    )  # fmt: skip
    if (said := facts["weights"]) is None:
        return
    bits, eligible = float(said["bits_per_weight"]), float(said["eligible_bits_per_weight"])
    verdict.figure("said: bits a weight, eligible", eligible, OVERSIZE * nominal, "<=", "bits", origin)
    verdict.figure("said: bits a weight, eligible, at least", eligible, 0.95 * precision.bits, ">=", "bits")
    whole = 8 * sum(size for size, _ in facts["files"].values()) / elements
    verdict.figure("said: bits a weight", bits, 1.02 * whole, "<=", "bits", "no more than the files hold")
    verdict.figure("said: bits a weight, at least", bits, 0.95 * precision.bits, ">=", "bits", "0.95 x its bits")
    verdict.figure(
        "said: weights over those of the source", abs(said["parameters"] / elements - 1), 0.02, "<=", "",
        "constants that a quantizer adds",
    )  # fmt: skip


def _stored(files: Mapping[str, Any]) -> int:
    """Bytes of what holds the weights: of their own files, where there are such."""
    return _of_role(files, "weights") or _of_role(files, "model")


def _of_role(files: Mapping[str, Any], role: str) -> int:
    return sum(size for size, other in files.values() if other == role)


def _agree(verdict: Judgement, what: str, said: float, measured: float) -> None:
    verdict.figure(f"{what}: said over measured", said / measured, 1.02, "<=", "", "2 % of each other")
    verdict.figure(
        f"{what}: measured over said", measured / said if said else float("inf"), 1.02, "<=", "", "2 % of each other"
    )


def judge_fallbacks(facts: Mapping[str, Any], precision: Any, verdict: Judgement) -> None:
    """A matrix of a layer that kept at least twice the bits of its precision did not get it, and must be listed."""
    said, tensors = facts["weights"], facts["tensors"]
    if not tensors or said is None:
        return
    most = 2 * (precision.bits + precision.overhead)
    kept = [n for n, c, s, _ in tensors if ".layers." in n and n.endswith("_proj.weight") and 8 * s / c > most]
    verdict.expect(
        len(kept) <= len(said["fallbacks"]),
        f"{len(kept)} matrices kept over {most:g} bits ({', '.join(kept[:3])}), {len(said['fallbacks'])} are listed",
    )
