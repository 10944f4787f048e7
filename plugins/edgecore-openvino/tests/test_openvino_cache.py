"""Opening and closing costs nothing that stays, and a compiled graph in pages is found again in the compile cache."""

from __future__ import annotations

import subprocess
import sys

import openvino as ov
import pytest

from edgecore.contract import Artifact
from edgecore_openvino import folder
from edgecore_openvino.cache import paged
from edgecore_openvino.network import Network

ROUNDS = """
import gc, sys
from pathlib import Path
import psutil
from edgecore_openvino.network import Network
me = psutil.Process()
for _ in range(8):
    net = Network(Path(sys.argv[1]), sys.argv[2], {"INFERENCE_NUM_THREADS": "1"}, 64)
    net.append(net.checked([5, 6, 7]), 0)
    net.close()
    del net
    gc.collect()
    print(me.num_threads())
"""


def threads(artifact: Artifact, device: str) -> list[int]:
    """Threads of a process after each of some rounds of open, work, close."""
    command = [sys.executable, "-c", ROUNDS, str(folder.model_file(artifact)), device]
    return list(map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))


def test_a_closed_network_leaves_no_thread(tiny_ir: Artifact) -> None:
    after = threads(tiny_ir, "cpu")
    assert after[-1] == after[1]


def test_rewriting_into_pages_gives_the_same_graph_each_time(tiny_ir: Artifact) -> None:
    model = ov.Core().read_model(folder.model_file(tiny_ir))
    names = []
    for _ in range(2):
        rewritten = paged(model)
        assert rewritten is not None
        names.append([node.get_friendly_name() for node in rewritten.get_ordered_ops()])
    assert names[0] == names[1]
    assert any(op.get_type_name() == "ReadValue" for op in model.get_ops())


def test_keys_of_eight_bits_are_kept_by_whole_blocks_after_a_rewind(tiny_ir: Artifact) -> None:
    for precision, kept in (("f16", 40), ("u8", 32)):
        properties = {"INFERENCE_NUM_THREADS": "1", "KV_CACHE_PRECISION": precision}
        net = Network(folder.model_file(tiny_ir), "cpu", properties, 64)
        net.append(net.checked([5] * 50), 0)
        assert net.usable(50, 51) == 50
        assert net.usable(40, 51) == kept
        net.close()


@pytest.mark.parametrize(("precision", "within"), [("f32", 1e-3), ("u8", 0.1)])
@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 300, 600])
def test_blocks_are_added_as_the_sequence_grows(tiny_ir: Artifact, tokens: int, precision: str, within: float) -> None:
    """Whole or in two pieces: a block more must not lose what the others hold."""
    properties = {"INFERENCE_NUM_THREADS": "1"}
    answers = []
    for first in (tokens, max(1, tokens // 2)):
        net = Network(folder.model_file(tiny_ir), "cpu", {**properties, "KV_CACHE_PRECISION": precision}, 1024)
        ids = net.checked([5 + i % 50 for i in range(tokens)])
        row = net.append(ids[:first], 0)
        if first < tokens:
            row = net.append(ids[first:], first)
        answers.append(row.copy())
        net.close()
    assert abs(answers[0] - answers[1]).max() < within * answers[0].std()
