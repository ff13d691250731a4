import random
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_pad import checkpoint
from recbole_pad.seeding import rng_state, seed_all, seeded, set_rng_state


def draw() -> list[float]:
    """One number of each way of drawing; gaussians come in pairs, so one stays cached in the generator."""
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
        float(torch.randn(())),
    ]


def test_a_restored_state_repeats_every_generator():
    draw()  # from here on a gaussian is cached in numpy and in Python
    state = rng_state()
    first, second = draw(), draw()
    assert all(a != b for a, b in zip(first, second, strict=True))
    set_rng_state(state)
    assert [draw(), draw()] == [first, second]


def test_a_state_survives_a_checkpoint_file(tmp_path: Path):
    draw()
    checkpoint.save(tmp_path / "state.pth", {"rng": rng_state()})
    expected = draw()
    draw()
    set_rng_state(checkpoint.load(tmp_path / "state.pth")["rng"])
    assert draw() == expected


def test_a_taken_state_does_not_move_with_the_generators():
    state = rng_state()
    expected = draw()
    for _ in range(1000):
        draw()
    set_rng_state(state)
    assert draw() == expected


@pytest.mark.parametrize("seed", [0, 7, 2**31])
def test_seed_all_seeds_each_library_by_that_number(seed: int):
    seed_all(seed)
    drawn = random.random(), float(np.random.rand()), float(torch.rand(()))
    own_torch = torch.rand((), generator=torch.Generator().manual_seed(seed))
    assert drawn == (random.Random(seed).random(), np.random.RandomState(seed).rand(), float(own_torch))


def test_seeds_beyond_32_bits_are_accepted_and_repeat():
    seed_all(2**40 + 3)
    first = draw()
    seed_all(2**40 + 3)
    assert draw() == first


def test_a_seeded_block_repeats_and_leaves_no_trace():
    state = rng_state()
    expected_after = draw()
    set_rng_state(state)
    with seeded(3):
        inside = draw()
    assert draw() == expected_after
    with seeded(3):
        assert draw() == inside
    with seeded(4):
        assert draw() != inside


def test_a_seeded_block_that_raises_puts_the_generators_back():
    state = rng_state()
    expected = draw()
    set_rng_state(state)
    with pytest.raises(ZeroDivisionError), seeded(3):
        draw()[0] / 0
    assert draw() == expected
