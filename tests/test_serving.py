"Whatever arrives beside it, a request gets what it would get alone, and no block of memory is lost."
import json, random

import pytest
import torch
from hypothesis import given, settings, strategies as st

from tinylm import LanguageModel, LMConfig, phase_gap, phase_invariant
from tinylm.attention import ATTENTION
from tinylm.serving import Engine, PagedKVCache, Request, Scheduler, first_come, pack_weights, shortest_first

quick = settings(deadline=None, max_examples=40)
V = 11

def seeded(s): return torch.Generator().manual_seed(s)

def small_model(seed=0, block_size=16, **shape):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LanguageModel(LMConfig(**dict(vocab_size=V, block_size=block_size, n_layer=2, n_head=2, n_embd=8) | shape)).eval()
        for p in model.parameters(): torch.nn.init.normal_(p, std=.5)
    return model

MODEL = small_model()

def prompt(T, seed=0): return torch.randint(V, (T,), generator=seeded(seed)).tolist()

class Recorder(Engine):
    "An engine that keeps the logits from which it draws."
    def _draw(self, jobs, logits):
        for job, row in zip(jobs, logits): self.__dict__.setdefault('logits', {}).setdefault(job.number, []).append(row.clone())
        return super()._draw(jobs, logits)

def solo(model, r):
    "What the request would get alone, up to its stop token."
    generator = None if r.seed is None else seeded(r.seed)
    ids = model.decode(torch.tensor([r.ids]), r.max_new_tokens, temperature=r.temperature, top_k=r.top_k, top_p=r.top_p, generator=generator)[0].tolist()
    for n in range(len(r.ids), len(ids)):
        if ids[n] in r.stop: return ids[:n+1]
    return ids

@torch.no_grad()
def check_job(engine, job):
    "Tokens as alone; logits as those of a full prefill of the same text, at every token."
    model, r, W = engine.model, job.request, engine.model.config.block_size
    want = solo(model, r)
    assert job.ids == want[:len(job.ids)] and (job.state == 'cancelled' or job.ids == want)
    if not job.new: return
    got, n = torch.stack(engine.logits[job.number]), len(r.ids)
    text = torch.tensor([job.ids[:-1]])
    inside = model(text[:, :W])[0][0, n-1:] if n <= W else got[:0]
    past = [model(text[:, :end][:, -W:])[0][0, -1:] for end in range(max(n, W+1), text.shape[1]+1)]
    assert torch.allclose(got, torch.cat([inside, *past]), atol=1e-4, rtol=1e-4)

def check_empty(engine):
    "Nobody holds a block any more."
    cache = engine.cache
    assert not engine.busy and cache.refs == [0]*len(cache.refs) and len(cache.free) == len(cache.refs)

def check_books(engine):
    "At any time: a block is counted as often as it is in a table, or it is free; what can be found is what it says."
    cache, used = engine.cache, [b for j in engine.scheduler.running for b in j.row.blocks]
    assert cache.refs == [used.count(b) for b in range(len(cache.refs))] and set(cache.free) == set(range(len(cache.refs))) - set(used)
    assert {b: t for t, b in cache.known.items()} == cache.text
    assert len({j.slot for j in engine.scheduler.running}) == len(engine.scheduler.running) <= engine.scheduler.slots
    for job in engine.scheduler.running:
        assert job.row.ids == job.text[:len(job.row.ids)]
        for i, b in enumerate(job.row.blocks): assert cache.refs[b] == 1 or cache.text[b] == tuple(job.text[:(i+1)*cache.size])   # shared means full and known

# --- the cache obeys the law

