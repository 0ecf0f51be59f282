import warnings
from math import exp

import pytest
import torch
from helpers import models, quick, seeded, small_model, tokens
from hypothesis import assume, given, settings, strategies as st
from torch.nn import functional as F

from tinylm import NGramDrafter, PhaseCost, Sampling, compare_phases, decoding
from tinylm import phase_gap, phase_invariant, phase_table
from tinylm import probabilities, sample

def naive(model, idx, n, generator):
    "The loop of the founding document."
    for _ in range(n):
        logits, _ = model(idx[:, -model.config.block_size:])
        probs = F.softmax(logits[:, -1, :], dim=-1)
        idx = torch.cat([idx, torch.multinomial(probs, 1, generator=generator)], 1)
    return idx

# --- the law

@quick
@given(models(), st.data())
def test_decode_gives_the_logits_of_prefill_for_random_shapes_and_cuts(model, data):
    B, T = data.draw(st.integers(1, 3)), data.draw(st.integers(1, model.config.block_size))
    x = torch.randint(11, (B, T), generator=seeded(1))
    k = data.draw(st.integers(1, T))
    gap = phase_gap(model, x, k)
    assert gap.shape == (T,) and gap.max() < 1e-4 and phase_invariant(model, x, k)

def test_the_law_notices_a_model_that_sees_the_future():
    model = small_model()
    attention = model.blocks[1].attention
    heard = lambda x: F.scaled_dot_product_attention(*attention.heads(x))
    attention.forward = lambda x, p, layer=0: attention.proj(heard(x).transpose(1, 2).flatten(2))
    x = torch.randint(11, (1, 8), generator=seeded())
    gap = phase_gap(model, x, 3)
    assert not phase_invariant(model, x, 3) and gap[:7].min() > 1e-3 and gap[7] < 1e-4

def test_where_nothing_is_decoded_the_gap_is_zero_and_no_tolerance_is_needed():
    x = tokens(2, 5)
    assert phase_gap(small_model(), x, 5).tolist() == [0]*5 and phase_invariant(small_model(), x, 5, atol=0)

@pytest.mark.parametrize('k', [0, 9, -1])
def test_a_cut_outside_the_text_is_refused(k):
    with pytest.raises(ValueError, match=f'k is {k}'):
        phase_gap(small_model(), torch.zeros(1, 8, dtype=torch.long), k)

# --- decode, stream, generate

@quick
@given(st.integers(1, 3), st.integers(1, 12), st.integers(0, 14))
def test_decode_is_the_naive_loop_even_past_the_window(B, T0, n):
    model, idx = small_model(), torch.randint(11, (B, T0), generator=seeded(2))
    out = model.decode(idx, n, generator=seeded(3))
    assert out.shape == (B, T0+n)
    assert torch.equal(out, naive(model, idx, n, seeded(3)))

def test_zero_tokens_give_the_context_back():
    idx = torch.randint(11, (2, 5))
    assert torch.equal(small_model().decode(idx, 0), idx)

def test_past_the_window_only_the_last_tokens_count():
    model, long = small_model(), torch.randint(11, (1, 20))
    assert torch.equal(model.decode(long, 9, temperature=0)[:, 20:],
                       model.decode(long[:, -8:], 9, temperature=0)[:, 8:])

def test_stream_hands_out_each_token_before_the_next_is_made():
    model, passes = small_model(), []
    model.norm.register_forward_hook(lambda *_: passes.append(1))
    stream = model.stream(torch.zeros(2, 3, dtype=torch.long), 5, temperature=0)
    for made in range(1, 6):
        assert next(stream).shape == (2, 1) and len(passes) == made
    assert next(stream, None) is None

def test_stream_refuses_bad_input_before_the_first_token():
    with pytest.raises(ValueError): small_model().stream(torch.zeros(1, 3, dtype=torch.long), -1)

@quick
@given(models(), st.integers(1, 3), st.integers(1, 12), st.integers(0, 14), st.integers(0, 99))
def test_a_record_of_dials_is_as_good_as_keywords(model, B, T0, n, seed):
    idx, dials = tokens(B, T0), dict(temperature=.8, top_k=4, top_p=.9)
    by_name = model.decode(idx, n, generator=seeded(seed), **dials)
    assert torch.equal(model.decode(idx, n, sampling=Sampling(**dials, seed=seed)), by_name)
    assert torch.equal(model.decode(idx, n, sampling=Sampling(**dials), generator=seeded(seed)), by_name)

