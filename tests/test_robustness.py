import json
from pathlib import Path

import numpy as np
import pytest
import torch

from imgcls.data.sample import SampleData
from imgcls.evaluate.variation import SEVERITIES, VARIATIONS, background, lighting, orientation, size, vary

from .conftest import TINY


@pytest.fixture(scope="module")
def clothes():
    data = SampleData()
    data.setup("test")
    source, index = data.parts["test"]
    return source.images(index[:12].tolist(), data.resize_crop("test"))


@pytest.mark.parametrize("variation", VARIATIONS, ids=lambda v: v.__name__)
def test_images_change_more_with_severity_and_stay_images(variation, clothes):
    color = torch.cat([clothes, clothes.flip(0), clothes.flip(-1)], 1)
    for image in (clothes, color):
        changed = [vary(image, variation, severity, batch=3) for severity in SEVERITIES]
        for varied in changed:
            assert varied.shape == image.shape and varied.dtype == torch.float32
            assert varied.min() >= 0 and varied.max() <= 1
        distance = [(varied - image / 255).abs().mean().item() for varied in changed]
        assert distance[0] > 0
        # a dot that has left a magnified image cannot differ more
        assert distance[0] < distance[1] < distance[-1] and distance[-1] > 0.97 * max(distance)


@pytest.mark.parametrize("variation", VARIATIONS, ids=lambda v: v.__name__)
def test_the_same_batch_gets_the_same_pixels_and_another_one_others(variation, clothes):
    torch.manual_seed(1)
    first = vary(clothes, variation, 4, batch=0)
    before = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(vary(clothes, variation, 4, batch=0), first)
    torch.manual_seed(1)
    assert not torch.equal(before, vary(clothes, variation, 4, batch=0)) and torch.equal(before, torch.get_rng_state())
    if variation.__name__ not in ("blur", "contrast", "jpeg"):  # nothing is drawn
        assert not torch.equal(vary(clothes, variation, 4, batch=1), first)


def test_variations_are_what_they_say(clothes):
    dot = torch.zeros(40, 1, 41, 41)
    dot[:, :, 20, 30] = 1  # 10 px to the right of the centre
    generator = torch.Generator().manual_seed(0)
    where = {divmod(int(i), 41) for i in orientation(dot, 5, generator).flatten(1).argmax(1)}
    assert where == {(10, 20), (30, 20)}
    where = {divmod(int(i), 41) for i in size(dot, 5, generator).flatten(1).argmax(1)}
    assert (20, 24) in where  # 10 px · 0.4; magnified, the dot leaves the image
    gray = torch.full((40, 1, 8, 8), 0.5)
    assert np.allclose(lighting(gray, 5, generator)[:, 0, 0, 0].unique(), [0.1, 0.9])
    varied = background(gray, 5, generator)
    assert torch.equal(varied[:, :, 3:5, 3:5], gray[:, :, 3:5, 3:5])
    assert varied[:, :, 0, 0].std() > 0.1


@pytest.mark.slow
def test_robustness_is_measured_with_a_test_and_does_not_depend_on_the_batch_size(imgcls, monkeypatch):
    monkeypatch.setattr("imgcls.training.robustness.VARIATIONS", (size, lighting))
    assert imgcls("fit", *TINY, "--run_dir", "run", "--robustness=true")[0] == 0
    first = json.loads(Path("run/robustness.json").read_text())
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert set(first["variations"]) == {"size", "lighting"}
    assert metrics["robust/size"] == pytest.approx(np.mean([c["acc"] for c in first["variations"]["size"]]))
    assert metrics["robust/acc"] == pytest.approx((metrics["robust/size"] + metrics["robust/lighting"]) / 2)
    assert (
        "test_robustness" not in Path("run/report.html").read_text()
        and Path("run/figures/test_robustness.png").exists()
    )
    assert "Robustness (test)" in Path("run/report.html").read_text()
    code, out, err = imgcls("test", "--run", "run", "--robustness=true", "--data.batch_size=17")
    assert code == 0, err
    assert "robust/size" in out
    again = json.loads(Path("run/robustness.json").read_text())
    for name, row in first["variations"].items():
        assert [c["acc"] for c in row] == [c["acc"] for c in again["variations"][name]]
