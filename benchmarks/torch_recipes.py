"""The sides of ``peers`` and ``full`` that PyTorch plays, as one writes them with torch and Pillow.

    TORCH_PYTHON -m benchmarks.torch_recipes two_stage '{"photographs": ..., ...}'

Prints one line of JSON. Needs torch, numpy and Pillow.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.torch_networks import MobileNet, mobilenet_v2, resnet50


class Photographs(Dataset):
    """``folder/CLASS/*.jpg``: the centre square, resized with antialiasing; (3, S, S) in -1..1, and the class."""

    def __init__(self, folder: Path, side: int) -> None:
        self.classes = sorted(path.name for path in folder.iterdir())
        self.files = [(file, label) for label, name in enumerate(self.classes) for file in _sorted(folder / name)]
        self.side = side

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file, label = self.files[index]
        with Image.open(file) as image:
            side = min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            box = (left, top, left + side, top + side)
            square = image.convert("RGB").resize((self.side, self.side), Image.Resampling.BILINEAR, box=box)
        pixels = torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1).float()
        return pixels / 127.5 - 1.0, label


def _sorted(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def loader(photographs: Photographs, batch: int, workers: int, *, shuffle: bool) -> DataLoader:
    """Workers, where there are any, are kept from epoch to epoch; 0: images are read between the steps."""
    return DataLoader(photographs, batch, shuffle=shuffle, num_workers=workers, persistent_workers=workers > 0)


# --- peers: head, then the top two blocks ----------------------------------------------------------------------------


def two_stage(options: dict[str, Any]) -> dict[str, float]:
    """Seconds and accuracy of the recipe, timed after the imports; and how far the start is from Keras'."""
    torch.manual_seed(options["seed"])
    begin = time.perf_counter()
    folder, side, batch, workers = Path(options["photographs"]), *(options[key] for key in ("side", "batch", "workers"))
    train_photographs = Photographs(folder / "train", side)
    train = loader(train_photographs, batch, workers, shuffle=True)
    val = loader(Photographs(folder / "val", side), batch, workers, shuffle=False)
    arrays = dict(np.load(options["weights"]))
    backbone = MobileNet(options["alpha"])
    backbone.load_keras(arrays)
    backbone.eval()  # batch norm stays in inference mode in both stages
    width = backbone.blocks[-1].pointwise.out_channels
    head = nn.Sequential(nn.Linear(width, 1024), nn.ReLU(), nn.Linear(1024, len(train_photographs.classes)))
    for layer in (head[0], head[2]):  # as Keras starts a dense layer
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    backbone.requires_grad_(False)
    optimizer: torch.optim.Optimizer = torch.optim.RMSprop(head.parameters(), lr=1e-3, alpha=0.9, eps=1e-7)
    for _ in range(options["epochs"]):
        train_epoch(backbone, head, train, optimizer)
        accuracy = evaluate(backbone, head, val)
    head_seconds = time.perf_counter() - begin
    trained = [parameter for block in backbone.blocks[-2:] for parameter in convolutions(block)]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD([*trained, *head.parameters()], lr=1e-4, momentum=0.9)
    for _ in range(options["epochs"]):
        train_epoch(backbone, head, train, optimizer)
        accuracy = evaluate(backbone, head, val)
    return {
        "seconds": round(time.perf_counter() - begin, 2),
        "head_seconds": round(head_seconds, 2),
        "val_accuracy": round(accuracy, 4),
        "feature_difference": feature_difference(options["alpha"], arrays),
    }


def convolutions(block: nn.Module) -> Iterator[nn.Parameter]:
    """Weights of a block without its batch norms."""
    for layer in block.modules():
        if isinstance(layer, nn.Conv2d):
            yield from layer.parameters()


def train_epoch(backbone: nn.Module, head: nn.Module, batches: DataLoader, optimizer: torch.optim.Optimizer) -> None:
    loss_of = nn.CrossEntropyLoss()
    for images, labels in batches:
        optimizer.zero_grad()
        loss_of(head(backbone(images).mean(dim=(2, 3))), labels).backward()
        optimizer.step()


@torch.no_grad()
def evaluate(backbone: nn.Module, head: nn.Module, batches: DataLoader) -> float:
    right = count = 0
    for images, labels in batches:
        right += int((head(backbone(images).mean(dim=(2, 3))).argmax(dim=1) == labels).sum())
        count += len(labels)
    return right / count


@torch.no_grad()
def feature_difference(alpha: float, arrays: dict[str, np.ndarray]) -> float:
    """Largest difference from the features that Keras computed with the same weights, as a share of the largest."""
    backbone = MobileNet(alpha).eval()
    backbone.load_keras(arrays)
    pixels = torch.from_numpy(arrays["check_pixels"]).permute(0, 3, 1, 2).float()
    features = backbone(pixels / 127.5 - 1.0).permute(0, 2, 3, 1).numpy()
    expected = arrays["check_features"]
    return float(np.abs(features - expected).max() / np.abs(expected).max())


# --- full: everything trains -----------------------------------------------------------------------------------------


def full(options: dict[str, Any]) -> dict[str, float]:
    """Images a second after the first steps, everything training, batch norm too."""
    torch.manual_seed(1)
    photographs = Photographs(Path(options["photographs"]) / "train", options["side"])
    network, width = {
        "resnet50": (resnet50, 2048),
        "mobilenet_v2": (mobilenet_v2, 1280),
    }[options["network"]]
    model = nn.Sequential(network(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, len(photographs.classes)))
    if options["channels_last"]:
        model = model.to(memory_format=torch.channels_last)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    loss_of = nn.CrossEntropyLoss()
    last = options["warm_up"] + options["steps"]
    batches = loader(photographs, options["batch"], options["workers"], shuffle=True)
    for done, (images, labels) in enumerate(batches, start=1):
        if options["channels_last"]:
            images = images.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        loss_of(model(images), labels).backward()
        optimizer.step()
        if done == options["warm_up"]:
            begin = time.perf_counter()
        if done == last:
            break
    return {"images_per_second": round(options["steps"] * options["batch"] / (time.perf_counter() - begin), 3)}


if __name__ == "__main__":
    recipe = {"two_stage": two_stage, "full": full}[sys.argv[1]]
    print(json.dumps(recipe(json.loads(sys.argv[2])) | {"torch": str(torch.__version__)}))
