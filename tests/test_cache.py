"Every way through a cache gives the logits of one prefill."
import shutil, warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from test_decoding import naive, seeded, small_model

from tinylm import KVCache, LMConfig, phase_gap, phase_invariant, phase_map
from tinylm import cache as cache_module

quick = settings(deadline=None, max_examples=40)

@st.composite
def models(draw):
    head, heads = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    return small_model(draw(st.integers(0, 99)), n_layer=draw(st.integers(1, 3)), n_head=heads, n_embd=head*heads, block_size=draw(st.integers(2, 12)), bias=draw(st.booleans())).eval()

def tokens(B, T, seed=0): return torch.randint(11, (B, T), generator=seeded(seed))

def cuts(draw, T):
    "Random chunk sizes that add up to T."
    ends = sorted(draw(st.sets(st.integers(1, T-1), max_size=T-1)) | {T}) if T > 1 else [1]
    return [b-a for a, b in zip([0, *ends], ends)]

def close(a, b, atol=1e-4): return torch.allclose(a, b, atol=atol, rtol=1e-4)

def state(cache): return cache.lengths, [t.clone() for t in cache.kv]

# --- the law

@quick
@given(st.data())
def test_any_chunks_through_a_cache_give_the_logits_of_one_prefill(data):
    model, B = data.draw(models()), data.draw(st.integers(1, 3))
    T = data.draw(st.integers(1, model.config.block_size))
    x, cache = tokens(B, T), KVCache(model.config, B, data.draw(st.integers(T, model.config.block_size)))
    with torch.no_grad():
        got = torch.cat([model.prefill(chunk, cache=cache)[0] for chunk in x.split(cuts(data.draw, T), 1)], 1)
        assert close(got, model.prefill(x)[0]) and cache.lengths == [T]*B

@quick
@given(st.data())
def test_rows_of_different_lengths_do_not_touch_each_other(data):
    model, B = data.draw(models()), data.draw(st.integers(1, 4))
    longest = model.config.block_size
    lengths = data.draw(st.lists(st.integers(0, longest-1), min_size=B, max_size=B))
    T = data.draw(st.integers(1, longest - max(lengths)))
    x, cache = tokens(B, longest), KVCache(model.config, B)
    with torch.no_grad():
        for r, n in enumerate(lengths):
            if n: model.prefill(x[r:r+1, :n], cache=cache.row(r))
        new = torch.stack([x[r, n:n+T] for r, n in enumerate(lengths)])
        got = model.prefill(new, cache=cache)[0]
        for r, n in enumerate(lengths): assert close(got[r], model.prefill(x[r:r+1, :n+T])[0][0, n:])
    assert cache.lengths == [n+T for n in lengths]

@quick
@given(models(), st.data())
def test_the_public_law_holds_through_a_cache_for_every_cut(model, data):
    x = tokens(2, data.draw(st.integers(1, model.config.block_size)))
    k = data.draw(st.integers(1, x.shape[1]))
    gap = phase_gap(model, x, k, cache=KVCache(model.config, 2))
    assert gap.shape == (x.shape[1],) and gap.max() < 1e-4 and phase_invariant(model, x, k, cache=KVCache(model.config, 2))

def test_bfloat16_agrees_within_its_own_rounding():
    model, x = small_model(block_size=12).bfloat16().eval(), tokens(2, 12)
    with torch.no_grad(): whole = model.prefill(x)[0]
    gap = phase_gap(model, x, 5, cache=KVCache(model.config, 2, dtype=torch.bfloat16))
    assert gap.max() < .05*whole.abs().max()                       # 8 bits of mantissa: about 0.4% a rounding

def test_a_cache_can_be_used_again_after_reset():
    model, cache, x = small_model().eval(), KVCache(small_model().config, 2), tokens(2, 8)
    with torch.no_grad():
        model.prefill(tokens(2, 8, 1), cache=cache); cache.reset()
        assert close(model.prefill(x[:, :5], cache=cache)[0], model.prefill(x[:, :5])[0]) and cache.lengths == [5, 5]

# --- decode

@quick
@given(st.integers(1, 3), st.integers(1, 12), st.integers(0, 14), st.sampled_from([0., 1.]))
def test_decode_with_a_cache_writes_what_the_naive_loop_writes_even_past_the_window(B, T0, n, temperature):
    model, idx = small_model(), tokens(B, T0, 2)
    with_cache, without = (model.decode(idx, n, use_cache=u, temperature=temperature, generator=seeded(3)) for u in (True, False))
    assert torch.equal(with_cache, without)
    if temperature: assert torch.equal(with_cache, naive(model, idx, n, seeded(3)))

def test_no_position_is_computed_twice_inside_the_window():
    model, seen = small_model(block_size=32), []
    model.norm.register_forward_hook(lambda m, i, out: seen.append(out.shape[1]))
    model.decode(tokens(1, 5), 20)
    assert seen == [5] + [1]*19
    seen.clear(); model.decode(tokens(1, 30), 5)
    assert seen == [30, 1, 1, 32, 32]

def test_a_decode_gives_its_memory_the_size_that_it_needs(monkeypatch):
    made = []
    monkeypatch.setattr('tinylm.cache.KVCache.__init__', lambda self, *a, real=KVCache.__init__: (made.append(a[1:3]), real(self, *a))[1])
    model = small_model(block_size=32)
    model.decode(tokens(2, 5), 7); model.decode(tokens(1, 5), 100)
    assert made == [(2, 12), (1, 32)]

