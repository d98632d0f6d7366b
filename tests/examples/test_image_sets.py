import numpy as np
import pytest
import torch

from image_sets import RandAugment, load_images, mix, policy


@pytest.mark.full
def test_mnist5k():
    parts = load_images("mnist5k", None, held_out=0.25)
    assert [len(parts[name]) for name in ("train", "test")] == [3750, 1250]
    assert np.bincount(parts["test"]["label"]).tolist() == [125] * 10


@pytest.mark.parametrize(("name", "shifts"), [("shear_x", (14.4, 14.4)), ("translate_x", (45, 0))])
def test_shears_and_shifts_of_the_recipe(name, shifts):
    image = torch.zeros(1, 3, 100, 100)
    image[..., 49:51] = 1
    (operation,) = (step for step in policy if step[0][0] == name)
    moved = RandAugment(1, 29.9, [operation])(image)[0, 0]
    # A shear moves the rows at 48 above and below the center to different sides.
    top, bottom = (float(moved[row].argmax()) - 49.5 for row in (2, 97))
    assert abs(top) == pytest.approx(shifts[0], abs=1.5)
    assert abs(top - bottom) == pytest.approx(2 * shifts[1], abs=3)


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_targets_tell_the_shares_of_mixed_images(mixing):
    labels = torch.arange(2).repeat(16)
    images = labels.float()[:, None, None, None].expand(-1, 3, 64, 64)
    settings = {"mixup": 0.0, "cutmix": 0.0, mixing: 1.0}
    mixed, targets = mix(images, labels, 4, settings)
    assert torch.allclose(mixed.mean(dim=(1, 2, 3)), targets[:, 1], atol=1e-5)
    assert torch.allclose(targets.sum(dim=1), torch.ones(32))
    assert ((targets[:, 1] > 0.05) & (targets[:, 1] < 0.95)).any()
    assert mixed.unique().numel() > 2 if mixing == "mixup" else mixed.unique().numel() == 2


def test_shares_of_mixup_follow_its_parameter():
    labels = torch.arange(2).repeat(500)
    images = labels.float()[:, None, None, None]
    # Of Beta(a, a): 1 / (8 a + 4), here where the partner is of the other class.
    for alpha, variance in ((0.5, 1 / 8), (4.0, 1 / 36)):
        mixed, _ = mix(images, labels, 2, {"mixup": alpha, "cutmix": 0.0})
        share = mixed.flatten()[(mixed.flatten() != labels)]
        assert share.var().item() == pytest.approx(variance, rel=0.15)


def test_without_mixing():
    images, labels = torch.rand(3, 3, 8, 8), torch.tensor([2, 0, 2])
    mixed, targets = mix(images, labels, 3, {"mixup": 0.0, "cutmix": 0.0})
    assert torch.equal(mixed, images)
    assert targets.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 1]]
