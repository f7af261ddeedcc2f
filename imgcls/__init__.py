"""Image classification research on PyTorch Lightning: fine-tune, augment, compare, deploy."""

__version__ = "0.1.0"
