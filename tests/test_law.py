"The law for every way through the model: the logits of one prefill, also after a pass that failed anywhere."
import pytest
import torch
from helpers import DEVICE, close, cuts, decided, failing, models, quick, seeded, tokens
from hypothesis import assume, given, strategies as st

from tinylm import Engine, KVCache, ModelDrafter, NGramDrafter, PagedKVCache, Request, phase_invariant

HOW = st.sampled_from(['operation', 'line', None])

class Slots:
    "Rows of some kind of cache: reads new tokens of each, and can tell and take back what it holds."
    def __init__(self, model, B): self.model, self.B = model, B

class Plain(Slots):
    def __init__(self, model, B): super().__init__(model, B); self.cache = KVCache.of(model, B)
    def lengths(self): return self.cache.lengths
    def read(self, parts): return list(self.model.prefill(torch.stack(parts), cache=self.cache)[0])
    def back(self, lengths, x):
        for r, n in enumerate(lengths): self.cache.row(r).rewind(self.cache.lengths[r] - n)

class Ragged(Plain):
    "Row by row, so that lengths differ between two passes over all."
    def read(self, parts):
        out = [self.model.prefill(p[None, :-1], cache=self.cache.row(r))[0][0] if len(p) > 1 else None for r,
               p in enumerate(parts)]
        last = self.model.prefill(torch.stack([p[-1:] for p in parts]), cache=self.cache)[0]
        return [torch.cat([o, e]) if o is not None else e for o, e in zip(out, last)]

class Paged(Slots):
    packed = False
    def __init__(self, model, B):
        super().__init__(model, B)
        self.cache = PagedKVCache(model.config, B*model.config.block_size, 3, device=DEVICE)
        self.rows = [self.cache.open([]) for _ in range(B)]
    def lengths(self): return [len(row.ids) for row in self.rows]
    def read(self, parts):
        return list(self.model.prefill(torch.stack(parts), cache=self.cache.batch(self.rows))[0])
    def back(self, lengths, x): # pages are not rewound, they are read again
        for r, n in enumerate(lengths):
            self.cache.close(self.rows[r]); self.rows[r] = self.cache.open([])
            if n: self.model.prefill(x[r:r+1, :n], cache=self.cache.batch([self.rows[r]]))

class Packed(Paged):
    "All rows in one line, each with its own number of new tokens."
    def read(self, parts):
        counts = [len(p) for p in parts]
        batch = self.cache.batch(self.rows, counts)
        return list(self.model.prefill(torch.cat(parts)[None], cache=batch)[0][0].split(counts))

def same_cuts(draw, B, T): return [cuts(draw, T)]*B

def own_cuts(draw, B, T):
    "As many chunks for each row, of different sizes."
    n = draw(st.integers(1, T))
    def one():
        ends = sorted(draw(st.lists(st.integers(1, T-1), min_size=n-1, max_size=n-1, unique=True))
                      if n > 1 else []) + [T]
        return [b - a for a, b in zip([0, *ends], ends)]
    return [one() for _ in range(B)]

@quick
@pytest.mark.parametrize('kind, draw_cuts',
                         [(Plain, same_cuts), (Ragged, own_cuts), (Paged, same_cuts), (Packed, own_cuts)])
@given(models(), st.data(), HOW)
def test_any_chunks_in_any_kind_of_memory_also_after_failures(kind, draw_cuts, model, data, how):
    B, T = data.draw(st.integers(1, 3)), data.draw(st.integers(1, model.config.block_size))
    x, sizes = tokens(B, T), draw_cuts(data.draw, B, T)
    memory, got = kind(model, B), [[] for _ in range(B)]
    with torch.no_grad():
        for step in zip(*sizes):
            held = memory.lengths()
            if how:
                wrong = [tokens(1, n, 5)[0] for n in step]
                with failing(how, data.draw(st.integers(1, 80*model.config.n_layer))): memory.read(wrong)
                if memory.lengths() != held:
                    if kind is not Ragged: assert memory.lengths() == [h + n for h, n in zip(held, step)]
                    memory.back(held, x)
            for r, out in enumerate(memory.read([x[r, h:h+n] for r, (h, n) in enumerate(zip(held, step))])):
                got[r].append(out)
        assert memory.lengths() == [T]*B and close(torch.stack([torch.cat(g) for g in got]),
                                                   model.prefill(x)[0])

@quick
@given(models(), st.data())
def test_the_public_law_for_every_kind_of_cache(model, data):
    x = tokens(2, data.draw(st.integers(1, model.config.block_size)))
    k = data.draw(st.integers(1, x.shape[1]))
    pages = Paged(model, 2)
    for cache in (None, KVCache.of(model, 2), pages.cache.batch(pages.rows)):
        assert phase_invariant(model, x, k, cache=cache)

@quick
@given(models(), st.integers(1, 12), st.integers(1, 14), st.integers(1, 400), HOW, st.data())
def test_every_step_writes_the_same_text_also_after_a_stream_that_failed(model, T0, n, place, how, data):
    idx = tokens(1, T0)
    whole, sure = decided(model, idx, n)
    assume(sure)
    drafters = [NGramDrafter(1, 3), ModelDrafter(model, 2)]
    for more in (dict(use_cache=True), *(dict(drafter=d) for d in drafters)):
        modes = [m.training for m in model.train(data.draw(st.booleans())).modules()]
        if how:
            with failing(how, place): model.decode(idx, n, temperature=0, **more)
            assert [m.training for m in model.modules()] == modes
        assert torch.equal(model.train(modes[0]).decode(idx, n, temperature=0, **more), whole)

@quick
@given(models(least=4), st.data(), HOW)
def test_an_engine_whose_steps_fail_anywhere_gives_each_the_text_that_it_would_get_alone(model, data, how):
    prompts = [tokens(1, data.draw(st.integers(1, 10)), s) for s in range(data.draw(st.integers(1, 4)))]
    engine = Engine(model, slots=2, budget=data.draw(st.integers(3, 8)), size=data.draw(st.integers(1, 4)))
    wanted = [(p, data.draw(st.integers(1, 6)), data.draw(st.integers(0, 9))) for p in prompts]
    assume(all(decided(model, p, n)[1] for p, n, _ in wanted))
    jobs = [engine.add(Request(p, n, temperature=t, seed=s)) for p, n, s in wanted for t in (0., 1.)]
    for turn in range(400):
        if not engine.busy: break
        if how and turn % 3 == 0:
            with failing(how, data.draw(st.integers(1, 900))): engine.step()
        else: engine.step()
    assert not engine.busy and len(engine.cache.free) == len(engine.cache.refs)
    for job in jobs:
        r = job.request
        alone = model.decode(torch.tensor([r.ids], device=DEVICE), r.max_new_tokens,
                             temperature=r.temperature, generator=seeded(r.seed, DEVICE))
        assert job.ids == alone[0].tolist()
