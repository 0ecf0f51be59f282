"The model in the page: its logits, its draws and its counts are those of PyTorch, in a real browser without network."
import base64, json, struct

import pytest
import torch
from browser import CHROME, HOW
from conftest import ROOT
from helpers import models, seeded, small_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinylm import DEMO, CharTokenizer, KVCache, LanguageModel, Sampling, quantize_
from tinylm.play import write_with

needs_browser = pytest.mark.skipif(not CHROME, reason=HOW)
ENGINE = (ROOT/'tinylm'/'static'/'play'/'engine.js').read_text(encoding='utf-8')
FAULTS = 'wrong position', 'current token missing', 'one layer for all', 'square mask', 'early ring'
PLAY = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORKER = """
const worker = new Worker(URL.createObjectURL(new Blob([`(${engine})()`], { type: 'text/javascript' })));
let id = 0;
const waiting = new Map();
worker.onmessage = ({ data }) => { const [good, bad] = waiting.get(data.id); waiting.delete(data.id);
  data.error ? bad(new Error(data.error)) : good(data.out); };
window.ask = (call, about) => new Promise((good, bad) => {
  waiting.set(++id, [good, bad]); worker.postMessage({ id, call, about }); });
window.load = text => ask('load', { buffer: Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer });
window.passes = async (about, chunks) => { await ask('start', about); const out = [];
  for (const ids of chunks) out.push(await ask('read', { ids })); return out; };
"""

@pytest.fixture
def engine(show):
    "The engine in a worker of a page, as `ask(call, about)`."
    return show(f'<script>{ENGINE}{WORKER}</script>')

def saved(model, tmp_path):
    model.save_safetensors(tmp_path/'m.safetensors')
    return (tmp_path/'m.safetensors').read_bytes()

def load(engine, content): return engine.evaluate('t => load(t)', base64.b64encode(content).decode())

def ask(engine, call, **about): return engine.evaluate('([c, a]) => ask(c, a)', [call, about])

def read(engine, chunks, **about):
    "Passes over chunks of ids, and the logits of all of them."
    out = engine.evaluate('([a, c]) => passes(a, c)', [about, chunks])
    flat = engine.evaluate("async () => [...await ask('rows')].map(x => Number.isFinite(x) ? x : 1e30)")
    return out, torch.tensor(flat, dtype=torch.float64).view(sum(map(len, chunks)), -1)

def parted(ids, data):
    ends = sorted(data.draw(st.sets(st.integers(1, len(ids)))) | {len(ids)})
    return [ids[a:b] for a, b in zip([0, *ends], ends)]

def cached(model, chunks, kind=None):
    cache = KVCache(model.config)
    if kind: cache.makes = kind
    with torch.no_grad():
        return torch.cat([model.prefill(torch.tensor([c]), cache=cache)[0][0] for c in chunks]).double()

def near(a, b): return (a - b).abs().max() <= 1e-3*max(1, b.abs().max()/30)

# --- the law

@pytest.mark.browser
@needs_browser
@PLAY
@given(models(attention=('fused',)), st.data())
def test_logits_are_those_of_pytorch(engine, tmp_path, model, data):
    T = data.draw(st.integers(1, model.config.block_size))
    ids = data.draw(st.lists(st.integers(0, 10), min_size=T, max_size=T))
    load(engine, saved(model, tmp_path))
    with torch.no_grad(): want = model.prefill(torch.tensor([ids]))[0][0].double()
    chunks = parted(ids, data)
    for cache, pieces in ((True, [ids]), (False, [[i] for i in ids]), (True, [[i] for i in ids]), (True, chunks)):
        _, got = read(engine, pieces, cache=cache)
        assert near(got, want)
        assert max(ask(engine, 'gap')) <= 1e-3

@pytest.mark.browser
@needs_browser
@PLAY
@given(models(attention=('fused',)), st.data())
def test_costs_are_those_of_lesson_06(engine, tmp_path, model, data):
    load(engine, saved(model, tmp_path))
    ids = data.draw(st.lists(st.integers(0, 10), min_size=1, max_size=model.config.block_size))
    at = 0
    for chunk, out in zip(chunks := parted(ids, data), read(engine, chunks)[0]):
        assert out['cost'] == vars(model.config.pass_cost(len(chunk), at, last_only=True))
        at += len(chunk)
    assert out['cost']['flops'] > 0

# --- the draws

def decided(model, ids, numbers, temperature, top_k, room=1e-4):
    "Whether each number is further from the boundaries of the distribution than rounding."
    text = list(ids)
    for u, token in zip(numbers, write_with(model, ids, numbers, temperature, top_k)):
        with torch.no_grad(): logits = model.prefill(model.window(torch.tensor([text])))[0][0, -1].double()
        best = logits.sort(descending=True).values
        if temperature < 1e-9 and best[0] - best[1] < room*10: return False
        if top_k and top_k < len(best) and best[top_k-1] - best[top_k] < room*10: return False
        ends = Sampling(temperature, top_k).probabilities(logits).double().cumsum(-1)
        if temperature >= 1e-9 and (ends - u).abs().min() < room*5: return False
        text.append(token)
    return True

@pytest.mark.browser
@needs_browser
@PLAY
@given(models(least=4, attention=('fused',)), st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20),
       st.sampled_from([0, .3, 1., 2.5]), st.sampled_from([None, 1, 3, 11, 40]), st.booleans())