@pytest.mark.parametrize('how',
    [dict(sampling=Sampling(), temperature=0), dict(sampling=Sampling(seed=1), generator=seeded()),
     dict(sampling=.7)])
def test_dials_that_contradict_each_other_are_refused(how):
    with pytest.raises(ValueError, match='sampling is 0.7|expected one of them'):
        small_model().stream(tokens(1, 2), 3, **how)

def test_a_way_to_decode_whose_row_is_missing_is_refused_by_name(monkeypatch):
    model, idx = small_model(), tokens(1, 3)
    want = model.decode(idx, 4, temperature=0)
    monkeypatch.setattr(decoding, 'STEPS', {'naive': decoding.naive_step})
    assert torch.equal(model.decode(idx, 4, temperature=0), want)          # the best way that is there
    with pytest.raises(ValueError, match="no way to decode named 'cached' yet: expected one of naive"):
        model.stream(idx, 4, use_cache=True)
    with pytest.raises(ValueError, match="named 'speculative'"): model.stream(idx, 4, drafter=object())

def test_a_drafter_goes_with_a_cache_and_not_without_one():
    model, idx, how = small_model(), tokens(1, 3), dict(temperature=0, drafter=NGramDrafter(1))
    assert torch.equal(model.decode(idx, 6, use_cache=True, **how), model.decode(idx, 6, temperature=0))
    with pytest.raises(ValueError, match='use_cache is False'): model.stream(idx, 6, use_cache=False, **how)

def test_a_later_lesson_adds_a_row_and_the_loop_does_the_rest(monkeypatch):
    "A step may give several tokens; what is too much is cut."
    model, idx, asked = small_model(dropout=.5).train(), tokens(2, 3), []
    def make(model, idx, max_new_tokens, sampling, generator):
        return lambda text: (asked.append((text.shape[1], model.training, torch.is_inference_mode_enabled())),
                             text[:, -3:])[1]
    monkeypatch.setitem(decoding.STEPS, 'cached', make)
    out = model.decode(idx, 7)
    assert torch.equal(out, torch.cat([idx, idx, idx, idx[:, :1]], 1)) and asked == [(n, False, True)
        for n in (3, 6, 9)] and model.training
    assert [t.shape for t in model.stream(idx, 7)] == [(2, 1)]*7

def test_compile_warns_once_in_one_line_and_changes_nothing(monkeypatch):
    model, idx = small_model(), tokens(2, 3)
    monkeypatch.setattr(decoding, 'NATIVE', [])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        out = model.decode(idx, 9, temperature=0, compile=True)
        model.stream(idx, 9, compile=True)
    assert said.pop().filename == __file__                                 # it names the caller's line
    assert [str(w.message) for w in said] == [
        'compile is True, and decoding goes on without: lesson 14 is not there yet']
    assert torch.equal(out, model.decode(idx, 9, temperature=0, compile=False))

@pytest.mark.parametrize('part', ['blocks.0', 'blocks.1.mlp', 'blocks.1.attention.qkv', 'norm'])
def test_hooks_fire_while_decoding_and_dropout_stays_off(part):
    model, seen, x = small_model(dropout=.5).train(), [], torch.zeros(1, 2, dtype=torch.long)
    want = model.decode(x, 5, temperature=0)
    hook = model.get_submodule(part).register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(model.decode(x, 5, temperature=0), want) and len(seen) == 5
    assert all(m.training for m in model.modules())
    hook.remove(); model.decode(x, 5); assert len(seen) == 5

@pytest.mark.parametrize('mode', [True, False])
def test_every_part_keeps_its_mode_also_after_an_error(mode):
    model = small_model(dropout=.5).train(mode)
    model.blocks[0].eval()
    before = [m.training for m in model.modules()]
    model.decode(torch.zeros(1, 1, dtype=torch.long), 3)
    assert [m.training for m in model.modules()] == before
    def fail(*_): raise MemoryError
    hook = model.blocks[1].register_forward_hook(fail)
    with pytest.raises(MemoryError): model.decode(torch.zeros(1, 1, dtype=torch.long), 3)
    hook.remove()
    assert [m.training for m in model.modules()] == before

