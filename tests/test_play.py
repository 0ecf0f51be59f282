"The model in the page: its logits, draws and counts are those of PyTorch, in a real browser without network."
import base64, json, os, struct
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from browser import PAGE
from conftest import ROOT
from helpers import models, seeded, small_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinylm import DEMO, AttentionMap, CharTokenizer, KVCache, LanguageModel, LMConfig, Sampling, quantize_
from tinylm.data import visible
from tinylm.play import Playground, play_file, write_play, write_with

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

@pytest.fixture(autouse=True)
def no_loops(monkeypatch):
    "Lesson 14's loops round the activations of int8 models, too; the page does not."
    monkeypatch.setattr('tinylm.model.NATIVE', [])

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

@PLAY
@given(models(attention=('fused',)), st.data())
def test_logits_are_those_of_pytorch(engine, tmp_path, model, data):
    T = data.draw(st.integers(1, model.config.block_size))
    ids = data.draw(st.lists(st.integers(0, 10), min_size=T, max_size=T))
    load(engine, saved(model, tmp_path))
    with torch.no_grad(): want = model.prefill(torch.tensor([ids]))[0][0].double()
    chunks = parted(ids, data)
    single = [[i] for i in ids]
    for cache, pieces in ((True, [ids]), (False, single), (True, single), (True, chunks)):
        _, got = read(engine, pieces, cache=cache)
        assert near(got, want)
        assert max(ask(engine, 'gap')) <= 1e-3

def on_the_way(model, ids):
    "What each part adds to the stream of the last token, the stream after the norm, and the logits."
    parts, keep = [], lambda m, x, y: parts.append(y.detach().reshape(-1, y.shape[-1])[-1].double())
    own = [model.tok_emb, *(p for b in model.blocks for p in (b.attention.proj, b.mlp.down)), model.norm]
    hooks = [m.register_forward_hook(keep) for m in own]
    with torch.no_grad(): logits = model.prefill(torch.tensor([ids]))[0][0, -1].double()
    for hook in hooks: hook.remove()
    *parts, normed = parts
    if model.config.positions == 'learned':
        parts.insert(1, model.pos_emb.weight[len(ids)-1].detach().double())
    return parts, normed, logits

@PLAY
@given(models(attention=('fused',)), st.data())
def test_the_way_of_a_token_is_that_of_pytorch(engine, tmp_path, model, data):
    ids = data.draw(st.lists(st.integers(0, 10), min_size=1, max_size=model.config.block_size))
    load(engine, saved(model, tmp_path)); read(engine, [ids])
    at = data.draw(st.integers(0, len(ids)-1))
    got = engine.evaluate("""async at => { const l = await ask('look', { at });
        return [l.parts.map(p => [...p]), [...l.normed], [...l.logits]]; }""", at)
    parts, normed, logits = on_the_way(model, ids[:at+1])
    assert len(got[0]) == len(parts)
    for a, b in zip([*got[0], *got[1:]], [*parts, normed, logits]): assert near(torch.tensor(a), b)

@given(models(attention=('fused',)))
@settings(PLAY, max_examples=10)
def test_a_new_worker_goes_on_with_the_same_text(engine, tmp_path, model):
    text = torch.randint(11, (model.config.block_size + 5,), generator=seeded()).tolist()
    load(engine, saved(model, tmp_path))
    for T in (1, model.config.block_size, len(text)):
        read(engine, [text[:model.config.block_size][:T], *([i] for i in text[model.config.block_size:T])])
        ask_ = lambda: (ask(engine, 'step', u=.4, temperature=.7)['token'], max(ask(engine, 'gap')))
        want = ask_()
        ask(engine, 'resume', ids=text[:T], cache=True)
        assert ask_()[0] == want[0] and max(ask(engine, 'gap')) < 1e-3

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

@PLAY
@given(models(least=4, attention=('fused',)),
       st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20),
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

@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('modern', (False, True))
def test_each_bug_breaks_the_law_where_the_lesson_says(engine, tmp_path, fault, modern):
    parts = dict(norm='rms', mlp='swiglu', positions='rotary', qk_norm=True, bias=False, n_kv_head=1)
    model = small_model(block_size=32, **parts if modern else {}).eval()
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

