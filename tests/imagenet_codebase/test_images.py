"""How images are prepared: pixels, crops, colours, augmentation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch.utils._python_dispatch import TorchDispatchMode

from apq.errors import ApqError
from imagenet_codebase.data_providers import folder, memory, open_dataset
from imagenet_codebase.data_providers.normalization import Normalization
from tests.imagenet_codebase.helpers import write_tree


def test_digits_are_the_8_by_8_images_enlarged(digits):
    from sklearn.datasets import load_digits

    index = digits.test.indices[7]
    grey = torch.tensor(load_digits().images[index], dtype=torch.float32)[None, None] / 16
    large = F.interpolate(grey, size=64, mode="bilinear", align_corners=False)[0]
    expected = ((large - 0.305) / 0.376).expand(3, -1, -1)
    # Two levels of 255: pixels are rounded before and after.
    torch.testing.assert_close(digits.test[7][0], expected, atol=2 / 255 / 0.376, rtol=0)


def test_cifar_pixels_are_normalised_by_channel(cifar):
    data = open_dataset("cifar10", cifar, image_size=32)
    pixels = np.asarray(Image.open(cifar / "test" / "dog" / "1.png")) / 255
    expected = (pixels - [0.491, 0.482, 0.447]) / [0.245, 0.243, 0.261]
    np.testing.assert_allclose(data.test[3][0].permute(1, 2, 0), expected, atol=1e-5)
    assert data.test[3][1] == 1


def test_crops_are_windows_of_the_padded_image():
    images = torch.arange(4 * 36).reshape(4, 1, 6, 6).to(torch.uint8)
    # Top and left out of 0..2, and whether mirrored: below one half.
    draws = torch.tensor([[0.5, 0.5, 0.9], [0.0, 0.0, 0.9], [0.99, 0.5, 0.9], [0.5, 0.5, 0.1]])
    crops = memory.crop_and_flip(images, draws, padding=1)
    assert torch.equal(crops[0], images[0])
    assert torch.equal(crops[1], F.pad(images[1, :, :5, :5], (1, 0, 1, 0)))
    assert torch.equal(crops[2], F.pad(images[2, :, 1:], (0, 0, 0, 1)))
    assert torch.equal(crops[3], images[3].flip(-1))


def test_shifts_are_small_and_their_centre_is_the_image_itself():
    images = torch.zeros(3, 1, 20, 20, dtype=torch.uint8)
    images[:, :, 10, 10] = 255
    # No shift; one pixel (0.05 of 20) to the left; one pixel up.
    draws = torch.tensor([[0.5, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 1.0]])
    moved = memory.shift_and_rotate(images, draws, shift=0.05)
    peaks = [divmod(int(image.argmax()), 20) for image in moved]
    assert peaks == [(10, 10), (10, 9), (9, 10)]


def test_evaluation_shows_the_centre():
    # At 28 pixels, 28/32 of the height are seen: 35 of 40 columns in the middle of 80.
    for half_width, all_blue in ((20, True), (15, False)):
        image = Image.new("RGB", (80, 40), "red")
        image.paste("blue", (40 - half_width, 0, 40 + half_width, 40))
        colours = folder.centre_crop(image, 28).getcolors()
        assert (colours == [(28 * 28, (0, 0, 255))]) == all_blue


@pytest.mark.parametrize(("width", "height"), [(40, 30), (500, 10), (10, 500), (1, 1)])
def test_random_crops_lie_in_the_image(width, height):
    rng = np.random.default_rng(0)
    boxes = np.array([folder.crop_box(width, height, rng) for _ in range(200)])
    top, left, h, w = boxes.T
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] > 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    if (width, height) == (40, 30):
        assert (h * w).min() < 0.2 * 1200 < 0.8 * 1200 < (h * w).max()
        assert len(set(map(tuple, boxes))) > 150


def test_colours_shift_as_pillow_shifts_them():
    colours = np.array([[200.0, 100.0, 50.0]], dtype=np.float32)
    # Grey of the pixel: 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2.
    np.testing.assert_allclose(colours @ folder.colour_matrix(1.0, 0.0), [[124.2] * 3], rtol=1e-5)
    np.testing.assert_allclose(colours @ folder.colour_matrix(1.1, 1.0), 1.1 * colours, rtol=1e-5)
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image, view = Image.fromarray(noise), np.empty((32, 32, 3), dtype=np.uint8)
    for seed in range(5):
        folder.random_view(image, 32, np.random.default_rng(seed), out=view)
        rng = np.random.default_rng(seed)
        top, left, height, width = folder.crop_box(80, 60, rng)
        box = (left, top, left + width, top + height)
        expected = image.resize((32, 32), Image.Resampling.BILINEAR, box)
        if rng.random() < 0.5:
            expected = ImageOps.mirror(expected)
        brightness, saturation = rng.uniform(1 - 32 / 255, 1 + 32 / 255), rng.uniform(0.5, 1.5)
        expected = ImageEnhance.Brightness(expected).enhance(brightness)
        expected = np.asarray(ImageEnhance.Color(expected).enhance(saturation)).astype(int)
        assert abs(expected - view).max() <= 3 or (expected == 255).any()
        assert np.median(abs(expected - view)) <= 1


def test_images_of_more_than_eight_bits_keep_their_greys_or_are_refused(tmp_path):
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32)
    for part in ("train", "test"):
        write_tree(tmp_path / part, {"cat": 4, "dog": 4})
    path = tmp_path / "test" / "cat" / "0.png"
    Image.fromarray(ramp.astype(np.uint16)).save(path)
    image = open_dataset("folder", tmp_path, image_size=32).test.source.tree.open(0)
    assert np.array_equal(np.asarray(image)[..., 0], (ramp.astype(int) >> 8))
    path.unlink()
    path = path.with_suffix(".tif")
    Image.fromarray((ramp / 65535).astype(np.float32)).save(path)
    with pytest.raises(ApqError, match=r"0.tif \(its channels have more than 8 bits\): replace"):
        open_dataset("folder", tmp_path, image_size=32).test.source.tree.open(0)


def test_only_the_first_batch_brings_constants_to_the_device():
    class Constants(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += func.overloadpacket in (aten.full, aten.lift_fresh, aten._to_copy)
            return func(*args, **(kwargs or {}))

    aten = torch.ops.aten
    normalize = Normalization(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    images = torch.randint(256, (2, 5, 7, 3), dtype=torch.uint8)
    counts = []
    for _ in range(2):
        with Constants() as constants:
            values = normalize(images)
        counts.append(constants.seen)
    assert counts[0] > 0
    assert counts[1] == 0
    expected = (images / 255 - torch.tensor(normalize.mean)) / torch.tensor(normalize.std)
    torch.testing.assert_close(values, expected.permute(0, 3, 1, 2))
