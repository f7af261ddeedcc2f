from importlib.resources import files

import numpy as np
import torch

from imgcls.data.base import ImageDataModule, Part
from imgcls.images.sources import ArraySource, Source


class SampleData(ImageDataModule):
    """A sample of Fashion-MNIST that comes with the package: 6,000 training and 1,000 test images, 28×28, gray.

    Balanced over ten classes and drawn from the official parts (Xiao, Rasul and Vollgraf, Fashion-MNIST,
    arXiv 1708.07747, 2017; MIT licence) by `experiments/make_sample.py`.
    """

    native_size, native_channels, native_mean, native_std = 28, 1, (0.286,), (0.353,)
    class_names = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")

    def has_official(self, part: Part) -> bool:  # noqa: D102
        return part != "val"

    def open(self, part: Part) -> Source:  # noqa: D102
        with np.load(str(files("imgcls.data") / "sample.npz")) as arrays:
            image = torch.from_numpy(arrays[f"{part}_image"])[:, None]
            return ArraySource(image, arrays[f"{part}_label"], part)