def test_a_bad_file_is_one_line(engine, tmp_path):
    good = saved(small_model(), tmp_path)
    for content, words in broken(good):
        got = engine.evaluate("t => load(t).then(() => 'loaded', e => e.message)",
                              base64.b64encode(content).decode())
        assert words in got and '\n' not in got and len(got) < 220, (words, got)
    assert load(engine, good)['params'] == small_model().config.n_params      # and the worker lives

# --- the speed

def test_two_hundred_tokens_a_second(engine, tmp_path, record_property):
    torch.manual_seed(0)
    load(engine, saved(quantize_(LanguageModel(replace(DEMO, vocab_size=103))), tmp_path))
    read(engine, [list(range(16))])
    rate = engine.evaluate("""async () => { let best = 1e9;   // the best of many: nobody gets in between
        for (let i = 0; i < 90; i++) best = Math.min(best, (await ask('step', { u: .5, temperature: 1 })).ms);
        return 1000/best; }""")
    record_property('tokens_a_second', rate); print(f'{rate:.0f} tokens a second')
    assert rate >= 200

# --- the element

CARD = '.tinylm-widget'

def playground(**about):
    model = LanguageModel(LMConfig(vocab_size=12, block_size=48, n_layer=2, n_head=2, n_embd=16),
                          CharTokenizer('abcdefgh \n<&'))
    torch.manual_seed(0)
    for p in model.parameters(): torch.nn.init.normal_(p, std=.3)
    return Playground(model.eval(), prompt='a bad cafe', n=20, **about)

def done(page):
    page.wait_for_function("""() => {
        const s = document.querySelector('.tinylm-widget, .tinylm-play').shadowRoot;
        return !s.querySelector('button.main').disabled && s.querySelector('.t'); }""")

def press(page, name): page.get_by_role('button', name=name, exact=True).click()

def said(page): return page.locator('p[role=status]').inner_text()

def facts(page, phase):
    return [t.replace(',', '') for t in page.locator(f'tr[data-phase={phase}] td').all_inner_texts()]

@pytest.fixture
def played(show):
    page = show(playground().to_html())
    press(page, 'write'); done(page)
    return page

def test_it_writes_what_the_same_numbers_write_in_python(show):
    w = playground(temperature=0)
    page = show(w.to_html()); press(page, 'write'); done(page)
    tokenizer, model = w.model.tokenizer, quantize_(deepcopy(w.model))
    out = tokenizer.decode(write_with(model, tokenizer.encode('a bad cafe'), [0.]*20, temperature=0))
    assert ''.join(page.locator('.t').all_inner_texts()) == visible('a bad cafe' + out)
    assert facts(page, 'prefill')[:3] == ['prefill', '1', '10']
    assert facts(page, 'decode')[:3] == ['decode', '20', '20']
    assert page.locator('svg rect.prefill').count() == 1 and page.locator('svg rect.decode').count() == 20
    best = page.locator('ol[aria-label="tokens, most likely first"] .num').first.inner_text()
    assert float(best) == 1                                            # temperature 0

def test_without_a_cache_all_is_read_again(played):
    played.get_by_role('switch').click(); press(played, 'write'); done(played)
    assert facts(played, 'decode')[:3] == ['decode', '20', str(sum(range(11, 31)))]
    assert played.locator('svg rect.again').count() == 20 and played.locator('svg rect.broken').count() == 0

@pytest.mark.parametrize('fault', FAULTS)
def test_a_broken_cache_lights_up(played, fault):
    assert 'The law holds' in played.locator('.say').nth(1).inner_text()
    played.get_by_label('Break the cache').select_option(fault); press(played, 'write'); done(played)
    assert 'The law is broken' in played.locator('.say').nth(1).inner_text()
    assert played.locator('svg rect.broken').count() > 0
    played.get_by_label('Break the cache').select_option(''); press(played, 'write'); done(played)
    assert 'The law holds' in played.locator('.say').nth(1).inner_text()

def test_each_head_shows_where_it_looked(show):
    w = playground(int8=False, temperature=0)
    page = show(w.to_html()); press(page, 'write'); done(page)
    text = ''.join(page.locator('.t').all_inner_texts()).replace('␣', ' ').replace('⏎', '\n')
    page.locator('.t').nth(15).click()
    want = AttentionMap(w.model, text[:16]).maps[0]
    for layer in range(2):
        for head in range(2):
            page.locator(f'[data-head="{layer} {head}"]').click()
            row = want[layer, head, 15]
            first = page.locator('ol[aria-label="where this head looked"] li').first
            right = lambda: (abs(float(first.locator('.num').inner_text()) - row.max()) < 2e-4
                             and f'({row.argmax()})' in first.inner_text())
            for _ in range(100):                       # the worker answers when it can
                if right(): break
                page.wait_for_timeout(50)
            assert right(), (layer, head)

