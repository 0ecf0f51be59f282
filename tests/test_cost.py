"Formulas equal counts, and a timeline books what really happened."
import json
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from time import perf_counter

import pytest
import torch
from helpers import models, quick, small_model, tokens
from hypothesis import given, strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tinylm import (KVCache, Ledger, LMConfig, Machine, ModelDrafter, NGramDrafter, Timeline, Watch,
                    best_time, watch_pass)
from tinylm import bench
from tinylm.bench import SIZES, bench_table, benchmark, measure_decode
from tinylm.serving import Job, Request

# --- the ledger

@st.composite
def passes(draw):
    "A model, a cache that may hold something, the next tokens, and what `pass_cost` is asked."
    model, B = draw(models(attention=('fused', 'reference'))), draw(st.integers(1, 3))
    past = draw(st.integers(0, model.config.block_size-1))
    T, cache = draw(st.integers(1, model.config.block_size-past)), KVCache(model.config, B)
    if past: model.prefill(tokens(B, past), cache=cache)
    return model, cache, tokens(B, T), dict(T=T, past=past, batch=B, last_only=draw(st.booleans()))

class Operations(TorchDispatchMode):
    "Count all operations but views, and the bytes that they are given."
    calls, given = 0, 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.calls += 1
            self.given += sum(t.nbytes for t in args if isinstance(t, torch.Tensor))
        return func(*args, **(kwargs or {}))

@quick
@given(passes())
def test_bytes_by_formula_are_the_bytes_that_a_real_pass_touches(case):
    model, cache, idx, asked = case
    with Operations() as done: seen, calls = watch_pass(model, idx, cache, asked['last_only'])
    assert seen == replace(model.config.pass_cost(**asked), flops=0) and calls == done.calls

@quick
@given(passes())
def test_flops_by_formula_are_those_of_torchs_own_counter(case):
    model, cache, idx, asked = case
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        watch_pass(model, idx, cache, **dict(last_only=True) if asked['last_only'] else {})
    assert counter.get_total_flops() == model.config.pass_cost(**asked).flops

@quick
@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 5), st.booleans(), st.integers(1, 20),
       st.integers(0, 20), st.integers(1, 4))
def test_the_formulas_on_paper_are_those_of_gpt2_blocks(L, H, D, tied, T, past, B):
    C, V, S = H*D, 11, past + T
    c = LMConfig(vocab_size=V, n_layer=L, n_head=H, n_embd=C, tie_embeddings=tied)
    paper = Ledger(flops=B*T*(L*(24*C*C + 4*S*C) + 2*C*V),
                   weight_bytes=4*(L*(12*C*C + 13*C) + 2*C + C*V + B*T*C + T*C),
                   cache_read=8*L*B*S*C, cache_written=8*L*B*T*C)
    assert c.pass_cost(T, past, B) == paper
    assert c.pass_cost(T, past, B, last_only=True).flops == paper.flops - 2*C*V*B*(T-1)
    half = c.pass_cost(T, past, B, itemsize=2)
    assert (half.flops, 2*half.n_bytes) == (paper.flops, paper.n_bytes)

@quick
@given(st.integers(1, 40), st.integers(1, 40))
def test_chunks_cost_the_weights_again_and_nothing_else_twice(a, b):
    c = LMConfig(block_size=128, n_embd=16)
    whole, parts = c.pass_cost(a+b), c.pass_cost(a) + c.pass_cost(b, a)
    assert parts.cache_written == whole.cache_written and parts.weight_bytes > whole.weight_bytes
    # the chunk's queries skip the future of the first part
    assert parts.flops == whole.flops - 4*c.n_layer*c.n_embd*a*b

def test_ledgers_add_up():
    assert Ledger(1, 2, 3, 4) + Ledger(10, 20, 30, 40) == Ledger(11, 22, 33, 44)
    assert Ledger(12, 1, 2, 3).n_bytes == 6 and Ledger(12, 1, 2, 3).intensity == 2

def test_the_deepest_model_is_counted_at_once():
    "Counted on one block: the number of blocks costs no time, and nothing is allocated."
    deep, start = LMConfig(n_layer=2**31-1), perf_counter()
    one, two = LMConfig(n_layer=1).n_params, LMConfig(n_layer=2).n_params
    assert deep.n_params == one + (2**31-2)*(two - one)
    assert deep.pass_cost(1).weight_bytes > 4*(2**31-2)*(two - one)
    assert perf_counter() - start < 5

