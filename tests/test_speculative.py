"Speculation writes what decode writes: the same tokens, or the same distribution."
from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from test_cache import close, models, tokens
from test_decoding import seeded, small_model

from tinylm import KVCache, LanguageModel, LMConfig, probabilities, speculative
from tinylm.speculative import ModelDrafter, NGramDrafter, SpeculativeStats, accept_guesses, speculative_decode

quick = settings(deadline=None, max_examples=40)

class Scripted:
    "Guesses what a function says."
    vocab_size = None
    def __init__(self, guess): self.guess, self.asked = guess, []
    def draft(self, text, most, **dials):
        self.asked.append((len(text), most))
        return list(self.guess(text, most))[:most], None

def greedy(model, idx, n): return model.decode(idx, n, temperature=0)

def decided(model, idx, n):
    "Whether every token of the greedy text wins by more than rounding."
    whole, W = greedy(model, idx, n), model.config.block_size
    with torch.no_grad(): tops = [model.prefill(whole[:, :t][:, -W:])[0][0, -1].topk(2).values for t in range(idx.shape[1], whole.shape[1])]
    return all(a - b > 1e-4 for a, b in tops)

def right(model, idx, n):
    whole = greedy(model, idx, n)[0].tolist()
    return Scripted(lambda text, most: whole[len(text):len(text)+most])

def wrong(model, idx, n):
    whole = greedy(model, idx, n)[0].tolist()
    return Scripted(lambda text, most: [(t+1) % 11 for t in whole[len(text):len(text)+most]])

def mixed(model, idx, n):
    "Right, wrong or silent, for 0 to 5 tokens."
    whole, g = greedy(model, idx, n)[0].tolist(), seeded(5)
    def guess(text, most):
        coins = torch.rand(5, generator=g).tolist()[:torch.randint(6, (1,), generator=g).item()]
        return [t if c < .7 else (t+1) % 11 for t, c in zip(whole[len(text):], coins)]
    return Scripted(guess)

DRAFTERS = dict(right=right, wrong=wrong, mixed=mixed, silent=lambda *_: Scripted(lambda *_: []), ngram=lambda *_: NGramDrafter(1, 3), longer=lambda *_: NGramDrafter(2, 20),
                model=lambda *_: ModelDrafter(small_model(7, n_layer=1, block_size=5), 3), itself=lambda model, *_: ModelDrafter(model, 4))

# --- greedy

@quick
@given(models(), st.sampled_from(sorted(DRAFTERS)), st.integers(1, 16), st.integers(0, 16))
def test_greedy_speculation_writes_the_tokens_of_decode_even_past_the_window(model, kind, T0, n):
    idx = tokens(1, T0, 2)
    assume(decided(model, idx, n))
    out, stats = speculative_decode(model, idx, n, DRAFTERS[kind](model, idx, n), temperature=0)
    assert torch.equal(out, greedy(model, idx, n)) and out.dtype == torch.int64
    assert torch.equal(out, model.decode(idx, n, temperature=0, drafter=DRAFTERS[kind](model, idx, n)))
    assert stats.tokens == n == len(stats.by_drafter) and sum(stats.by_drafter) == sum(stats.accepted)
    assert all(0 <= a <= d for a, d in zip(stats.accepted, stats.drafted, strict=True))
    assert stats.alone == n - len(range(T0, min(T0+n, model.config.block_size+1)))
    if kind in ('wrong', 'silent'): assert sum(stats.accepted) == 0 and stats.verifications + stats.alone == n
    if kind == 'right': assert stats.accepted == stats.drafted
    if kind == 'itself' and stats.drafted: assert stats.accepted == stats.drafted and stats.acceptance == (sum(stats.drafted) > 0)

@quick
@given(models(), st.integers(1, 12), st.integers(1, 16))
def test_nobody_is_asked_past_the_window_or_past_the_end(model, T0, n):
    idx, longest = tokens(1, T0), model.config.block_size
    drafter = mixed(model, idx, n)
    speculative_decode(model, idx, n, drafter, temperature=0)
    for known, most in drafter.asked: assert most == min(longest - known, T0 + n - 1 - known) >= 1

def test_the_first_pass_reads_prompt_and_guesses_and_no_position_twice():
    model, seen, idx = small_model(block_size=32), [], tokens(1, 5)
    drafter = right(model, idx, 20)
    model.norm.register_forward_hook(lambda m, i, out: seen.append(out.shape[1]))
    speculative_decode(model, idx, 20, drafter, temperature=0)
    assert seen == [5+19]
    seen.clear(); speculative_decode(model, idx, 6, wrong(model, idx, 6), temperature=0)
    assert seen[-6:] == [5+5, 5, 4, 3, 2, 1]

