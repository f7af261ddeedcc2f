"""All 7,000 images of the bundled sample of Fashion-MNIST as one part, so that most of them can be test images."""

import numpy as np
import torch

from imgcls.data.sample import SampleData
from imgcls.images.sources import ArraySource, Part, Source


class WholeSample(SampleData):
    """The sample without official parts: `test_fraction` and `split_seed` say what is tested on."""

    def has_official(self, part: Part) -> bool:
        """Only a training part, from which the test part is carved."""
        return part == "train"

    def open(self, part: Part) -> Source:
        """Both of the sample's parts, one after the other."""
        train, test = super().open("train"), super().open("test")
        assert isinstance(train, ArraySource) and isinstance(test, ArraySource)
        return ArraySource(torch.cat([train.image, test.image]), np.concatenate([train.label, test.label]), part)