@st.composite
def caches(draw, rows=None):
    size, B = draw(st.integers(1, 5)), rows or draw(st.integers(1, 3))
    cache = PagedKVCache(MODEL.config, B*-(-16//size), size)
    return cache.view([cache.open([]) for _ in range(B)])

@quick
@given(caches(), st.data())
def test_the_public_law_holds_for_every_cut(cache, data):
    x = torch.randint(V, (len(cache.rows), data.draw(st.integers(1, 16))), generator=seeded(data.draw(st.integers(0, 99))))
    assert phase_invariant(MODEL, x, data.draw(st.integers(1, x.shape[1])), cache=cache)

@quick
@given(st.integers(1, 5), st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=4), st.integers(0, 99))
def test_texts_of_any_lengths_share_one_pass(size, chunks, seed):
    "Row by row and chunk by chunk, packed into one row of idx, against a full prefill of each."
    chunks = [[n for i, n in enumerate(c) if sum(c[:i+1]) <= 16] for c in chunks]
    texts = [prompt(sum(c), seed+i) for i, c in enumerate(chunks)]
    cache = PagedKVCache(MODEL.config, sum(-(-len(t)//size) for t in texts), size)
    rows, got = [cache.open([]) for _ in texts], [[] for _ in texts]
    with torch.no_grad():
        for turn in range(4):
            who = [i for i, c in enumerate(chunks) if turn < len(c)]
            if not who: break
            counts = [chunks[i][turn] for i in who]
            parts = [texts[i][len(rows[i].ids):][:n] for i, n in zip(who, counts)]
            out = MODEL.prefill(torch.tensor([sum(parts, [])]), cache=cache.view([rows[i] for i in who], counts))[0][0].split(counts)
            for i, o in zip(who, out): got[i].append(o)
        for text, logits in zip(texts, got): assert torch.allclose(torch.cat(logits), MODEL(torch.tensor([text]))[0][0], atol=1e-4, rtol=1e-4)
    assert not cache.free

@quick
@given(st.integers(1, 5), st.integers(1, 16), st.integers(1, 16), st.integers(0, 16))
def test_a_shared_beginning_is_read_once_and_never_written(size, n, m, common):
    a, b = prompt(n, 1), prompt(m, 2)
    common = min(common, n, m); b[:common] = a[:common]
    cache = PagedKVCache(MODEL.config, 40, size)
    with torch.no_grad():
        one = cache.open(a); MODEL.prefill(torch.tensor([a]), cache=cache.view([one]))
        two = cache.open(b)
        same = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(n, m))
        assert len(two.ids) == min(same, m-1)//size*size and two.blocks == one.blocks[:len(two.blocks)]
        before = [t[one.blocks].clone() for t in cache.kv]
        got = MODEL.prefill(torch.tensor([b[len(two.ids):]]), cache=cache.view([two]))[0][0]
        assert torch.allclose(got, MODEL(torch.tensor([b]))[0][0, len(b)-len(got):], atol=1e-4, rtol=1e-4)
        assert all(torch.equal(t[one.blocks], old) for t, old in zip(cache.kv, before))
    cache.close(one); cache.close(two)
    assert cache.refs == [0]*40 and len(cache.free) == 40

def test_freed_blocks_are_found_again_until_somebody_needs_them():
    cache, a = PagedKVCache(MODEL.config, 4, 4), prompt(16)
    with torch.no_grad():
        row = cache.open(a); MODEL.prefill(torch.tensor([a[:13]]), cache=cache.view([row])); cache.close(row)
        row = cache.open(a); assert len(row.ids) == 12; cache.close(row)
        other = cache.open([]); assert cache.reserve(other, 8); cache.close(other)      # takes two: the empty one, and the end of the text
        row = cache.open(a); assert len(row.ids) == 8; cache.close(row)

@pytest.mark.parametrize('wrong, says', [
    (dict(shape=(3, 5)), r'idx has shape \(3, 5\): expected \(2, 5\)'), (dict(counts=[2, 2]), r'idx has shape \(2, 5\): expected \(1, 4\)'),
    (dict(n_blocks=3), '4 blocks are missing, and 3 of 3 are free'), (dict(dtype=torch.bfloat16), 'bfloat16 on cpu'), (dict(config=LMConfig()), 'was made for'), (dict(shape=(2, 17)), 'a row would hold 17 tokens: block_size is 16')])
def test_a_pass_that_does_not_fit_is_refused_and_changes_nothing(wrong, says):
    cache = PagedKVCache(wrong.get('config', MODEL.config), wrong.get('n_blocks', 12), 4, wrong.get('dtype', torch.float32))
    view = cache.view([cache.open([]), cache.open([])], wrong.get('counts'))
    with pytest.raises(ValueError, match=says): MODEL.prefill(torch.zeros(wrong.get('shape', (2, 5)), dtype=torch.long), cache=view)
    assert view.lengths == [0, 0] and not any(r.blocks for r in view.rows) and len(cache.free) == len(cache.refs)

def test_a_pass_that_fails_half_way_does_not_count(monkeypatch):
    cache, x = PagedKVCache(MODEL.config, 8, 4), torch.tensor([prompt(8)])
    view = cache.view([cache.open([])])
    with torch.no_grad():
        MODEL.prefill(x[:, :4], cache=view)
        with monkeypatch.context() as m:
            m.setattr(MODEL.blocks[1], 'forward', lambda *_: (_ for _ in ()).throw(MemoryError()))
            with pytest.raises(MemoryError): MODEL.prefill(torch.zeros(1, 3, dtype=torch.long), cache=view)
        assert view.lengths == [4]
        assert torch.allclose(MODEL.prefill(x[:, 4:], cache=view)[0], MODEL.prefill(x)[0][:, 4:], atol=1e-4)

@pytest.mark.parametrize('n_blocks, size, says', [(0, 4, 'n_blocks is 0'), (-1, 4, 'n_blocks is -1'), (4, 0, 'size is 0'), (2.5, 4, 'n_blocks is 2.5')])
def test_a_pool_of_nonsense_is_refused(n_blocks, size, says):
    with pytest.raises(ValueError, match=says): PagedKVCache(MODEL.config, n_blocks, size)

# --- a thousand requests

def random_request(rng, beginnings):
    ids = rng.choice(beginnings)[:rng.randint(0, 12)] + [rng.randrange(V) for _ in range(rng.randint(0, 8))] or [0]
    dials = rng.choice([dict(temperature=0), dict(temperature=0), dict(), dict(temperature=.7, top_k=rng.randint(1, 4)), dict(temperature=1.5, top_p=.8)])
    return Request(ids, rng.randint(1, 9), seed=rng.randrange(99), stop=rng.choice([(), (), (3, 5)]), **dials)

def work(job): return sum(min(len(job.request.ids) + i, job.window) if i == 0 or len(job.request.ids) + i > job.window else 1 for i in range(job.request.max_new_tokens))

@pytest.mark.parametrize('seed', range(25))
def test_none_lost_none_starved_no_block_leaked(seed):
    "41 random requests in a small pool: arrivals, cancellations, preemptions, shared beginnings, texts past the window."
    rng = random.Random(seed)
    size, slots = rng.randint(1, 5), rng.randint(1, 6)
    most = -(-16//size)
    engine = Recorder(MODEL, slots=slots, budget=slots + rng.randint(1, 12), n_blocks=rng.randint(most, most*slots), size=size, policy=rng.choice([first_come, first_come, shortest_first]))
    beginnings, jobs, left, allowed = [[rng.randrange(V) for _ in range(12)] for _ in range(3)], [], 41, 0
    while left or engine.busy:
        for _ in range(rng.choice([0, 0, 1, 2, 5]) if left else 0):
            if left: jobs.append(engine.add(random_request(rng, beginnings))); left -= 1
        alive = [j for j in jobs if j.state in ('waiting', 'running')]
        if alive and rng.random() < .04: engine.cancel(rng.choice(alive))
        if engine.busy: engine.step()
        check_books(engine)
    check_empty(engine)
    assert len(jobs) == 41 and all(j.state in ('finished', 'cancelled') for j in jobs)
    for job in jobs: check_job(engine, job)
    if engine.scheduler.policy is first_come:                      # the oldest gets at least a token in every step
        for job in jobs:
            if job.state == 'finished': assert job.at['ended'][0] - job.at['arrived'][0] <= sum(work(j) for j in jobs[:job.number+1])

def test_the_thousand_met_everything():
    "The random requests above are worth something only if all of it happened."
    seen = dict.fromkeys(('preempted', 'reused', 'slid', 'cancelled', 'stopped', 'chunked'), 0)
    for seed in range(4):
        rng = random.Random(seed)
        engine = Engine(MODEL, slots=4, budget=7, n_blocks=9, size=2)
        beginnings = [[rng.randrange(V) for _ in range(12)] for _ in range(3)]
        jobs = [engine.add(random_request(rng, beginnings)) for _ in range(20)]
        while engine.busy:
            engine.step()
            if rng.random() < .05 and engine.busy: engine.cancel(rng.choice(engine.scheduler.running + engine.scheduler.waiting))
        for j in jobs:
            seen['preempted'] += j.preempted > 0 and len(j.ids) <= 16; seen['reused'] += j.reused > 0; seen['slid'] += len(j.ids) > 17; seen['cancelled'] += j.state == 'cancelled'
            seen['stopped'] += j.state == 'finished' and len(j.new) < j.request.max_new_tokens
        seen['chunked'] += sum(j['phase'] == 'read' and j['wrote'] is None for s in engine.trace for j in s['jobs'])
    assert all(seen.values()), seen

# --- the engine

def test_the_contract_of_the_design():
    ids = torch.tensor([prompt(4)])
    out = Engine(MODEL).generate([Request(ids, max_new_tokens=12, temperature=0)])
    assert torch.equal(out[0], MODEL.decode(ids, 12, temperature=0)[0])
    two = Engine(MODEL).generate([prompt(3), torch.tensor(prompt(5))], max_new_tokens=4, temperature=0)
    assert [t.tolist() for t in two] == [solo(MODEL, Request(p, 4, temperature=0)) for p in (prompt(3), prompt(5))]

def test_a_long_prompt_does_not_stall_those_who_write():
    model = small_model(block_size=64)
    engine = Engine(model, slots=3, budget=8, size=4)
    first = engine.add(Request(prompt(3), 30, temperature=0)); engine.step()
    engine.add(Request(prompt(60), 2, temperature=0))
    for n in range(2, 12):
        engine.step()
        assert len(first.new) == n and sum(j['tokens'] for j in engine.trace[-1]['jobs']) <= 8
    assert engine.trace[-2]['jobs'][-1]['tokens'] == 4 and sum(s['jobs'][-1]['tokens'] for s in engine.trace[1:11]) >= 60

def test_stream_hands_out_tokens_at_once_and_cancels_when_nobody_listens():
    engine = Engine(MODEL, slots=2, size=4)
    stream = engine.stream([prompt(3), prompt(4)], max_new_tokens=8, temperature=0)
    seen = [next(stream) for _ in range(5)]
    assert len(engine.trace) == 3 and [i for i, _ in seen] == [0, 1, 0, 1, 0]
    stream.close()
    check_empty(engine)
    assert [j.state for j in engine.jobs] == ['cancelled']*2

def test_the_model_keeps_its_mode_and_its_products():
    model = small_model(dropout=.5).train()
    out = Engine(model).generate([Request(prompt(4), 6, temperature=0)])
    assert all(m.training for m in model.modules()) and not any('forward' in vars(m) for m in model.modules())
    assert out[0].tolist() == solo(model.eval(), Request(prompt(4), 6, temperature=0))

def test_an_engine_notices_other_weights():
    model = small_model()
    engine = Engine(model); engine.add(Request(prompt(4), 6)); engine.step()
    with torch.no_grad(): model.blocks[0].mlp.up.weight.mul_(2)
    with pytest.raises(ValueError, match='the weights have changed'): engine.step()

def test_packed_products_are_products():
    model = small_model(n_embd=16)
    x = torch.randint(V, (3, 7), generator=seeded(1))
    with torch.inference_mode(): assert torch.allclose(pack_weights(model)(x)[0], model(x)[0], atol=1e-4, rtol=1e-4)
    assert sum(callable(m) and not isinstance(m, torch.nn.Module) for b in pack_weights(model).blocks for part in (b.attention, b.mlp) for m in (vars(part).get(n) for n in ('qkv', 'proj', 'up', 'down'))) == 8*torch.backends.mkldnn.is_available()
    assert torch.equal(pack_weights(small_model().bfloat16())(x)[0], small_model().bfloat16()(x)[0])

def test_a_hook_on_the_model_still_fires():
    model, seen = small_model(), []
    model.blocks[0].attention.qkv.register_forward_hook(lambda *_: seen.append(1))
    out = Engine(model).generate([Request(prompt(4), 6, temperature=0)])
    assert len(seen) == 6 and out[0].tolist() == solo(small_model(), Request(prompt(4), 6, temperature=0))

@pytest.mark.parametrize('name', sorted(ATTENTION))
def test_every_kind_of_attention_serves(name):
    model = small_model(attention=name)
    requests = [Request(prompt(n), 6, temperature=0) for n in (9, 3, 14)]
    assert [t.tolist() for t in Engine(model, slots=2, budget=5, size=3).generate(requests)] == [solo(MODEL, r) for r in requests]

def test_bfloat16_serves_too():
    model = small_model().bfloat16()
    out = Engine(model, size=4).generate([Request(prompt(4), 6, temperature=0), Request(prompt(7), 3, temperature=0)])
    assert [len(t) for t in out] == [10, 10]

def test_metrics_trace_and_throughput(tmp_path):
    engine = Engine(MODEL, slots=2, budget=5, size=4)
    jobs = [engine.add(Request(prompt(n), 4, temperature=0)) for n in (3, 9, 2)]
    while engine.busy: engine.step()
    first, _, last = (j.metrics('steps') for j in jobs)
    assert first == {'queue': 0, 'ttft': 1, 'tpot': 1, 'total': 4} and last['queue'] == 4 and last['ttft'] == last['queue'] + 1
    seconds = jobs[0].metrics()
    assert 0 <= seconds['queue'] <= seconds['ttft'] <= seconds['total'] and seconds['tpot'] > 0
    assert engine.add(Request([1], 2)).metrics() == dict(queue=None, ttft=None, tpot=None, total=None)
    engine.save_trace(tmp_path/'trace.json')
    record = json.loads((tmp_path/'trace.json').read_text())
    assert [r['new'] for r in record['requests']] == [j.new for j in engine.jobs] and len(record['steps']) == len(engine.trace)
    for number, job in enumerate(jobs): assert [j['wrote'] for s in record['steps'] for j in s['jobs'] if j['request'] == number and j['wrote'] is not None] == job.new
    assert engine.throughput() > 0

@pytest.mark.parametrize('policy', [first_come, shortest_first, lambda job: -job.number])
def test_any_policy_gets_everybody_done(policy):
    engine = Engine(MODEL, slots=2, budget=4, n_blocks=8, size=2, policy=policy)
    jobs = [engine.add(Request(prompt(n), 12 - n, temperature=0)) for n in (9, 2, 5, 7, 3)]
    while engine.busy: engine.step()
    assert [j.ids for j in jobs] == [solo(MODEL, j.request) for j in jobs]

# --- bad input

@pytest.mark.parametrize('args, says', [
    (dict(ids=[]), 'ids are empty'), (dict(ids=[1.5]), 'expected a list of integers'), (dict(ids='ab'), 'expected a list of integers'), (dict(ids=torch.zeros(2, 3, dtype=torch.long)), r'shape \(2, 3\)'), (dict(ids=torch.zeros(3)), 'torch.float32'),
    (dict(max_new_tokens=0), 'max_new_tokens is 0'), (dict(max_new_tokens=-1), 'max_new_tokens is -1'), (dict(max_new_tokens=1.5), 'max_new_tokens is 1.5'), (dict(temperature=-1), 'temperature is -1'), (dict(top_k=0), 'top_k is 0'), (dict(top_p=0), 'top_p is 0'), (dict(seed=-1), 'seed is -1')])
def test_a_request_of_nonsense_is_refused(args, says):
    with pytest.raises(ValueError, match=says) as e: Request(**dict(ids=[1], max_new_tokens=2) | args)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('args, says', [(dict(slots=0), 'slots is 0'), (dict(slots=4, budget=4), 'budget is 4: expected a whole number of at least 5'), (dict(n_blocks=0), 'n_blocks is 0'), (dict(size=0), 'size is 0')])
def test_an_engine_of_nonsense_is_refused(args, says):
    with pytest.raises(ValueError, match=says): Engine(MODEL, **args)

def test_bad_requests_leave_the_others_alone():
    engine = Engine(MODEL, slots=2, n_blocks=3, size=4)
    good = engine.add(Request(prompt(5), 6, temperature=0)); engine.step()
    gone = engine.add(Request(prompt(3), 4)); engine.cancel(gone)
    other = Engine(MODEL).add(Request([1], 1))
    for bad, says in [(lambda: engine.add(Request([V], 2)), f'token id {V}: expected 0 to {V-1}'), (lambda: engine.add(Request([-1], 2)), 'token id -1'), (lambda: engine.add(Request(prompt(12), 2)), r'may hold 13 tokens: the pool has room for 12 \(3 blocks of 4\)'),
                      (lambda: engine.add([1, 2]), 'is not a Request'), (lambda: engine.cancel(gone), 'request 1 is cancelled already'), (lambda: engine.cancel(other), 'belongs to another engine'),
                      (lambda: engine.generate([Request(prompt(2), 2), Request([99], 2)]), 'token id 99')]:
        with pytest.raises(ValueError, match=says) as e: bad()
        assert '\n' not in str(e.value)
        engine.step()
    while engine.busy: engine.step()
    assert good.ids == solo(MODEL, good.request) and len(engine.jobs) == 2
    with pytest.raises(ValueError, match='request 0 is finished already'): engine.cancel(good)
    check_empty(engine)

# --- fairness

def test_first_come_is_never_made_to_wait_by_those_behind():
    engine = Engine(MODEL, slots=4, budget=9, n_blocks=8, size=2)
    jobs = [engine.add(Request(prompt(n), 16 - n, temperature=0)) for n in (4, 6, 2, 12, 2, 2, 3)]
    while engine.busy: engine.step()
    assert jobs[0].preempted == 0 and sum(j.preempted for j in jobs) > 1
    started = [j.at['started'][0] for j in jobs]
    assert started == sorted(started) and started[3] > 0           # the short ones would have fitted beside the long one that waits

@pytest.mark.parametrize('place', ['_draw', '_read'])
def test_an_interrupted_step_is_done_again(monkeypatch, place):
    engine = Engine(MODEL, slots=3, budget=5, size=2)
    jobs = [engine.add(Request(prompt(n), 5, temperature=0)) for n in (2, 9, 4)]
    hits = 0
    for n in range(60):
        with monkeypatch.context() as m:
            if n%3 == 1: m.setattr(Engine, place, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
            try: engine.step()
            except KeyboardInterrupt: hits += 1
        check_books(engine)
    assert hits > 2 and [j.ids for j in jobs] == [solo(MODEL, j.request) for j in jobs]
    check_empty(engine)
