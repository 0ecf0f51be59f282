"Compiled loops: the law, the same bits from run to run, and the ordinary path wherever they do not apply."
import gc, os, shutil, sys, threading, time, weakref
from dataclasses import replace
from math import exp
from types import SimpleNamespace

import pytest
import torch
from helpers import SMALL, close, cuts, failing, models, quick, run_python, seeded, small_model, tokens
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tinylm import (ATTENTION, Engine, KVCache, LanguageModel, LMConfig, ModelDrafter, NGramDrafter,
                    PagedKVCache, Request, Sampling, crew, fused_attention, native, native_reason, take_loops)
from tinylm.cache import Cached
from tinylm.model import COMPILE, TokenTable
from tinylm.quantize import Int8, Int8Linear, Int8Table

pytest.importorskip('numba', reason='pip install numba')
pytestmark = pytest.mark.skipif(os.environ.get('TINYLM_DEVICE', 'cpu') != 'cpu', reason='loops run on a CPU')

PASSES = [] # how many rows each compiled pass had

@pytest.fixture(autouse=True, scope='module')
def counting():
    run = crew._Plans.run
    def counted(self, plan, R, *args, **more): PASSES.append(R); return run(self, plan, R, *args, **more)
    crew._Plans.run = counted
    yield
    crew._Plans.run = run

@pytest.fixture
def passes(): PASSES.clear(); return PASSES

class ordinary:
    "Inside, no pass is compiled."
    def __enter__(self): self.was = COMPILE.set(False)
    def __exit__(self, *_): COMPILE.reset(self.was)

def several(monkeypatch, model, helpers):
    "Threads for small models, too."
    monkeypatch.setattr(crew, '_helpers', lambda: helpers)
    crew._plans_of(model).size = 2**30

def read(model, x, sizes, kind):
    "The logits of x, read in chunks through a cache of this kind."
    cache = KVCache.of(model, len(x))
    if kind == 'paged':
        pages = PagedKVCache(model.config, len(x)*model.config.block_size, 3)
        cache = pages.batch([pages.open([]) for _ in x])
    return torch.cat([model.prefill(part, cache=cache)[0] for part in x.split(sizes, 1)], 1)

# --- the law

@quick
@pytest.mark.parametrize('kind', ['plain', 'paged'])
@given(models(most=40, weights=('float',)), st.data())
@torch.no_grad()
def test_float32_loops_give_the_logits_of_the_ordinary_pass(kind, model, data):
    x = tokens(data.draw(st.integers(1, 3)), data.draw(st.integers(1, model.config.block_size)))
    got = read(model, x, cuts(data.draw, x.shape[1]), kind)
    with ordinary(): assert close(got, model.prefill(x)[0])

@quick
@pytest.mark.parametrize('kind', ['plain', 'paged'])
@given(models(most=40, weights=('int8',)), st.data())
@torch.no_grad()
def test_int8_loops_keep_the_law(kind, model, data):
    PASSES.clear()
    x = tokens(data.draw(st.integers(1, 3)), data.draw(st.integers(1, model.config.block_size)))
    assert close(read(model, x, cuts(data.draw, x.shape[1]), kind), model.prefill(x)[0])
    assert sum(PASSES) == 2*2*x.numel()                     # all of it went through the loops: hidden, logits

@torch.no_grad()
def test_int8_activations_change_little():
    gaps, losses = [], []
    for seed in range(5):
        torch.manual_seed(seed)
        model = LanguageModel(LMConfig(65, 64, 2, 4, 64, weights='int8')).eval()
        x = torch.randint(65, (4, 64), generator=seeded(seed))
        with ordinary(): want, loss = model.prefill(x[:, :-1], x[:, 1:])
        got, new = model.prefill(x[:, :-1], x[:, 1:])
        gaps.append(((got - want).abs().median()/want.std()).item()); losses.append(exp(new - loss))
    assert max(gaps) < .02 and max(abs(r - 1) for r in losses) < .005, (gaps, losses)

# --- a text in one call