def test_unknown_and_endless_prompts_are_said_in_a_line(show):
    page = show(playground().to_html()); prompt = page.get_by_label('Prompt')
    prompt.fill('a bad ω cafe'); press(page, 'write'); done(page)
    assert 'does not know it: ω.' in said(page) and facts(page, 'prefill')[2] == '11'
    prompt.fill('abc'*33_334); press(page, 'write'); done(page)
    assert 'last 48 of 100,002' in said(page) and facts(page, 'prefill')[2] == '48'
    for nothing in ('', 'ω', 'Ω<img src=x onerror="alert(1)">'[:1]):
        prompt.fill(nothing); press(page, 'write')
        page.wait_for_function("() => /Type at least one/.test("
                               "document.querySelector('.tinylm-widget').shadowRoot.textContent)")
    prompt.fill('<a&b'); press(page, 'write'); done(page)              # markup is text
    assert page.locator('.t').first.inner_text() == '<'

def test_a_bad_file_of_yours_leaves_the_page_alive(played, tmp_path):
    for name, content in (('cut', saved(small_model(), tmp_path)[:500]), ('none', b''),
                          ('words', saved(small_model(), tmp_path))):
        (tmp_path/'bad.safetensors').write_bytes(content)
        played.get_by_label('a model file of yours').set_input_files(tmp_path/'bad.safetensors')
        words = 'no characters' if name == 'words' else 'cut short'
        played.wait_for_function("w => document.querySelector('.tinylm-widget').shadowRoot"
                                 ".querySelector('[role=status]').textContent.includes(w)", arg=words)
    good = playground(); good.model.save_safetensors(tmp_path/'good.safetensors')
    played.get_by_label('a model file of yours').set_input_files(tmp_path/'good.safetensors')
    played.wait_for_function("() => document.querySelector('.tinylm-widget').shadowRoot"
                             ".querySelector('[role=status]').textContent.includes('is loaded')")
    press(played, 'write'); done(played)

@pytest.mark.parametrize('gone', ('delete window.Worker', 'window.Worker = class { constructor() { throw '
                                                          'Error() } }',
    "window.Worker = class { postMessage() { setTimeout(() => this.onerror(new Event('error'))) } "
    "terminate() {} }",
    "Object.defineProperty(window, 'localStorage', { get() { throw new Error('off') } })"))
def test_without_workers_or_storage_it_runs_all_the_same(show, gone):
    page = show(f'<script>{gone}</script>' + playground().to_html())
    press(page, 'write'); done(page)
    assert facts(page, 'decode')[1] == '20'
    assert ('no worker here' in said(page)) == ('Worker' in gone)

def test_all_is_done_by_key(show):
    page = show(playground().to_html())
    page.get_by_label('Prompt').focus(); page.keyboard.press('Control+Enter'); done(page)
    page.get_by_label('Look from').focus(); page.keyboard.press('Home')
    page.get_by_role('button', name='layer 1, head 1').press('Enter')
    page.wait_for_function("() => document.querySelector('.tinylm-widget').shadowRoot"
                           ".querySelector('[data-head=\"1 1\"]').getAttribute('aria-pressed') === 'true'")
    page.get_by_role('switch').press(' ')
    assert not page.get_by_role('switch').is_checked()

# --- one token's journey

def learned():
    "A playground whose model has learned positions; `pages` has the modern one."
    return playground(int8=False, temperature=.9, top_k=8)

def modern():
    model = LanguageModel(LMConfig(vocab_size=12, block_size=48, n_layer=2, n_head=2, n_embd=16, n_kv_head=1,
                                   norm='rms', mlp='swiglu', positions='rotary', qk_norm=True, bias=False),
                          CharTokenizer('abcdefgh \n<&'))
    torch.manual_seed(1)
    for p in model.parameters(): torch.nn.init.normal_(p, std=.3)
    return Playground(model.eval(), prompt='a bad cafe', n=20, int8=False, temperature=.9, top_k=8)

def heading(page): return page.locator('.journey h4').inner_text()

