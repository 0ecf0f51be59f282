"Whatever arrives beside it, a request gets what it would get alone, and no page of memory is lost."
import json, random

import pytest
import torch
from helpers import seeded, small_model
from test_paged import GROUPED, MODEL, V, check_content, interrupted, prompt, roomy
from test_paged import check_books as check_pages

from tinylm import Sampling, serving
from tinylm.attention import ATTENTION
from tinylm.paged import Pages, PagedKVCache, Row
from tinylm.serving import Engine, Request, Scheduler, first_come, shortest_first

class Recorder(Engine):
    "An engine that keeps the logits from which it draws."
    def draw(self, jobs, logits):
        for job, row in zip(jobs, logits):
            self.__dict__.setdefault('logits', {}).setdefault(job.number, []).append(row.clone())
        return super().draw(jobs, logits)

def solo(model, r):
    "What the request would get alone, up to its stop token."
    generator = None if r.seed is None else seeded(r.seed)
    ids = model.decode(torch.tensor([r.ids]), r.max_new_tokens, temperature=r.temperature, top_k=r.top_k,
                       top_p=r.top_p, generator=generator)[0].tolist()
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
    "Nobody holds a page any more."
    cache = engine.cache
    assert not engine.busy and cache.refs == [0]*len(cache.refs) and len(cache.free) == len(cache.refs)

def check_books(engine):
    "At any time: the pages are right, and everybody has a place of their own."
    running = engine.scheduler.running
    check_pages(engine.cache, [j.row for j in running])
    assert len({j.slot for j in running}) == len(running) <= engine.scheduler.slots
    for job in running: assert job.state == 'running' and job.row.ids == job.text[:len(job.row.ids)]
    for job in engine.scheduler.waiting: assert job.state == 'waiting' and job.row is None

# --- a thousand requests

def random_request(rng, beginnings):
    ids = rng.choice(beginnings)[:rng.randint(0, 12)] + [rng.randrange(V)
                                                         for _ in range(rng.randint(0, 8))] or [0]
    dials = rng.choice([dict(temperature=0), dict(temperature=0), dict(),
                        dict(temperature=.7, top_k=rng.randint(1, 4)), dict(temperature=1.5, top_p=.8)])
    return Request(ids, rng.randint(1, 9), seed=rng.randrange(99),
                   stop=rng.choice([(), (), (rng.randrange(V), 5)]), **dials)

def work(job):
    return sum(min(len(job.request.ids) + i, job.window) if i == 0 or len(job.request.ids)
               + i > job.window else 1 for i in range(job.request.max_new_tokens))

