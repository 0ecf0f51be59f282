"Speculation writes what decode writes: the same tokens, or the same distribution."
from itertools import product

import pytest
import torch
from helpers import (FAILURES, STOPS, Boom, FailingOperation, close, decided, models, quick, seeded,
                     small_model, tokens)
from hypothesis import assume, given, settings, strategies as st

from tinylm import STEPS, LanguageModel, LMConfig, Sampling, probabilities, speculative, write
from tinylm.speculative import (ModelDrafter, NGramDrafter, SpeculativeStats, accept_guesses,
                                speculative_decode)

class Scripted:
    "Guesses what a function says."
    vocab_size = None
    def __init__(self, guess): self.guess, self.asked = guess, []
    def draft(self, text, most, **dials):
        guesses = list(self.guess(text, most))[:most]
        self.asked.append((list(text), most, guesses))
        text.clear()                                                   # it is a copy: nobody minds
        return guesses, None

def greedy(model, idx, n): return model.decode(idx, n, temperature=0)

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

DRAFTERS = dict(right=right, wrong=wrong, mixed=mixed, silent=lambda *_: Scripted(lambda *_: []),
                ngram=lambda *_: NGramDrafter(1, 3), longer=lambda *_: NGramDrafter(2, 20),
                model=lambda *_: ModelDrafter(small_model(7, n_layer=1, block_size=5), 3),
                itself=lambda model, *_: ModelDrafter(model, 4))

# --- greedy

@quick
@given(models(), st.sampled_from(sorted(DRAFTERS)), st.integers(1, 16), st.integers(0, 16))
def test_greedy_speculation_writes_the_tokens_of_decode_even_past_the_window(model, kind, T0, n):
    idx = tokens(1, T0, 2)
    assume(decided(model, idx, n)[1])
    out, stats = speculative_decode(model, idx, n, DRAFTERS[kind](model, idx, n), temperature=0)
    assert torch.equal(out, greedy(model, idx, n)) and out.dtype == torch.int64
    assert torch.equal(out, model.decode(idx, n, temperature=0, drafter=DRAFTERS[kind](model, idx, n)))
    assert stats.tokens == n == len(stats.by_drafter) and sum(stats.by_drafter) == sum(stats.accepted)
    assert all(0 <= a <= d for a, d in zip(stats.accepted, stats.drafted, strict=True))
    assert stats.alone == n - len(range(T0, min(T0+n, model.config.block_size+1)))
    if kind in ('wrong', 'silent'): assert sum(stats.accepted) == 0 and stats.verifications + stats.alone == n
    if kind == 'right': assert stats.accepted == stats.drafted
    if kind == 'itself' and stats.drafted:
        assert stats.accepted == stats.drafted and stats.acceptance == (sum(stats.drafted) > 0)

@quick
@given(models(), st.integers(1, 12), st.integers(1, 16))
def test_nobody_is_asked_past_the_window_or_past_the_end(model, T0, n):
    idx, longest = tokens(1, T0), model.config.block_size
    drafter = mixed(model, idx, n)
    speculative_decode(model, idx, n, drafter, temperature=0)
    for text, most, _ in drafter.asked:
        assert most == min(longest - len(text), T0 + n - 1 - len(text)) >= 1

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
def test_logits_at_verified_positions_are_those_of_a_prefill_and_no_position_is_read_twice(model, data):
    longest = model.config.block_size
    T0 = data.draw(st.integers(1, longest))
    idx, n = tokens(1, T0), longest + 1 - T0
    drafter, starts, passes = mixed(model, idx, n), [], []
    with pytest.MonkeyPatch.context() as m:
        hidden, logits = model.hidden, model.logits
        m.setattr(model, 'hidden', lambda idx, cache: starts.append(cache.lengths) or hidden(idx, cache))
        m.setattr(model, 'logits', lambda h: passes.append(logits(h)) or passes[-1])
        out, stats = speculative_decode(model, idx, n, drafter, temperature=0)
    known, asked = T0, [(text, guesses) for text, _, guesses in drafter.asked]
    for got, start, d, a in zip(passes, starts, stats.drafted, stats.accepted, strict=True):
        text, guesses = asked.pop(0) if asked else (out[0, :known].tolist(), [])
        assert text == out[0, :known].tolist() and len(guesses) == d
        with torch.no_grad(): whole = model.prefill(torch.tensor([text + guesses]))[0][0]
        assert got.shape[0] == d + 1 and close(got, whole[-d-1:])
        assert start == [0 if known == T0 else known - 1]
        known += a + 1
    assert known == T0 + n and not asked