def go_on(page, key='ArrowRight'):
    before = heading(page); page.locator('.journey').press(key)
    page.wait_for_function("t => document.querySelector('.tinylm-widget').shadowRoot"
                           ".querySelector('.journey h4').textContent !== t", arg=before)

def begin(page, at):
    press(page, 'write'); done(page); page.locator('.t').nth(at).click()
    page.locator('.journey h4:has-text("character")').wait_for()

def numbers(titles): return torch.tensor([float(t.split(': ')[-1]) for t in titles], dtype=torch.float64)

def vector(page, label):
    row = page.locator('.vector').filter(has_text=label).locator('.squares i')
    return numbers(row.evaluate_all('all => all.map(e => e.title)'))

@pytest.mark.parametrize('make', (learned, modern))
def test_each_step_shows_the_numbers_of_pytorch(show, make):
    w, at = make(), 17
    page = show(w.to_html(), reduced_motion='reduce'); begin(page, at)
    text = ''.join(page.locator('.t').all_inner_texts()).replace('␣', ' ').replace('⏎', '\n')
    ids = w.model.tokenizer.encode(text)
    parts, normed, logits = on_the_way(w.model, ids[:at+1])
    maps = AttentionMap(w.model, text[:at+1]).maps[0]
    close = lambda a, b: len(a) == len(b) and (a - b).abs().max() <= 1e-3
    assert page.locator('.letters .now').inner_text() == text[at].replace(' ', '␣').replace('\n', '⏎')
    ways = page.locator('.t').evaluate_all('all => all.map(e => getComputedStyle(e).display)')
    assert set(ways) == {'inline'}                                     # no step changes how the text runs
    first = 2 if make is learned else 1
    go_on(page)
    assert close(vector(page, f'token {ids[at]}'), parts[0])
    if first == 2: assert close(vector(page, f'place {at}'), parts[1])
    assert close(vector(page, '= the stream'), sum(parts[:first]))
    for layer in range(2):
        go_on(page); assert heading(page).startswith(f'Layer {layer}: the heads')
        for head in range(2):
            bars = page.locator('.columns.high').nth(head).locator('i')
            bars = bars.evaluate_all('all => all.map(e => e.title)')
            assert close(numbers(bars), maps[layer, head, at].double())
        k = first + 2*layer
        assert close(vector(page, f'+ heads of layer {layer}'), parts[k])
        assert close(vector(page, '= the stream'), sum(parts[:k+1]))
        go_on(page); assert heading(page).startswith(f'Layer {layer}: the MLP')
        assert close(vector(page, f'+ MLP of layer {layer}'), parts[k+1])
        assert close(vector(page, '= the stream'), sum(parts[:k+2]))
    page.get_by_role('slider', name='Channel').fill('5'); go_on(page)
    page.wait_for_function("() => document.querySelector('.tinylm-widget').shadowRoot"
                           ".querySelector('.journey p').textContent.includes('channel 5')")
    shown = [float(t.replace('−', '-')) for t in page.locator('.brought .num').all_inner_texts()]
    assert close(torch.tensor(shown), torch.stack(parts)[:, 5])
    go_on(page)
    assert close(vector(page, 'after the norm'), normed)
    best = logits.sort(descending=True)
    rows = page.locator('[aria-label="the highest scores"] li')
    assert close(numbers(rows.locator('.num').all_inner_texts()), best.values[:8])
    go_on(page)
    p = Sampling(.9, 8).probabilities(logits)
    shares = page.locator('.share b').evaluate_all('all => all.map(e => e.title)')
    assert close(numbers(shares), p[p > 0])
    hit = page.locator('.share .hit').get_attribute('title')
    follows = text[at+1].replace(' ', '␣').replace('\n', '⏎')
    assert hit.startswith(f'{follows}: ') and 'So the text goes on' in page.locator('.landed').inner_text()
    page.get_by_role('slider', name='Number').fill('0')
    page.wait_for_function("() => document.querySelector('.tinylm-widget').shadowRoot"
                           ".querySelector('.share b').className === 'hit'")
    assert 'the number was' in page.locator('.landed').inner_text()

