"Real signals at real times: interrupts while engines work and files are written."
import random, signal, sys
from dataclasses import replace

import torch
from helpers import small_model
from test_law import decided
from test_paged import check_books as check_pages, check_content
from test_serving import check_books, solo

from tinylm import Engine, LanguageModel, ModelDrafter, NGramDrafter, Request, first_come, shortest_first
from tinylm.core import check_writable, owning

class Storm:
    "SIGALRM at random times inside of `call`, each a KeyboardInterrupt."
    def __init__(self, rng, least):
        self.rng, self.least = rng, least                # the shortest pause, in seconds
        self.inside, self.hits, self.calls, self.struck = False, 0, 0, 0

    def __enter__(self):
        self.before = signal.signal(signal.SIGALRM, self.strike)
        self.hook, sys.unraisablehook = sys.unraisablehook, lambda _: None # pytest's would be struck, too
        self.wait()
        return self

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)
        sys.unraisablehook = self.hook

    def wait(self): signal.setitimer(signal.ITIMER_REAL, self.least*10**self.rng.uniform(0, 2))

    def strike(self, *_):
        self.wait()
        if self.inside: self.hits += 1; self.struck += 1; raise KeyboardInterrupt

    def call(self, work):
        "Whether `work` came to its end, and what it gave."
        self.calls, self.struck = self.calls + 1, 0
        try:
            try:
                self.inside = True
                return True, work()
            finally: self.inside = False
        except KeyboardInterrupt: self.inside = False
        return False, None

def random_model(rng):
    heads, groups = rng.choice([(1, 1), (2, 1), (2, 2), (4, 2)])
    model = small_model(rng.randrange(99), block_size=rng.randint(4, 16), n_layer=rng.randint(1, 3),
                        n_head=heads, n_kv_head=groups, n_embd=heads*rng.randint(1, 6),
                        attention=rng.choice(['fused', 'reference', 'tiled']),
                        tie_embeddings=rng.random() < .5, dropout=.2)
    return model.eval()