def test_dropout_is_off_while_decoding():
    model = small_model(dropout=.5).train()
    one, two = (model.decode(torch.zeros(1, 2, dtype=torch.long), 20, temperature=0) for _ in range(2))
    assert torch.equal(one, two) and torch.equal(one,
        model.eval().decode(torch.zeros(1, 2, dtype=torch.long), 20, temperature=0))

def test_the_result_can_be_trained_on():
    model = small_model()
    out = model.decode(torch.zeros(1, 1, dtype=torch.long), 7)
    model.prefill(out, out)[1].backward()
    assert model.tok_emb.weight.grad is not None

@pytest.mark.parametrize('idx, says', [
    (torch.zeros(1, 0, dtype=torch.long), 'at least one token'),
    (torch.zeros(3, dtype=torch.long), r'shape \(3,\)'),
    (torch.zeros(1, 3), 'float32'), (torch.tensor([[1, 11]]), 'token id 11'),
    (torch.tensor([[-1, 1]]), 'token id -1')])
def test_a_bad_context_is_refused(idx, says):
    with pytest.raises(ValueError, match=says): small_model().decode(idx, 1)

@pytest.mark.parametrize('n', [-1, 1.5, None])
def test_a_bad_count_is_refused(n):
    with pytest.raises(ValueError, match='max_new_tokens'):
        small_model().decode(torch.zeros(1, 1, dtype=torch.long), n)

@pytest.mark.parametrize('dial',
    [dict(temperature=-1), dict(temperature=float('nan')), dict(temperature=float('inf')), dict(top_k=0),
        dict(top_k=1.5), dict(top_k='3'), dict(top_k=True), dict(temperature='warm'), dict(temperature=None),
        dict(top_p=0.), dict(top_p=1.1), dict(top_p=[1])])
def test_bad_dials_are_refused(dial):
    with pytest.raises(ValueError, match=next(iter(dial))):
        small_model().decode(torch.zeros(1, 1, dtype=torch.long), 1, **dial)

@pytest.mark.parametrize('seed', [-1, 2**63, 1.5, True, 'x'])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match=f'seed is {seed!r}: expected a whole number from 0 to'):
        Sampling(seed=seed)

def test_the_largest_seed_repeats_its_draws():
    model, idx, dials = small_model(), tokens(2, 3), Sampling(seed=2**63-1)
    assert torch.equal(model.decode(idx, 9, sampling=dials), model.decode(idx, 9, sampling=dials))

# --- sampling

@pytest.mark.parametrize('how', [dict(), dict(use_cache=False), dict(drafter=NGramDrafter(1))],
                         ids=['cached', 'again', 'guessed'])
def test_the_best_token_needs_no_chance(how):
    "Greedy text leaves a generator, and PyTorch's own, as they were for whoever draws next."
    model, idx, chance = small_model(), tokens(1, 3), seeded()
    before = chance.get_state(), torch.get_rng_state()
    model.decode(idx, 9, temperature=0, generator=chance, **how); model.decode(idx, 9, temperature=0, **how)
    assert torch.equal(chance.get_state(), before[0]) and torch.equal(torch.get_rng_state(), before[1])

rows = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=12)

@quick
@given(rows, st.floats(.1, 5))
def test_temperature_divides_the_logits(row, temperature):
    logits = torch.tensor([row])
    assert torch.allclose(probabilities(logits, temperature), (logits/temperature).softmax(-1), atol=1e-6)

@quick
@given(rows, st.integers(1, 12))
def test_top_k_keeps_exactly_the_k_best_in_proportion(row, k):
    p, whole = probabilities(torch.tensor(row), top_k=k), torch.tensor(row).softmax(-1)
    kept = p > 0
    assert kept.sum() <= min(k, len(row)) and abs(p.sum() - 1) < 1e-5
    if (whole > 1e-30).all(): assert kept.sum() == min(k, len(row))
    assert not (~kept).any() or whole[kept].min() >= whole[~kept].max()
    assert torch.allclose(p[kept], whole[kept]/whole[kept].sum(), atol=1e-5)

