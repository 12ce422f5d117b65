"""Blocks of a token stream: their columns, and rows of any length that are cut from them."""

import numpy as np
import pytest

from sleep_data.stream import Stream, blocks_of, cut_row, from_shard, targets_of, to_shard, token_type

PAD = 99


def documents(seed, count=40, longest=30):
    """Documents of distinct tokens, of one token and more, and the tokens of their prompts."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, size=count)
    prompts = [int(random.integers(0, n + 1)) if random.integers(2) else 0 for n in lengths]
    ends = lengths.cumsum()
    return [np.arange(end - n, end, dtype=np.int32) + 1000 for end, n in zip(ends, lengths, strict=True)], prompts


def expected(docs, prompts):
    """Tokens, targets and first tokens of a stream, token by token."""
    tokens, targets, first = [], [], []
    for document, prompt in zip(docs, prompts, strict=True):
        for i, token in enumerate(document.tolist()):
            tokens.append(token)
            predicted = i + 1 < len(document) and i + 1 >= prompt
            targets.append(int(document[i + 1]) if predicted else -100)
            first.append(i == 0)
    return tokens, targets, first


@pytest.mark.parametrize("block", [1, 2, 12, 60, 5000])
def test_rows_of_every_length_hold_the_stream(block):
    docs, prompts = documents(block)
    tokens, targets, first = expected(docs, prompts)
    blocks = [from_shard(to_shard(one)) for one in blocks_of(docs, block, prompts)]
    assert [len(one["tokens"]) for one in blocks[:-1]] == [block] * (len(blocks) - 1)
    assert [one["id"] for one in blocks] == list(range(len(blocks)))
    for row in [n for n in range(1, block + 1) if block % n == 0 and n < 100]:
        cut = [cut_row(one, at, row, PAD) for one in blocks for at in range(0, len(one["tokens"]), row)]
        columns = {name: np.concatenate([r[name] for r in cut]) for name in cut[0]}
        real = len(tokens)
        assert len(columns["tokens"]) == -(-real // row) * row
        assert columns["tokens"][:real].tolist() == tokens and set(columns["tokens"][real:]) <= {PAD}
        assert columns["targets"][:real].tolist() == targets and set(columns["targets"][real:]) <= {-100}
        assert columns["starts"][:real].astype(bool).tolist() == first and not columns["starts"][real:].any()
        assert (columns["groups"] == np.where(columns["targets"] == -100, -1, 0)).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_counts(seed):
    docs, prompts = documents(seed)
    stream = Stream.of(np.array([len(document) for document in docs]), np.array(prompts))
    tokens, targets, _ = expected(docs, prompts)
    assert stream.tokens == len(tokens) and stream.targets == sum(target != -100 for target in targets)
    assert sum(int((targets_of(block) != -100).sum()) for block in blocks_of(docs, 7, prompts)) == stream.targets


@pytest.mark.parametrize("block", [1, 7, 64])
def test_every_block_names_its_first_token(block):
    docs, _ = documents(3)
    for one in blocks_of(docs, block):
        assert one["tokens"][0] == docs[one["document"]][one["offset"]]


def test_a_block_knows_the_token_after_it_where_its_document_goes_on():
    docs = [np.arange(5, dtype=np.int32), np.arange(10, 14, dtype=np.int32)]
    assert [one["next"] for one in blocks_of(docs, 3)] == [3, 11, -100]
    assert [one["next"] for one in blocks_of(docs, 5)] == [-100, -100]
    assert [one["next"] for one in blocks_of(docs, 3, [4, 0])] == [-100, 11, -100]


def test_tokens_are_stored_in_two_bytes_where_all_ids_fit():
    assert (token_type(65_536), token_type(65_537)) == (np.uint16, np.int32)