# --- a pass that fails

def write_on(model, step, idx, n, failure):
    "Write until something fails, then ask the same step for the rest."
    text = idx
    try:
        with failure:
            for t in write(model, step, idx, n): text = torch.cat([text, t], 1)
    except STOPS: pass
    return torch.cat([text, *write(model, step, text, idx.shape[1] + n - text.shape[1])], 1)

@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(models(), st.sampled_from(['mixed', 'model', 'itself', 'ngram']),
       st.sampled_from(sorted(FAILURES)),
       st.integers(1, 6), st.integers(1, 12), st.floats(0, 1))
def test_after_a_failure_at_any_point_of_a_pass_the_same_step_and_drafter_go_on_rightly(
        model, kind, how, T0, n, share):
    idx = tokens(1, T0, 2)
    assume(decided(model, idx, n)[1])
    drafter, make, never = DRAFTERS[kind](model, idx, n), FAILURES[how], FAILURES[how](0)
    new_step = lambda: STEPS['speculative'](model, idx, n, Sampling(temperature=0), drafter=drafter)
    before = [m.training for m in model.modules()]
    assert torch.equal(write_on(model, new_step(), idx, n, never), greedy(model, idx, n))
    assert never.left < 0                                              # it counts what it shall stop
    failing = make(1 + int(share*-never.left))
    assert torch.equal(write_on(model, new_step(), idx, n, failing), greedy(model, idx, n))
    assert torch.equal(model.decode(idx, n, temperature=0, drafter=drafter), greedy(model, idx, n))
    assert [m.training for m in model.modules()] == before

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
    drafter, idx = ModelDrafter(small), tokens(1, 2)
    assert torch.equal(model.decode(idx, 12, temperature=0, drafter=drafter), greedy(model, idx, 12))
    assert [m.training for m in [*model.modules(), *small.modules()]] == before
    assert drafter.draft([1, 2], 3, temperature=0)[0] == greedy(small, torch.tensor([[1, 2]]), 3)[0,
        2:].tolist()
    with pytest.raises(Boom), FailingOperation(20): drafter.draft([1, 2], 3)
    assert [m.training for m in small.modules()] == before[-len(list(small.modules())):]

def test_decode_without_a_drafter_is_what_it_was():
    model, idx = small_model(), tokens(2, 3)
    how = {}, dict(use_cache=False), dict(drafter=None), dict(drafter=None, use_cache=True)
    ways = [model.decode(idx, 9, generator=seeded(1), **d) for d in how]
    assert all(torch.equal(ways[0], w) for w in ways) and ways[0].shape == (2, 12)
    one, text = idx[:1], greedy(model, idx[:1], 9)
    assert torch.equal(model.generate(one, 9, temperature=0, drafter=NGramDrafter(1)), text)
    assert torch.equal(model.decode(one, 9, sampling=Sampling(temperature=0), drafter=NGramDrafter(1)), text)

# --- drafters

@quick
@given(st.lists(st.integers(0, 2), min_size=1, max_size=20), st.integers(1, 4), st.integers(1, 9),
       st.integers(1, 9))
def test_ngrams_continue_the_latest_match_as_if_it_went_on_for_ever(text, n, k, most):
    guesses, q = NGramDrafter(n, k).draft(list(text), most)
    places = [i for i in range(len(text)-n) if text[i:i+n] == text[-n:]]
    assert q is None and len(guesses) == (min(k, most) if places else 0)
    long = list(text)
    for g in guesses: assert g == long[places[-1] + n + len(long) - len(text)]; long.append(g)

@quick
@given(models(), st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=14), min_size=1, max_size=4),
       st.integers(1, 6), st.sampled_from([0., 1.]))
