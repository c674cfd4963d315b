"""Split: checks, fingerprints, stratified splits, and channel statistics against numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from leanres.data.split import Dataset, Split, channel_stats, content_split, stratified_split
from leanres.errors import UserError

NAMES = ("cat", "dog", "owl")


def make_split(counts: tuple[int, ...] = (20, 30, 50), seed: int = 0) -> Split:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=rng)]
    images = torch.randint(256, (len(labels), 3, 6, 5), generator=rng, dtype=torch.uint8)
    return Split(images, labels, NAMES[: len(counts)])


IMAGES, LABELS = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "classes", "words"),
    [
        (IMAGES.float(), LABELS, ("a", "b"), "torch.float32"),
        (IMAGES[:, :2].contiguous(), LABELS, ("a", "b"), r"\(2, 2, 4, 4\)"),
        (IMAGES[0], LABELS, ("a", "b"), r"\(3, 4, 4\)"),
        (IMAGES[..., :0], LABELS, ("a", "b"), "at least one pixel"),
        (IMAGES.transpose(2, 3)[:, :, :, ::2], LABELS, ("a", "b"), "contiguous"),
        (IMAGES, LABELS.int(), ("a", "b"), "torch.int32"),
        (IMAGES, LABELS[:1], ("a", "b"), r"int64 of shape \(2,\)"),
        (IMAGES, LABELS, ("a",), "one name per class"),
        (IMAGES, -LABELS, ("a", "b"), "from -1 to 0"),
        (IMAGES, LABELS, ("a", "a"), "class names repeat"),
    ],
)
def test_a_split_whose_tensors_do_not_fit_is_refused_in_one_line(images, labels, classes, words):
    with pytest.raises(UserError, match=words) as caught:
        Split(images, labels, classes)
    assert "\n" not in str(caught.value)


def test_a_subset_holds_the_chosen_images_in_the_chosen_order():
    split = make_split()
    part = split.subset([7, 3])
    assert len(part) == 2
    assert torch.equal(part.images, torch.stack([split.images[7], split.images[3]]))
    assert part.labels.tolist() == [split.labels[7], split.labels[3]]
    assert part.classes == split.classes


def test_all_tensors_of_a_split_move_to_a_device():
    moved = make_split().to("cpu")
    assert moved.images.device == moved.labels.device == torch.device("cpu")
    assert moved.fingerprint == make_split().fingerprint


def test_the_fingerprint_does_not_depend_on_the_order_of_the_images():
    split = make_split()
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(5))
    assert split.subset(order).fingerprint == split.fingerprint


def test_the_fingerprint_depends_on_every_pixel_label_name_shape_and_repetition():
    split = make_split()
    pixel, label = split.images.clone(), split.labels.clone()
    pixel[41, 2, 3, 1] ^= 1
    label[41] = (label[41] + 1) % 3
    # Two images that swap their labels keep both multisets: the pairing must count.
    i, j = int((split.labels == 0).nonzero()[0]), int((split.labels == 1).nonzero()[0])
    swapped = split.labels.clone()
    swapped[i], swapped[j] = split.labels[j], split.labels[i]
    variants = [
        Split(pixel, split.labels, NAMES),
        Split(split.images, label, NAMES),
        Split(split.images, swapped, NAMES),
        Split(split.images, split.labels, ("cat", "dog", "emu")),
        Split(split.images.reshape(-1, 3, 5, 6), split.labels, NAMES),
        split.subset([*range(len(split)), 0]),
    ]
    assert len({split.fingerprint, *(variant.fingerprint for variant in variants)}) == 7


def test_every_class_keeps_its_share_in_a_stratified_split():
    train, val = stratified_split(make_split((200, 300, 500)), num_val=100)
    assert torch.bincount(val.labels).tolist() == [20, 30, 50]
    assert torch.bincount(train.labels).tolist() == [180, 270, 450]


def test_fractional_shares_still_add_up_and_leave_no_class_out():
    train, val = stratified_split(make_split((2, 31, 67)), num_val=10)
    counts = torch.bincount(val.labels).tolist()
    assert sum(counts) == 10
    assert counts[0] == 1
    assert counts[1] in (3, 4)
    assert counts[2] in (6, 7)
    assert len(train) == 90


def test_a_stratified_split_uses_each_image_once_and_keeps_the_order():
    split = make_split()
    train, val = stratified_split(split, num_val=20)
    rows = [image.numpy().tobytes() for image in split.images]
    parts = [[rows.index(image.numpy().tobytes()) for image in p.images] for p in (train, val)]
    assert sorted(parts[0] + parts[1]) == list(range(100))
    assert parts == [sorted(part) for part in parts]


def test_a_stratified_split_depends_on_the_seed_alone():
    split = make_split()
    first, again = (stratified_split(split, 20, seed=3)[1] for _ in range(2))
    other = stratified_split(split, 20, seed=4)[1]
    assert torch.equal(first.images, again.images)
    assert first.fingerprint != other.fingerprint


def test_the_same_images_in_another_order_give_the_same_validation_set():
    split = make_split()
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(9))
    one, other = stratified_split(split, 20)[1], stratified_split(split.subset(order), 20)[1]
    assert one.fingerprint == other.fingerprint


def test_the_random_state_of_torch_does_not_change():
    before = torch.random.get_rng_state()
    stratified_split(make_split(), 20)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("num_val", [-1, 0, 2, 98, 100, 5000])
def test_a_split_that_would_empty_a_class_is_refused_with_what_fits(num_val):
    with pytest.raises(UserError, match="between 3 and 97"):
        stratified_split(make_split(), num_val)


def test_a_class_with_one_image_cannot_be_split():
    with pytest.raises(UserError, match="'cat' has fewer than 2"):
        stratified_split(make_split((1, 30, 50)), 20)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channel_statistics_are_the_exact_mean_and_population_deviation(channels):
    whole = make_split()
    images = torch.cat((whole.images, whole.images[:, :1]), 1)[:, :channels].contiguous()
    split = Split(images, whole.labels, whole.classes)
    pixels = split.images.numpy().astype(np.float64) / 255
    mean, std = channel_stats(split)
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), rtol=1e-12)


def test_a_constant_channel_has_a_deviation_of_exactly_zero():
    images = torch.full((1500, 3, 8, 8), 77, dtype=torch.uint8)
    mean, std = channel_stats(Split(images, torch.arange(1500) % 2, ("a", "b")))
    assert mean == (77 / 255,) * 3
    assert std == (0.0,) * 3


def dealt(parts: tuple[Split, Split]) -> dict[bytes, int]:
    """The digest of each image, and the part it is in."""
    return {d.tobytes(): side for side, part in enumerate(parts) for d in part.digests}


@pytest.mark.parametrize("share", [0.2, 0.1])
def test_further_images_move_none_and_equal_ones_stay_together(share):
    split = make_split((60, 90, 150))
    before = dealt(content_split(split, share))
    for more in (1, 7, 300):
        other = make_split((more, more, more), seed=more)
        pixels = torch.cat([other.images, split.images, split.images[:20]])
        labels = torch.cat([other.labels, split.labels, split.labels[:20]])
        grown = content_split(Split(pixels, labels, NAMES), share)
        after = dealt(grown)
        assert all(after[digest] == side for digest, side in before.items())
        assert sum(map(len, grown)) == len(pixels)
        assert not {d.tobytes() for d in grown[0].digests} & {d.tobytes() for d in grown[1].digests}


def test_shares_by_content_are_met_on_average_and_no_class_is_empty():
    counts = []
    for seed in range(60):
        train, test = content_split(make_split((10, 30, 60), seed=seed), 0.2)
        assert {*train.labels.tolist()} == {*test.labels.tolist()} == {0, 1, 2}
        counts.append(len(test))
    assert abs(np.mean(counts) - 20) < 3 * 4 / 60**0.5  # a binomial's sd is 4
    assert 2.5 < np.std(counts) < 5.5


def test_a_number_of_images_by_content_is_met_in_every_class():
    train, val = content_split(make_split((20, 30, 50)), 10)
    assert torch.bincount(val.labels).tolist() == [2, 3, 5]
    assert len(train) == 90


def test_test_and_val_are_drawn_independently():
    data = Dataset.of("x", {"all": make_split((400, 400, 400))}).with_val(0.5)
    assert 0.4 < len(data.val) / (len(data.val) + len(data.train)) < 0.6


def test_a_class_of_equal_images_cannot_be_split():
    split = make_split((20, 30))
    images = torch.where(split.labels[:, None, None, None] == 0, 7, split.images).contiguous()
    with pytest.raises(UserError, match="class 'cat' has fewer than 2 different images"):
        content_split(Split(images.to(torch.uint8), split.labels, split.classes), 0.2)


def test_complete_sets_hold_out_exact_numbers():
    data = Dataset("x", make_split((200, 300, 500)), None, None)
    by_share, by_number = data.with_val(0.1), data.with_val(100)
    assert by_share.val.fingerprint == by_number.val.fingerprint
    assert torch.bincount(by_share.val.labels).tolist() == [20, 30, 50]
    with pytest.raises(UserError, match=r"^val = 5000: cannot hold out 5000 of 1000"):
        data.with_val(5000)


def test_file_names_follow_their_images():
    split = make_split()
    named = replace(split, files=tuple(f"{i}.png" for i in range(len(split))))
    assert named.subset([7, 3]).files == ("7.png", "3.png")
    with pytest.raises(UserError, match="2 file names for 100 images"):
        replace(split, files=("a", "b"))


def test_classes_that_are_in_test_or_val_alone_are_refused_and_named():
    rgb, labels = np.zeros((8, 4, 4, 3), np.uint8), np.array(["a", "b"] * 4)
    for part in ("test", "val"):
        with pytest.raises(UserError, match=f"class 'q' has {part} images and no train images"):
            Dataset.from_arrays(
                rgb, labels, **{"test": (rgb[:1], ["a"]), part: (rgb[:2], ["a", "q"])}
            )


def test_classes_that_are_in_train_alone_are_noted():
    rgb, labels = np.zeros((8, 4, 4, 3), np.uint8), np.array(["a", "b", "c", "d"] * 2)
    data = Dataset.from_arrays(
        rgb, labels, test=(rgb[:2], ["a", "d"]), val=(rgb[:3], ["a", "b", "d"])
    )
    assert data.notes == (
        "val has no image of 1 class of train: c",
        "test has no image of 2 classes of train: b, c",
    )