def test_the_journey_goes_back_and_on_to_the_next_token(show):
    page = show(learned().to_html()); begin(page, 3); names = [heading(page)]
    for _ in range(8): go_on(page); names.append(heading(page))
    assert len(set(names)) == 9 and names[-1] == 'A number is drawn'
    assert 'nobody draws' in page.locator('.landed').inner_text()                    # in the prompt
    for name in names[-2::-1]: go_on(page, 'ArrowLeft'); assert heading(page) == name
    page.locator('.journey').press('ArrowLeft')
    page.get_by_role('slider', name='Step').press('End')
    page.locator('.journey h4:has-text("drawn")').wait_for()
    press(page, f'follow {page.locator(".t").nth(4).inner_text()} ›')
    page.locator('.journey h4:has-text("character")').wait_for()
    assert page.locator('.letters .now').inner_text() == page.locator('.t').nth(4).inner_text()
    page.locator('.t').last.click(); page.get_by_role('slider', name='Step').press('End')
    page.locator('.landed:has-text("Nothing is drawn here yet")').wait_for()
    assert page.get_by_role('button', name='next ›').get_attribute('aria-disabled') == 'true'

def test_a_worker_ends_with_its_element(show):
    count = ("<script>window.live = 0; const W = Worker; window.Worker = class extends W {"
             "constructor(u) { super(u); live++; } terminate() { super.terminate(); live--; } };</script>")
    page = show(count + playground(temperature=0).to_html()); begin(page, 12)
    written = page.locator('.text').inner_text()
    live = lambda n: page.wait_for_function('n => window.live === n', arg=n)
    live(1)
    page.evaluate("() => { window.el = document.querySelector('.tinylm-widget'); window.at = el.parentNode; "
                  "el.remove(); }"); live(0)
    page.evaluate('() => at.append(el)')                                  # as where cells come and go
    press(page, 'one token more'); done(page); live(1)
    assert page.locator('.text').inner_text().startswith(written)
    assert page.locator('.t').count() == 31
    page.evaluate('() => el.ended()'); live(0)                            # as where it is drawn anew

# --- the site

@pytest.mark.parametrize('form', ('', 'data-form="short"'), ids=('page', 'home'))
@pytest.mark.parametrize('file', ('whole', 'missing', 'cut'))
def test_the_site_asks_for_the_weights_at_the_first_touch(browser, tmp_path, file, form):
    write_play(tmp_path, playground().model)
    page = browser.new_context().new_page(); asked, bad = [], []
    page.on('pageerror', lambda e: bad.append(str(e)))
    html = PAGE.format('', f'<div class="tinylm-play" {form}><p>words</p></div>'
                           '<script src="play/play.js" defer></script>')
    def answer(route):
        asked.append(name := route.request.url.removeprefix('http://page.test/'))
        if not name: return route.fulfill(content_type='text/html', body=html)
        content = (tmp_path/name.removeprefix('play/')).read_bytes()
        if name.endswith('.safetensors'):
            if file == 'missing': return route.fulfill(status=404)
            if file == 'cut': content = content[:200]
        route.fulfill(body=content, content_type='text/javascript' if name.endswith('js')
                      else 'application/x')
    page.route('**/*', answer)
    page.goto('http://page.test/')
    assert asked == ['', 'play/play.js']
    press(page, 'write')
    if file == 'whole':
        done(page); table = page.locator('tr[data-phase=decode]')
        assert table.is_visible() != bool(form)                # the home page shows the rest when it is asked
        if form: page.locator('summary').press('Enter'); table.wait_for()
        assert facts(page, 'decode')[1] == '60'
    else:
        words = 'cut short' if file == 'cut' else 'could not be loaded'
        page.wait_for_function("w => document.querySelector('.tinylm-play').shadowRoot"
                               ".textContent.includes(w)", arg=words)
    assert asked == ['', 'play/play.js', 'play/demo.safetensors'] and bad == []
    assert 'Python Software Foundation' in page.locator('.tinylm-play .tlm').inner_text()
    page.context.close()

def test_without_scripts_a_picture_and_words_stand_there(show):
    page = show(playground().to_html(), script=False)
    assert page.locator('img').get_attribute('alt').startswith('Playground of')

# --- what cannot be played