@quick
@given(models(), st.data())
def test_logits_at_verified_positions_are_those_of_a_prefill_and_lengths_follow(model, data):
    longest = model.config.block_size
    T0 = data.draw(st.integers(1, longest))
    idx, n = tokens(1, T0), longest + 1 - T0
    drafter, passes, caches = mixed(model, idx, n), [], []
    with pytest.MonkeyPatch.context() as m:
        prefix, logits, commit = [], model.logits, KVCache.rewind
        m.setattr(model, 'logits', lambda hidden: passes.append(logits(hidden)) or passes[-1])
        m.setattr(KVCache, 'rewind', lambda self, k: (commit(self, k), caches.append(self.lengths)))
        asked = speculative._verify
        m.setattr(speculative, '_verify', lambda model, cache, text, guesses, *a, **b: prefix.append(text + guesses) or asked(model, cache, text, guesses, *a, **b))
        out, stats = speculative_decode(model, idx, n, drafter, temperature=0)
    known = T0
    for read, got, d, a, lengths in zip(prefix, passes, stats.drafted, stats.accepted, caches, strict=True):
        with torch.no_grad(): whole = model.prefill(torch.tensor([read]))[0][0]
        assert got.shape[0] == d + 1 and close(got, whole[-d-1:])
        assert read[:known] == out[0, :known].tolist() and lengths == [known + a]
        known += a + 1
    assert known == T0 + n

def test_stream_hands_out_single_tokens_that_can_be_trained_on():
    model, idx = small_model(block_size=16), tokens(1, 4)
    got = list(model.stream(idx, 14, temperature=0, drafter=NGramDrafter(1)))
    assert all(t.shape == (1, 1) and t.dtype == torch.int64 for t in got)
    out = model.decode(idx, 9, drafter=NGramDrafter(1), generator=seeded())
    model.prefill(out, out)[1].backward()
    assert model.tok_emb.weight.grad is not None

@pytest.mark.parametrize('mode', [True, False])
def test_every_part_keeps_its_mode_and_dropout_is_off(mode):
    model, small = (small_model(s, dropout=.5, block_size=16).train(mode) for s in (0, 1))
    model.blocks[0].eval()
    before = [m.training for m in [*model.modules(), *small.modules()]]
    assert torch.equal(model.decode(tokens(1, 2), 12, temperature=0, drafter=ModelDrafter(small)), greedy(model, tokens(1, 2), 12))
    assert [m.training for m in [*model.modules(), *small.modules()]] == before

def test_decode_without_a_drafter_is_what_it_was():
    model, idx = small_model(), tokens(2, 3)
    ways = [model.decode(idx, 9, generator=seeded(1), **d) for d in ({}, dict(use_cache=False), dict(drafter=None), dict(drafter=None, use_cache=True))]
    assert all(torch.equal(ways[0], w) for w in ways) and ways[0].shape == (2, 12)
    assert torch.equal(model.generate(idx[:1], 9, temperature=0, drafter=NGramDrafter(1)), greedy(model, idx[:1], 9))

# --- the cache

@quick
@given(models(), st.data())
def test_after_a_rewind_a_cache_is_as_if_it_had_never_read_the_rest(model, data):
    longest, B = model.config.block_size, data.draw(st.integers(1, 3))
    T = data.draw(st.integers(1, longest)); back = data.draw(st.integers(0, T-1))
    x, cache = tokens(B, longest), KVCache(model.config, B)
    with torch.no_grad():
        model.prefill(tokens(B, T, 9) if back == T else torch.cat([x[:, :T-back], tokens(B, longest, 9)[:, :back]], 1), cache=cache)
        cache.rewind(back)
        assert cache.lengths == [T-back]*B
        if T - back < longest: assert close(model.prefill(x[:, T-back:], cache=cache)[0], model.prefill(x)[0][:, T-back:])

def test_one_row_can_be_rewound_alone():
    model, cache = small_model().eval(), KVCache(small_model().config, 2)
    with torch.no_grad(): model.prefill(tokens(2, 6), cache=cache)
    cache.row(1).rewind(4); cache.rewind(1)
    assert cache.lengths == [5, 1]

@pytest.mark.parametrize('n', [-1, 4, 1.5, None])
def test_a_rewind_that_makes_no_sense_changes_nothing(n):
    model, cache = small_model().eval(), KVCache(small_model().config, 2)
    with torch.no_grad(): model.prefill(tokens(2, 5), cache=cache)
    cache.row(0).rewind(2)
    with pytest.raises(ValueError, match=f'rewind by {n}: expected 0 to 3'): cache.rewind(n)
    assert cache.lengths == [3, 5]