@quick
@given(rows, st.floats(.01, 1))
def test_top_p_keeps_the_fewest_best_tokens_that_reach_p(row, top_p):
    p, whole = probabilities(torch.tensor(row), top_p=top_p), torch.tensor(row).softmax(-1)
    best = whole.sort(descending=True).values
    n = (p > 0).sum().item()
    assert n >= 1 and best[:n].sum() >= top_p - 1e-5
    assert n == 1 or best[:n-1].sum() < top_p + 1e-5
    assert abs(p.sum() - 1) < 1e-5

def both_cuts(logits, temperature, k, top_p):
    "In plain Python: the k best, then the fewest of those that reach a share of what these sum to."
    weights = [exp((x - max(logits))/temperature) for x in logits]
    best = sorted(range(len(logits)), key=lambda i: -logits[i])[:k]
    goal, kept, held = top_p*sum(weights[i] for i in best), [0.]*len(logits), [0.]
    for i in best:
        if held[-1] < goal: kept[i] = weights[i]
        held.append(held[-1] + weights[i])
    unclear = any(abs(h - goal) < 1e-5*held[-1] < .1*(held[-1] - h) for h in held)  # a matter of rounding
    return torch.tensor([w/sum(kept) for w in kept]), unclear

@settings(quick, max_examples=200)
@given(st.lists(st.integers(-20, 20).map(lambda n: n/8), min_size=2, max_size=12),
       st.integers(1, 13), st.floats(.01, 1), st.floats(.1, 5))
def test_top_k_cuts_first_then_top_p_of_what_is_left(row, k, top_p, temperature):
    "As in transformers and vLLM: the share is of the tokens that top-k has left."
    want, unclear = both_cuts(row, temperature, k, top_p)
    assume(not unclear)
    assert torch.allclose(probabilities(torch.tensor(row), temperature, k, top_p), want, atol=1e-4)

@quick
@given(st.integers(1, 400), st.integers(1, 3), st.integers(1, 500), st.integers(1, 300), st.integers(0, 9999))
def test_the_best_are_those_of_a_sort_of_all_equals_included(V, rows, n, values, seed):
    p = torch.randint(values, (rows, V), generator=torch.Generator().manual_seed(seed)).float()
    for got, want in zip(decoding._ranked(p, n), p.sort(descending=True, stable=True)):
        assert got.equal(want[..., :n])

@quick
@given(st.integers(300, 5000), st.floats(.01, 1), st.floats(.1, 9), st.integers(0, 9999))
def test_enough_of_a_large_vocabulary_reach_top_p(V, top_p, sharp, seed):
    logits = sharp*torch.randn(2, V, generator=torch.Generator().manual_seed(seed))
    p, n = logits.softmax(-1), decoding._enough(logits.softmax(-1), top_p)
    assert n == V or (p.sort(descending=True).values[:, :n].sum(-1) >= top_p).all()
    assert ((probabilities(logits, top_p=top_p) > 0).sum(-1) <= n).all()

def test_both_cuts_at_once():
    p = probabilities(torch.tensor([.4, .3, .2, .1]).log(), top_k=3, top_p=.5)
    assert torch.allclose(p, torch.tensor([4/7, 3/7, 0, 0]))
    # of the whole text it would be two
    p = probabilities(torch.tensor([.4, .3, .2, .1]).log(), top_k=3, top_p=.75)
    assert torch.allclose(p, torch.tensor([4/7, 3/7, 0, 0]))
    # of the whole it would be both
    p = probabilities(torch.tensor([.3, .3, .2, .2]).log(), top_k=2, top_p=.5)
    assert torch.allclose(p, torch.tensor([1., 0, 0, 0]))

def test_greedy_takes_the_best_and_a_tiny_temperature_does_too():
    logits = torch.tensor([[0., 5., 4.9], [3., 1., 2.]])
    assert sample(logits, 0).tolist() == [[1], [0]] == sample(logits, 1e-46).tolist() == sample(logits,
        1e-8).tolist()
    assert probabilities(logits, 0).tolist() == [[0, 1, 0], [1, 0, 0]]

@pytest.mark.parametrize('dials', [dict(), dict(temperature=.1), dict(top_k=2), dict(top_p=.9)], ids=str)
@pytest.mark.parametrize('large', [3e38, -3e38])
def test_the_largest_numbers_that_are_finite_give_a_distribution(large, dials):
    p = probabilities(torch.tensor([large, large, -3.4e38]), **dials)
    assert torch.allclose(p, torch.tensor([.5, .5, 0.]))

