"""The index of a manifest tells where its rows begin, and is small."""

import io
import pickle

import pytest

import training.data.row_index
from training.data.row_index import STRIDE, index_rows


CONTENT = b"".join(b'{"row": %d}' % row + b"\n" * (1 + row % 2) for row in range(3 * STRIDE + 5))


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_a_block_begins_where_its_first_row_does(monkeypatch, block):
    monkeypatch.setattr(training.data.row_index, "BLOCK", block)
    index = index_rows(io.BytesIO(CONTENT), "list.jsonl")
    assert (index.size, index.num_blocks) == (3 * STRIDE + 5, 4)
    blocks = [index.block(number) for number in range(4)]
    assert blocks[0][0] == 0 and [end for _, end, _ in blocks] == [start for start, _, _ in blocks[1:]] + [
        len(CONTENT)
    ]
    for number, (start, _, line) in enumerate(blocks):
        first = b'{"row": %d}' % (STRIDE * number)
        assert CONTENT[start:].startswith(first) and CONTENT.split(b"\n")[line - 1] == first


def test_workers_get_half_a_byte_a_row():
    rows = 20_000
    pickled = pickle.dumps(index_rows(io.BytesIO(b"{}\n" * rows), "list.jsonl"))
    assert len(pickled) < rows / 2 + 1000
    assert pickle.loads(pickled).block(100) == (3 * 100 * STRIDE, 3 * 101 * STRIDE, 100 * STRIDE + 1)