# --- drafters

@quick
@given(st.lists(st.integers(0, 2), min_size=1, max_size=20), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
def test_ngrams_continue_the_latest_match_as_if_it_went_on_for_ever(text, n, k, most):
    guesses, q = NGramDrafter(n, k).draft(list(text), most)
    places = [i for i in range(len(text)-n) if text[i:i+n] == text[-n:]]
    assert q is None and len(guesses) == (min(k, most) if places else 0)
    long = list(text)
    for g in guesses: assert g == long[places[-1] + n + len(long) - len(text)]; long.append(g)

@quick
@given(models(), st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=14), min_size=1, max_size=4), st.integers(1, 6), st.sampled_from([0., 1.]))
def test_a_model_drafter_may_be_given_any_text_after_any_other(model, texts, k, temperature):
    drafter, longest = ModelDrafter(model, k), model.config.block_size
    for seed, text in enumerate(texts):
        guesses, q = drafter.draft(list(text), 4, temperature=temperature, top_k=None, top_p=None, generator=seeded(seed))
        assert len(guesses) == max(0, min(k, 4, longest + 1 - len(text)))
        whole = torch.tensor([text + guesses])
        if guesses and not temperature and decided(model, whole[:, :len(text)], len(guesses)): assert torch.equal(whole, greedy(model, whole[:, :len(text)], len(guesses))) and q is None
        if guesses and temperature:
            with torch.no_grad(): want = model.prefill(whole[:, :-1])[0][0, len(text)-1:].softmax(-1)
            assert close(q, want)

def test_a_model_drafter_reads_each_token_once():
    small, seen = small_model(3, block_size=32), []
    small.norm.register_forward_hook(lambda m, i, out: seen.append(out.shape[1]))
    drafter = ModelDrafter(small, 3)
    drafter.draft([1, 2, 3, 4], 9, temperature=0)
    first, _ = drafter.draft([1, 2, 3, 4], 9, temperature=0)
    drafter.draft([1, 2, 3, 4, *first, 5], 9, temperature=0)
    drafter.draft([1, 2, 3, 4, first[0], (first[1]+1) % 11], 9, temperature=0)
    assert seen == [4, 1, 1] + [1, 1, 1] + [2, 1, 1] + [1, 1, 1]

# --- sampling

DIALS = [{}, dict(temperature=.5), dict(temperature=2.), dict(top_k=3), dict(top_p=.7), dict(temperature=1.5, top_k=4, top_p=.9)]

def chance(counts, p):
    "That draws from p miss it at least as much as these."
    if counts[p == 0].any(): return 0.
    seen, expected = counts[p > 0].double(), p[p > 0].double()*counts.sum()
    return torch.special.gammaincc(torch.tensor((len(seen)-1)/2, dtype=torch.double), ((seen-expected)**2/expected).sum()/2).item()

def first_and_second(rule, lp, lq, n=4000, certain=False, **dials):
    "How often each pair of first two tokens comes out; p of the second depends on the first, as in a model. Cells of a pair that p2 finishes."
    g, V = seeded(1), lp.shape[-1]
    p, q = probabilities(lp, **dials), probabilities(lq, **dials)                    # p: first, then one row for each first token
    counts = torch.zeros(V, V)
    for _ in range(n):
        guess = [lq[0].argmax().item()] if certain else torch.multinomial(q[0], 1, generator=g).tolist()
        new = rule(torch.stack([p[0], p[1 + guess[0]]]), guess, None if certain else q[:1], g)
        if len(new) == 1: new += torch.multinomial(p[1 + new[0]], 1, generator=g).tolist()
        counts[new[0], new[1]] += 1
    return counts.flatten(), (p[0][:, None]*p[1:]).flatten()

def keep_all(p, guesses, q, generator): return guesses + torch.multinomial(p[-1], 1, generator=generator).tolist()

def draw_from_p(p, guesses, q, generator):
    new = accept_guesses(p, guesses, q, generator)
    return new if len(new) > len(guesses) else new[:-1] + torch.multinomial(p[len(new)-1], 1, generator=generator).tolist()

def draw_from_p_without_the_guess(p, guesses, q, generator):
    new = accept_guesses(p, guesses, q, generator)
    return new if len(new) > len(guesses) else new[:-1] + torch.multinomial(p[len(new)-1].index_fill(0, torch.tensor(guesses[len(new)-1]), 0), 1, generator=generator).tolist()

