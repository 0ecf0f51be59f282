"Every way through a cache gives the logits of one prefill."
from dataclasses import replace

import pytest
import torch
from helpers import close, cuts, failing, models, quick, seeded, small_model, tokens
from hypothesis import given, strategies as st
from test_decoding import naive

from tinylm import ATTENTION, Cached, KVCache, LMConfig, phase_gap, phase_invariant, phase_map

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
    assert gap.shape == (x.shape[1],) and gap.max() < 1e-4 and phase_invariant(model, x, k,
        cache=KVCache(model.config, 2))

def test_bfloat16_agrees_within_its_own_rounding():
    model, x = small_model(block_size=12).bfloat16().eval(), tokens(2, 12)
    with torch.no_grad(): whole = model.prefill(x)[0]
    gap = phase_gap(model, x, 5, cache=KVCache(model.config, 2, dtype=torch.bfloat16))
    assert gap.max() < .05*whole.abs().max()                       # 8 bits of mantissa: about 0.4% a rounding

def test_a_cache_can_be_used_again_after_reset():
    model, cache, x = small_model().eval(), KVCache(small_model().config, 2), tokens(2, 8)
    with torch.no_grad():
        model.prefill(tokens(2, 8, 1), cache=cache); cache.reset()
        assert close(model.prefill(x[:, :5], cache=cache)[0],
                     model.prefill(x[:, :5])[0]) and cache.lengths == [5, 5]

# --- decode

@quick
@given(st.integers(1, 3), st.integers(1, 12), st.integers(0, 14), st.sampled_from([0., 1.]))
def test_decode_with_a_cache_writes_what_the_naive_loop_writes_even_past_the_window(B, T0, n, temperature):
    model, idx = small_model(), tokens(B, T0, 2)
    with_cache, without = (model.decode(idx, n, use_cache=u, temperature=temperature, generator=seeded(3))
                           for u in (True, False))
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
    real = KVCache.__init__
    monkeypatch.setattr(KVCache, '__init__', lambda self, *a: (made.append(a[1:3]), real(self, *a))[1])
    model = small_model(block_size=32)
    model.decode(tokens(2, 5), 7); model.decode(tokens(1, 5), 100)
    assert made == [(2, 12), (1, 32)]

# --- memory

def test_rows_that_stand_alike_need_no_mask(monkeypatch):
    seen, fused = [], ATTENTION['fused']
    def kernel(q, k, v, mask=None, dropout=0.):
        seen.append(mask is None)
        return fused(q, k, v, mask, dropout)
    monkeypatch.setitem(ATTENTION, 'fused', kernel)
    model, cache = small_model(n_layer=1), KVCache(small_model(n_layer=1).config, 2)
    for part in tokens(2, 5).split([3, 2], 1): model.prefill(part, cache=cache)
    cache.row(1).rewind(1); model.prefill(tokens(2, 1), cache=cache)
    assert seen == [True, True, False]

@quick
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 8), st.integers(1, 3), st.integers(1, 12),
       st.sampled_from([torch.float32, torch.bfloat16]))
def test_bytes_by_formula_are_bytes_counted(n_layer, n_head, head, batch, length, dtype):
    config = LMConfig(block_size=12, n_layer=n_layer, n_head=2*n_head, n_embd=2*n_head*head, n_kv_head=n_head)
    cache = KVCache(config, batch, length, dtype)
    assert cache.n_bytes == config.cache_bytes(batch, length,
        dtype.itemsize) == sum(t.untyped_storage().nbytes() for t in cache.kv)
    assert KVCache(config, batch, length).n_bytes == config.cache_bytes(batch, length)

def test_a_row_shares_memory_and_length():
    cache = KVCache(LMConfig(n_layer=1, n_embd=8), 3)
    row = cache.row(1)
    assert row.kv[0].data_ptr() != cache.kv[0].data_ptr()
    assert row.kv[0].untyped_storage().data_ptr() == cache.kv[0].untyped_storage().data_ptr()
    model, x = small_model().eval(), tokens(3, 4)
    cache = KVCache.of(model, 3)
    model.prefill(x[:1], cache=cache.row(1))
    assert KVCache.of(model).lengths == [0] and cache.lengths == [0, 4, 0]
    assert cache.row(1).lengths == [4] and cache.row(1).row(0).lengths == [4]
    cache.row(1).rewind(1); cache.row(2).reset()
    assert cache.lengths == [0, 3, 0]

@quick
@given(models(), st.data())
def test_after_a_rewind_a_cache_is_as_if_it_had_never_read_the_rest(model, data):
    longest, B = model.config.block_size, data.draw(st.integers(1, 3))
    T = data.draw(st.integers(1, longest)); back = data.draw(st.integers(0, T))
    x, cache = tokens(B, longest), KVCache(model.config, B)
    with torch.no_grad():
        model.prefill(torch.cat([x[:, :T-back], tokens(B, longest, 9)[:, :back]], 1), cache=cache)
        cache.rewind(back)
        assert cache.lengths == [T-back]*B
        if T - back < longest:
            assert close(model.prefill(x[:, T-back:], cache=cache)[0], model.prefill(x)[0][:, T-back:])

@pytest.mark.parametrize('n', [-1, 4, 1.5, None, True])
def test_a_rewind_that_makes_no_sense_changes_nothing(n):
    model, cache = small_model().eval(), KVCache(small_model().config, 2)
    model.prefill(tokens(2, 5), cache=cache)
    cache.row(0).rewind(2)
    with pytest.raises(ValueError, match=f'n is {n}: expected a whole number from 0 to 3'): cache.rewind(n)
    assert cache.lengths == [3, 5]