def test_a_compiled_decode_writes_the_same_text():
    model, x = small_model(n_layer=1, block_size=12).eval(), tokens(2, 3)
    with warnings.catch_warnings():
        warnings.filterwarnings('error' if shutil.which('g++') else 'ignore', message='torch.compile does not work')
        assert torch.equal(model.decode(x, 15, temperature=0, compile=True), model.decode(x, 15, temperature=0))

def test_where_nothing_compiles_decode_says_so_and_goes_on(monkeypatch):
    def fail(*_): raise RuntimeError('no compiler')
    monkeypatch.setattr(cache_module, '_compiled', fail)
    model, x = small_model().eval(), tokens(2, 3)
    with pytest.warns(UserWarning, match='torch.compile does not work here, decoding goes on without it') as seen:
        got = model.decode(x, 4, temperature=0, compile=True)
    assert torch.equal(got, model.decode(x, 4, temperature=0)) and len(seen) == 1

# --- memory

@quick
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 8), st.integers(1, 3), st.integers(1, 12), st.sampled_from([torch.float32, torch.bfloat16]))
def test_bytes_by_formula_are_bytes_counted(n_layer, n_head, head, batch, length, dtype):
    config = LMConfig(block_size=12, n_layer=n_layer, n_head=n_head, n_embd=n_head*head)
    cache = KVCache(config, batch, length, dtype)
    assert cache.n_bytes == config.cache_bytes(batch, length, dtype.itemsize) == sum(t.untyped_storage().nbytes() for t in cache.kv)

def test_a_row_shares_memory_and_length():
    cache = KVCache(LMConfig(n_layer=1, n_embd=8), 3)
    row = cache.row(1)
    assert row.kv[0].data_ptr() != cache.kv[0].data_ptr() and row.kv[0].untyped_storage().data_ptr() == cache.kv[0].untyped_storage().data_ptr()
    row._lengths[1] = 4
    assert cache.lengths == [0, 4, 0] and row.lengths == [4] and row.row(0).lengths == [4]

# --- bad input leaves the cache as it was

@pytest.mark.parametrize('wrong, says', [
    (dict(config=dict(n_layer=1)), 'was made for'), (dict(config=dict(block_size=9)), 'was made for'), (dict(batch=3), 'has 3 rows, and idx has 2'),
    (dict(dtype=torch.bfloat16), 'bfloat16 on cpu'), (dict(device='meta'), 'on meta'), (dict(length=4), '0 of 4 positions: 5 more do not fit')])
def test_a_cache_that_does_not_fit_is_refused(wrong, says):
    model = small_model()
    args = dict(config=model.config, batch=2, length=8) | wrong
    if isinstance(args['config'], dict): args['config'] = replace(model.config, **args['config'])
    cache = KVCache(**args)
    with pytest.raises(ValueError, match=says): model.prefill(tokens(2, 5), cache=cache)
    assert cache.lengths == [0]*len(cache.rows)

def test_a_full_cache_says_how_to_empty_it_and_stays_usable():
    model, cache, x = small_model().eval(), KVCache(small_model().config, 1), tokens(1, 8)
    with torch.no_grad():
        model.prefill(x[:, :6], cache=cache)
        before = state(cache)
        with pytest.raises(ValueError, match=r'6 of 8 positions: 3 more do not fit \(reset\(\) empties it\)'): model.prefill(x[:, :3], cache=cache)
        assert cache.lengths == before[0] and all(torch.equal(a, b) for a, b in zip(cache.kv, before[1]))
        assert close(model.prefill(x[:, 6:], cache=cache)[0], model.prefill(x)[0][:, 6:])

def test_a_pass_that_fails_half_way_does_not_count(monkeypatch):
    model, cache, x = small_model().eval(), KVCache(small_model().config, 1), tokens(1, 8)
    with torch.no_grad():
        model.prefill(x[:, :4], cache=cache)
        with monkeypatch.context() as m:
            m.setattr(model.blocks[1], 'forward', lambda *_: (_ for _ in ()).throw(MemoryError()))
            with pytest.raises(MemoryError): model.prefill(tokens(1, 3, 7), cache=cache)
        assert cache.lengths == [4]
        assert close(model.prefill(x[:, 4:], cache=cache)[0], model.prefill(x)[0][:, 4:])

@pytest.mark.parametrize('args, says', [(dict(batch=0), 'batch is 0'), (dict(batch=1.5), 'batch is 1.5'), (dict(length=0), 'length is 0'), (dict(length=65), 'length is 65: expected 1 to block_size 64')])
def test_a_cache_of_nonsense_is_refused(args, says):
    with pytest.raises(ValueError, match=says): KVCache(LMConfig(), **args)

@pytest.mark.parametrize('r', [-1, 2])
def test_a_row_that_is_not_there_is_refused(r):
    with pytest.raises(ValueError, match=f'row {r} of a cache with 2 rows'): KVCache(LMConfig(), 2).row(r)

# --- the map of where a cache goes wrong

def test_the_map_is_empty_for_the_real_cache_and_shows_a_broken_one():
    class Deaf(KVCache):
        def update(self, layer, kv):
            if layer == 1: kv = kv*0
            return super().update(layer, kv)
    model, x = small_model().eval(), tokens(1, 8)
    assert phase_map(model, x, [3, 4, 1], KVCache(model.config)).max() < 1e-4
    wrong = phase_map(model, x, [3, 4, 1], Deaf(model.config))
    assert wrong.shape == (2, 8) and wrong[0].max() < 1e-4 and wrong[1].min() > 1e-4
    assert not model.blocks[0]._forward_hooks
