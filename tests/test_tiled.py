"Attention in tiles: the numbers of the reference, forwards and backwards, in memory that grows like T."
from functools import partial
from math import sqrt

import pytest
import torch
from helpers import seeded, tokens
from hypothesis import given, settings, strategies as st

from tinylm import KVCache, LanguageModel, LMConfig, causal_attention, causal_mask, phase_gap, phase_invariant
from tinylm.attention import ATTENTION
from tinylm.tiled import LiveBytes, _nothing_yet, _take_in, _tiles, tiled_attention

quick = settings(deadline=None, max_examples=60)
# absolute for inputs of size 1, relative
tolerance = {torch.float64: (1e-14, 1e-12), torch.float32: (2e-6, 1e-5), torch.bfloat16: (2e-6, 2**-7)}

def masked_attention(q, k, v, mask):
    "The reference for any mask; a row that may see nothing gives zeros."
    weights = (q @ k.mT / sqrt(q.shape[-1])).masked_fill(~mask, float('-inf')).softmax(-1)
    return weights.masked_fill(~mask, 0) @ v

@st.composite
def problems(draw, dtypes=tuple(tolerance), longest=40):
    "q, k, v of random shape and size, and a tile."
    B, H, D, S = (draw(st.integers(1, n)) for n in (3, 3, 8, longest))
    T, dtype, scale = draw(st.integers(1,
                                       S)), draw(st.sampled_from(dtypes)), draw(st.sampled_from([.01, 1, 5]))
    g = seeded(draw(st.integers(0, 999)))
    q, k, v = (torch.randn(B, H, n, D, generator=g).mul(scale).to(dtype) for n in (T, S, S))
    return q, k, v, draw(st.sampled_from([1, 2, 3, 5, 8, 16, 64]))

def rows_of_different_lengths(data, B, T, S):
    "The mask of lesson 05: row r holds some tokens and gets T more, in memory for S."
    held = torch.tensor(data.draw(st.lists(st.integers(0, S-T), min_size=B, max_size=B)))
    return (torch.arange(S) <= (held[:, None] + torch.arange(T))[..., None])[:, None]

def leaves(*tensors): return [t.detach().clone().requires_grad_() for t in tensors]

def passes(attend, tensors, grad):
    "Output and gradients."
    tensors = leaves(*tensors)
    out = attend(*tensors)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad)]

def close(got, want, *inputs):
    "Within the rounding of the type of the inputs, scores of their size and a result in that type."
    atol, rtol = tolerance[got.dtype]
    size = max(1, *(t.abs().max().item() for t in inputs))
    return got.dtype == inputs[0].dtype and torch.allclose(got.double(), want.double(), atol=atol*size**4,
                                                           rtol=rtol)

# --- the same numbers

@quick
@given(problems())
def test_forward_and_gradients_are_those_of_the_reference(problem):
    q, k, v, tile = problem
    grad = torch.randn(q.shape, generator=seeded(1)).to(q.dtype)
    want = passes(causal_attention, [t.double() for t in (q, k, v)], grad.double())
    for got, w in zip(passes(partial(tiled_attention, tile=tile), (q, k, v), grad), want):
        assert close(got, w, q, k, v)

@quick
@given(problems(), st.data())
def test_rows_of_different_lengths(problem, data):
    q, k, v, tile = problem
    mask = rows_of_different_lengths(data, len(q), q.shape[2], k.shape[2])
    grad = torch.randn(q.shape, generator=seeded(1)).to(q.dtype)
    want = passes(lambda *t: masked_attention(*t, mask), [t.double() for t in (q, k, v)], grad.double())
    for got, w in zip(passes(lambda *t: tiled_attention(*t, mask, tile=tile), (q, k, v), grad), want):
        assert close(got, w, q, k, v)