def test_a_model_drafter_may_be_given_any_text_after_any_other(model, texts, k, temperature):
    drafter, longest = ModelDrafter(model, k), model.config.block_size
    for seed, text in enumerate(texts):
        dials = dict(temperature=temperature, top_k=None, top_p=None, generator=seeded(seed))
        guesses, q = drafter.draft(list(text), 4, **dials)
        assert len(guesses) == max(0, min(k, 4, longest + 1 - len(text)))
        whole, start = torch.tensor([text + guesses]), torch.tensor([text])
        if guesses and not temperature and decided(model, start, len(guesses))[1]:
            assert torch.equal(whole, greedy(model, start, len(guesses))) and q is None
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

DIALS = [{}, dict(temperature=.5), dict(temperature=2.), dict(top_k=3), dict(top_p=.7),
         dict(temperature=1.5, top_k=4, top_p=.9)]

def chance(counts, p):
    "That draws from p miss it at least as much as these."
    if counts[p == 0].any(): return 0.
    seen, expected = counts[p > 0].double(), p[p > 0].double()*counts.sum()
    rare = expected < 5                                            # in one cell, or the test does not hold
    if rare.any(): seen, expected = (torch.cat([t[~rare], t[rare].sum()[None]]) for t in (seen, expected))
    freedom, miss = torch.tensor((len(seen)-1)/2, dtype=torch.double), ((seen-expected)**2/expected).sum()/2
    return torch.special.gammaincc(freedom, miss).item()

def first_and_second(rule, lp, lq, n=4000, certain=False, **dials):
    "How often each pair of first two tokens comes out; p of the second depends on the first, as in a model."
    g, V = seeded(1), lp.shape[-1]
    # p: first, then a row for each first token
    p, q = probabilities(lp, **dials), probabilities(lq, **dials)
    counts = torch.zeros(V, V)
    for _ in range(n):
        guess = [lq[0].argmax().item()] if certain else torch.multinomial(q[0], 1, generator=g).tolist()
        new = rule(torch.stack([p[0], p[1 + guess[0]]]), guess, None if certain else q[:1], g)
        if len(new) == 1: new += torch.multinomial(p[1 + new[0]], 1, generator=g).tolist()
        counts[new[0], new[1]] += 1
    return counts.flatten(), (p[0][:, None]*p[1:]).flatten()

def draw(p, generator): return torch.multinomial(p, 1, generator=generator).tolist()

def keep_all(p, guesses, q, generator): return guesses + draw(p[-1], generator)

def draw_from_p(p, guesses, q, generator):
    new = accept_guesses(p, guesses, q, generator)
    return new if len(new) > len(guesses) else new[:-1] + draw(p[len(new)-1], generator)

def draw_from_p_without_the_guess(p, guesses, q, generator):
    new = accept_guesses(p, guesses, q, generator)
    if len(new) > len(guesses): return new
    fell = torch.tensor(guesses[len(new)-1])
    return new[:-1] + draw(p[len(new)-1].index_fill(0, fell, 0), generator)

@pytest.mark.slow
@pytest.mark.parametrize('certain', [False, True], ids=['drawn', 'certain'])
@pytest.mark.parametrize('dials', DIALS, ids=str)
def test_the_rule_gives_the_models_distribution(dials, certain):
    lp, lq = torch.randn(6, 5, generator=seeded(3)), torch.randn(1, 5, generator=seeded(4))
    counts, p = first_and_second(accept_guesses, lp, lq, certain=certain, **dials)
    assert chance(counts, p) > 1e-4

@pytest.mark.slow
@pytest.mark.parametrize('rule', [keep_all, draw_from_p, draw_from_p_without_the_guess])
@pytest.mark.parametrize('dials', DIALS, ids=str)
def test_the_same_test_catches_broken_rules(dials, rule):
    lp, lq = torch.randn(6, 5, generator=seeded(3)), torch.randn(1, 5, generator=seeded(4))
    counts, p = first_and_second(rule, lp, lq, **dials)
    assert chance(counts, p) < 1e-4

