"""The peers' side: their transforms on PIL images, a DataLoader, an optimiser and a plain PyTorch loop.

Of imgcls come the images as they are stored, the split, the small CNN, and the writers of a run's files, so that
`compare` reads what the loop leaves. Everything is on the CPU.
"""

import random
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
import yaml
from peers import Peer, Transform
from PIL.Image import Image
from safetensors.torch import load_file
from timm.data import create_transform
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from imgcls.data.base import ImageDataModule
from imgcls.models.cnn import CNN
from imgcls.runs.environment import environment
from imgcls.runs.folder import RunFolder
from imgcls.runs.load import load_data
from imgcls.runs.predictions import Predictions
from imgcls.runs.record import add_summary
from imgcls.system.files import write_atomic, write_json


class Transformed(Dataset):
    """Images and labels, each image transformed anew whenever it is asked for.

    Args:
        image: N images, as they are stored.
        label: (N,) int64.
        transform: To a tensor.
    """

    def __init__(self, image: list[Image], label: np.ndarray, transform: Transform) -> None:
        self.image, self.label, self.transform = image, label, transform

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return self.transform(self.image[number]), int(self.label[number])


@dataclass(frozen=True, eq=False)
class Task:
    """What one of our runs trained and tested on, and how.

    Attributes:
        data: Its data module.
        config: Its config.yaml.
        train: Images to train on, as they are stored.
        test: Normalised test images, (M, C, S, S) float32.
    """

    data: ImageDataModule
    config: dict[str, Any]
    train: list[Image]
    test: Tensor

    @classmethod
    def of(cls, run: RunFolder) -> "Task":
        """That of a run."""
        data = load_data(run.path)
        data.prepare_data()
        data.setup("test")
        stored = {
            part: [data.parts[part][0].original(i).image for i in data.parts[part][1].tolist()]
            for part in ("train", "test")
        }
        size = (data.channels, data.image_size, data.image_size)
        frame = {"mean": data.mean, "std": data.std, "interpolation": data.interpolation}
        show = create_transform(size, crop_pct=data.crop_fraction, **frame)
        return cls(data, run.read_config(), stored["train"], torch.stack([show(image) for image in stored["test"]]))

    def label(self, part: str) -> np.ndarray:
        """Class of each image of a part, (N,) int64."""
        source, index = self.data.parts[part]  # type: ignore[index]
        return source.label[index]

    def network(self) -> nn.Module:
        """The run's network before training: a backbone, and a linear head as PyTorch draws it."""
        backbone = self.config["model"]["init_args"]["backbone"]
        options = backbone["init_args"]
        if backbone["class_path"] == "imgcls.models.cnn.CNN":
            features: nn.Module = CNN(self.data.channels, self.data.image_size, **options)
            count = features.num_features
        else:
            features = timm.create_model(options["name"], num_classes=0)
            count = features.num_features
            if options["weights"] != "none":
                left = features.load_state_dict(load_file(options["weights"]), strict=False)  # without their head
                assert not left.missing_keys, left
        return nn.Sequential(features, nn.Linear(count, self.data.num_classes)).to(memory_format=torch.channels_last)


def train(task: Task, peer: Peer, seed: int, out: RunFolder) -> None:
    """Train with a peer's transforms, test, and leave a run's folder."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    start, data, options = time.perf_counter(), task.data, task.config["model"]["init_args"]
    transform, mix = peer.build(data)
    network = task.network()
    images = Transformed(task.train, task.label("train"), transform)
    loader = DataLoader(images, data.batch_size, shuffle=True, drop_last=True)
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": options["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options["lr"])
    epochs = task.config["trainer"]["max_epochs"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options["lr"], epochs * len(loader))
    network.train()
    for _ in range(epochs):
        for image, label in loader:
            if mix is not None:
                image, label = mix(image, label)
            loss = F.cross_entropy(network(image.contiguous(memory_format=torch.channels_last)), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.inference_mode():
        logits = torch.cat([network(image) for image in task.test.split(200)]).numpy()
    source, index = data.parts["test"]
    label = task.label("test")
    record = {"class": type(data).__name__, "class_names": data.class_names, **data.fingerprint}
    write_atomic(out.config, yaml.safe_dump({"seed_everything": seed, "peer": peer.words}))
    write_json(out.environment, environment(seed, record, {}))
    Predictions(logits, label, index).write(out.predictions / "test.csv", source.names, data.class_names)
    seconds = time.perf_counter() - start
    add_summary(out, {"test/acc": float((logits.argmax(1) == label).mean()), "fit/seconds": seconds})