# --- the machine

def test_the_slower_of_arithmetic_and_memory_decides():
    m = Machine(flops=100., bandwidth=10., call=.5)
    assert m.seconds(Ledger(flops=1000, weight_bytes=10)) == 10 and m.seconds(Ledger(flops=10,
        weight_bytes=1000)) == 100
    assert m.seconds(Ledger(flops=1000, weight_bytes=10), calls=4) == 12

def test_a_measured_machine_is_of_this_world():
    m = Machine.measure()
    assert 1e9 < m.flops < 1e14 and 1e8 < m.bandwidth < 1e13 and 1e-8 < m.call < 1e-3

def test_a_measured_machine_divides_what_its_work_is_by_its_time(monkeypatch):
    "Each piece of work takes half a second of this clock, and torch itself says what it is."
    works = []
    def half_a_second(work, repeats):
        with Operations() as done, FlopCounterMode(display=False) as counter: work()
        works.append((counter.get_total_flops(), done.given, done.calls)); return .5
    monkeypatch.setattr('tinylm.cost.best_time', half_a_second)
    m = Machine.measure()
    flops, given, calls = (max(counts) for counts in zip(*works))
    assert m.flops == flops/.5 and m.call == .5/calls and m.bandwidth == pytest.approx(given/.5, rel=1e-3)
    # what is timed as reading does no more than one product and one sum for each number
    reading = [(done, read//4) for done, read, _ in works if read > given/2]
    assert reading and all(done <= 2*numbers for done, numbers in reading)

def test_the_best_time_is_the_shortest_of_all_runs(monkeypatch):
    now, durations = [0.], iter([3., 1., 2.])
    monkeypatch.setattr('tinylm.cost.perf_counter', lambda: now[0])
    def work(): now[0] += next(durations)
    assert best_time(work, 3) == 1 and next(durations, None) is None

# --- the timeline

DRAFTERS = dict(none=lambda: None, ngram=lambda: NGramDrafter(1, 3),
                model=lambda: ModelDrafter(small_model(7, n_layer=1), 3))

@contextmanager
def noted(model, monkeypatch):
    "What passes of a model really do: bytes of weights and of any cache made for it, FLOPs, rows of logits."
    made, asked, logits = KVCache.of.__func__, [], type(model).logits
    def of(cls, m, *more):
        cache = made(cls, m, *more)
        if m is model: w.memory |= {t.untyped_storage().data_ptr() for t in cache.kv}; caches.append(cache)
        return cache
    def listen(self, hidden):
        if self is model: asked.append(hidden[..., 0].numel())
        return logits(self, hidden)
    caches, w, counter = [], Watch(model), FlopCounterMode(display=False)
    with monkeypatch.context() as m, sdpa_kernel(SDPBackend.MATH), counter, w:
        m.setattr(KVCache, 'of', classmethod(of)); m.setattr(type(model), 'logits', listen)
        yield w, counter, asked

@pytest.mark.slow
@pytest.mark.parametrize('rows', [1, 3])
@pytest.mark.parametrize('shape', [
    {}, dict(n_kv_head=1, n_layer=1), dict(tie_embeddings=False, n_inner=5, bias=False)], ids=str)
@pytest.mark.parametrize('use_cache', [True, False])
@pytest.mark.parametrize('n', [5, 12])
def test_a_timeline_books_the_bytes_and_flops_of_the_passes(monkeypatch, rows, shape, use_cache, n):
    "With n=12 the text leaves the window of 8, where the cache is of no use any more."
    model, idx = small_model(**shape), tokens(rows, 3)
    with noted(model, monkeypatch) as (w, counter, _):
        line = Timeline.record(model, idx, n, temperature=0, use_cache=use_cache)
    booked = sum(line.costs, Ledger())
    through = sum((c for i, c in enumerate(line.costs) if use_cache and 3 + i <= 8), Ledger())
    assert (through.cache_read, through.cache_written) == (w.ledger.cache_read, w.ledger.cache_written)
    assert (booked.weight_bytes, booked.flops) == (w.ledger.weight_bytes, counter.get_total_flops())
    assert len(line.seconds) == len(line.costs) == n and line.tokens == model.decode(idx, n, temperature=0)[0,
        3:].tolist()
    if not use_cache: # keys and values that attention makes anew and looks at
        every = [min(3 + i, 8) for i in range(n)]
        assert [c.cache_written for c in line.costs] == [model.config.cache_bytes(rows, T) for T in every]
        assert booked.cache_read == booked.cache_written

@pytest.mark.parametrize('kind', [*DRAFTERS])
def test_a_timeline_times_the_passes_of_each_token(monkeypatch, kind):
    "On a clock that only passes move: a token takes a second for each pass that it needed, or none."
    model, now = small_model(block_size=40), [100.]
    monkeypatch.setattr('tinylm.cost.perf_counter', lambda: now[0])
    def second(*_): now[0] += 1
    model.norm.register_forward_hook(second)
    line = Timeline.record(model, tokens(1, 6), 30, temperature=0, drafter=DRAFTERS[kind]())
    assert line.seconds == [float(c != Ledger()) for c in line.costs] and line.ttft == 1

@pytest.mark.parametrize('kind', ['ngram', 'model'])
def test_a_timeline_with_a_drafter_books_what_was_read_and_not_a_pass_a_token(monkeypatch, kind):
    model, idx, read = small_model(block_size=40), tokens(1, 6), []
    model.blocks[0].register_forward_hook(lambda m, i, out: read.append(out.shape[1]))
    with noted(model, monkeypatch) as (w, _, asked):
        line = Timeline.record(model, idx, 30, temperature=0, drafter=DRAFTERS[kind]())
    booked, passes, C = sum(line.costs, Ledger()), [c for c in line.costs if c != Ledger()], model.config
    assert replace(booked, flops=0) == w.ledger
    assert len(passes) == len(read) == len(asked) and [c.cache_written//C.cache_bytes(1, 1)
                                                       for c in passes] == read
    assert max(read[1:]) > 1                                    # guesses were read with the token before them
    # (the counter also sees the work of a drafting model)
    if kind == 'ngram':
        assert len(passes) < 30                                 # some tokens came without a pass of their own
    assert line.tokens == model.decode(idx, 30, temperature=0)[0, 6:].tolist()

def test_a_timeline_with_a_drafter_books_every_position_whose_logits_were_asked_for(monkeypatch):
    model, C = small_model(block_size=40), small_model(block_size=40).config
    with noted(model, monkeypatch) as (_, counter, asked):
        line = Timeline.record(model, tokens(1, 6), 30, temperature=0, drafter=NGramDrafter(1, 3))
    assert max(asked) > 1 and sum(c.flops for c in line.costs) == counter.get_total_flops()
    passes, past = [c for c in line.costs if c != Ledger()], 0
    for c, n in zip(passes, asked, strict=True):                # and each with the token that it wrote
        read = c.cache_written//C.cache_bytes(1, 1)
        past = c.cache_read//C.cache_bytes(1, 1) - read
        assert c.flops == C.pass_cost(read, past, last_only=True).flops + 2*(n-1)*C.n_embd*C.vocab_size

@pytest.mark.parametrize('how, made', [(dict(use_cache=False), 0), (dict(use_cache=True), 1),
                                       (dict(drafter=NGramDrafter(1, 3)), 1)],
                         ids=['naive', 'cached', 'drafter'])
def test_the_first_token_pays_for_the_making_of_a_cache(monkeypatch, how, made):
    "On a clock that only the making of a cache (100) and a pass (1) move."
    model, now, kept = small_model(block_size=40), [0.], KVCache.of.__func__
    def of(cls, *args): now[0] += 100; return kept(cls, *args)
    model.norm.register_forward_hook(lambda *_: now.__setitem__(0, now[0] + 1))
    monkeypatch.setattr(KVCache, 'of', classmethod(of))
    monkeypatch.setattr('tinylm.cost.perf_counter', lambda: now[0])
    line = Timeline.record(model, tokens(1, 6), 20, temperature=0, **how)
    assert line.ttft == 100*made + 1
    assert line.seconds[1:] == [float(c != Ledger()) for c in line.costs[1:]] and sum(line.seconds) == now[0]

@pytest.mark.parametrize('how', [{}, dict(temperature=-1)])
def test_a_recording_leaves_no_listener_behind(how):
    model = small_model()
    class Fails:
        vocab_size = None
        def draft(self, text, most, **dials): raise MemoryError
    with pytest.raises((MemoryError, ValueError)):
        Timeline.record(model, tokens(1, 3), 4, drafter=Fails(), **how)
    Timeline.record(model, tokens(1, 3), 4)
    assert not model.blocks[0]._forward_pre_hooks and 'logits' not in vars(model)

def test_ttft_and_tpot_are_kept_apart():
    line = Timeline([5.] + [i/100 for i in range(1, 101)], [Ledger()]*101, [0]*101)
    assert line.ttft == 5 and line.itl() == pytest.approx(.505)
    assert line.itl(95) == pytest.approx(.95, abs=.01)

def test_time_per_output_token_is_the_mean_in_a_timeline_and_in_a_job():
    "One definition: all the time after the first token, for each later one; a drafter's free tokens count."
    gaps = [3., 0., 0., 5.]
    line, job = Timeline([7., *gaps], [Ledger()]*5, [0]*5), Job(Request([1], 5), 0, 9, [1, *[0]*5])
    job.at = {'arrived': (0, 1.), 'first': (1, 1. + line.ttft), 'ended': (5, 1. + sum(line.seconds))}
    assert line.tpot() == 2 == job.metrics()['tpot'] and line.ttft == 7 == job.metrics()['ttft']

@pytest.mark.parametrize('percent', [0, 100, 2.5, True])
def test_a_percentile_that_is_none_is_refused(percent):
    with pytest.raises(ValueError, match=f'percent is {percent}: expected a whole number from 1 to 99'):
        Timeline([1.]*4, [], []).itl(percent)

def test_a_timeline_comes_back_from_its_file(tmp_path):
    line = Timeline.record(small_model(), tokens(1, 3), 4)
    line.save(tmp_path/'t.json')
    assert Timeline.load(tmp_path/'t.json') == line
    for bad in ('{}', '[]', '{"seconds": [], "costs": [{"x": 1}], "tokens": []}', 'no'):
        (tmp_path/'t.json').write_text(bad)
        with pytest.raises(ValueError, match='is not a timeline'): Timeline.load(tmp_path/'t.json')

@pytest.mark.parametrize('n', [0, 1, 2, 3.5])
def test_a_timeline_needs_three_tokens(n):
    with pytest.raises(ValueError, match=f'max_new_tokens is {n}: expected a whole number of at least 3'):
        Timeline.record(small_model(), tokens(1, 3), n)

# --- the benchmark

def test_the_benchmark_measures_everything_it_shows():
    r = benchmark(small_model(block_size=16), prompt=4, new_tokens=4, batches=(1, 2))
    assert r['decode'].keys() == {'naive', 'cached'} and r['batch'].keys() == {1,
        2} and r['prefill']['tokens'] == 16
    for d in r['decode'].values():
        assert 0 < d['tpot']['min'] <= d['tpot']['median'] <= d['tpot']['max'] and d['ttft']['median'] > 0
    assert r['decode']['cached']['step_bytes'] == small_model(block_size=16).config.pass_cost(1, 6,
        last_only=True).n_bytes
    json.loads(json.dumps(r))
    table = bench_table(r)
    assert all(word in table for word in ('naive', 'cached', 'threads', 'tokens a second in all'))

@st.composite
def lines(draw):
    "Timelines of the same length: what a warm-up and the runs after it gave."
    n, runs = draw(st.integers(3, 6)), draw(st.integers(2, 5))
    seconds = st.lists(st.floats(1e-6, 9), min_size=n, max_size=n)
    return [Timeline(draw(seconds), [Ledger(weight_bytes=draw(st.integers(0, 99))) for _ in range(n)], [0]*n)
            for _ in range(runs)]

@quick
@given(lines(), st.integers(1, 4), st.integers(1, 6), st.booleans())
def test_a_measurement_is_that_of_all_runs_but_the_first(lines, batch, prompt, use_cache):
    asked, left = [], iter(lines)
    def record(model, idx, n, **how): asked.append((tuple(idx.shape), n, how)); return next(left)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Timeline, 'record', record)
        got = measure_decode(small_model(), prompt, 9, batch, len(lines) - 1, use_cache=use_cache)
    assert asked == [((batch, prompt), 9, dict(temperature=0, use_cache=use_cache))]*len(lines)
    for name, of in dict(ttft=lambda r: r.ttft, tpot=Timeline.tpot, itl95=lambda r: r.itl(95)).items():
        values = sorted(map(of, lines[1:]))
        assert got[name] == dict(median=median(values), min=values[0], max=values[-1])
    assert got['tokens_a_second'] == batch/got['tpot']['median']
    assert got['step_bytes'] == lines[1].costs[-1].n_bytes

def test_the_benchmark_asks_for_what_it_shows_and_shows_what_it_got(monkeypatch):
    asked, spread = [], {'median': .0025, 'min': .00125, 'max': .004}
    def measure(model, prompt, n, batch=1, **how):
        asked.append((prompt, n, batch, how))
        times = dict.fromkeys(('ttft', 'tpot', 'itl95'), spread)
        return times | dict(tokens_a_second=batch*400, step_bytes=6e6)
    monkeypatch.setattr(bench, 'measure_decode', measure)
    monkeypatch.setattr(bench, 'best_time', lambda work, repeats: .5)
    monkeypatch.setattr(Machine, 'measure', lambda: Machine(2e9, 3e9, 4e-6))
    r = benchmark(small_model(block_size=48), prompt=9, new_tokens=99, batches=(3, 8))
    both = [(9, 39, 1, dict(use_cache=cached, compile=None)) for cached in (False, True)]
    assert asked == both + [(9, 16, n, dict(compile=None)) for n in (3, 8)]
    table = bench_table(r)
    for word in ('2 GFLOP/s, 3 GB/s, 4.0 µs a call', 'prefill of 48 tokens: 96 tokens a second',
                 '3: 1,200   8: 3,200', 'would take 80% of'): assert word in table
    assert table.count('2.50 (1.25 to 4.00)') == 6

def test_the_benchmark_switches_dropout_off_and_leaves_the_mode_as_it_was(monkeypatch):
    model, modes = small_model(block_size=16, dropout=.5), []
    model.norm.register_forward_hook(lambda m, i, out: modes.append(m.training))
    benchmark(model, prompt=4, new_tokens=4, batches=(1,))
    assert modes and not any(modes) and model.training

def test_the_sizes_are_the_published_ones():
    assert {n: c.n_params for n, c in SIZES.items()} == {'S': 208_320, 'M': 10_770_816, 'L': 124_439_808}

@pytest.mark.parametrize('prompt', [0, 6, 2.5, True, 'long'])
def test_a_prompt_that_does_not_fit_is_refused(prompt):
    with pytest.raises(ValueError, match=f'prompt is {prompt!r}: expected a whole number from 1 to 5'):
        benchmark(small_model(), prompt)

@pytest.mark.parametrize('bad, says', [(dict(new_tokens=2), 'new_tokens is 2: expected a whole number of at '
                                                            'least 3'), (dict(batches=(1,
                                                                0)), 'batches is 0: expected a whole number '
                                                                     'of at least 1')])
def test_measurements_that_make_no_sense_are_refused_before_the_first(bad, says, monkeypatch):
    monkeypatch.setattr(Machine, 'measure', lambda: pytest.fail('it began to measure'))
    with pytest.raises(ValueError, match=says): benchmark(small_model(block_size=16), 4, **bad)

# --- numbers at the edge, files that are none

@pytest.mark.parametrize('change',
    [dict(seconds='ab'), dict(seconds=[None]*4), dict(seconds=[float('nan')]*4), dict(tokens=5),
     dict(tokens=[1.5]*4),
    dict(tokens=[-1]*4), dict(costs=[{'flops': 'x'}]*4), dict(costs=[{}]), dict(seconds=[.1]),
    dict(costs=None)], ids=str)
def test_a_file_that_is_no_timeline_is_refused_by_name(tmp_path, change):
    path = tmp_path/'t.json'
    Timeline.record(small_model(), tokens(1, 3), 4).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match='t.json is not a timeline'): Timeline.load(path)

def test_what_is_no_json_is_not_written(tmp_path):
    with pytest.raises(ValueError, match='not finite'):
        Timeline([float('inf')], [Ledger()], [1]).save(tmp_path/'t.json')
    assert list(tmp_path.iterdir()) == []

def test_nothing_has_no_intensity(): assert Ledger().intensity == 0

@pytest.mark.parametrize('percent', [0, 100, 50.5, True])
def test_percentiles_at_and_past_the_edges_are_refused(percent):
    with pytest.raises(ValueError, match=f'percent is {percent}'):
        Timeline([1.]*5, [Ledger()]*5, [0]*5).itl(percent)

def test_percentiles_are_right_at_the_edges_and_refused_outside():
    line = Timeline([9.] + [float(n) for n in range(1, 101)], [Ledger()]*101, [0]*101)
    for percent, low, high in ((1, 1, 3), (50, 50, 51), (99, 98, 100)):
        assert low <= line.itl(percent) <= high
    for percent in (-1, 0, 100, 101, 99.9):
        with pytest.raises(ValueError, match='percent'): line.itl(percent)