def tiny(seed, **changes):
    shape = dict(vocab_size=4, n_layer=1, n_head=2, n_kv_head=1, n_embd=8, tie_embeddings=False,
                 block_size=16)
    model = small_model(seed, **{**shape, **changes})
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
    texts = [speculative_decode(MODEL, START, 3, drafter, generator=g, **dials)[0][0, -3:] for _ in range(n)]
    return (torch.stack(texts) @ place).bincount(minlength=64)

@pytest.mark.slow
@pytest.mark.parametrize('drafter', [NGramDrafter(2, 2), ModelDrafter(OTHER, 2)], ids=['ngram', 'model'])
@pytest.mark.parametrize('dials', DIALS[1:], ids=str)
def test_texts_are_distributed_as_the_model_says(dials, drafter):
    assert chance(drawn_triples(drafter, 1200, **dials), triples(**dials)) > 1e-4

@pytest.mark.slow
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

def test_where_p_and_q_differ_by_rounding_alone_p_is_drawn_from(monkeypatch):
    p, q = torch.tensor([[.49999994, .5], [1., 0.]]), torch.full((1, 2), .5)
    monkeypatch.setattr(torch, 'rand', lambda n, **_: torch.full((n,), .99999994))
    new = [accept_guesses(p, [0], q, seeded(seed)) for seed in range(40)]
    assert all(len(ids) == 1 for ids in new) and {ids[0] for ids in new} == {0, 1}

@pytest.mark.parametrize('shape', [(2, 4), (4, 4), (4,)])
def test_a_row_for_each_guess_and_one_more_is_needed(shape):
    with pytest.raises(ValueError, match=r'p has shape .*: expected \(3, V\)'):
        accept_guesses(torch.ones(shape), [1, 2])

# --- statistics

def test_statistics_by_hand():
    s = SpeculativeStats([4, 0, 3, 2], [2, 0, 3, 0], alone=1)
    assert (s.verifications, s.tokens, s.per_verification, s.acceptance) == (4, 10, 9/4, 5/7)
    assert s.by_drafter == [True, True, False, False, True, True, True, False, False, False]
    empty = SpeculativeStats([], [])
    assert (empty.verifications, empty.tokens, empty.acceptance, empty.by_drafter) == (0, 0, 0, [])

@quick
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=4), st.integers(0, 3))
def test_statistics_of_any_passes(passes, alone):
    drafted, accepted = [a + more for a, more in passes], [a for a, _ in passes]
    s = SpeculativeStats(drafted, accepted, alone)
    right = [i < a for d, a in zip(drafted, accepted) for i in range(d) if i <= a]    # of what was judged
    assert s.acceptance == (sum(right)/len(right) if right else 0)
    assert s.tokens == sum(accepted) + len(passes) + alone == len(s.by_drafter)
    assert s.per_verification == 1 + (sum(accepted)/len(passes) if passes else 0)
    assert sum(s.by_drafter) == sum(right)

# --- bad input

def refused(says, model, idx, n, **how):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=says) as e: model.stream(idx, n, **how)     # before the first token
    assert '\n' not in str(e.value) and len(str(e.value)) < 300
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())

@pytest.mark.parametrize('how, says', [
    (dict(drafter=ModelDrafter(LanguageModel(LMConfig(vocab_size=12, n_layer=1)))),
     'the drafter guesses from 12 tokens, and the model has 11'),
    (dict(drafter=3), 'drafter is 3: expected an object with a method draft'),
    (dict(drafter=NGramDrafter), 'drafter is <class'),
    (dict(drafter='x'*999), "drafter is 'xxx.*…: expected"),
    (dict(drafter=NGramDrafter(), use_cache=False), 'use_cache is False'),
    (dict(drafter=NGramDrafter(), temperature=-1), 'temperature is -1')], ids=lambda x: str(x)[:40])
def test_what_cannot_work_is_refused_before_the_first_token(how, says):
    refused(says, small_model(), tokens(1, 3), 4, **how)