@quick
@given(problems([torch.float64]), st.data())
def test_any_mask_of_any_broadcast_shape_also_one_that_hides_all(problem, data):
    q, k, v, tile = problem
    full = (*q.shape[:3], k.shape[2])
    shape = [data.draw(st.sampled_from([1, n])) for n in full][data.draw(st.integers(0, 2)):]
    mask = torch.rand(shape, generator=seeded(data.draw(st.integers(0, 99)))) < data.draw(st.sampled_from([0,
        .1, .5, 1]))
    out, *grads = passes(lambda *t: tiled_attention(*t, mask, tile=tile), (q, k, v), torch.ones_like(q))
    hidden = ~mask.expand(full).any(-1)
    assert all(t.isfinite().all() for t in (out,
                                            *grads)) and not out[hidden].any() and not grads[0][hidden].any()
    want = masked_attention(q, k, v, mask.expand(full))
    assert torch.allclose(out[~hidden], want[~hidden], atol=1e-12)

@quick
@given(problems([torch.float64], longest=20))
def test_the_causal_mask_given_or_not_is_the_same(problem):
    q, k, v, tile = problem
    assert torch.allclose(tiled_attention(q, k, v, tile=tile),
        tiled_attention(q, k, v, causal_mask(q.shape[2], k.shape[2]), tile=tile), atol=1e-13)

def test_any_dimensions_in_front_and_memory_in_any_order():
    # (B, T, 3, H, D), as the model's projection gives it
    x = torch.randn(2, 9, 3, 4, 5, generator=seeded())
    q, k, v = x.permute(2, 0, 3, 1, 4)
    assert torch.allclose(tiled_attention(q, k, v, tile=4), causal_attention(q, k, v), atol=1e-6)
    assert torch.allclose(tiled_attention(q[0, 0], k[0, 0], v[0, 0], tile=4),
                          causal_attention(q[0, 0], k[0, 0], v[0, 0]), atol=1e-6)

def test_gradients_by_finite_differences():
    q, k, v = leaves(*(torch.randn(2, n, 3, generator=seeded(n)).double() for n in (4, 6, 6)))
    assert torch.autograd.gradcheck(lambda *t: tiled_attention(*t, tile=2), (q, k, v))