@pytest.mark.parametrize('make, says', (
    (lambda: Playground('m'), 'expected a LanguageModel'),
    (lambda: Playground(small_model()), 'expected chars'),
    (lambda: Playground(small_model(tokenizer=SubwordLike())), 'expected chars'),
    (lambda: playground(temperature=4), 'temperature'), (lambda: playground(top_k=0), 'top_k'),
    (lambda: playground(seed=-1), 'seed'),
    (lambda: Playground(playground().model, n=0), 'n is 0'),
    (lambda: Playground(playground().model, prompt=3), 'prompt'),
    (lambda: Playground(big()), 'at most 5,000,000'),
    (lambda: write_with(small_model(), [1], [1.]), 'a number is 1.0'),
    (lambda: write_with(small_model(), [99], [.5]), 'ids'),
))
def test_what_cannot_be_played_is_one_line(make, says):
    with pytest.raises(ValueError) as e: make()
    assert says in str(e.value) and '\n' not in str(e.value)

class SubwordLike:
    vocab_size = 11
    def encode(self, text): return [0]
    def decode(self, ids): return 'a'
    def to_json(self): return {'kind': 'tokenizers'}

def big():
    return LanguageModel(LMConfig(vocab_size=12, n_embd=512, n_layer=2, n_head=4),
                         CharTokenizer('abcdefgh \n<&'))

def test_the_file_is_the_models_own_and_the_model_stays(tmp_path):
    model = playground().model
    before = {k: t.clone() for k, t in model.state_dict().items()}
    (tmp_path/'m.safetensors').write_bytes(play_file(model))
    again = LanguageModel.from_safetensors(tmp_path/'m.safetensors')
    assert again.config.weights == 'int8' and again.tokenizer.chars == model.tokenizer.chars
    assert model.config.weights == 'float'
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert play_file(again) == play_file(model)                        # rounded once

def test_the_rooms_of_the_page_ask_nobody_and_write_no_markup():
    source = Playground.script()
    for word in ('fetch(', 'XMLHttpRequest', 'import ', 'import(', 'innerHTML', 'outerHTML',
                 'insertAdjacentHTML', 'document.write', 'eval(', 'new Function', '</', '<!--',
                 'localStorage'):
        assert word not in source, word
    assert ENGINE.isascii()
    rooms = '\n'.join(f.read_text() for f in (ROOT/'tinylm'/'static').rglob('*.js'))
    assert [line for line in rooms.splitlines() if len(line) > 110] == []

# --- for everyone

AXE = Path(os.environ.get('AXE', ROOT/'node_modules'/'axe-core'/'axe.min.js'))

@pytest.mark.skipif(not AXE.exists(), reason='no axe-core: `npm install --no-save axe-core`, or set AXE to '
                                             'its axe.min.js')
@pytest.mark.parametrize('scheme', ('light', 'dark'))
@pytest.mark.parametrize('width', (390, 1000))
def test_axe_finds_no_fault(browser, scheme, width):
    page = browser.new_context(color_scheme=scheme, viewport={'width': width, 'height': 900},
                               reduced_motion='reduce').new_page()
    ground, ink = {'light': ('#fff', '#111'), 'dark': ('#16191d', '#eee')}[scheme]
    page.set_content(f'<html lang="en"><title>t</title><body style="background: {ground}; color: '
                     f'{ink}"><main><h1>Play</h1><h2>A model</h2>'
                     f'{playground().to_html()}</main>')
    press(page, 'write'); done(page); page.locator('.t').nth(12).click()
    page.get_by_label('Break the cache').select_option('wrong position'); press(page, 'write'); done(page)
    page.evaluate(AXE.read_text())
    press(page, 'begin ›'); names = set()
    while True:                                                # the page, at every step of a journey
        page.locator('.journey h4:not(:empty)').wait_for(); page.wait_for_timeout(50)
        names.add(heading(page))
        found = page.evaluate("async () => (await axe.run()).violations.map(v => [v.id, v.impact, "
                              "v.nodes.map(n => n.html)])")
        assert [v for v in found if v[1] in ('serious', 'critical', 'moderate')] == []
        assert page.evaluate('document.documentElement.scrollWidth') <= width
        if heading(page) == 'A number is drawn': break
        go_on(page)
    assert len(names) == 9
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    page.context.close()

def test_a_live_widget_brings_the_same_rooms():
    pytest.importorskip('anywidget')
    w = playground()
    live = w.widget()
    assert live._esm.endswith('export default { render };') and ENGINE in live._esm
    assert live.data == w.data and live.chosen == w.chosen
    AttentionMap(w.model, 'abc').widget()                              # and the others keep theirs
    assert ENGINE not in AttentionMap(w.model, 'abc').widget()._esm
