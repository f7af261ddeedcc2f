"""Operations of policies on large uint8 images on a CPU, image after image: each stays in the processor's cache.

By the plans of `imgcls.augment.operations`, and with the results of its `carry_out`. A change is a function of the
image (C, H, W), the plan, and the image's number among those of its kind, and gives a new image.

Shapes: C channels, H×W pixels, N of them.
"""

from bisect import bisect
from itertools import accumulate

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from torch import Tensor

from imgcls.augment.base import Parameters
from imgcls.augment.operations import blur, mean_of_nine
from imgcls.augment.warp import interpolate

LARGE = 1 << 15  # values of an image, about where the cache begins to count for more than the number of calls
WHOLE = 1e-4  # pixels by which a shift may miss a whole number
RAMP_256 = np.arange(256)


def carry_out_each(image: Tensor, layers: list[Parameters], back: Tensor) -> Tensor:
    """Carry out plans on large images on a CPU.

    Args:
        image: (A, C, H, W) uint8.
        layers: Plans, one after the other; the order of each refers to the results of the one before.
        back: Which results of the last are asked for, (B,) int64.

    Returns:
        Images (B, C, H, W) uint8.
    """
    images = [np.ascontiguousarray(one) for one in image.numpy()]
    places, ways = back.tolist(), list[list[int]]()
    for layer in reversed(layers):
        order = layer["order"].tolist()
        ways.insert(0, places)
        places = [order[place] for place in places]
    ends = [list(accumulate(layer["counts"])) for layer in layers]
    result = np.empty((len(places), *image.shape[1:]), np.uint8)
    for number, (source, *way) in enumerate(zip(places, *ways, strict=True)):
        changed = images[source]
        for layer, end, place in zip(layers, ends, way, strict=True):
            if kind := bisect(end, place):
                changed = CHANGES[kind - 1](changed, layer, place - end[kind - 1])
        result[number] = changed
    return torch.from_numpy(result)


def look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Values replaced by entries, cut to whole numbers, of the table (1 or C, 256) of all channels or of each."""
    rows, entries = image.reshape(len(table), -1), table.clip(0, 255).astype(np.uint8)
    # half the time of numpy's take
    found = [bytearray(row).translate(entry.tobytes()) for row, entry in zip(rows, entries, strict=True)]
    return np.frombuffer(found[0] if len(found) == 1 else bytearray().join(found), np.uint8).reshape(image.shape)


def given(image: np.ndarray, plan: Parameters, number: int) -> np.ndarray:
    """After an operation whose table the plan holds."""
    return look_up(image, plan["table"][number].numpy())


def stretched(image: np.ndarray, plan: Parameters, number: int) -> np.ndarray:
    """With the lowest and highest values of each channel at 0 and 255; channels of one value stay as they are."""
    low_C1, high_C1 = (extreme(image, (1, 2))[:, None].astype(int) for extreme in (np.min, np.max))
    table_C256 = 255 * (RAMP_256 - low_C1) / np.maximum(high_C1 - low_C1, 1)
    return look_up(image, np.where(low_C1 < high_C1, table_C256, RAMP_256))


def equalized(image: np.ndarray, plan: Parameters, number: int) -> np.ndarray:
    """With all values equally frequent, in each channel; those that have almost but one stay as they are."""
    channels = [Image.fromarray(channel) for channel in image]
    # neighbours are often alike, and a processor waits for a sum before it adds to it again: channels take turns
    pictures = [Image.merge("RGB", channels)] if len(channels) == 3 else channels
    count_C256 = np.array([picture.histogram() for picture in pictures]).reshape(-1, 256)
    below_C256 = count_C256.cumsum(1) - count_C256
    # all pixels but those of the largest value, in 255 steps
    step_C1 = (below_C256 % image[0].size).max(1, keepdims=True) // 255
    return look_up(image, np.where(step_C1 > 0, below_C256 / np.maximum(step_C1, 1) + 0.5, RAMP_256))


def contrasted(image: np.ndarray, plan: Parameters, number: int) -> np.ndarray:
    """Towards, or away from, the mean of the gray image: a table too."""
    sum_C = torch.from_numpy(image).flatten(1).sum(1).numpy()
    gray_1 = plan["luma"][0].numpy() @ sum_C / image[0].size
    share = plan["share"][0][number].item()
    return look_up(image, ((1 - share) * RAMP_256 + (share * gray_1 + 0.5))[None])


def numbers(image: np.ndarray) -> Tensor:
    """Values and a half, as `whole` cuts, float32."""
    return torch.from_numpy(image).float().add_(0.5)


def whole(values: Tensor) -> np.ndarray:
    """Cut to uint8."""
    return values.numpy().astype(np.uint8)  # a seventh of the time of torch's


def colored(image: np.ndarray, plan: Parameters, number: int) -> np.ndarray:
    """Towards, or away from, the gray image."""
    values = numbers(image)
    gray_1HW = (plan["luma"][0] @ values.flatten(1)).view_as(values[:1])
    return whole(values.lerp_(gray_1HW, plan["share"][1][number]).clamp_(0, 255.5))


def sharpened(image: np.ndarray, plan: Parameters, number: int) -> np.ndarray:
    """Towards, or away from, the smooth image; Pillow leaves the border."""
    values = numbers(image)
    values[:, 1:-1, 1:-1].lerp_(mean_of_nine(values[None])[0], plan["share"][2][number])
    return whole(values.clamp_(0, 255.5))


def blurred(image: np.ndarray, plan: Parameters, number: int) -> np.ndarray:
    """After a Gaussian blur."""
    return whole(blur(numbers(image)[None], plan["place"], plan["sigma"][number : number + 1])[0])


def moved(image: np.ndarray, plan: Parameters, number: int) -> np.ndarray:
    """Geometry: shifts and shears without a general interpolation, which takes twice as long or more."""
    place = number - plan["counts"][-1]
    (x_by_x, x_by_y, left), (y_by_x, y_by_y, top) = plan["source"][place].tolist()
    if x_by_x == y_by_y == 1 and y_by_x == top == 0:
        return slid(image, x_by_y, left)
    if x_by_x == y_by_y == 1 and x_by_y == left == 0:
        return np.ascontiguousarray(slid(image.swapaxes(1, 2), y_by_x, top).swapaxes(1, 2))
    column, row = (line[place][None] for line in plan["lines"])
    return whole(interpolate(numbers(image)[None], column, row)[0])


def slid(image: np.ndarray, slope: float, shift: float) -> np.ndarray:
    """Image (C, H, W) uint8 whose row y begins at `slope * y + shift` pixels, interpolated; outside is black."""
    height, width = image.shape[1:]
    step = min(max(round(shift), -width), width)
    if slope == 0 and abs(step - shift) < WHOLE:
        result = np.zeros_like(image)
        result[..., max(-step, 0) : width - max(step, 0)] = image[..., max(step, 0) : width + min(step, 0)]
        return result
    start_H = slope * np.arange(height) + shift
    first_H = np.floor(start_H).astype(int)
    reach = np.abs(first_H).max() + 1
    wide = np.zeros((*image.shape[:2], width + 2 * reach), np.uint8)
    wide[..., reach:-reach] = image
    values = numbers(sliding_window_view(wide, width + 1, axis=2)[:, np.arange(height), first_H + reach])
    weight_H1 = torch.from_numpy(start_H - first_H).float()[:, None]
    return whole(torch.lerp(values[..., :-1], values[..., 1:], weight_H1))


# by number in KINDS, of which the first is no change
CHANGES = (given, stretched, equalized, contrasted, colored, sharpened, blurred, moved)