@pytest.mark.slow
@pytest.mark.parametrize('seed', range(25))
def test_none_lost_none_starved_no_page_leaked(seed):
    "41 random requests, a small pool: arrivals, cancellations, preemptions, shared beginnings, long texts."
    rng = random.Random(seed)
    size, slots = rng.randint(1, 5), rng.randint(1, 6)
    most = -(-16//size)
    model = rng.choice([MODEL, MODEL, GROUPED])
    engine = Recorder(model, slots=slots, budget=slots + rng.randint(1, 12),
        n_pages=rng.randint(most, most*slots), size=size,
        policy=rng.choice([first_come, first_come, shortest_first]))
    beginnings, jobs, left = [[rng.randrange(V) for _ in range(12)] for _ in range(3)], [], 41
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
    # the oldest gets at least a token in every step
    if engine.scheduler.policy is first_come:
        for job in jobs:
            if job.state == 'finished':
                assert job.at['ended'][0] - job.at['arrived'][0] <= sum(work(j) for j in jobs[:job.number+1])

def test_the_thousand_met_everything():
    "The random requests above are worth something only if all of it happened."
    seen = dict.fromkeys(('preempted', 'reused', 'slid', 'cancelled', 'stopped', 'chunked', 'together'), 0)
    for seed in range(4):
        rng = random.Random(seed)
        engine = Engine(MODEL, slots=4, budget=7, n_pages=9, size=2)
        beginnings = [[rng.randrange(V) for _ in range(12)] for _ in range(3)]
        jobs = [engine.add(random_request(rng, beginnings)) for _ in range(20)]
        while engine.busy:
            engine.step()
            if rng.random() < .05 and engine.busy:
                engine.cancel(rng.choice(engine.scheduler.running + engine.scheduler.waiting))
        for j in jobs:
            seen['preempted'] += j.preempted > 0; seen['reused'] += j.reused > 0; seen['slid'] += j.slid
            seen['cancelled'] += j.state == 'cancelled'
            seen['stopped'] += j.state == 'finished' and len(j.new) < j.request.max_new_tokens
        seen['chunked'] += sum(j['phase'] == 'read' and j['wrote'] is None for s in engine.trace
                               for j in s['jobs'])
        seen['together'] += sum({j['phase'] for j in s['jobs']} == {'read', 'write'} for s in engine.trace)
        assert {s['passes'] for s in engine.trace} <= {0, 1}
    assert all(seen.values()), seen

# --- the engine

def test_the_contract_of_the_design():
    ids = torch.tensor([prompt(4)])
    out = Engine(MODEL).generate([Request(ids, max_new_tokens=12, temperature=0)])
    assert torch.equal(out[0], MODEL.decode(ids, 12, temperature=0)[0])
    two = Engine(MODEL).generate([prompt(3), torch.tensor(prompt(5))], max_new_tokens=4, temperature=0)
    assert [t.tolist() for t in two] == [solo(MODEL, Request(p, 4, temperature=0))
                                         for p in (prompt(3), prompt(5))]

def test_a_long_prompt_does_not_stall_those_who_write():
    model = roomy(block_size=64)
    engine = Engine(model, slots=3, budget=8, size=4)
    first = engine.add(Request(prompt(3), 30, temperature=0)); engine.step()
    engine.add(Request(prompt(60), 2, temperature=0))
    for n in range(2, 12):
        engine.step()
        assert len(first.new) == n and sum(j['tokens'] for j in engine.trace[-1]['jobs']) <= 8
    assert engine.trace[-2]['jobs'][-1]['tokens'] == 4 and sum(s['jobs'][-1]['tokens']
        for s in engine.trace[1:11]) >= 60

def test_writers_come_first_whoever_ranks_best():
    "The newest ranks first here, and brings a long prompt: those who write go on all the same."
    engine = Engine(MODEL, slots=3, budget=4, size=4, policy=lambda job: -job.number)
    old = [engine.add(Request(prompt(2), 9, temperature=0)) for _ in range(2)]
    for _ in range(2): engine.step()
    engine.add(Request(prompt(12), 2, temperature=0))
    for n in range(3, 8):
        engine.step()
        assert [len(j.new) for j in old] == [n, n] and engine.trace[-1]['jobs'][-1]['request'] == 2

def test_a_record_is_kept_whole_or_not_at_all():
    "Ctrl-C between the last line of a step and its end."
    class Late(list):
        def append(self, record): super().append(record); raise KeyboardInterrupt
    engine = Engine(MODEL, slots=1, size=4)
    job, engine.scheduler.trace = engine.add(Request(prompt(3), 2, temperature=0)), Late()
    with pytest.raises(KeyboardInterrupt): engine.step()
    assert engine.trace == [] and job.new == [] and job.state == 'waiting'

def test_stream_hands_out_tokens_at_once_and_cancels_when_nobody_listens():
    engine = Engine(MODEL, slots=2, size=4)
    stream = engine.stream([prompt(3), prompt(4)], max_new_tokens=8, temperature=0)
    seen = [next(stream) for _ in range(5)]
    assert len(engine.trace) == 3 and [i for i, _ in seen] == [0, 1, 0, 1, 0]
    stream.close()
    check_empty(engine)
    assert [j.state for j in engine.jobs] == ['cancelled']*2

def test_the_model_keeps_its_mode_and_its_products():
    model = roomy(dropout=.5).train()
    out = Engine(model).generate([Request(prompt(4), 6, temperature=0)])
    assert all(m.training for m in model.modules()) and not any('forward' in vars(m) for m in model.modules())
    assert out[0].tolist() == solo(model.eval(), Request(prompt(4), 6, temperature=0))

def test_an_engine_notices_other_weights():
    model = roomy()
    engine = Engine(model); engine.add(Request(prompt(4), 6)); engine.step()
    with torch.no_grad(): model.blocks[0].mlp.up.weight.mul_(2)
    for late in (lambda: engine.add(Request([1], 2)), lambda: engine.stream([[1]], max_new_tokens=2),
                 lambda: engine.generate([[1]], max_new_tokens=2)):
        with pytest.raises(ValueError, match='the weights have changed'): late()
    assert len(engine.jobs) == 1
    model, engine = roomy(), Engine(roomy())
    # other tensors, not changed ones
    engine.model.load_state_dict(model.state_dict(), assign=True)
    with pytest.raises(ValueError, match='the weights have changed'): engine.add(Request([1], 2))
    engine = Engine(model)
    model.blocks[0].mlp.up = torch.nn.Linear(16, 64)
    with pytest.raises(ValueError, match='the weights have changed'): engine.add(Request([1], 2))

def test_a_hook_on_the_model_still_fires():
    model, seen = roomy(), []
    model.blocks[0].attention.qkv.register_forward_hook(lambda *_: seen.append(1))
    out = Engine(model).generate([Request(prompt(4), 6, temperature=0)])
    assert len(seen) == 6 and out[0].tolist() == solo(roomy(), Request(prompt(4), 6, temperature=0))

@pytest.mark.parametrize('name', sorted(ATTENTION))
def test_every_kind_of_attention_serves(name):
    model = roomy(attention=name)
    requests = [Request(prompt(n), 6, temperature=0) for n in (9, 3, 14)]
    assert [t.tolist() for t in Engine(model, slots=2, budget=5, size=3).generate(requests)] == [solo(MODEL,
        r) for r in requests]

def test_bfloat16_serves_too():
    model = roomy().bfloat16()
    out = Engine(model, size=4).generate([Request(prompt(4), 6, temperature=0),
                                          Request(prompt(7), 3, temperature=0)])
    assert [len(t) for t in out] == [10, 10]

def test_metrics_trace_and_throughput(tmp_path):
    engine = Engine(MODEL, slots=2, budget=5, size=4)
    jobs = [engine.add(Request(prompt(n), 4, temperature=0)) for n in (3, 9, 2)]
    while engine.busy: engine.step()
    first, _, last = (j.metrics('steps') for j in jobs)
    assert first == {'queue': 0, 'ttft': 1, 'tpot': 1,
                     'total': 4} and last['queue'] == 4 and last['ttft'] == last['queue'] + 1
    seconds = jobs[0].metrics()
    assert 0 <= seconds['queue'] <= seconds['ttft'] <= seconds['total'] and seconds['tpot'] > 0
    assert engine.add(Request([1], 2)).metrics() == dict(queue=None, ttft=None, tpot=None, total=None)
    engine.save_trace(tmp_path/'trace.json')
    record = json.loads((tmp_path/'trace.json').read_text())
    assert [r['new'] for r in record['requests']] == [j.new
        for j in engine.jobs] and len(record['steps']) == len(engine.trace)
    for number, job in enumerate(jobs):
        assert [j['wrote'] for s in record['steps'] for j in s['jobs'] if j['request'] == number
                and j['wrote'] is not None] == job.new
    assert engine.throughput() > 0

def test_on_a_clock_that_only_passes_move_seconds_are_steps(monkeypatch):
    model, now = small_model(), [100.]
    monkeypatch.setattr(serving, 'perf_counter', lambda: now[0])
    def second(*_): now[0] += 1
    model.norm.register_forward_hook(second)
    engine = Engine(model, slots=2, budget=5, size=4)
    jobs = [engine.add(Request(prompt(n), 4, temperature=0)) for n in (3, 9, 2)]
    while engine.busy: engine.step()
    assert all(j.metrics() == j.metrics('steps') for j in jobs)
    assert [s['seconds'] for s in engine.trace] == [1.]*len(engine.trace)
    assert engine.throughput() == 12/len(engine.trace)

@pytest.mark.parametrize('policy', [first_come, shortest_first, lambda job: -job.number])
def test_any_policy_gets_everybody_done(policy):
    engine = Engine(MODEL, slots=2, budget=4, n_pages=8, size=2, policy=policy)
    jobs = [engine.add(Request(prompt(n), 12 - n, temperature=0)) for n in (9, 2, 5, 7, 3)]
    while engine.busy: engine.step()
    assert [j.ids for j in jobs] == [solo(MODEL, j.request) for j in jobs]

# --- bad input

@pytest.mark.parametrize('args, says', [
    (dict(ids=[]), 'ids are empty'), (dict(ids=[1.5]), 'expected a list of integers'),
    (dict(ids='ab'), 'expected a list of integers'),
    (dict(ids=torch.zeros(2, 3, dtype=torch.long)), r'shape \(2, 3\)'),
    (dict(ids=torch.zeros(3)), 'torch.float32'),
    (dict(max_new_tokens=0), 'max_new_tokens is 0'), (dict(max_new_tokens=-1), 'max_new_tokens is -1'),
    (dict(max_new_tokens=1.5), 'max_new_tokens is 1.5'), (dict(temperature=-1), 'temperature is -1'),
    (dict(top_k=0), 'top_k is 0'), (dict(top_p=0), 'top_p is 0'), (dict(seed=-1), 'seed is -1'),
    (dict(stop='a'), "stop is 'a'"), (dict(stop=None), 'stop is None'),
    (dict(stop=(2, -1)), 'stop is -1'), (dict(sampling=3), 'sampling is 3: expected a Sampling'),
    (dict(sampling=Sampling(.5), top_k=2), 'expected one of them')])
def test_a_request_of_nonsense_is_refused(args, says):
    with pytest.raises(ValueError, match=says) as e: Request(**dict(ids=[1], max_new_tokens=2) | args)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('args, says',
    [(dict(slots=0), 'slots is 0'), (dict(slots=4, budget=4), 'budget is 4: expected a whole number of at '
                                                              'least 5'), (dict(n_pages=0), 'n_pages is 0'),
                                                              (dict(size=0), 'size is 0')])
def test_an_engine_of_nonsense_is_refused(args, says):
    with pytest.raises(ValueError, match=says): Engine(MODEL, **args)

def test_bad_requests_leave_the_others_alone():
    engine = Engine(MODEL, slots=2, n_pages=3, size=4)
    good = engine.add(Request(prompt(5), 6, temperature=0)); engine.step()
    gone = engine.add(Request(prompt(3), 4)); engine.cancel(gone)
    other = Engine(MODEL).add(Request([1], 1))
    for bad, says in [(lambda: engine.add(Request([V], 2)), f'token id {V}: expected 0 to {V-1}'),
        (lambda: engine.add(Request([-1], 2)), 'token id -1'),
        (lambda: engine.add(Request(prompt(12), 2)), r'may hold 13 tokens: the pool has room for 12 \(3 '
                                                     r'pages of 4\)'),
                      (lambda: engine.add([1, 2]), 'is not a Request'),
                      (lambda: engine.cancel(gone), 'request 1 is cancelled already'),
                      (lambda: engine.cancel(other), 'belongs to another engine'),
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
    engine = Engine(MODEL, slots=4, budget=9, n_pages=8, size=2)
    jobs = [engine.add(Request(prompt(n), 16 - n, temperature=0)) for n in (4, 6, 2, 12, 2, 2, 3)]
    while engine.busy: engine.step()
    assert jobs[0].preempted == 0 and sum(j.preempted for j in jobs) > 1
    started = [j.at['started'][0] for j in jobs]
    # the short ones would have fitted beside the long one that waits
    assert started == sorted(started) and started[3] > 0

def test_a_plan_does_not_preempt_because_it_admitted_first():
    "Two write and need the last page in this step; a newcomer, which would fit into it, has to wait."
    pages = Pages(5, 2)
    s = Scheduler(pages, slots=3, budget=9)
    old = [s.add(Request([i, i, i], 5)) for i in (1, 2)]
    s.step(pretend(s))
    # two pages each are full now, and one is free
    s.step(pretend(s))
    new = s.add(Request([3], 3))
    s.step(pretend(s))
    assert sum(j.preempted for j in (*old, new)) == 1 and new.preempted == 0 and new.state == 'waiting'
    crowd = [(rng.randint(1, 9), rng.randint(1, 9)) for rng in [random.Random(4)] for _ in range(30)]
    def preemptions(kind):
        s = kind(Pages(9, 2), slots=5, budget=12)
        for T, n in crowd: s.add(Request(prompt(T, T), n))
        while s.waiting or s.running: s.step(pretend(s)); check_pages(s.pages, [j.row for j in s.running])
        assert all(j.state == 'finished' for j in s.jobs)
        return sum(j.preempted for j in s.jobs)
    assert preemptions(Scheduler) < preemptions(Hospitable)

class Hospitable(Scheduler):
    def plan(self): self.admit(); return super().plan()

def pretend(s):
    "Whoever has read everything writes 0, without a model."
    def read(plan):
        ready = [job for job, n in plan if job.behind == n]
        for job, n in plan: s.pages.extend(job.row, job.text[len(job.row.ids):][:n])
        return [(job, 0) for job in ready]
    return read

def test_nobody_has_to_make_room_for_a_window_that_slides():
    engine = Engine(MODEL, slots=2, size=4)
    jobs = [engine.add(Request(prompt(n), 12, temperature=0)) for n in (10, 3)]
    slots = set()
    while engine.busy:
        engine.step(); slots |= {(j['request'], j['slot']) for j in engine.trace[-1]['jobs']}
    assert [j.preempted for j in jobs] == [0, 0] and [j.slid for j in jobs] == [5, 0]
    assert [j.ids for j in jobs] == [solo(MODEL, j.request) for j in jobs] and len(slots) == 2
    assert [r['slid'] for r in engine.record()['requests']] == [5, 0]

def test_the_engine_makes_the_steps_that_the_scheduler_makes_alone():
    "A model changes the tokens, and nothing else."
    about = lambda trace: [([(j['request'], j['slot'], j['phase'], j['tokens']) for j in s['jobs']],
                            s['waiting'], s['events'], s['free']) for s in trace]
    for seed in range(6):
        rng = random.Random(seed)
        requests = [Request([rng.randrange(V) for _ in range(rng.randint(1, 12))], rng.randint(1, 9),
                            temperature=0) for _ in range(12)]
        shape = dict(slots=rng.randint(1, 4), budget=rng.randint(5, 9))
        engine, s = Engine(MODEL, n_pages=7, size=5, **shape), Scheduler(Pages(7, 5), window=16, **shape)
        for r in requests: engine.add(r); s.add(r)
        while engine.busy: engine.step(); s.step(pretend(s))
        assert not s.running and about(engine.trace) == about(s.trace)

# --- dials

def test_dials_come_as_keywords_or_as_one_record():
    r = Request([1], 2, temperature=.5, top_k=3, seed=7, stop=4)
    assert r.sampling == Sampling(.5, 3, seed=7) and r.stop == (4,)
    s = Request([1], 2, sampling=Sampling(.5, 3, seed=7))
    assert (s.temperature, s.top_k, s.top_p, s.seed) == (.5, 3, None, 7)
    a, b = (Engine(MODEL).generate([q])[0].tolist()
        for q in (Request(prompt(4), 6, temperature=.9, seed=3),
                  Request(prompt(4), 6, sampling=Sampling(.9, seed=3))))
    assert a == b == solo(MODEL, Request(prompt(4), 6, temperature=.9, seed=3))

def test_jobs_and_rows_are_themselves():
    engine = Engine(MODEL, slots=2, size=4)
    one, two = (engine.add(Request(prompt(3), 4, temperature=0)) for _ in range(2))
    assert one != two and len({one, two}) == 2 and Row() != Row()
    engine.step(); engine.cancel(two)
    while engine.busy: engine.step()
    assert one.state == 'finished' and two.state == 'cancelled' and len(two.new) == 1
    assert serving.PagedKVCache is PagedKVCache and serving.Row is Row

# --- all or nothing

def state(engine):
    "All that counts of an engine, and of the chance of its jobs."
    s, jobs = engine.scheduler, engine.jobs
    about = [(j.number, j.state, j.slot, tuple(j.ids), j.preempted, j.slid, j.reused, sorted(j.at), j.row
              and (j.row.ids, j.row.pages),
              j.generator and j.generator.get_state().tolist()[:50]) for j in jobs]
    return about, [j.number for j in s.waiting], [j.number
        for j in s.running], s.pages.refs, list(s.pages.free), len(s.trace), s.events

def crowd(engine):
    for i, (n, more) in enumerate([(2, 4), (9, 9), (4, 5), (12, 7)]):
        engine.add(Request(prompt(n, i % 2), more, temperature=.9*(i > 1), seed=i))

def before_step(n, **more):
    engine = Engine(MODEL, **dict(slots=3, budget=5, n_pages=12, size=2) | more)
    crowd(engine)
    for _ in range(n): engine.step()
    return engine

def finish(engine):
    while engine.busy: engine.step(); check_books(engine)
    check_empty(engine)
    assert [j.ids for j in engine.jobs] == [solo(MODEL, j.request) for j in engine.jobs]
    check_content(MODEL, engine.cache, [j.ids for j in engine.jobs])

@pytest.mark.slow
@pytest.mark.parametrize('n', range(8))
def test_a_step_that_is_interrupted_at_any_line_was_or_was_not(n):
    "A sample of the lines of each step; afterwards everybody gets the text that they would get alone."
    old, new = state(before_step(n)), state(before_step(n+1))
    rng, line = random.Random(n), 0
    while True:
        line += rng.randint(1, 60)
        engine = before_step(n)
        hit = interrupted(engine.step, line)
        assert state(engine) == (old if len(engine.trace) == n else new)
        check_books(engine)
        if rng.random() < .2 or not hit: finish(engine)
        if not hit: break
    assert line > 300

@pytest.mark.slow
@pytest.mark.parametrize('seed', range(4))
def test_a_thousand_interrupts_change_no_text(seed):
    rng, model = random.Random(seed), roomy(dropout=.3).train()
    model.blocks[1].eval()
    modes, hits = [m.training for m in model.modules()], 0
    engine = Engine(model, slots=3, budget=6, n_pages=10, size=2)
    crowd(engine)
    while engine.busy:
        if rng.random() < .8: hits += interrupted(engine.step, rng.randint(1, 500))
        else: engine.step()
        check_books(engine)
        assert [m.training for m in model.modules()] == modes and torch.is_grad_enabled()
    assert hits > 10
    finish(engine)

@pytest.mark.parametrize('place', ['draw', '_read'])
def test_a_failed_step_is_done_again(monkeypatch, place):
    engine = Engine(MODEL, slots=3, budget=5, size=2)
    jobs, hits = [engine.add(Request(prompt(n), 5, temperature=0)) for n in (2, 9, 4)], 0
    for n in range(60):
        with monkeypatch.context() as m:
            if n%3 == 1: m.setattr(Engine, place, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
            try: engine.step()
            except KeyboardInterrupt: hits += 1
        check_books(engine)
    assert hits > 2 and [j.ids for j in jobs] == [solo(MODEL, j.request) for j in jobs]
    check_empty(engine)

# --- several listeners, requests that fail, memory that is bounded

def broken(place):
    "Finite weights, and no finite logits for texts that reach this position."
    model = roomy()
    with torch.no_grad(): model.pos_emb.weight[place] = 3e38*(-1)**torch.arange(model.config.n_embd)
    return model

@pytest.mark.parametrize('seed', range(20))
def test_streams_of_one_engine_give_each_listener_all_of_its_own(seed):
    "Opened, asked, left and mixed with `generate` in any order."
    rng, engine = random.Random(seed), Engine(MODEL, slots=2, budget=5, size=3)
    wanted = [[prompt(rng.randint(1, 6), 10*seed + i) for i in range(rng.randint(1, 3))] for _ in range(4)]
    streams = {k: engine.stream(ps, max_new_tokens=6, temperature=0) for k, ps in enumerate(wanted)}
    got, left = {k: [list(p) for p in ps] for k, ps in enumerate(wanted)}, rng.randrange(4)
    while streams:
        k = rng.choice(list(streams))
        if k == left and rng.random() < .2: streams.pop(k).close(); continue
        if rng.random() < .1:
            out = engine.generate([[1, 2]], max_new_tokens=3, temperature=0)[0].tolist()
            assert out == solo(MODEL, Request([1, 2], 3, temperature=0))
        new = next(streams[k], None)
        if new is None: del streams[k]
        else: got[k][new[0]].append(new[1])
    for k, ps in enumerate(wanted):
        for p, ids in zip(ps, got[k]):
            want = solo(MODEL, Request(p, 6, temperature=0))
            assert ids == (want[:len(ids)] if k == left else want)
    check_empty(engine)

def test_a_stream_that_nobody_listens_to_queues_nothing():
    engine = Engine(MODEL)
    engine.stream([prompt(3)], max_new_tokens=4).close(); engine.stream([prompt(3)], max_new_tokens=4)
    assert not engine.busy and engine.jobs == []

@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('temperature', [0, 1])
def test_scores_among_which_none_can_be_best_fail_one_request_alone(monkeypatch, bad, temperature):
    engine, logits = Engine(MODEL), MODEL.logits
    good, lost = (engine.add(Request(prompt(n), 4, temperature=temperature, seed=n)) for n in (3, 5))
    def spoiled(h):
        out = logits(h).clone()
        if len(out) == 2: out[1] = bad
        return out
    with monkeypatch.context() as m:
        m.setattr(MODEL, 'logits', spoiled)
        while engine.busy: engine.step()
    assert lost.state == 'failed' and 'not finite' in lost.error and lost.new == []
    assert good.state == 'finished' and good.ids == solo(MODEL, good.request)
    check_empty(engine)

@pytest.mark.parametrize('seed', range(6))
def test_a_request_that_meets_nan_fails_alone_and_says_why(seed):
    rng, model = random.Random(seed), broken(9)
    engine = Engine(model, slots=3, budget=rng.randint(4, 12), size=rng.randint(1, 4), n_pages=40)
    lengths = [rng.choice([2, 3, 11, 13]) for _ in range(8)]
    jobs = [engine.add(Request(prompt(n, i), 4, temperature=rng.choice([0, 1]), seed=i)) for i,
            n in enumerate(lengths)]
    while engine.busy: engine.step()
    for job, n in zip(jobs, lengths):
        if n > 9: assert job.state == 'failed' and 'not finite' in job.error and job.new == []
        else: assert job.state == 'finished' and job.ids == solo(model, job.request)
    check_empty(engine)
    with pytest.raises(ValueError, match='request 8 failed: its logits are not finite'):
        engine.generate([prompt(12)], max_new_tokens=2)
    # in pages that held nan
    good = engine.generate([prompt(3)], max_new_tokens=4, temperature=0)[0].tolist()
    assert good == solo(model, Request(prompt(3), 4, temperature=0))

@pytest.mark.parametrize('keep', [1, 3])
def test_history_bounds_what_is_kept_and_numbers_go_on(keep):
    engine = Engine(MODEL, slots=2, history=keep)
    for i in range(6):
        job = engine.add(Request(prompt(2, i), 3, temperature=0))
        while engine.busy: engine.step()
        assert job.number == i and len(engine.jobs) <= keep and len(engine.trace) <= keep
    assert engine.trace[-1]['step'] == 17 and engine.record()['requests'][-1]['number'] == 5
    with pytest.raises(ValueError, match='history is 0'): Engine(MODEL, history=0)

def test_the_queue_stands_in_order_of_any_policy():
    engine = Engine(MODEL, slots=1, budget=4, policy=shortest_first)
    jobs = [engine.add(Request(prompt(n), n, temperature=0)) for n in (5, 2, 7, 2, 3)]
    assert engine.scheduler.waiting == engine.scheduler.ranked(jobs)
    while engine.busy:
        engine.step(); assert engine.scheduler.waiting == engine.scheduler.ranked(engine.scheduler.waiting)

def other_data(m): m.blocks[0].mlp.up.weight.data = m.blocks[0].mlp.up.weight.data*2
def copied(m): m.norm.bias.data.copy_(m.norm.bias.data + 1)
def in_place(m): m.tok_emb.weight.data[3] += 1
def loaded(m): m.load_state_dict({k: v*2 for k, v in m.state_dict().items()}, assign=True)
def vector(m):
    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(m.parameters())*2, m.parameters())
def replaced(m): m.norm.weight = torch.nn.Parameter(m.norm.weight*2)

@pytest.mark.parametrize('change', [other_data, copied, in_place, loaded, vector, replaced])
def test_weights_that_change_in_any_way_are_noticed_by_the_next_request(change):
    model = roomy()
    engine = Engine(model, size=2)
    engine.generate([prompt(6)], max_new_tokens=4, temperature=0)
    with torch.no_grad(): change(model)
    for ask in (lambda: engine.add(Request(prompt(6), 4)),
                lambda: engine.stream([prompt(6)], max_new_tokens=4)):
        with pytest.raises(ValueError, match='the weights have changed'): ask()

@pytest.mark.parametrize('dtype', [
    torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_weights_of_any_type_are_watched(dtype):
    "Where they are and how often they were changed is the same here: their bits alone tell."
    engine = Engine(small_model())
    weight = engine.model.norm.bias
    weight.data = weight.data.to(dtype)
    engine = Engine(engine.model)
    engine.add(Request([1], 2))
    weight.data.copy_(weight.data.float() + 1)
    with pytest.raises(ValueError, match='the weights have changed'): engine.add(Request([1], 2))
