"Formulas equal counts, and the fast product equals the plain one."
import json

import pytest
import torch
from hypothesis import given, settings, strategies as st
from test_cache import models, tokens
from test_decoding import seeded, small_model
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tinylm import KVCache, Ledger, LMConfig, Machine, Timeline, phase_gap, watch_pass
from tinylm.attention import Linear
from tinylm.bench import SIZES, bench_table, benchmark
from tinylm.cost import linear

quick = settings(deadline=None, max_examples=40)

# --- the ledger

@quick
@given(models(), st.data(), st.booleans())
def test_bytes_by_formula_are_the_bytes_that_a_real_pass_touches(model, data, last_only):
    longest, B = model.config.block_size, data.draw(st.integers(1, 3))
    past = data.draw(st.integers(0, longest-1))
    T, cache = data.draw(st.integers(1, longest-past)), KVCache(model.config, B)
    if past: model.prefill(tokens(B, past), cache=cache)
    seen, calls = watch_pass(model, tokens(B, T), cache, last_only)
    want = model.config.pass_cost(T, past, B, last_only)
    assert (seen.weight_bytes, seen.cache_read, seen.cache_written) == (want.weight_bytes, want.cache_read, want.cache_written)
    assert calls > 10*model.config.n_layer

@quick
@given(models(), st.data(), st.booleans())
def test_flops_by_formula_are_those_of_torchs_own_counter(model, data, last_only):
    longest, B = model.config.block_size, data.draw(st.integers(1, 3))
    past = data.draw(st.integers(0, longest-1))
    T, cache = data.draw(st.integers(1, longest-past)), KVCache(model.config, B)
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        if past: model.prefill(tokens(B, past), cache=cache)
        with FlopCounterMode(display=False) as counter:
            h = model.hidden(tokens(B, T), cache)
            model.logits(h[:, -1:] if last_only else h)
    assert counter.get_total_flops() == model.config.pass_cost(T, past, B, last_only).flops

@quick
@given(st.integers(1, 40), st.integers(1, 40))
def test_chunks_cost_the_weights_again_and_nothing_else_twice(a, b):
    c = LMConfig(block_size=128, n_embd=16)
    whole, parts = c.pass_cost(a+b), c.pass_cost(a) + c.pass_cost(b, a)
    assert parts.cache_written == whole.cache_written and parts.weight_bytes > whole.weight_bytes
    assert parts.flops == whole.flops - 4*c.n_layer*c.n_embd*a*b         # the chunk's queries skip the future of the first part

def test_ledgers_add_up(): assert Ledger(1, 2, 3, 4) + Ledger(10, 20, 30, 40) == Ledger(11, 22, 33, 44) and Ledger(12, 1, 2, 3).intensity == 2

# --- the machine

def test_the_slower_of_arithmetic_and_memory_decides():
    m = Machine(flops=100., bandwidth=10., call=.5)
    assert m.seconds(Ledger(flops=1000, weight_bytes=10)) == 10 and m.seconds(Ledger(flops=10, weight_bytes=1000)) == 100
    assert m.seconds(Ledger(flops=1000, weight_bytes=10), calls=4) == 12

def test_a_measured_machine_is_of_this_world():
    m = Machine.measure()
    assert 1e9 < m.flops < 1e14 and 1e8 < m.bandwidth < 1e13 and 1e-8 < m.call < 1e-3

# --- the product of few rows

@quick
@given(st.integers(1, 9), st.integers(200, 700), st.integers(200, 700), st.booleans(), st.booleans())
def test_halves_give_the_plain_product(rows, n_in, n_out, bias, batched):
    torch.manual_seed(0)
    x, w, b = torch.randn(rows, n_in), torch.randn(n_out, n_in), torch.randn(n_out) if bias else None
    if batched: x = x[:, None]
    assert torch.allclose(linear(x, w, b), F.linear(x, w, b), atol=1e-3, rtol=1e-4) and linear(x, w, b).shape == F.linear(x, w, b).shape