@pytest.mark.parametrize('certain', [False, True], ids=['drawn', 'certain'])
@pytest.mark.parametrize('dials', DIALS, ids=str)
def test_the_rule_gives_the_models_distribution(dials, certain):
    lp, lq = torch.randn(6, 5, generator=seeded(3)), torch.randn(1, 5, generator=seeded(4))
    counts, p = first_and_second(accept_guesses, lp, lq, certain=certain, **dials)
    assert chance(counts, p) > 1e-4

@pytest.mark.parametrize('rule', [keep_all, draw_from_p, draw_from_p_without_the_guess])
@pytest.mark.parametrize('dials', DIALS, ids=str)
def test_the_same_test_catches_broken_rules(dials, rule):
    lp, lq = torch.randn(6, 5, generator=seeded(3)), torch.randn(1, 5, generator=seeded(4))
    counts, p = first_and_second(rule, lp, lq, **dials)
    assert chance(counts, p) < 1e-4

def tiny(seed, **changes):
    model = small_model(seed, **{**dict(vocab_size=4, n_layer=1, n_head=1, n_embd=8, block_size=16), **changes})
    for w in model.parameters(): torch.nn.init.normal_(w, std=.6)
    return model.eval()

MODEL, OTHER, START = tiny(0), tiny(1, n_embd=4, block_size=6), torch.tensor([[0, 1, 2, 0, 1]])

def triples(**dials):
    "The exact probabilities of the next three tokens, by prefill."
    texts = torch.cat([START.expand(64, -1), torch.tensor(list(product(range(4), repeat=3)))], 1)
    with torch.no_grad(): p = probabilities(MODEL.prefill(texts)[0][:, -4:-1], **dials)
    return p.gather(2, texts[:, -3:, None]).prod(1).flatten()

def drawn_triples(drafter, n, **dials):
    g, place = seeded(2), torch.tensor([16, 4, 1])
    return torch.stack([(speculative_decode(MODEL, START, 3, drafter, generator=g, **dials)[0][0, -3:]*place).sum() for _ in range(n)]).bincount(minlength=64)

@pytest.mark.parametrize('drafter', [NGramDrafter(2, 2), ModelDrafter(OTHER, 2)], ids=['ngram', 'model'])
@pytest.mark.parametrize('dials', DIALS[1:], ids=str)
def test_texts_are_distributed_as_the_model_says(dials, drafter):
    assert chance(drawn_triples(drafter, 1200, **dials), triples(**dials)) > 1e-4

@pytest.mark.parametrize('rule', [keep_all, draw_from_p])
@pytest.mark.parametrize('drafter', [NGramDrafter(2, 2), ModelDrafter(OTHER, 2)], ids=['ngram', 'model'])
def test_texts_of_broken_rules_are_caught(monkeypatch, rule, drafter):
    monkeypatch.setattr(speculative, 'accept_guesses', rule)
    assert chance(drawn_triples(drafter, 1200), triples()) < 1e-4

@quick
@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=6), st.integers(0, 3), st.integers(0, 99))
def test_equal_distributions_keep_every_guess_and_forbidden_tokens_never_come(row, n, seed):
    p = torch.tensor(row).softmax(-1).repeat(n+1, 1)
    guesses = torch.multinomial(p[:n], 1, generator=seeded(seed)).flatten().tolist() if n else []
    assert accept_guesses(p, guesses, p[:n], seeded(seed))[:n] == guesses
    only = torch.zeros(n+1, len(row)); only[:, 0] = 1
    new = accept_guesses(only, guesses, p[:n], seeded(seed))
    assert set(new) == {0} and new[:-1] == guesses[:len(new)-1]

def test_a_temperature_as_good_as_zero_is_greedy():
    model, idx = small_model(block_size=16), tokens(1, 4)
    for drafter in (NGramDrafter(1), ModelDrafter(small_model(5, block_size=16))):
        assert torch.equal(model.decode(idx, 10, temperature=1e-12, drafter=drafter), greedy(model, idx, 10))

def test_a_generator_makes_speculation_repeatable():
    model, idx = small_model(block_size=32), tokens(1, 4)
    for make in (lambda: NGramDrafter(1), lambda: ModelDrafter(small_model(5, block_size=16))):
        one, two = (model.decode(idx, 20, drafter=make(), generator=seeded(3)) for _ in range(2))
        assert torch.equal(one, two)

