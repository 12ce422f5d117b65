"""Blocks of a token stream: their columns, and rows of any length that are cut from them."""

import numpy as np
import pytest

from sleep_data.stream import blocks_of, cut_row

PAD = 99


def documents(seed, count=40, longest=30):
    """Documents of distinct tokens, of one token and more."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, size=count)
    ends = lengths.cumsum()
    return [np.arange(end - n, end, dtype=np.int32) + 1000 for end, n in zip(ends, lengths, strict=True)]


def expected(docs):
    """Tokens, next tokens within the document, and first tokens of a stream, document by document."""
    tokens = np.concatenate(docs)
    targets = np.concatenate([np.append(d[1:], -100) for d in docs])
    first = np.concatenate([np.arange(len(d)) == 0 for d in docs])
    return tokens, targets, first


@pytest.mark.parametrize("block", [1, 2, 12, 60, 5000])
def test_rows_of_every_length_hold_the_stream(block):
    docs = documents(block)
    tokens, targets, first = expected(docs)
    blocks = [{name: column[0] for name, column in one.items()} for one in blocks_of(docs, block)]
    assert [len(one["tokens"]) for one in blocks[:-1]] == [block] * (len(blocks) - 1)
    assert [int(one["id"]) for one in blocks] == list(range(len(blocks)))
    for row in [n for n in range(1, block + 1) if block % n == 0 and n < 100]:
        cut = [cut_row(one, at, row, PAD) for one in blocks for at in range(0, len(one["tokens"]), row)]
        columns = {name: np.concatenate([r[name] for r in cut]) for name in cut[0]}
        real = len(tokens)
        assert len(columns["tokens"]) == -(-real // row) * row
        assert columns["tokens"][:real].tolist() == tokens.tolist() and set(columns["tokens"][real:]) <= {PAD}
        assert columns["targets"][:real].tolist() == targets.tolist() and set(columns["targets"][real:]) <= {-100}
        assert columns["starts"][:real].astype(bool).tolist() == first.tolist() and not columns["starts"][real:].any()
        assert (columns["groups"] == np.where(columns["targets"] == -100, -1, 0)).all()


@pytest.mark.parametrize("block", [1, 7, 64])
def test_every_block_names_its_first_token(block):
    docs = documents(3)
    for one in blocks_of(iter(docs), block):
        document, offset = int(one["document"][0]), int(one["offset"][0])
        assert one["tokens"][0, 0] == docs[document][offset]


def test_a_block_knows_the_token_after_it_where_its_document_goes_on():
    docs = [np.arange(5, dtype=np.int32), np.arange(10, 14, dtype=np.int32)]
    assert [int(one["next"][0]) for one in blocks_of(docs, 3)] == [3, 11, -100]
    assert [int(one["next"][0]) for one in blocks_of([docs[0], docs[1]], 5)] == [-100, -100]