def test_a_second_derivative_is_refused_and_not_wrong():
    q, k, v = leaves(*torch.randn(3, 1, 6, 4))
    first, = torch.autograd.grad(tiled_attention(q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'): first.sum().backward()

@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from([.1, 1, 100]), st.integers(0, 99))
def test_a_row_in_any_pieces_is_a_softmax(pieces, scale, seed):
    n, g = sum(pieces), seeded(seed)
    scores, values, state = torch.randn(3, n, generator=g).double()*scale, torch.randn(n, 4,
        generator=g).double(), _nothing_yet(torch.zeros(3, 4).double())
    for s, piece in zip(scores.split(pieces, 1), values.split(pieces)):
        state = _take_in(state, s, piece)
        assert (state[1] >= 1).all()
    assert torch.allclose(state[2]/state[1], scores.softmax(-1) @ values, atol=1e-12)

# --- under autocast

def under_autocast(attend):
    def work(*tensors):
        with torch.autocast('cpu', torch.bfloat16): return attend(*tensors)
    return work

@quick
@given(problems([torch.bfloat16]), st.booleans(), st.data())
def test_under_autocast_only_inputs_and_results_are_rounded(problem, inside, data):
    q, k, v, tile = problem
    grad = torch.randn(q.shape, generator=seeded(1)).to(q.dtype)
    mask = rows_of_different_lengths(data, len(q), q.shape[2],
                                     k.shape[2]) if data.draw(st.booleans()) else None
    slow = causal_attention if mask is None else lambda *t: masked_attention(*t, mask)
    want = passes(slow, [t.float() for t in (q, k, v)], grad.float())
    attend = lambda *t: tiled_attention(*t, mask, tile=tile)
    # the backward pass too, or the forward alone
    with torch.autocast('cpu', torch.bfloat16, enabled=inside):
        got = passes(under_autocast(attend), (q, k, v), grad)
    for a, w, rounded in zip(got, want, passes(attend, (q, k, v), grad)):
        assert close(a, w, q, k, v) and torch.equal(a, rounded)

def test_the_reference_is_not_as_exact_under_autocast():
    "Otherwise the test above could not fail."
    q, k, v = torch.randn(3, 2, 40, 8, generator=seeded()).bfloat16()
    want = causal_attention(*(t.float() for t in (q, k, v)))
    assert not close(under_autocast(causal_attention)(q, k, v), want, q, k, v)
    assert close(under_autocast(partial(tiled_attention, tile=5))(q, k, v), want, q, k, v)

@quick
@given(problems([torch.float32]), st.lists(st.booleans(), min_size=3, max_size=3))
def test_autocast_makes_one_type_of_several(problem, already):
    *tensors, tile = problem
    attend = partial(tiled_attention, tile=tile)
    mixed = leaves(*(t.bfloat16() if there else t for t, there in zip(tensors, already)))
    out = under_autocast(attend)(*mixed)
    assert torch.equal(out, attend(*(t.bfloat16() for t in tensors)))
    out.sum().backward()
    assert all(t.grad.dtype == t.dtype for t in mixed)

def test_autocast_leaves_float64_alone():
    q, k, v = torch.randn(3, 2, 9, 4, generator=seeded()).double()
    assert torch.equal(under_autocast(tiled_attention)(q, k, v), tiled_attention(q, k, v))

# --- numbers at the edge

@pytest.mark.parametrize('tile', [1, 3, 16])
@pytest.mark.parametrize('scale', [0, 1e4, -1e4])
@pytest.mark.parametrize('dtype', tolerance)
def test_huge_and_equal_scores(dtype, scale, tile):
    q, k = torch.full((2, 9, 1), 1.).to(dtype), torch.linspace(.5, 1, 9)[:, None].expand(2, 9,
        1).to(dtype)*scale
    v = torch.randn(2, 9, 1, generator=seeded()).to(dtype)
    got = passes(partial(tiled_attention, tile=tile), (q, k, v), torch.ones_like(q))
    assert all(t.isfinite().all() for t in got)
    assert close(got[0], causal_attention(q.double(), k.double(), v.double()), q, k, v)

def test_what_is_not_a_number_stays_visible():
    q, k, v = torch.randn(3, 8, 4)
    k[2] = float('nan')
    out = tiled_attention(q, k, v, tile=3)
    assert out[:2].isfinite().all() and out[2:].isnan().all()

# --- memory

@quick
@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 12), st.booleans())
def test_tiles_cover_what_may_be_seen_once_and_are_small(T, past, tile, masked):
    S, seen = past + T, torch.zeros(T, past + T, dtype=torch.long)
    for rows, blocks in _tiles(T, S, masked, tile):
        for cols in blocks:
            seen[rows, cols] += 1
            assert 0 < (rows.stop - rows.start)*(cols.stop - cols.start) <= tile**2
            assert masked or cols.start <= past + rows.stop - 1                     # never a tile of nothing
    assert seen.max() == 1 and (seen[causal_mask(T, S)] == 1).all() and (not masked or seen.all())

def live(work):
    with LiveBytes() as watch: work()
    return watch.peak

def profiled(work):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU],
                                profile_memory=True) as prof:
        work()
    now = [0]
    for e in prof.profiler.kineto_results.events():
        if e.name() == '[memory]': now.append(now[-1] + e.nbytes())
    return max(now)

def both(attend, T, backward, H=2, D=8):
    q, k, v = torch.randn(3, 1, H, T, D)
    if not backward: return lambda: attend(q, k, v)
    grad, tensors = torch.randn(1, H, T, D), leaves(q, k, v)
    return lambda: torch.autograd.grad(attend(*tensors), tensors, grad)

tiles_of_16 = partial(tiled_attention, tile=16)

