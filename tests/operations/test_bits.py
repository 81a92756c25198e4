"""Bits of hidden units: what is packed comes out again, and every column has a bit of its own."""

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from fastenh_kernels.shared.bits import packed, where_open  # noqa: E402

ROWS = 16


@triton.jit
def _there_and_back(p_m, p_bytes, p_back, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # noqa: N803
    o = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    o_bytes = tl.arange(0, ROWS)[:, None] * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)[None, :]
    tl.store(p_bytes + o_bytes, packed(tl.load(p_m + o) > 0.0))
    tl.store(p_back + o, where_open(tl.full([ROWS, COLUMNS], 3.0, tl.float32), tl.load(p_bytes + o_bytes)))


def there_and_back(m):
    packed_bits = torch.empty(ROWS, m.shape[1] // 8, dtype=torch.uint8)
    back = torch.empty_like(m)
    _there_and_back[(1,)](m, packed_bits, back, ROWS, m.shape[1])
    return packed_bits, back


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("columns", [32, 64, 128])
def test_bits_come_back(columns):
    m = torch.randn(ROWS, columns)
    _, back = there_and_back(m)
    torch.testing.assert_close(back, torch.where(m > 0, 3.0, 0.0))


@pytest.mark.usefixtures("interpreted")
def test_every_column_has_a_bit_of_its_own():
    single = [there_and_back(torch.eye(64)[start : start + ROWS])[0] for start in range(0, 64, ROWS)]
    words = torch.cat(single)
    assert sorted(words.flatten().tolist())[-64:] == sorted([1, 2, 4, 8, 16, 32, 64, 128] * 8)
    assert len({tuple(row) for row in words.tolist()}) == 64