def test_the_same_numbers_draw_the_same_tokens(engine, tmp_path, model, numbers, temperature, top_k, cache):
    ids = [3, 7, 1]
    load(engine, saved(model, tmp_path)); read(engine, [ids], cache=cache)
    got = [ask(engine, 'step', u=u, temperature=temperature, topK=top_k)['token'] for u in numbers]
    want = write_with(model, ids, numbers, temperature, top_k)
    if decided(model, ids, numbers, temperature, top_k): assert got == want

def test_greedy_is_that_of_decode():
    model = small_model()
    ids = torch.tensor([[1, 2, 3]])
    want = model.decode(ids, 12, temperature=0)[0, 3:].tolist()
    assert write_with(model, [1, 2, 3], [.5]*12, temperature=0) == want

def test_many_numbers_draw_the_distribution():
    model = small_model(vocab_size=4)
    for p in model.parameters(): p.data.mul_(.2)
    with torch.no_grad(): p = model.prefill(torch.tensor([[1]]))[0][0, -1].softmax(-1)
    drawn = [write_with(model, [1], [(i + .5)/400])[0] for i in range(400)]
    for token in range(4): assert abs(drawn.count(token)/400 - p[token]) < .005

# --- the museum

@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('modern', (False, True))
def test_each_bug_breaks_the_law_where_the_lesson_says(engine, tmp_path, fault, modern):
    shape = dict(norm='rms', mlp='swiglu', positions='rotary', qk_norm=True, bias=False, n_kv_head=1) if modern else {}
    model = small_model(block_size=32, **shape).eval()
    load(engine, saved(model, tmp_path))
    ids = torch.randint(11, (30,), generator=seeded()).tolist()
    chunks = [ids[:10], ids[10:16], *([i] for i in ids[16:])]
    _, got = read(engine, chunks, fault=fault)
    gap = torch.tensor(ask(engine, 'gap'))
    first = {'current token missing': 16, 'early ring': 25}.get(fault, 10)
    assert gap[:first].max() < 1e-4 < gap[first:].max()
    with torch.no_grad(): want = model.prefill(torch.tensor([ids]))[0][0].double()
    assert torch.allclose((got - want).abs().amax(1), gap.double(), atol=1e-3)

# --- bad files

def broken(content):
    n, = struct.unpack('<Q', content[:8])
    about = json.loads(content[8:8+n])
    def again(**changes):
        new = json.loads(json.dumps(about)); meta = json.loads(new['__metadata__']['tinylm'])
        for k, v in changes.items():
            if k in meta: meta[k] = v
            elif k in meta['config']: meta['config'][k] = v
            else: new[k.replace('__', '.')] = v
        new['__metadata__']['tinylm'] = json.dumps(meta); text = json.dumps(new).encode()
        return struct.pack('<Q', len(text)) + text + content[8+n:]
    one = 'tok_emb.weight'
    yield from [(content[:k], 'cut short') for k in (0, 5, 8, 100, 8+n, 9+n, len(content) - 1)]
    yield struct.pack('<Q', 2**63) + content[8:], 'cut short'
    yield b'PK' + content, 'cut short'
    yield again(format=2), 'format 2'
    yield again(format='1'), 'format'
    yield again(config=None), 'vocab_size'
    yield again(vocab_size=-1), 'vocab_size'
    yield again(n_layer=3), 'lacks'
    yield again(n_layer=1), 'no part'
    yield again(n_embd=18), 'shape'
    yield again(mlp='relu'), 'mlp'
    yield again(n_kv_head=3), 'fit together'
    yield again(tok_emb__weight={**about[one], 'dtype': 'F64'}), 'F64'
    yield again(tok_emb__weight={**about[one], 'data_offsets': [0, 10**12]}), 'wrongly'
    yield again(tok_emb__weight={**about[one], 'data_offsets': [-4, 4]}), 'wrongly'
    yield again(tok_emb__weight={**about[one], 'shape': [-11, -16]}), 'wrongly'
    yield again(tok_emb__weight=None), 'tok_emb'
    yield content[:-4] + struct.pack('<f', float('nan')), 'numbers'

@pytest.mark.browser
@needs_browser
def test_a_bad_file_is_one_line(engine, tmp_path):
    good = saved(small_model(), tmp_path)
    for content, words in broken(good):
        got = engine.evaluate("async t => { try { await load(t); return 'loaded'; } catch (e) { return e.message; } }",
                              base64.b64encode(content).decode())
        assert words in got and '\n' not in got and len(got) < 220, (words, got)
    assert load(engine, good)['params'] == small_model().config.n_params      # and the worker lives

# --- the speed

@pytest.mark.browser
@needs_browser
def test_two_hundred_tokens_a_second(engine, tmp_path, record_property):
    from dataclasses import replace
    torch.manual_seed(0)
    load(engine, saved(quantize_(LanguageModel(replace(DEMO, vocab_size=103))), tmp_path))
    read(engine, [list(range(16))])
    rate = engine.evaluate("""async () => { let best = 1e9;   // of pieces so short that nobody gets in between
        for (let i = 0; i < 90; i++) best = Math.min(best, (await ask('step', { u: .5, temperature: 1 })).ms);
        return 1000/best; }""")
    record_property('tokens_a_second', rate); print(f'{rate:.0f} tokens a second')
    assert rate >= 200