def test_gradients_through_halves_are_those_of_the_plain_product():
    torch.manual_seed(0)
    x, layer = torch.randn(2, 512, requires_grad=True), Linear(512, 512)
    grads = [torch.autograd.grad(f(x).square().sum(), [x, *layer.parameters()]) for f in (layer, lambda x: F.linear(x, layer.weight, layer.bias))]
    for a, b in zip(*grads): assert torch.allclose(a, b, atol=1e-3, rtol=1e-4)

@pytest.mark.parametrize('vocab_size', [1000, 1001])
def test_the_law_holds_for_a_model_large_enough_for_halves(vocab_size):
    torch.manual_seed(0)
    model = small_model(vocab_size=vocab_size, n_embd=384, n_head=6, block_size=16).eval()
    for p in model.parameters(): torch.nn.init.normal_(p, std=.05)
    x = torch.randint(vocab_size, (2, 12), generator=seeded())
    whole = model.prefill(x)[0].abs().max()
    assert phase_gap(model, x, 5, cache=KVCache(model.config, 2)).max() < 1e-5*whole + 1e-4

# --- the timeline

@pytest.mark.parametrize('use_cache', [True, False])
def test_a_timeline_counts_what_the_passes_really_read(use_cache):
    model, read = small_model(), []
    model.norm.register_forward_hook(lambda m, i, out: read.append(out.shape[1]))
    line = Timeline.record(model, tokens(2, 3), 10, temperature=0, use_cache=use_cache)
    written = [c.cache_written//model.config.cache_bytes(2, 1) for c in line.costs]
    assert written == read and len(line.seconds) == len(line.tokens) == 10
    assert line.tokens == model.decode(tokens(2, 3), 10, temperature=0)[0, 3:].tolist()

def test_ttft_and_tpot_are_kept_apart():
    line = Timeline([5.] + [i/100 for i in range(1, 101)], [Ledger()]*101, [0]*101)
    assert line.ttft == 5 and line.tpot() == pytest.approx(.505) and line.tpot(95) == pytest.approx(.95, abs=.01)

def test_a_timeline_comes_back_from_its_file(tmp_path):
    line = Timeline.record(small_model(), tokens(1, 3), 4)
    line.save(tmp_path/'t.json')
    assert Timeline.load(tmp_path/'t.json') == line
    for bad in ('{}', '[]', '{"seconds": [], "costs": [{"x": 1}], "tokens": []}', 'no'):
        (tmp_path/'t.json').write_text(bad)
        with pytest.raises(ValueError, match='is not a timeline'): Timeline.load(tmp_path/'t.json')

@pytest.mark.parametrize('n', [0, 1, 2])
def test_a_timeline_needs_three_tokens(n):
    with pytest.raises(ValueError, match=f'max_new_tokens is {n}: expected at least 3'): Timeline.record(small_model(), tokens(1, 3), n)

# --- the benchmark

def test_the_benchmark_measures_everything_it_shows(tmp_path):
    r = benchmark(small_model(block_size=16), prompt=4, new_tokens=4, batches=(1, 2))
    assert r['decode'].keys() == {'naive', 'cached'} and r['batch'].keys() == {1, 2} and r['prefill']['tokens'] == 16
    for d in r['decode'].values(): assert 0 < d['tpot']['min'] <= d['tpot']['median'] <= d['tpot']['max'] and d['ttft']['median'] > 0
    json.loads(json.dumps(r))
    table = bench_table(r)
    assert all(word in table for word in ('naive', 'cached', 'threads', 'tokens a second in all'))

def test_the_sizes_are_the_published_ones(): assert {n: c.n_params for n, c in SIZES.items()} == {'S': 208_320, 'M': 10_770_816, 'L': 124_439_808}

@pytest.mark.parametrize('prompt', [0, 6, 2.5])
def test_a_prompt_that_does_not_fit_is_refused(prompt):
    with pytest.raises(ValueError, match=f'prompt is {prompt}: expected 1 to 5'): benchmark(small_model(), prompt)