@quick
@given(models(most=40), st.data())
def test_a_text_in_one_call_is_the_text_of_step_after_step(model, data):
    size = model.config.block_size
    x, n = tokens(1, data.draw(st.integers(1, size))), data.draw(st.integers(0, size + 5))
    want = torch.cat([x, *model.stream(x, n, temperature=0)], 1)
    PASSES.clear()
    assert torch.equal(model.decode(x, n, temperature=0), want)
    if x.shape[1] + n <= size + 1:                          # the prompt, its logits, and all the rest
        assert len(PASSES) <= 2*-(-x.shape[1]//native.ROWS) + -(-n//crew.AT_ONCE)

def test_who_draws_or_has_several_rows_goes_step_by_step(passes):
    model = small_model(block_size=32).eval()
    class Own(Sampling):
        def draw(self, logits, generator=None): return super().draw(-logits, generator)
    def several_calls(rows=1, **how):
        passes.clear(); model.decode(tokens(rows, 3), 20, **how)
        return len(passes) > 19
    assert not several_calls(temperature=0)
    for how in (dict(), dict(temperature=.5, top_k=3), dict(rows=2, temperature=0),
                dict(sampling=Own(temperature=0))):
        assert several_calls(**how)
    with ordinary(): assert not passes.clear() and len(model.decode(tokens(1, 3), 20, temperature=0)[0]) == 23
    assert not passes

def test_a_score_that_is_no_number_ends_a_text_in_one_call(passes):
    model = small_model(block_size=32).eval()
    with torch.no_grad(): model.pos_emb.weight[9] = float('nan')
    stream, came = model.stream(tokens(1, 3), 20, temperature=0), []
    with pytest.raises(ValueError, match='finite weights'): came += [next(stream) for _ in range(20)]
    passes.clear()
    with pytest.raises(ValueError, match='finite weights'): model.decode(tokens(1, 3), 20, temperature=0)
    assert len(passes) == 6                                 # prompt, six tokens in a call, and why no more

def test_ragged_rows_and_one_row_of_a_cache(passes):
    model, x = small_model(n_kv_head=1).eval(), tokens(2, 8)
    cache = KVCache.of(model, 2)
    with torch.no_grad():
        with ordinary(): want = model.prefill(x)[0]
        for r, n in enumerate((3, 5)):
            assert close(model.prefill(x[r:r+1, :n], cache=cache.row(r))[0][0], want[r, :n])
        both = model.prefill(torch.stack([x[0, 3:5], x[1, 5:7]]), cache=cache)[0]
    assert close(both[0], want[0, 3:5]) and close(both[1], want[1, 5:7]) and len(passes) == 6

def test_rows_in_one_line(passes):
    model, x = small_model().eval(), tokens(2, 8)
    pages = PagedKVCache(model.config, 20, 3)
    rows = [pages.open([]), pages.open([])]
    with torch.no_grad():
        with ordinary(): want = model.prefill(x)[0]
        for a, b in (((0, 2), (0, 5)), ((2, 7), (5, 6))):
            line = torch.cat([x[0, slice(*a)], x[1, slice(*b)]])[None]
            got = model.prefill(line, cache=pages.batch(rows, [a[1] - a[0], b[1] - b[0]]))[0][0]
            assert close(got, torch.cat([want[0, slice(*a)], want[1, slice(*b)]]))
    assert passes

@pytest.mark.parametrize('weights', ['float', 'int8'])
def test_more_rows_than_a_desk_and_more_keys_than_a_tile(weights):
    modern = dict(positions='rotary', norm='rms', mlp='swiglu', head_dim=6)
    model = small_model(weights=weights, block_size=200, **modern).eval()
    x = tokens(1, 200)
    with torch.no_grad():
        cache = KVCache.of(model)
        got = [model.prefill(p, cache=cache)[0] for p in x.split([100, 16, 1, 13, 70], 1)]
        if weights == 'float': COMPILE.set(False)
        try: assert close(torch.cat(got, 1), model.prefill(x)[0])
        finally: COMPILE.set(None)

# --- who gets it

@settings(deadline=None, max_examples=15)
@given(models(least=6), st.integers(1, 4), st.integers(1, 12))
def test_every_way_to_write_goes_through_the_loops_and_writes_the_same(model, T0, n):
    idx = tokens(1, T0)
    whole = model.decode(idx, n, temperature=0, use_cache=False)
    with torch.no_grad():
        tops = [model.prefill(model.window(whole[:, :t]))[0][0, -1].topk(2).values for t in range(T0, T0 + n)]
    if not all(a - b > 1e-3 for a, b in tops): return
    for more in (dict(), dict(drafter=NGramDrafter(1, 3)), dict(drafter=ModelDrafter(model, 2))):
        assert torch.equal(model.decode(idx, n, temperature=0, **more), whole)
    [served] = Engine(model, slots=2, budget=5, size=2).generate([Request(idx, n, temperature=0)])
    assert served.tolist() == whole[0].tolist()

def test_false_means_never_and_true_says_why_not(passes, recwarn):
    model, idx = small_model().eval(), tokens(1, 3)
    want = model.decode(idx, 4, temperature=0, compile=False)
    assert not passes and not recwarn
    assert torch.equal(model.decode(idx, 4, temperature=0, compile=True), want) and passes and not recwarn
    model.blocks[1].register_forward_hook(lambda *_: None); passes.clear()
    assert torch.equal(model.decode(idx, 4, temperature=0, compile=True), want) and not passes
    assert [str(w.message) for w in recwarn] == [
        'compile is True, and decoding goes on without: Block has a hook']

def hooked(model): model.blocks[0].mlp.register_forward_hook(lambda part, given, out: out + 1)
def pre_hooked(model): model.norm.register_forward_pre_hook(lambda part, given: given[0] + 1)
def forward(model): model.blocks[0].forward = lambda x, p, layer: x
def method(model):
    a = model.blocks[0].attention
    a.heads = lambda x: [0*t for t in type(a).heads(a, x)]
def part(model):
    class Loud(nn.Module):
        def forward(self, x): return x + 1
    model.blocks[0].mlp = Loud()
def other_eps(model): model.norm.eps = 1.
def taken_out(model): model.blocks = model.blocks[:1]
def bent(model): model.blocks[0].mlp.up.bias = None
def dropping(model): model.blocks[0].drop = lambda x: x + 1
def turned(model): model.blocks[0].attention.proj.weight.data = model.blocks[0].attention.proj.weight.data.T
def cut(model): model.blocks[0].mlp.up.weight.data = model.blocks[0].mlp.up.weight.data[:, :5]
def double(model): model.double()

@pytest.mark.parametrize('before', [True, False])
@pytest.mark.parametrize('change', [hooked, pre_hooked, forward, method, part, other_eps, taken_out, bent,
                                    dropping, turned, double])
@torch.no_grad()
def test_a_model_that_is_not_as_in_the_lessons_takes_the_ordinary_path(passes, change, before):
    model, x = small_model().eval(), tokens(1, 5)
    if before: assert native_reason(model) == ''
    change(model); model.eval()
    assert native_reason(model)
    with ordinary(): want = model.prefill(x)[0]
    cache = KVCache.of(model)
    assert close(model.prefill(x, cache=cache)[0], want) and not passes

@torch.no_grad()
def test_a_change_of_weights_in_place_and_in_data_is_seen(passes):
    model, x = small_model().eval(), tokens(1, 5)
    for change in (lambda w: w.mul_(2), lambda w: w.data.fill_(.1), lambda w: setattr(w, 'data', w.data*3),
                   lambda w: setattr(model.blocks[0].mlp.up, 'weight', nn.Parameter(w*2))):
        model.prefill(x, cache=KVCache.of(model))
        change(model.blocks[0].mlp.up.weight); passes.clear()
        got = model.prefill(x, cache=KVCache.of(model))[0]
        with ordinary(): assert passes and close(got, model.prefill(x)[0], 1e-3)

def test_a_model_that_nobody_needs_any_more_is_gone(monkeypatch):
    model = small_model().eval()
    several(monkeypatch, model, 2)
    model.decode(tokens(1, 2), 4)
    gone = weakref.ref(model); del model
    for _ in range(100):
        gc.collect()
        if gone() is None: return
        time.sleep(.05)
    assert False, 'it is still there'

class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return func(*args, **(kwargs or {}))

@pytest.mark.parametrize('inside', [Mode, lambda: torch.autocast('cpu', torch.bfloat16)])
def test_modes_and_autocast_mean_the_ordinary_path(passes, inside):
    model, x = small_model().eval(), tokens(1, 5)
    with torch.no_grad(), inside(): model.prefill(x, cache=KVCache.of(model))
    assert not passes

def test_gradients_mean_the_ordinary_path_and_a_cache_has_none(passes):
    model, x = small_model(weights='int8').eval(), tokens(1, 5)
    model.prefill(x); small_model().eval().prefill(x, x)
    assert not passes
    assert not model.prefill(x, cache=KVCache.of(model))[0].requires_grad and len(passes) == 2

def test_who_wants_no_loops_waits_for_no_compiler(monkeypatch):
    def ready(): raise AssertionError('the loops are compiled')
    monkeypatch.setattr(crew, '_ready', ready)
    model, x = small_model().eval(), torch.zeros(1, 3, dtype=torch.long)
    assert model.decode(x, 4, compile=False).shape == (1, 7)
    engine = Engine(model, compile=False)
    assert len(engine.generate([Request([1, 2], 3)])[0]) == 5
    with pytest.raises(AssertionError, match='compiled'): model.decode(x, 4, compile=True)

def test_training_and_a_global_hook_mean_the_ordinary_path(passes):
    model, x, seen = small_model().eval(), tokens(1, 5), []
    hook = nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
    try: model.decode(x, 2); assert seen and 'global hook' in native_reason(model)
    finally: hook.remove()
    with torch.no_grad(): model.train().prefill(x, cache=KVCache.of(model))
    assert not passes

def test_a_subclass_takes_the_ordinary_path(passes):
    class Mine(LanguageModel): pass
    model = Mine(LMConfig(**SMALL)).eval()
    model.decode(tokens(1, 2), 3)
    assert not passes and 'is not as in the lessons' in native_reason(model)

class Deaf(crew.Cached):
    def attend(self, layer, q, k, v, dropout=0.): return torch.zeros_like(q)

def test_a_cache_that_attends_in_its_own_way_is_asked(passes):
    model, x, cache = small_model().eval(), tokens(1, 5), None
    with torch.no_grad():
        cache = KVCache.of(model); cache.makes = Deaf
        got = model.hidden(x, cache)
        assert not passes and not close(got, model.hidden(x, KVCache.of(model)))

@pytest.mark.parametrize('owner, name', [
    (TokenTable, 'forward'), (nn.Embedding, 'forward'), (Int8, 'scores'), (Int8Linear, 'scores'),
    (Int8Table, 'forward'), (Cached, 'take'), (Cached, 'attend'), (LanguageModel, 'hidden')])
def test_a_method_that_somebody_replaces_means_the_ordinary_path(monkeypatch, passes, owner, name):
    model, method = small_model(weights='int8').eval(), getattr(owner, name)
    assert native_reason(model) == ''
    monkeypatch.setattr(owner, name, lambda *args, **more: method(*args, **more))
    assert native_reason(model) == 'a method of the library is replaced'
    model.decode(tokens(1, 3), 2); assert not passes

def test_who_listens_to_a_pass_hears_its_layers(passes):
    model, x, heard = small_model().eval(), tokens(1, 3), []
    with torch.no_grad(), model.begin(x, KVCache.of(model)) as p:
        attend = p.attend
        p.attend = lambda layer, *args: heard.append(layer) or attend(layer, *args)
        got = p.hidden(model, x)
    assert heard == [0, 1] and not passes and close(got, model.hidden(x, KVCache.of(model)))

def shorter(m): m.config = replace(m.config, block_size=8)
def longer(m): m.config.block_size = 512
def turned(m): m.config.rope_theta = 100.
def new_head(m): m.head = nn.Linear(32, 11, bias=False).eval()
def hooked_head(m): new_head(m); m.head.register_forward_hook(lambda *_: None)
def bounded(m): m.tok_emb.max_norm = .1
def spied(m): m.config.attention = 'spied'

@pytest.mark.parametrize('change', [shorter, longer, turned, new_head, hooked_head, bounded, spied])
@pytest.mark.parametrize('positions', ['learned', 'rotary'])
@pytest.mark.parametrize('cached', [False, True])
@torch.no_grad()
def test_what_changes_after_the_first_pass_is_seen(monkeypatch, change, positions, cached):
    def spy(q, k, v, mask=None, dropout=0.): return fused_attention(q, k, v, mask, dropout)*0
    monkeypatch.setitem(ATTENTION, 'spied', spy)
    model = small_model(tie_embeddings=False, n_embd=32, block_size=16, positions=positions).eval()
    x = tokens(1, 7)
    def scores(): return model.prefill(x, cache=KVCache.of(model) if cached else None)[0]
    first = scores(); model.prefill(x, cache=KVCache.of(model))
    change(model)
    got = scores()
    with ordinary(): want = scores()
    assert close(got, want) and (change in (shorter, longer, turned) or not close(want, first))

@torch.no_grad()
def test_what_is_put_in_the_place_of_a_step_is_asked_for_a_text_too(monkeypatch):
    model, idx = small_model(block_size=16).eval(), tokens(1, 3)
    want, logits = model.decode(idx, 9, temperature=0), LanguageModel.logits
    def turned_round(self, h): return -logits(self, h)
    def other(text): return text.shape == want.shape and not torch.equal(text, want)
    for owner, wrong in ((model, turned_round.__get__(model)), (LanguageModel, turned_round)):
        with monkeypatch.context() as m:
            m.setattr(owner, 'logits', wrong)
            text = model.decode(idx, 9, temperature=0)
            assert other(text) and torch.equal(text, model.decode(idx, 9, temperature=0, compile=False))
    monkeypatch.setattr(KVCache, 'makes', Deaf)
    assert other(model.decode(idx, 9, temperature=0))

@torch.no_grad()
def test_long_turns_are_those_of_the_whole_pass(monkeypatch):
    "Dynamic scaling asks for the longest text of a pass, however many rows a loop takes at a time."
    scaling = dict(rope_type='dynamic', factor=2., original_max_position_embeddings=16)
    model = small_model(block_size=64, positions='rotary', weights='int8', rope_scaling=scaling).eval()
    run, seen = crew._Plans.run, []
    def noting(self, plan, R, *args, **more): seen.extend(args[3:4]); return run(self, plan, R, *args, **more)
    monkeypatch.setattr(crew._Plans, 'run', noting)
    model.prefill(tokens(1, 50))
    want = crew._plans_of(model).turns(range(50))
    assert len(seen) == 2 and (torch.tensor(want) == torch.cat([*map(torch.tensor, seen)], 2)).all()

@torch.no_grad()
def test_odd_tensors_get_the_words_of_pytorch(passes):
    model = small_model().eval()
    def said(x):
        try: return model.hidden(x, KVCache.of(model)).shape
        except Exception as e: return type(e), str(e)
    for x in (torch.zeros(1, 0, dtype=torch.long), torch.tensor([[1.5]])):
        got = said(x)
        with ordinary(): assert got == said(x)
    with pytest.raises(RuntimeError): model.logits(torch.zeros(1, 3, model.config.n_embd + 4))
    assert model.logits(torch.zeros(1, 0, model.config.n_embd)).shape[:2] == (1, 0)
    assert not passes

# --- the same bits

@pytest.mark.parametrize('weights', ['float', 'int8'])
def test_the_same_bits_from_run_to_run_and_for_any_number_of_threads(monkeypatch, weights):
    torch.manual_seed(0)
    model = LanguageModel(LMConfig(65, 64, 2, 4, 128, weights=weights)).eval()
    x, got = torch.randint(65, (3, 5)), []
    for helpers in (0, 1, 1, 3, 0):
        several(monkeypatch, model, helpers)
        with torch.no_grad(): got.append(model.prefill(x, cache=KVCache.of(model, 3))[0])
    assert all(torch.equal(g, got[0]) for g in got)

def test_threads_write_what_one_thread_writes_a_thousand_times(monkeypatch):
    model, idx = small_model(block_size=64).eval(), tokens(1, 3)
    want = model.decode(idx, 60, temperature=0)
    several(monkeypatch, model, 3)
    for _ in range(15): assert torch.equal(model.decode(idx, 60, temperature=0), want)

def test_pieces_that_a_thread_has_left_are_done_by_others(monkeypatch):
    "A helper that never comes back from its first piece: here, one that has taken a number and does nothing."
    model, x = small_model().eval(), tokens(1, 5)
    with torch.no_grad():
        want, write = model.prefill(x, cache=KVCache.of(model))[0], crew._state.write
        def robbed(tokens, plan, *args):
            desk, owner = args[9 - 1], args[-1]
            if owner:
                import ctypes
                counters = (ctypes.c_int64*(native.COUNTS + 16*len(plan))).from_address(desk)
                for s in range(len(plan)): counters[native.COUNTS + 16*s] = 1   # piece 0 of each is taken
            return write(tokens, plan, *args)
        monkeypatch.setattr(crew._state, 'write', robbed)
        assert torch.equal(model.prefill(x, cache=KVCache.of(model))[0], want)

def test_a_helper_has_room_for_every_model_that_it_has_met(monkeypatch):
    "A thread's paper for whole numbers and that for floats grow apart: a wider model may need fewer floats."
    shapes, rooms, mine, worked = ((232, 232), (360, 360), (16, 64)), [], crew._mine, threading.Event()
    made = [LanguageModel(LMConfig(5, 8, 1, 1, C, n_inner=n, weights='int8')).eval() for C, n in shapes]
    plans, hands = [crew._plans_of(m).hidden for m in made], crew._Crew()
    assert plans[0].mine > plans[1].mine and plans[0].widest < plans[1].widest
    monkeypatch.setattr(crew, '_mine', lambda *sizes: rooms.append(sizes) or mine(*sizes))
    for plan in plans:
        worked.clear()
        hands.call((lambda *args: worked.set(), plan, ()), 1)
        assert worked.wait(10)
        assert all(has >= needs for has, needs in zip(rooms[-1], (plan.mine, plan.widest)))
    hands.close()

@given(st.lists(st.tuples(st.integers(0, 3*2**20), st.integers(1, 5*2**20)), min_size=1, max_size=9))
def test_large_pages_lie_under_the_tensors(gaps):
    tensors, at = [], 2**30
    for gap, n in gaps:
        at += gap*4
        tensors.append(SimpleNamespace(data_ptr=lambda at=at: at, nbytes=4*n)); at += 4*n
    covered = [range(a, a + n, crew._LARGE) for a, n in crew._whole_pages(tensors[::-1])]
    pages = [page for part in covered for page in part]
    assert all(page % crew._LARGE == 0 for page in pages) and len(pages) == len(set(pages))
    ends = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors]
    for page in pages:
        bare = crew._LARGE - sum(max(0, min(b, page + crew._LARGE) - max(a, page)) for a, b in ends)
        assert bare <= crew._NEAR*len(ends)
    alone = [page*crew._LARGE for a, b in ends for page in range(-(-a//crew._LARGE), b//crew._LARGE)]
    assert {*alone} <= {*pages}

@pytest.mark.parametrize('says', ['always [madvise] never', 'always madvise [never]', None])
def test_a_large_model_asks_for_large_pages_once_and_is_the_same(monkeypatch, tmp_path, says):
    if says and '[madvise]' in says and sys.platform != 'linux': pytest.skip('advice of Linux')
    model, x, asked = small_model(n_embd=256, n_head=4), tokens(1, 3), []
    with ordinary(): want = model.decode(x, 5, temperature=0)
    monkeypatch.setattr(crew, '_LINUX', tmp_path/'enabled')
    if says: (tmp_path/'enabled').write_text(says)
    ask = crew._ask
    def noted(madvise, spans): asked.append(spans); ask(madvise, spans)
    monkeypatch.setattr(crew, '_ask', noted)
    for _ in range(2): assert torch.equal(model.decode(x, 5, temperature=0), want)
    for t in threading.enumerate():
        if t.name == 'large pages': t.join()
    if not says or '[never]' in says: assert asked == []; return
    assert asked == [crew._whole_pages(crew._plans_of(model).stamp.tensors)] and '[madvise]' in says
    with ordinary(): assert torch.equal(model.decode(x, 5, temperature=0), want)

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork here')
def test_a_child_leaves_shared_memory_alone(monkeypatch, tmp_path):
    (tmp_path/'enabled').write_text('[madvise]'); monkeypatch.setattr(crew, '_LINUX', tmp_path/'enabled')
    if not (child := os.fork()):
        crew._whole_pages = lambda tensors: os._exit(3)
        try: crew._ask_for_large_pages([torch.ones(9)]); os._exit(0)
        except BaseException: os._exit(4)
    assert os.waitpid(child, 0)[1] == 0

def test_a_small_model_asks_for_nothing(monkeypatch):
    monkeypatch.setattr(crew, '_ask_for_large_pages', lambda tensors: pytest.fail('asked'))
    crew._plans_of(small_model())

def test_once_they_are_compiled_no_pass_waits_for_a_lock():
    "Somebody who was interrupted between two lines may never give it back."
    model, ids = small_model(), torch.tensor([[1]])
    want, held, done = model.decode(ids, 3, temperature=0), threading.Event(), threading.Event()
    def hold():
        with crew._state.lock: held.set(); done.wait(60)
    holder = threading.Thread(target=hold); holder.start(); held.wait()
    got = []
    other = threading.Thread(target=lambda: got.append(model.decode(ids, 3, temperature=0, compile=True)))
    other.start(); other.join(30); early = [*got]; done.set(); holder.join(); other.join()
    assert early and torch.equal(early[0], want)

def other_loops(was, becomes):
    "A namespace with loops like the library's, but for this line."
    source, names = open(native.__file__).read(), {'__name__': 'tinylm.mine'}
    assert was in source
    exec(source.replace(was, becomes), names)
    return names

@pytest.mark.slow
def test_loops_of_a_notebook_take_the_place_of_the_librarys(monkeypatch):
    for name in ('write', 'why'): monkeypatch.setattr(crew._state, name, getattr(crew._state, name))
    model, idx = small_model().eval(), tokens(1, 3)
    want, write = model.decode(idx, 5, temperature=0), crew._state.write
    for was, wrong, words in (
            ('total += x[k]*np.float32(0)', 'total += unknown[k]', 'unknown'),
            ('ROWS, TILE = 32, 64', 'ROWS, TILE = 64, 64', 'ROWS is 64: expected 32')):
        with pytest.raises(Exception, match=words): take_loops(other_loops(was, wrong))
    with pytest.raises(ValueError, match='written elsewhere'): take_loops(dict(vars(native)))
    assert crew._state.write is write and torch.equal(model.decode(idx, 5, temperature=0), want)
    take_loops(other_loops('if y[j] > y[best]', 'if y[j] < y[best]'))
    assert native_reason(model) == '' and not torch.equal(model.decode(idx, 5, temperature=0), want)

def test_two_engines_in_two_threads(monkeypatch):
    made = [small_model(seed, block_size=32).eval() for seed in range(2)]
    want = [m.decode(tokens(1, 3), 25, temperature=0)[0] for m in made]
    for m in made: several(monkeypatch, m, 2)
    got = [None]*2
    one = lambda m: Engine(m).generate([Request(tokens(1, 3), 25, temperature=0)])[0]
    def serve(i): got[i] = [one(made[i]) for _ in range(8)]
    threads = [threading.Thread(target=serve, args=(i,)) for i in range(2)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert all(torch.equal(g, w) for w, gs in zip(want, got) for g in gs)

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork here')
def test_a_child_made_after_use_writes_the_same(monkeypatch):
    model, idx = small_model().eval(), tokens(1, 3)
    several(monkeypatch, model, 2)
    want = model.decode(idx, 5, temperature=0)
    if not (child := os.fork()):
        try: os._exit(0 if torch.equal(model.decode(idx, 5, temperature=0), want) else 3)
        except BaseException: os._exit(4)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(model.decode(idx, 5, temperature=0), want)

@quick
@given(models(least=4), st.integers(1, 300))
def test_an_interrupt_anywhere_leaves_the_cache_as_it_was(model, place):
    x, cache = tokens(1, 4), KVCache.of(model)
    with torch.no_grad():
        want = model.prefill(x, cache=KVCache.of(model))[0]
        with failing('line', place) as f: model.prefill(x, cache=cache)
        assert cache.lengths == [4] or f.hit and cache.lengths == [0]
        cache.reset()
        assert close(model.prefill(x, cache=cache)[0], want)

# --- bad input

@pytest.mark.parametrize('weights', ['float', 'int8'])
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_numbers_that_are_none_are_refused(weights, bad):
    for name in ('blocks.0.mlp.up.bias', 'blocks.1.norm2.weight', 'norm.weight', 'pos_emb.weight'):
        model = small_model(weights=weights).eval()
        with torch.no_grad(): model.get_parameter(name).fill_(bad)
        with pytest.raises(ValueError, match='nan or infinity'): model.decode(tokens(1, 3), 3, temperature=0)

@torch.no_grad()
def test_hostile_shapes_never_reach_the_loops(passes):
    model, x = small_model().eval(), tokens(1, 3)
    cache = KVCache.of(model); cache.kv = cache.kv[:1]
    with pytest.raises(Exception): model.prefill(x, cache=cache)
    cache = KVCache.of(model); cache.kv = [t[..., :5] for t in cache.kv]
    with pytest.raises(Exception): model.prefill(x, cache=cache)
    cache = KVCache.of(model); cache.kv = [t[:, :, :, :2] for t in cache.kv]
    with pytest.raises(Exception): model.prefill(x, cache=cache)
    pages = PagedKVCache(model.config, 4, 2); row = pages.open([]); pages.reserve(row, 3); row.pages = [99, 0]
    with pytest.raises(Exception): model.prefill(x, cache=pages.batch([row]))
    for ids in (x - 20, x + 20):
        with pytest.raises(Exception): model.hidden(ids, KVCache.of(model))
    cut(model)
    with pytest.raises(Exception): model.prefill(x, cache=KVCache.of(model))
    assert not passes

@pytest.mark.parametrize('x', [0., 1e-3, -1., 5., 87., -87., -200.])
def test_power_is_e_to_the_x(x):
    want = torch.tensor(x).exp().item()
    assert native_reason(small_model().eval()) == ''
    assert native._power.py_func(torch.tensor(x).numpy()[()]) == pytest.approx(want, rel=1e-6, abs=1e-37)

# --- without numba, without a folder

ONCE = '''
import torch
from tinylm import *
torch.manual_seed(0)
model = LanguageModel().eval()
print(repr(native_reason(model)), model.decode(torch.zeros(1, 2, dtype=torch.long), 3).shape)
'''

def paths(*more): return os.pathsep.join(map(str, [*more, *sys.path]))

@pytest.mark.slow
@pytest.mark.parametrize('error, words', [
    ('ModuleNotFoundError("no numba", name="numba")', 'numba is not installed'),
    ('ImportError("Numba needs NumPy 2.4 or less")', 'numba: Numba needs NumPy 2.4 or less')])
def test_without_numba_all_is_as_before(tmp_path, error, words):
    (tmp_path/'numba.py').write_text(f'raise {error}')
    said = run_python('-c', ONCE, env=os.environ | dict(PYTHONPATH=paths(tmp_path)))
    assert words in said.stdout and not said.stderr

@pytest.mark.slow
@pytest.mark.parametrize('folder', ['/proc/nowhere', '/dev/null/x'])
def test_a_folder_that_cannot_be_written_costs_a_line(folder):
    said = run_python('-c', ONCE, env=os.environ | dict(TINYLM_DATA=folder, PYTHONPATH=paths()))
    lines = said.stderr.splitlines()
    assert said.stdout.startswith("''") and len(lines) == 1 and 'cannot be kept' in lines[0], said.stderr

BITS = '''
from hashlib import sha256
import torch
from tinylm import *
for kind in ({}, dict(mlp='swiglu', norm='rms', positions='rotary', qk_norm=True, n_kv_head=2)):
    for int8 in (False, True):
        torch.manual_seed(0)
        model = LanguageModel(LMConfig(90, 64, 3, 4, 48, **kind)).eval()
        if int8: quantize_(model)
        ids, cache = torch.randint(90, (1, 40)), KVCache.of(model, 1, 40)
        with torch.no_grad(): logits = torch.cat([model.prefill(i, cache=cache)[0] for i in ids.split(1, 1)])
        print(native_reason(model), sha256(logits.numpy()).hexdigest())
'''

WATCH = '''
import sys, numba
from llvmlite import ir
seen = set()
sys.setprofile(lambda f, *_: seen.add(f.f_code.co_filename))
'''
SEEN = 'print("llvm" in repr(seen), "native.py" in repr(seen), sys.getprofile() is not None)'

def in_folder(folder, code): return run_python('-c', code, env=os.environ | dict(TINYLM_DATA=str(folder),
                                                                                PYTHONPATH=paths()))

@pytest.fixture(scope='module')
def compiled(tmp_path_factory):
    "A folder where one process, watched by a profiler, kept its loops, and what it said."
    folder = tmp_path_factory.mktemp('compiled')
    return folder, in_folder(folder, WATCH + BITS + SEEN)

@pytest.mark.slow
def test_a_profiler_does_not_follow_the_compiler(compiled):
    _, said = compiled
    assert said.stdout.splitlines()[-1] == 'False True True', said.stdout + said.stderr

@pytest.mark.slow
def test_who_compiles_the_loops_gets_the_bits_of_those_who_find_them(compiled):
    folder, first = compiled
    again = in_folder(folder, BITS)
    assert first.stdout.splitlines()[:-1] == again.stdout.splitlines(), first.stderr
    assert len(again.stdout.split()) == 4, again.stderr

@pytest.mark.slow
def test_damaged_files_of_compiled_code_cost_a_line(compiled, tmp_path):
    whole, first = compiled
    shutil.copytree(whole, folder := tmp_path/'damaged')
    files = [f for f in folder.glob('numba/**/*.nb?')]
    assert len(files) == 2
    for f in files: f.write_bytes(f.read_bytes()[:20])
    again = in_folder(folder, BITS)
    assert first.stdout.splitlines()[:-1] == again.stdout.splitlines()
    assert again.stderr.count('cannot be kept') <= 1, again.stderr
