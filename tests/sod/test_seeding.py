"""The data stream and its seeds."""

from __future__ import annotations

import random
from collections import Counter

import torch

from sod.seeding import derive_seed, permutation, seed_generators, take_from


def test_seeds_differ_by_purpose_and_place_and_never_change():
    seeds = {derive_seed(0, "rollout", 1), derive_seed(0, "rollout", 2), derive_seed(0, "order", 1)}
    assert len(seeds) == 3
    assert derive_seed(0, "rollout", 1, 1) != derive_seed(0, "rollout", 11)
    assert derive_seed(7, "rollout", 3) == 5368801767685862873


def test_every_pass_gives_each_item_once_in_an_order_of_its_own():
    items = list(range(10))
    taken = take_from(items, 0, 30, seed=5)
    passes = [taken[:10], taken[10:20], taken[20:]]
    assert all(sorted(one) == items for one in passes)
    assert len({tuple(one) for one in passes}) == 3


def test_a_stream_can_be_entered_anywhere():
    items = list("abcdefg")
    whole = take_from(items, 0, 40, seed=1)
    assert take_from(items, 13, 20, seed=1) == whole[13:33]
    assert take_from(items, 0, 40, seed=2) != whole


def test_more_than_the_data_set_in_one_round_takes_items_again():
    counts = Counter(take_from([1, 2, 3], 0, 7, seed=0))
    assert sorted(counts.values()) == [2, 2, 3]


def test_generators_repeat_at_the_same_place():
    drawn = []
    for place in (3, 4, 3):
        seed_generators(0, "update", place)
        drawn.append((random.random(), float(torch.rand(()))))
    assert drawn[0] == drawn[2] != drawn[1]


def test_permutation_is_one():
    assert sorted(permutation(50, 3)) == list(range(50))
    assert permutation(50, 3) != permutation(50, 4)