@pytest.mark.slow
@pytest.mark.parametrize('count', [live, profiled])
@pytest.mark.parametrize('backward', [False, True])
def test_the_peak_grows_like_T_in_tiles_and_like_its_square_in_the_reference(count, backward):
    tiled, reference = ([count(both(attend, T, backward)) for T in (256, 512, 1024)]
                        for attend in (tiles_of_16, causal_attention))
    assert tiled[2] - tiled[1] == 2*(tiled[1] - tiled[0])              # exactly linear
    assert reference[2] > 3.8*reference[1] > 3.8*3.5*reference[0]

@pytest.mark.slow
@pytest.mark.parametrize('tile', [8, 16, 32])
def test_the_peak_is_what_the_derivation_says(tile, H=2, D=8, T=256):
    "Forward: output, maximum and sum of every row, a handful of tiles. Backward: eight vectors a row more."
    handful = H*4*(4*tile**2 + 8*tile*(D+1))
    attend = partial(tiled_attention, tile=tile)
    assert live(both(attend, T, False)) <= H*T*4*(D+2) + handful
    assert live(both(attend, T, True)) <= H*T*4*(8*D+4) + handful

@pytest.mark.parametrize('attend', [causal_attention, tiles_of_16], ids=['reference', 'tiled'])
@pytest.mark.parametrize('backward', [False, True])
def test_the_two_counts_agree(attend, backward):
    heard, seen = (count(both(attend, 128, backward)) for count in (profiled, live))
    assert 0 <= heard - seen <= 16                                     # the number that fills a mask

def test_live_bytes_forgets_what_is_gone_and_ignores_views_and_what_was_there():
    old = torch.zeros(1000)
    with LiveBytes() as watch:
        a = torch.zeros(100); b = a.view(10, 10)[2:].t(); a.add_(1); old.mul_(2); old[:5]
        assert watch.now == 400
        c = a + 1
        assert watch.now == watch.peak == 800
        del a, c
        assert watch.now == 400                                        # b still holds the memory of a
        del b
        assert (watch.now, watch.peak) == (0, 800) and watch.history[0] == 400

# --- in the model

def twins(**changes):
    "A model with the fused kernel, and the same with tiles."
    fused, tiled = (LanguageModel(LMConfig(vocab_size=11, n_layer=2, n_head=2, n_embd=8, **changes,
                                           attention=name)).eval() for name in ('fused', 'tiled'))
    tiled.load_state_dict(fused.state_dict())
    return fused, tiled

@pytest.fixture
def tiny_tiles(monkeypatch): monkeypatch.setitem(ATTENTION, 'tiled', partial(tiled_attention, tile=3))

def test_it_is_in_the_table(): assert ATTENTION['tiled'] is tiled_attention

@pytest.mark.usefixtures('tiny_tiles')
@pytest.mark.parametrize('k', [1, 7, 20])
def test_the_law_holds(k):
    fused, tiled = twins(block_size=20)
    x = tokens(3, 20)
    with torch.no_grad(): assert torch.allclose(tiled.prefill(x)[0], fused.prefill(x)[0], atol=1e-5)
    for cache in (None, KVCache(tiled.config, 3)): assert phase_gap(tiled, x, k, cache=cache).max() < 1e-5
    assert phase_invariant(tiled, x, k, cache=KVCache(tiled.config, 3))

@pytest.mark.usefixtures('tiny_tiles')
@pytest.mark.parametrize('chunks', [[20], [1]*20, [7, 1, 9, 3], [5, 15]])
def test_chunks_give_the_logits_of_one_prefill(chunks):
    fused, tiled = twins(block_size=20)
    x, cache = tokens(2, 20), KVCache(tiled.config, 2)
    with torch.no_grad():
        got = torch.cat([tiled.prefill(c, cache=cache)[0] for c in x.split(chunks, 1)], 1)
        assert torch.allclose(got, fused.prefill(x)[0], atol=1e-5)