def test_a_record_of_dials_is_a_key_and_does_not_change():
    dials = Sampling(.5, 3)
    assert {dials: 1}[Sampling(.5, 3)] == 1
    with pytest.raises(AttributeError): dials.temperature = 0

def test_a_vanishing_top_p_keeps_the_best():
    assert probabilities(torch.tensor([1., 2.]), top_p=1e-46).tolist() == [0, 1]

@pytest.mark.parametrize('bad', [dict(batch=0), dict(new_tokens=0), dict(repeats=0)])
def test_a_comparison_of_nothing_is_refused(bad):
    with pytest.raises(ValueError, match=f'{list(bad)[0]} is 0'): compare_phases(small_model(), **bad)

def test_draws_follow_the_distribution():
    logits = torch.tensor([.5, .3, .15, .05]).log()
    draws = sample(logits.repeat(20_000, 1), generator=seeded()).flatten()
    expected = torch.tensor([.5, .3, .15, .05])*20_000
    chi2 = ((draws.bincount(minlength=4) - expected)**2/expected).sum()
    assert chi2 < 21                                   # 3 degrees of freedom: p about 0.0001

# --- the phases compared

def test_passes_and_tokens_are_counted():
    model = small_model()
    prefill, decode = compare_phases(model, batch=4, new_tokens=10, repeats=2)
    assert (prefill.phase, prefill.passes, prefill.tokens) == ('prefill', 1, 4*8)
    assert (decode.phase, decode.passes, decode.tokens) == ('decode', 10, 4*10)
    assert not model.norm._forward_hooks

def test_the_phases_are_compared_on_the_same_rows():
    model, rows = small_model(), []
    hook = model.norm.register_forward_hook(lambda m, i, out: rows.append(len(out)))
    for batch in (1, 3):
        rows.clear()
        compare_phases(model, batch=batch, new_tokens=2, repeats=1)
        assert rows == [batch]*3                       # one pass of prefill, two of decode
    hook.remove()
    T = model.config.block_size
    assert [c.tokens for c in compare_phases(model, new_tokens=T, repeats=1)] == [T, T]

def test_each_phase_is_timed_alone_and_the_median_is_kept(monkeypatch):
    "On a clock that only passes move; decode begins with one token."
    model, now, shapes, paces = small_model(), [100.], [], [16, 4, 8, *[5]*6, *[1]*6, *[3]*6]
    monkeypatch.setattr(decoding, 'perf_counter', lambda: now[0])
    def passing(m, args, out):
        now[0] += paces[len(shapes)]; shapes.append(out.shape[:2])
    model.norm.register_forward_hook(passing)
    prefill, decode = compare_phases(model, batch=4, new_tokens=6, repeats=3)
    assert shapes == [(4, 8)]*3 + [(4, 1)]*18
    assert (prefill.seconds, decode.seconds) == (8, 6*3)

def test_the_table_shows_both_phases():
    table = phase_table([PhaseCost('prefill', 1, 256, .5), PhaseCost('decode', 64, 64, 2.)])
    assert [line.split() for line in table.splitlines()[1:]] == [['prefill', '256', '1', '256', '500.0',
        '512'], ['decode', '64', '64', '1', '2000.0', '32']]

# --- numbers that are none

@quick
@given(models(), st.sampled_from([float('nan'), float('inf')]), st.data())
def test_weights_that_are_no_numbers_never_become_text(model, bad, data):
    "Whichever weight it is, and whichever way the text is written."
    floats = [t for t in model.state_dict().values() if t.is_floating_point()]
    weight = data.draw(st.sampled_from(floats))
    weight.flatten()[data.draw(st.integers(0, weight.numel()-1))] = bad
    idx = tokens(1, 2)
    with torch.no_grad(): reached = not model.prefill(idx)[0][:, -1].amax(-1).isfinite().all()
    # a token or a position that this text has not
    if not reached: return
    for how in (dict(), dict(use_cache=False), dict(temperature=0), dict(drafter=NGramDrafter(1)),
                dict(drafter=NGramDrafter(1), temperature=0)):
        with pytest.raises(ValueError, match='nan or infinity: expected finite weights'):
            model.decode(idx, 3, **how)