@pytest.mark.parametrize('idx, n, says', [
    (tokens(2, 3), 4, 'idx has 2 rows: with a drafter, expected one'),
    (torch.zeros(1, 0, dtype=torch.long), 4, 'at least one token'),
    (torch.zeros(3, dtype=torch.long), 4, 'shape'), (torch.tensor([[11]]), 4, 'token id 11'),
    (tokens(1, 3), -1, 'max_new_tokens is -1')])
def test_bad_shapes_are_refused_by_both_ways_in(idx, n, says):
    refused(says, small_model(), idx, n, drafter=NGramDrafter())
    with pytest.raises(ValueError, match=says): speculative_decode(small_model(), idx, n, NGramDrafter())

COUNTED = [lambda n: NGramDrafter(n), lambda n: NGramDrafter(k=n), lambda n: ModelDrafter(small_model(), n)]

@pytest.mark.parametrize('make', COUNTED)
@pytest.mark.parametrize('n', [0, -1, 1.5, True, None])
def test_a_count_that_makes_no_sense_is_refused(make, n):
    with pytest.raises(ValueError, match=rf'is {n}: expected a whole number of at least 1'): make(n)

def test_a_drafter_without_a_model_is_refused():
    with pytest.raises(ValueError, match="model is 'small': expected a LanguageModel"): ModelDrafter('small')

even = torch.full((1, 11), 1/11)

@pytest.mark.parametrize('answer, says', [
    (([1]*50, None), 'guesses 50 tokens from 1 to 1: expected at most 5'),
    (([11], None), 'from 11 to 11: expected at most 5, from 0 to 10'), (([-1], None), 'from 0 to 10'),
    (([10**500], None), 'expected at most 5'), (([1.5], None), r'answers \(\[1.5\], None\): expected token '
                                                               r'ids'),
    ((['a'], None), 'expected token ids'), (None, 'answers None'), ((), 'answers'), (([1],), 'answers'),
    (([1, 2], even), r'shape \(1, 11\): expected \(2, 11\)'),
    (([1], even[:, 1:]), r'\(1, 10\): expected \(1, 11\)'),
    (([1], 'q'), r'expected \(1, 11\)'), (([1], 2*even), 'no distributions'),
    (([1], 0*even), 'no distributions'),
    (([1], even*float('nan')), 'no distributions'),
    (([1], even.clone().index_fill(1, torch.tensor([2, 3]), 1.) - 1), 'no distributions')],
    ids=lambda x: str(x)[:30])
def test_a_drafter_that_breaks_the_rules_is_named(answer, says):
    class Bad:
        def draft(self, text, most, **dials): return answer
    model, idx = small_model(), tokens(1, 3)
    with pytest.raises(ValueError, match=says) as e: model.decode(idx, 6, drafter=Bad())
    assert '\n' not in str(e.value) and len(str(e.value)) < 300

@pytest.mark.parametrize('guesses', [torch.tensor([1, 2]), torch.tensor([1, 2]).numpy(), (1, 2)], ids=type)
def test_guesses_may_be_any_whole_numbers(guesses):
    class Other:
        def draft(self, text, most, **dials): return guesses[:most], None
    model, idx = small_model(), tokens(1, 3)
    assert torch.equal(model.decode(idx, 6, temperature=0, drafter=Other()), greedy(model, idx, 6))

@pytest.mark.slow
@pytest.mark.parametrize('how', sorted(FAILURES))
def test_a_model_drafter_survives_a_failure_at_every_operation_and_line(how):
    small, text, make = small_model(4, block_size=16), [1, 2, 7, 8], FAILURES[how]
    def begun():
        drafter = ModelDrafter(small)
        return drafter, [1, 2, 3, *drafter.draft([1, 2, 3], 3, temperature=0)[0], 4]
    wants = {tuple(t): greedy(small, torch.tensor([t]), 3)[0, len(t):].tolist() for t in (text, begun()[1])}
    (drafter, _), counter = begun(), make(0)
    with counter: drafter.draft(text, 3, temperature=0)
    assert -counter.left > 20
    for at, (next_text, want) in product(range(1, 1 - counter.left), wants.items()):
        drafter, _ = begun()
        with pytest.raises(STOPS), make(at): drafter.draft(text, 3, temperature=0)
        assert drafter.draft(list(next_text), 3, temperature=0)[0] == want