@pytest.mark.usefixtures('tiny_tiles')
def test_rows_of_different_lengths_in_the_model():
    fused, tiled = twins(block_size=20)
    x, lengths, cache = tokens(3, 20), [0, 4, 13], KVCache(tiled.config, 3)
    with torch.no_grad():
        for r, n in enumerate(lengths):
            if n: tiled.prefill(x[r:r+1, :n], cache=cache.row(r))
        got = tiled.prefill(torch.stack([x[r, n:n+6] for r, n in enumerate(lengths)]), cache=cache)[0]
        for r, n in enumerate(lengths):
            assert torch.allclose(got[r], fused.prefill(x[r:r+1, :n+6])[0][0, n:], atol=1e-5)

def test_it_trains_and_decodes_as_the_fused_kernel():
    fused, tiled = twins(block_size=20)
    x = tokens(2, 20)
    for m in (fused, tiled): m.prefill(x[:, :-1], x[:, 1:])[1].backward()
    assert all(torch.allclose(a.grad, b.grad, atol=1e-6) for a,
               b in zip(fused.parameters(), tiled.parameters()))
    assert torch.equal(fused.decode(x[:, :5], 12, temperature=0), tiled.decode(x[:, :5], 12, temperature=0))

# --- bad input

one = lambda *shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype)

@pytest.mark.parametrize('args, options, says', [
    ((one(0, 4), one(3, 4), one(3, 4)), {}, '0 queries at the end of 3 keys: expected 0 < T <= S'),
    ((one(4, 4), one(3, 4), one(3, 4)), {}, '4 queries at the end of 3 keys'),
    ((one(3, 4), one(3, 5), one(3, 5)), {}, r'shapes \(3, 4\), \(3, 5\), \(3, 5\): expected'),
    ((one(3, 4), one(3, 4), one(2, 4)), {}, r'shapes \(3, 4\), \(3, 4\), \(2, 4\)'),
    ((one(2, 3, 4), one(1, 3, 4), one(1, 3, 4)), {}, 'have shapes'),
    ((one(4), one(4), one(4)), {}, 'have shapes'), ((one(3, 0), one(3, 0), one(3, 0)), {}, 'have shapes'),
    ((one(3, 4), one(3, 4, dtype=torch.float64), one(3, 4)), {},
     'torch.float32, torch.float64, torch.float32: expected one floating-point type'),
    (tuple(one(3, 4, dtype=torch.long) for _ in range(3)), {}, 'expected one floating-point type'),
    ((one(3, 4), one(3, 4), one(3, 4)), dict(tile=0), 'tile is 0: expected a whole number of at least 1'),
    ((one(3, 4), one(3, 4), one(3, 4)), dict(tile=-1), 'tile is -1'),
    ((one(3, 4), one(3, 4), one(3, 4)), dict(tile=2.5), 'tile is 2.5'),
    ((one(3, 4), one(3, 4), one(3, 4)), dict(tile=True), 'tile is True'),
    ((one(3, 4), one(3, 4), one(3, 4)), dict(dropout=.5), 'dropout is 0.5: tiled attention knows only 0'),
    ((one(3, 4), one(3, 4), one(3, 4)), dict(mask=one(3, 3)), 'mask is torch.float32: expected torch.bool'),
    ((one(3, 4), one(3, 4), one(3, 4)), dict(mask=one(3, 2, dtype=torch.bool)),
     r'mask has shape \(3, 2\): expected one that broadcasts to \(3, 3\)'),
    ((one(3, 4), one(3, 4), one(3, 4)), dict(mask=one(1, 3, 3, dtype=torch.bool)),
     r'mask has shape \(1, 3, 3\)')])
def test_bad_input_is_one_clear_line(args, options, says):
    with pytest.raises(ValueError, match=says) as e: tiled_attention(*args, **options)
    assert '\n' not in str(e.value)
