"""Makes the suite's image classifier: a convolutional network of 24,000 parameters on the UCI digits.

Data: `digits.csv.gz` (1,797 images of 8x8, written by 13 people) from the wheel of scikit-learn (BSD), read as data and
not imported. A fifth is kept out and published as test images. Needs torch and onnx, by hand, for some seconds:

    pip install torch==2.13.0 onnx numpy
    python conformance/train/train_image_classifier.py scikit_learn-1.9.1-cp311-cp311-manylinux_2_28_x86_64.whl [OUT]
"""

from __future__ import annotations

import gzip
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

SEED, EPOCHS, BATCH, RATE = 20261121, 40, 64, 2e-3
OPSET, IR = 21, 10
TEST, CALIBRATION = 360, 128
OUT = Path(__file__).parents[1] / "edgecore_conformance/fixtures/data/classifier"


def main(wheel: Path, out: Path) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    images, labels = digits(wheel)
    order = np.random.default_rng(SEED).permutation(len(images))
    test, seen = order[:TEST], order[TEST:]
    model = train(images[seen], labels[seen])
    with torch.no_grad():
        answers = model(tensor(images[test])).argmax(1).numpy()
    print(f"accuracy on {TEST} images that it was not trained on: {(answers == labels[test]).mean():.4f}")
    out.mkdir(parents=True, exist_ok=True)
    onnx.save(exported(model), out / "digits.onnx")
    np.savez_compressed(
        out / "digits.npz", images=images[test], labels=labels[test], calibration=images[seen[:CALIBRATION]]
    )


def digits(wheel: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (1797, 8, 8) of 0 to 16, labels (1797,)."""
    with zipfile.ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read("sklearn/datasets/data/digits.csv.gz")).decode()
    table = np.loadtxt(text.splitlines(), delimiter=",")
    return table[:, :64].reshape(-1, 8, 8).astype(np.uint8), table[:, 64].astype(np.uint8)


def tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images.astype(np.float32) / 16)[:, None]


def train(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, 10),
    )  # fmt: skip
    x, y = tensor(images), torch.from_numpy(labels.astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    steps = EPOCHS * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(x))
        for start in range(0, len(x) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def exported(model: nn.Sequential) -> onnx.ModelProto:
    """Written out by hand: seven operators need no exporter."""
    weights = {
        name: numpy_helper.from_array(value.detach().numpy(), name) for name, value in model.state_dict().items()
    }
    # Names of the weights are their places in the network above.
    nodes = [
        helper.make_node("Conv", ["image", "0.weight", "0.bias"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "2.weight", "2.bias"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("MaxPool", ["r2"], ["p2"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p2", "5.weight", "5.bias"], ["c3"], "conv3", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c3"], ["r3"], "relu3"),
        helper.make_node("GlobalAveragePool", ["r3"], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "9.weight", "9.bias"], ["logits"], "head", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        list(weights.values()),
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="edgecore")
    made.ir_version = IR
    onnx.checker.check_model(made, full_check=True)
    return made


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else OUT)