def test_one_row_can_be_rewound_alone_and_all_together_after_it():
    model, cache = small_model().eval(), KVCache(small_model().config, 2)
    model.prefill(tokens(2, 6), cache=cache)
    cache.row(1).rewind(4); cache.rewind(1)
    assert cache.lengths == [5, 1]

# --- bad input leaves the cache as it was

@pytest.mark.parametrize('wrong, says', [
    (dict(config=dict(n_layer=1)), 'was made for'), (dict(config=dict(block_size=9)), 'was made for'),
    (dict(batch=3), 'has 3 rows, and idx has 2'),
    (dict(dtype=torch.bfloat16), 'bfloat16 on cpu'), (dict(device='meta'), 'on meta'),
    (dict(length=4), '0 of 4 positions: 5 more do not fit')])
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
        with pytest.raises(ValueError, match=r'6 of 8 positions: 3 more do not fit \(reset\(\) empties it\)'):
            model.prefill(x[:, :3], cache=cache)
        assert cache.lengths == before[0] and all(torch.equal(a, b) for a, b in zip(cache.kv, before[1]))
        assert close(model.prefill(x[:, 6:], cache=cache)[0], model.prefill(x)[0][:, 6:])

@quick
@given(models(), st.data(), st.sampled_from(['operation', 'line']))
def test_a_pass_that_fails_anywhere_leaves_the_cache_as_before_it_or_as_after_it(model, data, how):
    B, longest = data.draw(st.integers(1, 3)), model.config.block_size
    held = data.draw(st.lists(st.integers(0, longest-1), min_size=B, max_size=B))
    T, x, cache = data.draw(st.integers(1, longest - max(held))), tokens(B, longest), KVCache(model.config, B)
    with torch.no_grad():
        for r, n in enumerate(held):
            if n: model.prefill(x[r:r+1, :n], cache=cache.row(r))
        with failing(how, data.draw(st.integers(1, 60*model.config.n_layer))):
            model.prefill(tokens(B, T, 7), cache=cache)
        after = [n+T for n in held]
        assert cache.lengths in (held, after) and torch.is_grad_enabled() is False
        if cache.lengths == after: cache.rewind(T)
        got = model.prefill(torch.stack([x[r, n:n+T] for r, n in enumerate(held)]), cache=cache)[0]
        for r, n in enumerate(held): assert close(got[r], model.prefill(x[r:r+1, :n+T])[0][0, n:])
    assert cache.lengths == after

def test_a_pass_through_a_cache_keeps_no_graph_and_says_so_to_whoever_wants_a_loss():
    model, cache, x = small_model(), KVCache(small_model().config, 2), tokens(2, 8)
    logits, _ = model.prefill(x[:, :4], cache=cache)
    assert not logits.requires_grad and not any(t.requires_grad for t in cache.kv) and torch.is_grad_enabled()
    with pytest.raises(ValueError, match='keeps no gradients'):
        model.prefill(x[:, 4:7], x[:, 5:8], cache=cache)
    cache.reset()
    with torch.no_grad(): loss = model.prefill(x[:, :4], x[:, 1:5], cache=cache)[1]
    assert loss.isfinite()

@quick
@given(models(), st.data())
def test_under_autocast_a_cache_gives_the_logits_of_one_prefill(model, data):
    "Rows of different lengths, too; keys are kept in the cache's type and used in that of the pass."
    B, longest = data.draw(st.integers(1, 3)), model.config.block_size
    held = data.draw(st.lists(st.integers(0, longest-1), min_size=B, max_size=B))
    T, x, cache = data.draw(st.integers(1, longest - max(held))), tokens(B, longest), KVCache(model.config, B)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        for r, n in enumerate(held):
            if n: model.prefill(x[r:r+1, :n], cache=cache.row(r))
        got = model.prefill(torch.stack([x[r, n:n+T] for r, n in enumerate(held)]), cache=cache)[0].float()
        for r, n in enumerate(held):
            want = model.prefill(x[r:r+1, :n+T])[0][0, n:].float()
            assert (got[r] - want).abs().max() < .06*want.abs().max() + .02

@pytest.mark.parametrize('args, says',
    [(dict(batch=0), 'batch is 0'), (dict(batch=1.5), 'batch is 1.5'), (dict(length=0), 'length is 0'),
     (dict(length=65), 'length is 65: expected a whole number from 1 to 64')])
def test_a_cache_of_nonsense_is_refused(args, says):
    with pytest.raises(ValueError, match=says): KVCache(LMConfig(), **args)

@pytest.mark.parametrize('r', [-1, 2])
def test_a_row_that_is_not_there_is_refused(r):
    with pytest.raises(ValueError, match=f'row {r} of a cache with 2 rows'): KVCache(LMConfig(), 2).row(r)

# --- the map of where a cache goes wrong

class Deaf(Cached):
    def attend(self, layer, q, k, v, dropout=0.):
        return super().attend(layer, q, k if layer != 1 else k*0, v if layer != 1 else v*0)

def test_the_map_is_empty_for_the_real_cache_and_shows_a_broken_one():
    model, x, broken = small_model().eval(), tokens(1, 8), KVCache(small_model().config)
    broken.makes = Deaf
    assert phase_map(model, x, [3, 4, 1], KVCache(model.config)).max() < 1e-4
    wrong = phase_map(model, x, [3, 4, 1], broken)
    assert wrong.shape == (2, 8) and wrong[0].max() < 1e-4 and wrong[1].min() > 1e-4