def random_engine(rng, model):
    W, size, slots = model.config.block_size, rng.randint(1, 5), rng.randint(1, 4)
    most = -(-W//size)
    return Engine(model, slots=slots, budget=slots + rng.randint(1, 9), size=size,
                  n_pages=rng.choice([None, rng.randint(most, most*slots)]),
                  policy=rng.choice([first_come, shortest_first]))

def random_requests(rng, model, n):
    "Requests whose greedy tokens win by more than rounding."
    V, found = model.config.vocab_size, []
    beginnings = [[rng.randrange(V) for _ in range(9)] for _ in range(2)]
    while len(found) < n:
        ids = rng.choice(beginnings)[:rng.randint(0, 9)] + [rng.randrange(V)
                                                            for _ in range(rng.randint(1, 4))]
        dials = rng.choice([dict(temperature=0), dict(), dict(temperature=.7, top_k=3), dict(top_p=.8)])
        stop = rng.choice([(), (rng.randrange(V),)])
        r = Request(ids, rng.randint(1, 8), seed=rng.randrange(99), stop=stop, **dials)
        if r.temperature or decided(model, torch.tensor([ids]), r.max_new_tokens)[1]: found.append(r)
    return found

def key(r): return tuple(r.ids), r.max_new_tokens, r.sampling, r.stop

class Client:
    "Somebody who uses an engine, is interrupted all the time, and just goes on."
    def __init__(self, rng, storm):
        self.rng, self.storm, self.model = rng, storm, random_model(rng)
        self.engine = random_engine(rng, self.model)
        self.requests = random_requests(rng, self.model, 8)
        self.wanted = {key(r): solo(self.model, r) for r in self.requests}
        for part in self.model.modules(): part.training = rng.random() < .5
        self.modes, self.mine = [p.training for p in self.model.modules()], []
        self.drafters = [None, NGramDrafter(1, 3), ModelDrafter(small_model(1, n_layer=1), 2)]

    def check(self):
        "After any call, whether it was interrupted or not."
        engine, s = self.engine, self.engine.scheduler
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert [p.training for p in self.model.modules()] == self.modes
        check_books(engine)
        alive = {id(j) for j in (*s.running, *s.waiting)}
        left = [j for j in engine.jobs if id(j) in alive - {id(j) for j in self.mine}]
        assert not left or self.storm.struck > 1, 'somebody is served for whom nobody waits'
        self.mine += left                                # a second interrupt while a stream was left
        for job in engine.jobs:
            assert (job.state in ('running', 'waiting')) == (id(job) in alive)
            assert (job.generator is None) == (job.request.seed is None)

    def again(self, work):
        "Call until it comes to its end."
        done = False
        while not done:
            done, out = self.storm.call(work)
            self.check()
        return out

    def add(self, r):
        there = lambda: [j for j in self.engine.jobs if j.request is r]
        while not there():
            self.storm.call(lambda: self.engine.add(r))
            self.mine += there()
            self.check()
        assert len(there()) == 1

    def step(self):
        if self.engine.busy: self.storm.call(self.engine.step); self.check()

    def cancel(self):
        alive = [j for j in self.mine if j.state in ('running', 'waiting')]
        job = self.rng.choice(alive) if alive else None
        while job and job.state != 'cancelled': self.storm.call(lambda: self.engine.cancel(job)); self.check()

    def generate(self):
        some = [replace(r) for r in self.rng.sample(self.requests, 2)]
        out = self.again(lambda: self.engine.generate(some))
        assert [t.tolist() for t in out] == [self.wanted[key(r)] for r in some]

    def stream(self):
        "Listen token by token; an interrupted stream has ended, and a new one begins."
        some, leave = [replace(r) for r in self.rng.sample(self.requests, 2)], self.rng.randint(1, 12)
        got, stream, done = [list(r.ids) for r in some], None, False
        while not done:
            if stream is None:
                got = [list(r.ids) for r in some]
                stream = self.storm.call(lambda: self.engine.stream(some))[1]
                continue
            well, new = self.storm.call(lambda: next(stream, 'end'))
            if not well: stream = None; self.check(); continue
            if new == 'end': done = True
            else:
                got[new[0]].append(new[1]); leave -= 1
                if not leave:
                    while not self.storm.call(stream.close)[0]: pass
                    break
        for r, ids in zip(some, got):
            want = self.wanted[key(r)]
            assert ids == (want if done else want[:len(ids)])
        self.check()

    def decode(self):
        r, d = self.rng.choice(self.requests), self.rng.choice(self.drafters)
        go = lambda: self.model.decode(torch.tensor([r.ids]), r.max_new_tokens, temperature=0, drafter=d)
        if r.temperature == 0:
            ids, want = self.again(go)[0].tolist(), self.wanted[key(r)]
            assert ids[:len(want)] == want

    def run(self):
        for r in self.requests[:5]: self.add(r)
        for r in self.requests[5:]:
            for _ in range(self.rng.randint(0, 5)): self.step()
            for do in self.rng.sample([self.generate, self.stream, self.cancel, self.decode], 2): do()
            self.add(r)
        while self.engine.busy: self.step()

    def right(self):
        "All tokens are those that each would get alone, and no page is held."
        engine, cache = self.engine, self.engine.cache
        assert not engine.busy and cache.refs == [0]*len(cache.refs) and len(cache.free) == len(cache.refs)
        for job in engine.jobs:
            want = self.wanted[key(job.request)]
            assert job.ids == want if job.state == 'finished' else job.ids == want[:len(job.ids)]
        assert {id(j.request) for j in self.mine} >= {id(r) for r in self.requests}
        assert all(j.state in ('finished', 'cancelled') for j in self.mine)
        check_pages(cache, [])
        with torch.no_grad():
            return check_content(self.model.eval(), cache, [j.ids for j in engine.jobs])

def one_engine(seed):
    rng = random.Random(seed)
    storm = Storm(rng, 1e-3)
    client = Client(random.Random(seed + 10**6), storm)
    with storm: client.run()
    client.right()
    return dict(hits=storm.hits, calls=storm.calls)

def one_folder(seed, folder):
    "Save and own files under interrupts: each is the last one or the one before, and alone in its folder."
    rng = random.Random(seed)
    storm, path = Storm(rng, 2e-4), folder/'model.safetensors'
    model, held = small_model(), None
    def owned():
        with owning(path): model.save_safetensors(path)
    works = [lambda: model.save_safetensors(path), owned, lambda: check_writable(path)]
    with storm:
        for version in range(60):
            with torch.no_grad():
                for p in model.parameters(): p.fill_(version)
            storm.call(rng.choice(works))
            if path.exists():
                values = {v for t in LanguageModel.from_safetensors(path).state_dict().values()
                          for v in t.unique().tolist()}
                assert values in ({version}, {held})
                held = values.pop()
            else: assert held is None
            if storm.struck > 1: check_writable(path)    # twice in a row may leave what the next write sweeps
            names = [p.name for p in folder.iterdir()]
            assert names in ([], [path.name]), names
    return dict(hits=storm.hits, calls=storm.calls)
