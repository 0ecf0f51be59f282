from math import exp, sqrt

import pytest
import torch
from hypothesis import given, strategies as st
from torch.nn import functional as F

from helpers import close, quick
from tinylm import ATTENTION, Block, CausalSelfAttention, Fresh, LMConfig, Watched
from tinylm import attention_weights, causal_attention, causal_mask, fused_attention

def alone(x, name='fused'): return Fresh(torch.arange(x.shape[1])[None], ATTENTION[name])

@st.composite
def queries_keys_values(draw):
    "Random q (B, H, T, D) and k, v (B, H, S, D) with S at least T."
    B, H, T, earlier, D, seed = (draw(st.integers(low, high)) for low,
                                 high in [(1, 3), (1, 3), (1, 6), (0, 5), (1, 5), (0, 999)])
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, H, n, D, generator=generator) for n in (T, T+earlier, T+earlier)]

@st.composite
def layers(draw):
    "A CausalSelfAttention of H heads and an input x (B, T, C)."
    H, D, B, T, seed = (draw(st.integers(low, high)) for low,
                        high in [(1, 5), (1, 5), (1, 3), (1, 7), (0, 999)])
    torch.manual_seed(seed)
    return CausalSelfAttention(H*D, H, bias=draw(st.booleans())), torch.randn(B, T, H*D)

def allowed(T, S): return torch.arange(S) <= torch.arange(T)[:, None] + (S-T)

# --- the mask

@quick
@given(st.integers(1, 9), st.integers(0, 9))
def test_the_last_queries_see_themselves_and_all_before(T, earlier):
    mask = causal_mask(T, T+earlier)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[s <= earlier+t for s in range(T+earlier)] for t in range(T)]

def test_without_earlier_keys_the_mask_is_square(): assert torch.equal(causal_mask(5), causal_mask(5, 5))

@pytest.mark.parametrize('T, S', [(0, 4), (-1, 4), (5, 4), (1, 0), (0, 0)])
def test_more_queries_than_keys_or_none_are_refused(T, S):
    with pytest.raises(ValueError, match=f'{T} queries at the end of {S} keys: expected 0 < T <= S'):
        causal_mask(T, S)

def test_attention_to_fewer_keys_than_queries_is_refused():
    with pytest.raises(ValueError, match='3 queries at the end of 2 keys'):
        causal_attention(torch.ones(3, 4), torch.ones(2, 4), torch.ones(2, 4))

# --- the reference

@quick
@given(queries_keys_values())
def test_attention_is_the_loop_over_every_query_and_key(qkv):
    q, k, v = qkv
    T, S, D = q.shape[-2], k.shape[-2], q.shape[-1]
    for queries, keys, values, got in zip(*(t.flatten(0, 1).tolist()
                                            for t in (q, k, v, causal_attention(q, k, v)))):
        for t in range(T):
            seen = S-T+t+1
            takes = [exp(sum(a*b for a, b in zip(queries[t], keys[s]))/sqrt(D)) for s in range(seen)]
            want = [sum(takes[s]*values[s][d] for s in range(seen))/sum(takes) for d in range(D)]
            assert got[t] == pytest.approx(want, abs=1e-5)

@quick
@given(queries_keys_values())
def test_attention_equals_the_kernel_with_an_explicit_mask(qkv):
    q, k, v = qkv
    kernel = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed(q.shape[-2], k.shape[-2]))
    assert torch.allclose(causal_attention(q, k, v), kernel, atol=1e-5)

@quick
@given(queries_keys_values())
def test_weights_add_up_to_one_and_are_zero_in_the_future_only(qkv):
    q, k, _ = qkv
    weights = attention_weights(q, k)
    assert weights.shape == (*q.shape[:-1], k.shape[-2])
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
    assert torch.equal(weights > 0, allowed(q.shape[-2], k.shape[-2]).expand_as(weights))

@quick
@given(queries_keys_values(), st.data())
def test_a_changed_position_moves_no_output_before_it(qkv, data):
    q, k, v = qkv
    T, S = q.shape[-2], k.shape[-2]
    j = data.draw(st.integers(0, S-1))
    before, first = causal_attention(q, k, v), max(0, j-(S-T))       # first: the query at position j
    k[..., j, :] += 10; v[..., j, :] += 10
    if j >= S-T: q[..., first, :] += 10
    assert torch.allclose(causal_attention(q, k, v)[..., :first, :], before[..., :first, :], atol=1e-6)

@quick
@given(queries_keys_values())
def test_batch_and_heads_are_optional(qkv):
    q, k, v = qkv
    assert torch.allclose(causal_attention(q[0, 0], k[0, 0], v[0, 0]), causal_attention(q, k, v)[0, 0],
                          atol=1e-6)

def test_scores_beyond_the_range_of_exp_stay_finite():
    q = k = torch.full((1, 1, 3, 4), 100.)
    assert torch.allclose(causal_attention(q, k, torch.ones(1, 1, 3, 4)), torch.ones(()))

# --- the layer

@quick
@given(layers())
def test_the_layer_equals_the_reference_by_its_own_heads(layer_and_x):
    layer, x = layer_and_x
    heads = causal_attention(*layer.heads(x))
    want = layer.proj(torch.cat([heads[:, h] for h in range(heads.shape[1])], -1))
    assert torch.allclose(layer(x, alone(x)), want, atol=1e-5)

@quick
@given(layers())
def test_a_head_owns_its_slice_of_the_queries_the_keys_and_the_values(layer_and_x):
    layer, x = layer_and_x
    wide = layer.qkv(x).split(layer.head_size, -1)        # q of each head, k of each head, v of each head
    for i, got in enumerate(layer.heads(x)):
        H = layer.widths[0]//layer.head_size
        for h in range(H): assert torch.equal(got[:, h], wide[i*H + h])