@pytest.mark.parametrize('shape', [(2, 4), (4, 4), (4,)])
def test_a_row_for_each_guess_and_one_more_is_needed(shape):
    with pytest.raises(ValueError, match=r'p has shape .*: expected \(3, V\)'): accept_guesses(torch.ones(shape), [1, 2])

# --- statistics

def test_statistics_by_hand():
    s = SpeculativeStats([4, 0, 3, 2], [2, 0, 3, 0], alone=1)
    assert (s.verifications, s.tokens, s.per_verification, s.acceptance) == (4, 10, 9/4, 5/7)
    assert s.by_drafter == [True, True, False, False, True, True, True, False, False, False]
    empty = SpeculativeStats([], [])
    assert (empty.verifications, empty.tokens, empty.acceptance, empty.by_drafter) == (0, 0, 0, [])

# --- bad input

def refused(says, model, idx, n, **how):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=says) as e: model.stream(idx, n, **how)     # before the first token
    assert '\n' not in str(e.value) and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())

@pytest.mark.parametrize('how, says', [
    (dict(drafter=ModelDrafter(LanguageModel(LMConfig(vocab_size=12, n_layer=1)))), 'the drafter guesses from 12 tokens, and the model has 11'),
    (dict(drafter=3), 'drafter is 3: expected an object with a method draft'), (dict(drafter=NGramDrafter), 'drafter is <class'),
    (dict(drafter=NGramDrafter(), use_cache=False), 'use_cache is False'), (dict(drafter=NGramDrafter(), compile=True), 'compile is True'),
    (dict(drafter=NGramDrafter(), temperature=-1), 'temperature is -1')], ids=str)
def test_what_cannot_work_is_refused_before_the_first_token(how, says): refused(says, small_model(), tokens(1, 3), 4, **how)

@pytest.mark.parametrize('idx, n, says', [
    (tokens(2, 3), 4, 'idx has 2 rows: with a drafter, expected one'), (torch.zeros(1, 0, dtype=torch.long), 4, 'at least one token'),
    (torch.zeros(3, dtype=torch.long), 4, 'shape'), (torch.tensor([[11]]), 4, 'token id 11'), (tokens(1, 3), -1, 'max_new_tokens is -1')])
def test_bad_shapes_are_refused_by_both_ways_in(idx, n, says):
    refused(says, small_model(), idx, n, drafter=NGramDrafter())
    with pytest.raises(ValueError, match=says): speculative_decode(small_model(), idx, n, NGramDrafter())

@pytest.mark.parametrize('make', [lambda n: NGramDrafter(n), lambda n: NGramDrafter(k=n), lambda n: ModelDrafter(small_model(), n)])
@pytest.mark.parametrize('n', [0, -1, 1.5, True, None])
def test_a_count_that_makes_no_sense_is_refused(make, n):
    with pytest.raises(ValueError, match=rf'is {n}: expected a whole number of at least 1'): make(n)

def test_a_drafter_without_a_model_is_refused():
    with pytest.raises(ValueError, match="model is 'small': expected a LanguageModel"): ModelDrafter('small')

@pytest.mark.parametrize('answer, says', [
    (([1]*50, None), 'guesses 50 tokens from 1 to 1: expected at most 5'), (([11], None), 'from 11 to 11: expected at most 5, from 0 to 10'), (([-1], None), 'from 0 to 10'),
    (([1, 2], torch.ones(1, 11)), r'shape \(1, 11\): expected \(2, 11\)'), (([1], torch.ones(1, 10)), r'shape \(1, 10\): expected \(1, 11\)')])
def test_a_drafter_that_breaks_the_rules_is_named(answer, says):
    class Bad:
        def draft(self, text, most, **dials): return answer
    model, good = small_model(), ModelDrafter(small_model(4))
    with pytest.raises(ValueError, match=says): model.decode(tokens(1, 3), 6, drafter=Bad())
    assert torch.equal(model.decode(tokens(1, 3), 6, temperature=0, drafter=good), greedy(model, tokens(1, 3), 6))

def test_a_model_drafter_survives_a_pass_that_fails(monkeypatch):
    small = small_model(4, block_size=16)
    drafter = ModelDrafter(small)
    drafter.draft([1, 2, 3], 3, temperature=0)
    with monkeypatch.context() as m:
        m.setattr(KVCache, 'update', lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError): drafter.draft([1, 2, 7, 8], 3, temperature=0)
    drafter.cache._lengths[0] += 2                                 # as if stopped between the pass and the note of it
    assert drafter.draft([1, 2, 7, 8], 3, temperature=0)[0] == greedy(small, torch.tensor([[1, 2, 7, 8]]), 3)[0, 4:].tolist()
