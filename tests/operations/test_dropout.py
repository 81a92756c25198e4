"""The draws of dropout: what share is kept, that neighbours know nothing of each other, and where the counters end.

Of n pairs of independent values, centred and scaled to a variance of 1, the mean of the products has the deviation
1 / sqrt(n). With some 2,000 such means 4.8 deviations are exceeded by chance once in 300 runs; the seeds are fixed.
"""

import itertools

import numpy as np
import pytest
import torch
from dropout_again import HIDDEN_UNITS, PROJECTION, WEIGHTS, kept_rows, kept_weights

SITE, PAIRED = HIDDEN_UNITS.value, 8
ROWS, COLUMNS = 2048, 512  # a million values
DEVIATIONS = 4.8

pytestmark = pytest.mark.usefixtures("interpreted")


def centred(mask, dropout):
    """Of values 0 and 1 / (1 - dropout), with mean 0 and variance 1 where they are dropped with that probability."""
    return (mask - 1) * ((1 - dropout) / dropout) ** 0.5


def signs(seed=1, site=SITE, first=0, rows=ROWS, dropout=0.5):
    return centred(kept_rows(site, rows, COLUMNS, seed, first, dropout), dropout)


def assert_unrelated(*blocks):
    """The mean product of blocks is within chance of 0."""
    product = torch.stack(torch.broadcast_tensors(*blocks)).prod(0)
    deviations = product.mean().item() * product.numel() ** 0.5
    assert abs(deviations) < DEVIATIONS, deviations


def shifted(block, rows, columns):
    """The block and the same moved by so many rows and columns."""
    height, width = block.shape[0] - rows, block.shape[1] - columns
    return block[:height, :width], block[rows:, columns:]


@pytest.mark.parametrize("dropout", [0.01, 0.1, 0.3, 0.5, 0.9])
def test_share_that_is_kept(dropout):
    """Of all values, and of the values of each row and each column."""
    mask = kept_rows(SITE, ROWS, COLUMNS, 3, 0, dropout)
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / (1 - dropout)])
    block = centred(mask, dropout)
    assert_unrelated(block)
    for axis in (0, 1):
        sums = block.mean(axis) * block.shape[axis] ** 0.5  # about normal
        count = sums.numel()
        assert abs((sums.square().sum() - count) / (2 * count) ** 0.5) < DEVIATIONS  # chi-square


@pytest.mark.parametrize("site", [PROJECTION.value, SITE])
@pytest.mark.parametrize("dropout", [0.1, pytest.param(0.5, marks=pytest.mark.slow)])
def test_neighbouring_rows_and_columns(site, dropout):
    """All distances up to 17 rows and columns, and powers of 2; pairs of columns that share a hash are among them."""
    block = signs(site=site, dropout=dropout)
    distances = [*range(18), 32, 64, 128, 256]
    for rows, columns in itertools.product(distances, distances):
        if rows + columns:
            assert_unrelated(*shifted(block, rows, columns))


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_four_corners_of_a_rectangle(dropout):
    """A key of rows and a key of columns, combined without more, would make their product constant."""
    block = signs(dropout=dropout)
    for rows, columns in itertools.product([1, 2, 3, 16, 64, 1024], [1, 2, 3, 7, 8, 9, 16, 64, 256]):
        above, below = block[:-rows], block[rows:]
        assert_unrelated(above[:, :-columns], above[:, columns:], below[:, :-columns], below[:, columns:])


def test_patterns_of_eight():
    """Chi-square over the 256 patterns of eight columns, next to each other and of pairs that share a hash."""
    bits = (signs() > 0).long()
    near = bits.view(-1, 8)
    paired = bits.view(ROWS, -1, 2, PAIRED).transpose(2, 3).reshape(-1, 8)
    for patterns in (near, paired):
        found = torch.bincount(patterns @ 2 ** torch.arange(8), minlength=256).double()
        expected = len(patterns) / 256
        chi_square = ((found - expected).square() / expected).sum().item()
        assert abs(chi_square - 255) < DEVIATIONS * (2 * 255) ** 0.5


def test_no_period():
    """The spectrum of a million values in order is flat: no line stands out of it."""
    power = np.abs(np.fft.rfft(signs().numpy().ravel())[1:-1]) ** 2 / (ROWS * COLUMNS)  # exponential, mean 1
    assert power.max() < np.log(len(power)) + 7  # by chance once in a thousand runs


def test_seeds_sites_and_groups():
    """Neighbouring seeds (of the steps and layers), seeds that differ in one high bit, sites, and groups of rows."""
    block = signs()
    others = [signs(seed=seed) for seed in (0, 2, 3, 1 + 2**32, 1 + 2**61)]
    others += [signs(site=PROJECTION.value), *(signs(first=first) for first in (2**16, 2**17, 2**32, 2**47))]
    for other in others:
        for rows, columns in itertools.product(range(4), [0, 1, 8]):
            assert_unrelated(shifted(block, rows, columns)[0], shifted(other, rows, columns)[1])
    for one, other in itertools.combinations(others, 2):
        assert_unrelated(one, other)


def test_rows_beyond_two_to_the_thirty_second_value():
    """The counter ends there, the draws go on: row 2^23 of 512 columns is no row 0, nor is any row between groups."""
    first = signs(rows=128)
    for row in (2**16, 2**23, 2**24, 2**31, 2**40):
        assert_unrelated(first, signs(first=row, rows=128))


def test_attention_weights_of_sequences_and_heads():
    """Within a head, and of neighbouring heads and sequences, some of which differ beyond 32 bits."""
    length, groups = 160, (0, 1, 2, 3, 4, 2**31, 2**32, 2**32 + 1)
    blocks = [centred(kept_weights(group, length, 5, 0.1), 0.1) for group in groups]
    for block in blocks[:2]:
        for rows, columns in itertools.product([0, 1, 2, 8, 16, 64], [0, 1, 7, 8, 9, 16, 64]):
            if rows + columns:
                assert_unrelated(*shifted(block, rows, columns))
    for one, other in itertools.combinations(blocks, 2):
        assert_unrelated(one, other)
    assert WEIGHTS.value not in (PROJECTION.value, SITE)
    rows = centred(kept_rows(SITE, 160, 512, 5, 0, 0.1), 0.1)[:, :160]
    assert_unrelated(rows, blocks[0])


def test_hash_by_the_book():
    """The same draws in NumPy: Philox by its definition, the first steps of triple32."""
    seed, group = 2**40 + 7, 2**33 + 5
    low, high = philox((group % 2**32, group >> 32, HIDDEN_UNITS.value, 0), (seed % 2**32, seed >> 32))
    row, column = np.arange(64, dtype=np.uint32)[:, None], np.arange(512, dtype=np.uint32)
    second = column & 8
    word = row * np.uint32(512) + (column - second) + np.uint32(low)
    word = (word ^ (word >> 17)) * np.uint32(0xED5AD4BB)
    word = word ^ (word >> 11) ^ np.uint32(high)
    word = word * np.where(second, np.uint32(0x31848BAB), np.uint32(0xAC4C1B51))
    kept = torch.from_numpy(word >= int(0.1 * 2**32))
    assert torch.equal(kept, kept_rows(SITE, 64, 512, seed, group << 16, 0.1) > 0)


def philox(counter, key):
    """Two of the four words of Philox 4x32 with ten rounds (Salmon et al. 2011)."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(second >> 32) ^ c[1] ^ k[0], second % 2**32, (first >> 32) ^ c[3] ^ k[1], first % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c[:2]