@quick
@given(layers(), st.data())
def test_the_layer_lets_nothing_flow_back(layer_and_x, data):
    layer, x = layer_and_x
    j = data.draw(st.integers(0, x.shape[1]-1))
    before = layer(x, alone(x))
    x[:, j] += 10
    assert torch.allclose(layer(x, alone(x))[:, :j], before[:, :j], atol=1e-5)

def test_dropout_works_in_training_only():
    torch.manual_seed(0)
    layer, x = CausalSelfAttention(8, 2, dropout=.5), torch.randn(2, 6, 8)
    plain = CausalSelfAttention(8, 2)
    plain.load_state_dict(layer.state_dict())
    assert not torch.equal(layer.train()(x, alone(x)), layer(x, alone(x)))
    assert torch.equal(layer.eval()(x, alone(x)), plain.eval()(x, alone(x)))
    assert torch.equal(plain.train()(x, alone(x)), plain.eval()(x, alone(x)))

@pytest.mark.parametrize('kernel', ['fused', 'reference'])
def test_dropout_drops_weights_of_attention(kernel):
    "The first position hears itself alone: all of it, scaled up, or nothing."
    q, k, v = torch.randn(3, 1, 1, 4, 8)
    heard = [ATTENTION[kernel](q, k, v, dropout=.5)[0, 0, 0] for _ in range(40)]
    assert {close(h, 2*v[0, 0, 0]) for h in heard} == {True, False}
    assert all(close(h, 2*v[0, 0, 0]) or not h.any() for h in heard)

@pytest.mark.parametrize('bias', [True, False])
def test_the_constants_are_there_only_with_bias(bias):
    assert {n for n, _ in CausalSelfAttention(8, 2, bias).named_parameters()} == {'qkv.weight',
        'proj.weight'} | ({'qkv.bias', 'proj.bias'} if bias else set())

def test_a_layer_has_constants_and_drops_nothing_unless_told_otherwise():
    layer, gpt2 = CausalSelfAttention(8, 2), Block(LMConfig(n_embd=8, n_head=2)).attention
    assert [n for n, _ in layer.named_parameters()] == [n for n, _ in gpt2.named_parameters()]
    assert layer.dropout == 0

def test_channels_that_the_heads_cannot_share_are_refused():
    with pytest.raises(ValueError, match='n_embd 10 is not divisible by n_head 4'): CausalSelfAttention(10, 4)

@pytest.mark.parametrize('n_head', [0, -2])
def test_a_count_of_heads_below_one_is_refused(n_head):
    with pytest.raises(ValueError, match=f'n_head {n_head}'): CausalSelfAttention(8, n_head)

# --- the ways to compute attention

@quick
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(0, 9), st.integers(1, 8),
       st.booleans(), st.data())
def test_every_way_gives_what_the_reference_gives(B, H, T, more, D, masked, data):
    torch.manual_seed(data.draw(st.integers(0, 99)))
    q, k, v = torch.randn(B, H, T, D), torch.randn(B, H, T+more, D), torch.randn(B, H, T+more, D)
    mask = (torch.rand(B, 1, T, T+more) < .5).index_fill(3, torch.tensor(0), True) if masked else None
    want = causal_attention(q, k, v, mask)
    for name, way in ATTENTION.items(): assert torch.allclose(way(q, k, v, mask), want, atol=1e-5), name

def test_the_reference_drops_weights_when_asked():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 200, 8)
    assert torch.equal(causal_attention(q, k, v), causal_attention(q, k, v, dropout=0.))
    assert not torch.allclose(causal_attention(q, k, v, dropout=.5), causal_attention(q, k, v), atol=1e-3)

def test_heads_without_a_batch_see_no_future_in_a_chunk():
    q, k, v = torch.randn(3, 2, 8), torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    assert torch.allclose(fused_attention(q, k, v), causal_attention(q, k, v), atol=1e-5)

@pytest.mark.parametrize('name', ['nope', ['fused'], None])
def test_an_attention_of_no_name_is_refused(name):
    with pytest.raises(ValueError, match='^attention is .*: expected one of reference, fused'):
        LMConfig(attention=name)

@pytest.mark.parametrize('G', [3, -1, True, 1.5])
def test_heads_that_cannot_share_keys_are_refused(G):
    with pytest.raises(ValueError, match='n_kv_head'): CausalSelfAttention(8, 4, n_kv_head=G)

@quick
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 6),
       st.booleans())
def test_fewer_heads_for_keys_have_fewer_weights(G, per_group, D, B, T, bias):
    torch.manual_seed(0)
    layer, x = CausalSelfAttention(G*per_group*D, G*per_group, bias, n_kv_head=G), torch.randn(B, T,
        G*per_group*D)
    q, k, v = layer.heads(x)
    assert q.shape == (B, G*per_group, T, D) and k.shape == v.shape == (B, G, T, D)
    assert layer.qkv.weight.numel() == (G*per_group + 2*G)*D*x.shape[-1]

@pytest.mark.parametrize('part', [CausalSelfAttention(8, 2), Block(LMConfig(n_embd=8, n_head=2))],
                         ids=['attention', 'block'])
def test_a_part_by_itself_speaks_as_the_first_layer(part):
    p = Watched(Fresh(torch.arange(3)[None], ATTENTION['fused']))
    part(torch.randn(1, 3, 8), p)
    assert [layer for layer, *_ in p.seen] == [0]
