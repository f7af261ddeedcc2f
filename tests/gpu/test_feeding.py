"""Images that live on the device, and files that are decoded there, against the host's way."""

import numpy as np
import pytest
import torch

from ..conftest import write_image
from .conftest import TOY, fit

pytestmark = pytest.mark.gpu


def test_images_on_the_device_train_to_the_same_weights():
    options = ["--trainer.deterministic=true", "--test_after_fit=false"]
    found = []
    for cache in ("device", "memory"):
        assert fit(cache, f"--data.cache={cache}", *options) == 0
        file = f"{cache}/checkpoints/last.ckpt"
        found.append(torch.load(file, weights_only=True, map_location="cpu")["state_dict"])
    torch.use_deterministic_algorithms(False)
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[1])


@pytest.mark.skipif(TOY, reason="files are decoded on a CUDA device")
def test_files_decoded_on_the_device_give_the_same_answers(imgcls, tmp_path):
    for number in range(60):
        write_image(tmp_path / f"photos/{number % 3}/{number}.jpg", number % 3, (90, 70), number)
    photos = ["--data=imgcls.data.folder.FolderData", f"--data.root={tmp_path / 'photos'}", "--data.image_size=48"]
    assert fit("run", *photos, "--data.channels=3", "--trainer.max_epochs=3") == 0
    logits = []
    for decoder in ("cpu", "cuda"):
        code, _, err = imgcls("test", "--run", "run", f"--data.decoder={decoder}", "--trainer.accelerator=gpu")
        assert code == 0, err
        with np.load("run/predictions/test.npz") as file:
            logits.append(file["logits"])
    # two decoders of JPEG differ by a few of 255
    assert np.abs(logits[0] - logits[1]).max() < 0.1 * np.ptp(logits[0])
