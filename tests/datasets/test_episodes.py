"""Episodes: what each of them is made of, that it is a function of seed and number, and what is refused."""

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mebqat_lite.datasets import DataError, Episode, Episodes, Split


def made(sizes, seed=0, shape=(1, 4, 4), names=None):
    """Float images of classes with ``sizes`` members, shuffled; the first pixel of an image is its own number."""
    names = range(len(sizes)) if names is None else names
    labels = torch.cat([torch.full((size,), name) for size, name in zip(sizes, names, strict=True)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    images = torch.rand(len(labels), *shape, generator=torch.Generator().manual_seed(seed + 1))
    images[:, 0, 0, 0] = torch.arange(len(labels))
    return Split(images, labels)


class Untouchable:
    """Images that nobody may look at, index, measure or even name an attribute of."""

    def __getattribute__(self, name):
        raise AssertionError(f"the images were asked for {name}")

    def __getitem__(self, index):
        raise AssertionError("an image was taken")

    def __len__(self):
        raise AssertionError("the images were counted")

    def __iter__(self):
        raise AssertionError("the images were gone through")


@st.composite
def asked(draw):
    """Classes of uneven sizes with labels that are not 0, 1, 2, and an episode shape that fits them."""
    ways, shots, queries = draw(st.integers(2, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    need = shots + queries
    sizes = draw(st.lists(st.integers(need, need + 5), min_size=ways, max_size=ways + 4))
    names = draw(st.lists(st.integers(-5, 10**6), min_size=len(sizes), max_size=len(sizes), unique=True))
    return made(sizes, names=names), ways, shots, queries


# --- what an episode is -----------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(asked(), st.integers(0, 2**40), st.integers(0, 10**6))
def test_an_episode_has_n_different_classes_and_no_image_twice(question, seed, number):
    split, ways, shots, queries = question
    index = Episodes(split, ways, shots, queries, seed).index(number)
    assert index.shape == (ways, shots + queries) and index.dtype == torch.int64
    classes = split.labels[index]  # (N, K + Q)
    assert (classes == classes[:, :1]).all()  # of its row's class
    assert len(classes[:, 0].unique()) == ways  # no class twice
    assert len(index.unique()) == index.numel()  # support and query disjoint


@settings(max_examples=40, deadline=None)
@given(asked(), st.integers(0, 10**6))
def test_the_images_of_an_episode_are_those_of_its_index(question, number):
    split, ways, shots, queries = question
    episodes = Episodes(split, ways, shots, queries)
    episode, index = episodes[number], episodes.index(number)
    assert episode.support.shape == (ways, shots, 1, 4, 4) and episode.query.shape == (ways, queries, 1, 4, 4)
    assert torch.equal(episode.support, split.images[index[:, :shots]])
    assert torch.equal(episode.query, split.images[index[:, shots:]])
    numbers = [part[..., 0, 0, 0].flatten().tolist() for part in episode]
    assert not set(numbers[0]) & set(numbers[1])


@settings(max_examples=40, deadline=None)
@given(asked(), st.integers(0, 10**6), st.integers(0, 10**6))
def test_an_episode_is_a_function_of_seed_and_number_alone(question, seed, number):
    split, *shape = question
    alone = Episodes(split, *shape, seed=seed).index(number)
    episodes = Episodes(split, *shape, seed=seed, tasks=3)
    torch.manual_seed(number)
    for before in (number + 7, 0, 3):
        episodes.index(before)
    assert torch.equal(episodes.index(number), alone) and torch.equal(episodes.index(number), alone)


def test_other_seeds_and_other_numbers_give_other_episodes():
    split = made([9] * 8)
    found = [Episodes(split, 4, 2, 3, seed).index(number) for seed in range(20) for number in range(20)]
    assert len({tuple(index.flatten().tolist()) for index in found}) == 400


def test_the_label_of_a_query_is_its_row():
    episode = Episodes(made([9] * 4, names=[70, 3, 5, 44]), 3, 2, 4)[0]
    assert episode.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(episode.labels) == len(episode.query.flatten(0, 1))
    assert Episode(torch.zeros(5, 1, 1, 2, 2), torch.zeros(5, 1, 1, 2, 2)).labels.tolist() == [0, 1, 2, 3, 4]


def test_the_tasks_of_all_steps_are_different_episodes_in_order():
    episodes = Episodes(made([9] * 8), 4, 2, 3, tasks=3)
    for step in range(4):
        for index in range(3):
            task, wanted = episodes.task(step, index), episodes[3 * step + index]
            assert torch.equal(task.support, wanted.support) and torch.equal(task.query, wanted.query)
    single = Episodes(made([9] * 8), 4, 2, 3)
    assert torch.equal(single.task(5).query, single[5].query)


def test_bytes_become_floats_from_0_to_1():
    split = made([6] * 3)
    numbers = torch.arange(split.images.numel()).reshape(split.images.shape) % 256
    stored = Split(numbers.to(torch.uint8), split.labels)
    episodes = Episodes(stored, 2, 1, 2)
    episode, index = episodes[4], episodes.index(4)
    assert episode.support.dtype == episode.query.dtype == torch.float32
    torch.testing.assert_close(episode.query, numbers[index[:, 1:]].float() / 255)
    everything = torch.cat([torch.cat([*map(torch.flatten, episodes[n])]) for n in range(30)])
    assert everything.min() == 0 and everything.max() == 1
    assert stored.images.dtype == torch.uint8 and torch.equal(stored.images, numbers.to(torch.uint8))


def test_doubles_stay_doubles():
    split = made([6] * 3)
    assert Episodes(Split(split.images.double(), split.labels), 2, 1, 2)[0].support.dtype == torch.float64


# --- all choices are equally likely -----------------------------------------------------------------------------


def is_uniform(counts):
    """A chi-square test that a right sampler fails once in ten thousand seeds; the seeds here are fixed."""
    return scipy.stats.chisquare(counts).pvalue > 1e-4


def test_every_class_and_every_image_of_a_class_is_equally_likely():
    sizes = [5, 8, 5, 12, 7, 6]
    split = made(sizes)
    episodes = Episodes(split, 3, 2, 3)
    support, query = torch.zeros(sum(sizes)), torch.zeros(sum(sizes))
    rows = torch.zeros(len(sizes), 3)  # which class is which label
    for number in range(4000):
        index = episodes.index(number)
        support[index[:, :2].flatten()] += 1
        query[index[:, 2:].flatten()] += 1
        rows[split.labels[index[:, 0]], torch.arange(3)] += 1
    # A class in two successive episodes is independent, but not in one; then the statistic is smaller, never larger.
    assert is_uniform(rows.sum(1)) and all(is_uniform(row) for row in rows)
    for label in range(len(sizes)):
        for counts in (support, query):
            assert is_uniform(counts[split.labels == label]), label
        assert (support + query)[split.labels == label].min() > 0


def test_classes_of_just_enough_images_give_all_of_them():
    split = made([5, 9, 5, 20])
    for number in range(50):
        index = Episodes(split, 4, 2, 3).index(number)
        for row in index:
            label = split.labels[row[0]]
            if label in (0, 2):
                assert sorted(row.tolist()) == (split.labels == label).nonzero().flatten().tolist()


# --- the pixels are left alone ----------------------------------------------------------------------------------


def test_sampling_touches_no_pixel():
    labels = made([20] * 50).labels
    episodes = Episodes(Split(Untouchable(), labels), 20, 5, 15, tasks=4)
    index = torch.stack([episodes.index(number) for number in range(1000)])
    assert index.shape == (1000, 20, 20)
    with pytest.raises(AssertionError, match=r"the images were|an image was taken"):
        episodes[0]  # so the images would have raised


# --- fingerprints -----------------------------------------------------------------------------------------------


def test_a_fingerprint_changes_with_the_seed_the_count_the_pixels_and_the_labels():
    split = made([9] * 6)
    mark = Episodes(split, 3, 2, 3).fingerprint(20)
    assert mark == Episodes(made([9] * 6), 3, 2, 3).fingerprint(20) and len(mark) == 16
    touched = Split(split.images.clone(), split.labels)
    touched.images[17, 0, 3, 3] += 1e-3
    relabelled = Split(split.images, split.labels.clone())
    one, other = (int((split.labels == label).nonzero()[0]) for label in (0, 1))
    relabelled.labels[one], relabelled.labels[other] = 1, 0
    others = [
        Episodes(split, 3, 2, 3, seed=1).fingerprint(20),
        Episodes(split, 3, 2, 3).fingerprint(21),
        Episodes(split, 3, 2, 3).fingerprint(19),
        Episodes(split, 4, 2, 3).fingerprint(20),
        Episodes(split, 3, 2, 2).fingerprint(20),
        Episodes(touched, 3, 2, 3).fingerprint(20),
        Episodes(relabelled, 3, 2, 3).fingerprint(20),
    ]
    assert len({mark, *others}) == 1 + len(others)


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "shape", "words"),
    [
        ([9] * 4, (5, 1, 1), ["5 ways", "there are 4", "fewer ways"]),
        ([9, 5, 9, 4], (2, 3, 3), ["3 shots and 3 queries need 6 images", "2 of 4 classes", "smallest 4"]),
        ([5, 6], (2, 3, 3), ["1 of 2 classes", "smallest 5"]),
        ([], (2, 1, 1), ["no images", "empty"]),
    ],
)
def test_a_split_that_is_too_small_is_refused_with_counts(sizes, shape, words):
    split = made(sizes) if sizes else Split(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError) as caught:
        Episodes(split, *shape)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_split_of_just_enough_is_taken():
    assert Episodes(made([6] * 2), 2, 3, 3).index(0).shape == (2, 6)


@pytest.mark.parametrize("name", ["ways", "shots", "queries", "tasks"])
@pytest.mark.parametrize("value", [0, -1, True, False, 2.0, "2", None])
def test_counts_are_whole_numbers(name, value):
    options = {"ways": 2, "shots": 1, "queries": 1, "tasks": 1, name: value}
    least = 2 if name == "ways" else 1
    with pytest.raises(ValueError, match=rf"{name} must be a whole number of at least {least}, not {value!r}"):
        Episodes(made([9] * 4), **options)


def test_one_way_is_no_choice():
    with pytest.raises(ValueError, match="ways must be a whole number of at least 2, not 1"):
        Episodes(made([9] * 4), 1, 1, 1)
