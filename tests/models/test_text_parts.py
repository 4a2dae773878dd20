"""What text networks are made of, against a plain way to do the same."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.bag_of_ngrams import BagOfNgrams, Ngrams, runs
from models.base import SENTENCE_END
from models.gru import GRU
from models.hierarchical_attention import sentences
from models.lstm import LSTM
from models.parts.pooling import AttentionPooling, MaxPooling, MeanPooling
from models.parts.recurrent import LastState, RecurrentEncoder, reverse
from models.parts.transformer import TransformerLayer, sinusoids
from models.rnn import RNN
from models.transformer import Transformer

LENGTHS = torch.tensor([5, 1, 8, 3])


def sequences(width: int = 6) -> Tensor:
    return torch.randn(4, 8, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("encoder", [LSTM(), GRU(), RNN()], ids=lambda e: e.name)
def test_a_padded_layer_gives_the_states_of_a_packed_one(encoder: RecurrentEncoder) -> None:
    torch.manual_seed(0)
    layer = encoder.model_copy(update={"width": 10}).layer(6)
    assert layer.backwards is not None
    kind = type(layer.forwards)
    packed_layer = kind(6, 5, batch_first=True, bidirectional=True)
    names = dict(layer.forwards.named_parameters())
    names |= {f"{n}_reverse": p for n, p in layer.backwards.named_parameters()}
    packed_layer.load_state_dict(names)
    packed = pack_padded_sequence(sequences(), LENGTHS, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(packed_layer(packed)[0], batch_first=True)
    found = layer(sequences(), LENGTHS)
    for text, length in enumerate(LENGTHS):
        torch.testing.assert_close(found[text, :length], expected[text, :length])
    last = LastState(5)(found, LENGTHS)
    hidden = packed_layer(packed)[1]
    hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    torch.testing.assert_close(last, torch.cat([hidden[0], hidden[1]], 1))


def test_reversing_twice_changes_nothing() -> None:
    once = reverse(sequences(), LENGTHS)
    assert once[0, :5].equal(sequences()[0, :5].flip(0))
    assert reverse(once, LENGTHS).equal(sequences())


def test_poolings_look_at_tokens_alone() -> None:
    states = sequences()
    for text, length in enumerate(LENGTHS):
        inside = states[text, :length]
        torch.testing.assert_close(MeanPooling()(states, LENGTHS)[text], inside.mean(0))
        torch.testing.assert_close(MaxPooling()(states, LENGTHS)[text], inside.amax(0))


def test_attention_weights_are_shares_of_the_tokens() -> None:
    pool = AttentionPooling(6, 4, hops=3)
    weights = pool.weights(sequences(), LENGTHS)
    assert weights.shape == (4, 8, 3)
    torch.testing.assert_close(weights.sum(1), torch.ones(4, 3))
    assert all((weights[text, length:] == 0).all() for text, length in enumerate(LENGTHS))
    assert pool(sequences(), LENGTHS).shape == (4, 18)


@pytest.mark.parametrize("seed", range(5))
def test_texts_are_cut_behind_every_sentence_end(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 15, (6,), generator=random)
    tokens = torch.randint(1, 5, (6, 15), generator=random)
    tokens[torch.arange(15) >= lengths[:, None]] = 0
    cut = sentences(tokens, lengths)
    found = [row[:length].tolist() for row, length in zip(cut.tokens, cut.lengths, strict=True)]
    texts = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
    expected = [split(text) for text in texts]
    assert found == [sentence for text in expected for sentence in text]
    assert cut.counts.tolist() == [len(text) for text in expected]
    assert cut.text.tolist() == [i for i, text in enumerate(expected) for _ in text]
    assert cut.place.tolist() == [place for text in expected for place in range(len(text))]


def split(text: list[int]) -> list[list[int]]:
    found: list[list[int]] = [[]]
    for place, token in enumerate(text):
        found[-1].append(token)
        if token == SENTENCE_END and place + 1 < len(text):
            found.append([])
    return found


def test_a_transformer_layer_is_torchs_own() -> None:
    torch.manual_seed(0)
    ours = TransformerLayer(8, 2, 16, 0.0)
    theirs = nn.TransformerEncoderLayer(
        8, 2, 16, 0.0, activation="gelu", batch_first=True, norm_first=True
    )
    mine = ours.state_dict()
    names = ["attention.project", "attention.merge", "feedforward.0", "feedforward.3"]
    names += ["attention_norm", "feedforward_norm"]
    their = [
        "self_attn.in_proj_",
        "self_attn.out_proj.",
        "linear1.",
        "linear2.",
        "norm1.",
        "norm2.",
    ]
    theirs.load_state_dict(
        {
            f"{b}{k}": mine[f"{a}.{k}"]
            for a, b in zip(names, their, strict=True)
            for k in ("weight", "bias")
        }
    )
    inside = torch.arange(8) < LENGTHS[:, None]
    found = ours(sequences(8), inside[:, None, None])
    expected = theirs(sequences(8), src_key_padding_mask=~inside)
    torch.testing.assert_close(found[inside], expected[inside])


def test_sinusoids_are_bounded_and_differ_from_place_to_place() -> None:
    places = sinusoids(200, 7)
    assert places.shape == (200, 7)
    assert places.abs().max() <= 1
    assert torch.cdist(places, places).fill_diagonal_(9).min() > 0.01


@pytest.mark.parametrize("positions", ["learned", "sinusoid"])
def test_a_transformer_reads_order_up_to_its_length(positions: str) -> None:
    torch.manual_seed(0)
    backbone = Transformer(positions=positions).build(20, 9).eval()
    tokens, lengths = torch.arange(3, 12)[None], torch.tensor([9])
    assert backbone(tokens, lengths).shape == (1, 128)
    assert not torch.allclose(
        backbone(tokens, lengths), backbone(tokens.flip(1), lengths), atol=1e-4
    )


def test_heads_that_do_not_share_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple of 3 heads"):
        Transformer(heads=3)


def test_runs_have_the_same_number_wherever_they_stand_and_no_other_run_has() -> None:
    singles, pairs, triples = runs(torch.tensor([[5, 7, 5, 7, 6]]), 3)
    assert singles[0, 0] == singles[0, 2]
    assert pairs[0, 0] == pairs[0, 2]
    found = torch.cat([singles, pairs, triples], 1).flatten().tolist()
    assert [len(numbers[0]) for numbers in (singles, pairs, triples)] == [5, 4, 3]
    assert len(set(found)) == len({5, 7, 6}) + len({57, 75, 76}) + len({575, 757, 576})


def test_a_bag_of_ngrams_is_the_sum_of_its_vectors_over_the_root_of_their_number() -> None:
    torch.manual_seed(0)
    bag = Ngrams(BagOfNgrams(longest=2, buckets=4096, width=3)).eval()
    tokens = torch.tensor([[5, 7, 9, 0], [4, 0, 0, 0], [5, 7, 9, 4]])
    vectors = [bag.embedding.weight[run[0] % 4096] for run in runs(tokens[:1, :3], 2)]
    found = bag(tokens, torch.tensor([3, 1, 4]))
    torch.testing.assert_close(found[0], torch.cat(vectors).sum(0) / 5**0.5)
    torch.testing.assert_close(found[1], bag(tokens[1:2, :1], torch.tensor([1]))[0])


def test_the_order_of_tokens_matters_to_a_bag_of_ngrams_as_far_as_its_runs_reach() -> None:
    torch.manual_seed(0)
    texts, lengths = torch.tensor([[4, 5, 6], [6, 5, 4]]), torch.tensor([3, 3])
    one, other = Ngrams(BagOfNgrams(longest=1))(texts, lengths)
    torch.testing.assert_close(one, other)
    one, other = Ngrams(BagOfNgrams(longest=2))(texts, lengths)
    assert not torch.allclose(one, other)
