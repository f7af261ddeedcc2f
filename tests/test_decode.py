import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.data.sample import SampleData
from imgcls.errors import UserError
from imgcls.images.decode import ResizeCrop, decode, decode_file, resize_crop_batch
from imgcls.images.listing import list_images

RGB8 = ResizeCrop(3, 8, 8)


def pixel(image):
    return image[:, 0, 0].tolist()


def test_an_image_of_the_right_size_is_untouched():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = decode(Image.fromarray(pixels), ResizeCrop(3, 10, 8))
    assert image.dtype == torch.uint8 and image.shape == (3, 8, 8)
    assert np.array_equal(image.permute(1, 2, 0), pixels)


def test_the_shorter_side_is_resized_and_the_centre_kept():
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 255
    assert (decode(Image.fromarray(pixels), ResizeCrop(3, 20, 20)) == 255).all()


@pytest.mark.parametrize("size", [(1, 1), (2000, 10), (10, 2000), (7, 9)])
def test_any_shape_comes_out_square(size):
    assert decode(Image.new("RGB", size), ResizeCrop(3, 37, 32)).shape == (3, 32, 32)


def test_arrays_are_resized_and_cropped_as_files_are():
    pixels = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    resize_crop = ResizeCrop(3, 24, 20)
    one = decode(Image.fromarray(pixels.permute(1, 2, 0).numpy()), resize_crop)
    assert (resize_crop_batch(pixels[None], resize_crop)[0].int() - one.int()).abs().max() <= 2


def test_gray_and_rgb_convert_both_ways():
    assert pixel(decode(Image.new("L", (8, 8), 77), RGB8)) == [77, 77, 77]
    assert pixel(decode(Image.new("RGB", (8, 8), (10, 10, 10)), ResizeCrop(1, 8, 8))) == [10]
    assert resize_crop_batch(torch.full((2, 1, 8, 8), 9, dtype=torch.uint8), RGB8).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA"])
def test_transparency_goes_over_white(mode):
    image = Image.new("RGBA", (8, 8), (200, 0, 0, 0)).convert("RGBA")
    if mode == "P":
        image = image.quantize()
    assert pixel(decode(image.convert(mode), RGB8)) == [255, 255, 255]


def test_cmyk_and_animation(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    red = pixel(decode_file(tmp_path / "cmyk.jpg", RGB8))
    assert red[0] > 200 and max(red[1:]) < 60
    frames = [Image.new("RGB", (8, 8), c) for c in ("lime", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert pixel(decode_file(tmp_path / "moving.gif", RGB8)) == [0, 255, 0]


def test_photos_of_phones(tmp_path, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32] = (200, 60, 20)
    heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "photo.HEIC", quality=100)
    assert list_images(tmp_path) == [tmp_path / "photo.HEIC"]
    image = decode_file(tmp_path / "photo.HEIC", ResizeCrop(3, 32, 0))
    assert image.shape == (3, 32, 64) and (image.permute(1, 2, 0).int() - torch.from_numpy(pixels)).abs().max() <= 6
    Image.init()
    monkeypatch.delitem(Image.OPEN, "HEIF")  # as without the package
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    with pytest.raises(UserError, match=r"photo.HEIC: .*pip install 'imgcls\[heif\]'"):
        decode_file(tmp_path / "photo.HEIC", RGB8)


def test_exif_rotation_is_applied(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0] = 255  # the top row; rotated by 90° clockwise it is the right column
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = decode_file(tmp_path / "turned.png", RGB8)
    assert (image[:, :, -1] == 255).all() and (image[:, :, :-1] == 0).all()


def test_scaled_jpeg_decoding_stays_close_to_full_decoding(tmp_path):
    x = np.linspace(0, 255, 512)
    pixels = np.stack([np.tile(x, (512, 1)), np.tile(x[:, None], (1, 512)), np.full((512, 512), 99.0)], -1)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "large.jpg", quality=95)
    resize_crop = ResizeCrop(3, 64, 64)
    with Image.open(tmp_path / "large.jpg") as image:
        full = decode(image.convert("RGB"), resize_crop)
    assert (decode_file(tmp_path / "large.jpg", resize_crop).int() - full.int()).abs().float().mean() < 2


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\xff\xd8\xff\xe0 cut off"])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "größe 1.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match="größe 1.jpg: cannot be read as an image"):
        decode_file(path, RGB8)


def test_a_truncated_file_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    with pytest.raises(UserError, match="cut.jpg"):
        decode_file(tmp_path / "cut.jpg", RGB8)


@pytest.mark.parametrize("size", [(500, 375), (333, 501), (257, 255), (640, 427), (231, 1023)], ids=str)
@pytest.mark.parametrize("name", ["V1", "V2", "efficientnet", "timm lite0", "timm 0.9", "timm 0.95"])
def test_evaluation_frames_are_those_of_the_weights(name, size):
    from timm.data import create_transform
    from torchvision.models import EfficientNet_B0_Weights, ResNet50_Weights

    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    torchvisions = {"V1": ResNet50_Weights.IMAGENET1K_V1, "V2": ResNet50_Weights.IMAGENET1K_V2}
    torchvisions["efficientnet"] = EfficientNet_B0_Weights.IMAGENET1K_V1
    if name in torchvisions:
        theirs = torchvisions[name].transforms()
        fraction, kind = theirs.crop_size[0] / theirs.resize_size[0], theirs.interpolation.value
    else:
        fraction, kind = {"timm lite0": 0.875, "timm 0.9": 0.9, "timm 0.95": 0.95}[name], "bicubic"
        theirs = create_transform((3, 224, 224), interpolation=kind, mean=mean, std=std, crop_pct=fraction)
    data = SampleData(image_size=224, channels=3, mean=mean, std=std, crop_fraction=fraction, interpolation=kind)
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*reversed(size), 3), dtype=np.uint8))
    ours = data.normalize(decode(image, data.resize_crop("val"))[None])[0]
    assert (ours - theirs(image)).abs().max() < 1e-5
