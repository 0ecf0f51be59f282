"The data of each widget is that of the tensors, and the page that carries it runs nothing but the drawing."
import base64, json, re, shutil, struct
from functools import cache

import nbformat
import pytest
import torch
from conftest import ROOT
from helpers import failing, quick, run_python
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conversation import MACHINE, TOKENIZER, agrees_with_its_cache, talker
from test_conversation import words as messages

from tinylm.attention import attention_weights, causal_attention, causal_mask
from tinylm.conversation import chat, phases_of
from tinylm.cost import Ledger, Machine, Timeline, _listening
from tinylm.data import CharTokenizer
from tinylm.explorer import CostExplorer
from tinylm.model import Fresh, LanguageModel, LMConfig
from tinylm.play import Playground
from tinylm.serving import Engine, Request
from tinylm.training import TrainConfig, train
from tinylm.widgets import AttentionMap, BatchTimeline, ChatBox, DecodeTimeline, Lane, LiveTraining, PhaseRace
from tinylm.widgets import TokenProbabilities, Widget, _EXPORT, _drawing, _label, _passes_of, _plain, _whole

ALPHABET = 'abcdefgh \n'
EVIL = ['</script><script>window.hacked=1</script>', '<img src=x onerror="window.hacked=1">',
        '"\'`${window.hacked=1}', '\u2028', '\u202e', '\u200f', '<!--', '👩\u200d💻', 'é',
        '\n', '&lt;b&gt;', '\\u003c']

class Words:
    "A tokenizer whose tokens are what somebody wants to smuggle in."
    def encode(self, text): return [EVIL.index(w) for w in text.split('|')]
    def decode(self, ids): return ''.join(EVIL[i] for i in ids)

def small(seed=0, **shape):
    torch.manual_seed(seed)
    tokenizer = CharTokenizer(ALPHABET) if 'vocab_size' not in shape else None
    shape = dict(vocab_size=len(ALPHABET), block_size=16, n_layer=2, n_head=2, n_embd=16) | shape
    model = LanguageModel(LMConfig(**shape), tokenizer)
    for p in model.parameters(): p.data.mul_(5)
    return model

def evil(): return small(vocab_size=len(EVIL))

def by_hand(model, idx):
    "(n_layer, H, T, T), block after block, without hooks."
    with torch.no_grad():
        x, out = model.tok_emb(idx) + model.pos_emb.weight[:idx.shape[1]], []
        p = Fresh(torch.arange(idx.shape[1])[None], causal_attention)
        for block in model.blocks:
            q, k, _ = block.attention.heads(block.norm1(x))
            out.append(attention_weights(q, k)[0]); x = block(x, p)
    return torch.stack(out)

def shown_weights(widget):
    "What the page can show: the triangle of each head, unpacked again."
    d, T = widget.data, len(widget.data['tokens'])
    n = d['n_layer']*d['n_head']*T*(T+1)//2
    values = torch.tensor(list(struct.unpack(f'<{n}H', base64.b64decode(d['weights']))))/65535
    out = torch.zeros(d['n_layer'], d['n_head'], T, T)
    out[..., causal_mask(T)] = values.view(d['n_layer'], d['n_head'], -1).float()
    return out

def timeline(n=6, use_cache=True, prompt=4, **shape):
    model = small(**shape)
    return Timeline.record(model, torch.arange(prompt)[None] % 8, n, temperature=0, use_cache=use_cache)

def record(budget=6, slots=3, n_pages=None):
    "Five requests at once, and one that comes later."
    engine = Engine(small(), slots=slots, budget=budget, size=4, n_pages=n_pages)
    for i, (length, n) in enumerate(((3, 6), (7, 2), (2, 4), (5, 3), (1, 5))):
        engine.add(Request([(i + k) % 10 for k in range(length)], n, temperature=0))
    engine.step(); engine.add(Request([1, 2], 3, temperature=0))
    while engine.busy: engine.step()
    return engine.record()

def batches(): return {'chunks': record(), 'pieces': record(50), 'tight': record(n_pages=4)}

# --- attention

@settings(max_examples=25, deadline=None)
@given(st.text(ALPHABET, min_size=1, max_size=16), st.data())
def test_the_map_shows_the_weights_of_the_model(text, data):
    model = small()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(text)-1)), max_size=4)) - {len(text)})
    chunks = [b - a for a, b in zip([0, *cuts], [*cuts, len(text)])]
    want = by_hand(model, torch.tensor([model.tokenizer.encode(text)]))
    for widget in (AttentionMap(model, text), AttentionMap(model, text, chunks=chunks)):
        assert (_whole(widget.maps) - want).abs().max() < 1e-4
        assert (shown_weights(widget) - want).abs().max() < 1e-4
    assert [m.shape[-2:] for m in widget.maps] == [(n, sum(chunks[:i+1])) for i, n in enumerate(chunks)]
    assert widget.data['passes'] == chunks

def test_looking_changes_nothing():
    model = small(dropout=.5).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    a, b = (AttentionMap(model, 'abc abc', chunks=[4, 3]) for _ in range(2))
    assert a.data == b.data                                           # no dropout while looking
    assert model.training and all(m.training for m in model.modules())
    assert not any(b._forward_pre_hooks or b._forward_hooks for b in model.blocks)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())

def test_one_pass_per_chunk_and_no_other():
    model, calls = small(), []
    model.blocks[0].register_forward_hook(lambda m, i, o: calls.append(o.shape[1]))
    AttentionMap(model, 'abcdefgh', chunks=[5, 2, 1])
    assert calls == [5, 2, 1]

def test_hooks_go_away_after_an_error():
    model = small()
    model.norm.register_forward_hook(lambda *_: 1/0)
    with pytest.raises(ZeroDivisionError): AttentionMap(model, 'abc')
    assert not any(b._forward_pre_hooks for b in model.blocks)

@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 12), st.integers(0, 99))
def test_weights_from_elsewhere(L, H, T, seed):
    q, k = torch.randn(2, L, H, T, 4, generator=torch.Generator().manual_seed(seed))
    w = AttentionMap.from_weights(attention_weights(q, k), 'x'*T, view='heads', head=H-1)
    assert (shown_weights(w) - attention_weights(q, k)).abs().max() < 1e-5
    assert w.data['tokens'] == ['x']*T and w.chosen['head'] == H-1

def test_256_tokens_stay_small():
    model = small(block_size=256)
    assert len(json.dumps(AttentionMap(model, 'abcdefgh'*32).data)) < 2*2*2*4/3*256*257/2 + 10_000

def means(weights, p):
    "(L, H, n, n) of blocks of p × p weights, cell by cell; what is masked does not count."
    T = weights.shape[-1]; n = -(-T//p)
    out = torch.zeros(*weights.shape[:2], n, n)
    for i in range(n):
        for j in range(i + 1):
            cells = [(q, k) for q in range(i*p, min(T, i*p+p)) for k in range(j*p, min(T, j*p+p)) if k <= q]
            out[..., i, j] = torch.stack([weights[..., q, k] for q, k in cells]).mean(0)
    return out

def shown_means(data):
    "The triangle of means that a page holds, unpacked again."
    L, H, n = data['n_layer'], data['n_head'], -(-len(data['tokens'])//data['pool'])
    got = torch.tensor(list(base64.b64decode(data['weights'])))/255
    out = torch.zeros(L, H, n, n)
    out[..., causal_mask(n)] = got.view(L, H, -1).square()
    return out

def squeezed(monkeypatch, most=400, live=100):
    monkeypatch.setattr('tinylm.widgets._MOST', most); monkeypatch.setattr('tinylm.widgets._MOST_LIVE', live)

@pytest.mark.parametrize('T, most, pool',
    [(14, 729, 1), (16, 400, 2), (15, 400, 2), (13, 140, 3), (16, 100, 4), (16, 1, 16)])
def test_a_large_map_holds_the_means_of_blocks(monkeypatch, T, most, pool):
    squeezed(monkeypatch, most)
    for chunks in (None, [5, T-5]):
        w = AttentionMap(small(), ('abcdefgh'*2)[:T], chunks=chunks)
        assert w.data['pool'] == pool
        want, got = means(_whole(w.maps), pool), shown_means(w.data)
        assert (got.sqrt() - want.sqrt()).abs().max() <= .5/255 + 1e-6        # 256 steps of the square root
        assert len(w.data['weights']) <= most + 4 or pool == T

def test_a_map_stays_whole_where_there_is_room(monkeypatch):
    whole = AttentionMap(small(), 'abcdefgh').data
    squeezed(monkeypatch, most=4*2*2*8*9/3)
    assert AttentionMap(small(), 'abcdefgh').data == whole and 'pool' not in whole
    squeezed(monkeypatch, most=4*2*2*8*9/3 - 1)
    assert 'pool' in AttentionMap(small(), 'abcdefgh').data

@pytest.fixture(scope='module')
def huge():
    q, k = torch.randn(2, 12, 12, 600, 4, generator=torch.Generator().manual_seed(0))
    return AttentionMap.from_weights(attention_weights(q, k), 'x'*600)

def test_600_tokens_in_144_heads_stay_under_5_MB(huge):
    bundle = huge._repr_mimebundle_()                                  # the picture stands in it twice
    assert sum(map(len, bundle.values())) < 5e6
    assert huge.data['pool'] == 3 and shown_means(huge.data).shape == (12, 12, 200, 200)

def test_live_600_tokens_are_sent_head_by_head(huge):
    pytest.importorskip('anywidget')
    live = huge.widget()
    assert len(json.dumps(live.data)) < 1.2e6 and len(json.dumps(live.detail)) < .6e6

def detail(live):
    d, T = live.detail, len(live.data['tokens'])
    out = torch.zeros(T, T)
    got = struct.unpack(f'<{T*(T+1)//2}H', base64.b64decode(d['weights']))
    out[causal_mask(T)] = torch.tensor(got)/65535
    return (d['layer'], d['head']), out

def test_a_live_map_sends_the_head_that_is_chosen_and_no_other(monkeypatch):
    pytest.importorskip('anywidget')
    squeezed(monkeypatch)
    w = AttentionMap(small(), 'abcdefgh'*2, layer=1); live = w.widget(); sent = []
    assert live.chosen['query'] == 15                                  # the last token's row, at first
    assert live.data['pool'] == 4 and (shown_means(live.data) - means(w.maps[0], 4)).abs().max() < .01
    live.observe(lambda change: sent.append(change.new), 'detail')
    for choice in ({}, {'query': 3}, {'head': 1}, {'layer': 0, 'head': 1}, {'layer': 7}, {'head': 'x'}):
        live.chosen = live.chosen | choice
        (layer, head), weights = detail(live)
        assert (weights - w.maps[0][layer, head]).abs().max() < 1e-4
    assert (layer, head) == (0, 1) and len(sent) == 2                  # nonsense changes nothing

def test_a_small_live_map_sends_nothing_more():
    pytest.importorskip('anywidget')
    live = AttentionMap(small(), 'abc').widget(); live.chosen = live.chosen | {'layer': 1}
    assert live.detail == {}

# --- timeline

def test_the_timeline_shows_what_was_recorded():
    lines = {'cached': timeline(16), 'naive': timeline(16, use_cache=False)}
    d = DecodeTimeline(lines, CharTokenizer(ALPHABET), 'abcd').data
    for s, line in zip(d['series'], lines.values()):
        assert s['ms'] == [1e3*t for t in line.seconds]
        assert s['bytes'] == [c.n_bytes for c in line.costs] and s['flops'] == [c.flops for c in line.costs]
        assert s['tokens'] == [_label(CharTokenizer(ALPHABET).decode([t])) for t in line.tokens]
    cached, naive = d['series']
    assert cached['read'] == [4] + [1]*12 + [16]*3                    # position 17 does not fit
    assert cached['again'] == [False]*13 + [True]*3
    assert naive['read'] == [min(16, 4+i) for i in range(16)] and naive['again'] == [False] + [True]*15
    assert d['prompt'] == list('abcd')

def test_tokens_read_are_left_out_where_the_costs_do_not_say():
    full = timeline(4, use_cache=False, prompt=16)                    # every pass read a full window
    assert DecodeTimeline(full).data['series'][0]['read'] is None
    only = Timeline(*(x[:1] for x in vars(timeline(4)).values()))      # one pass, of four tokens or of one
    assert DecodeTimeline(only).data['series'][0]['read'] is None
    bare = Timeline([.1, .2], [Ledger(flops=3, weight_bytes=4)]*2, [1, 2])
    s = DecodeTimeline(bare).data['series'][0]
    assert s['read'] is None and s['again'] == [False, False] and s['tokens'] == ['1', '2']

# --- the race

class Knows:
    "A drafter that has read the end, and says three tokens of it."
    vocab_size = None
    def __init__(self, text): self.text = text
    def draft(self, text, most, **dials): return self.text[len(text):][:min(3, most)], None

def race(prompt='abcd', n=10, **how):
    model = small()
    text = model.decode(torch.tensor([model.tokenizer.encode(prompt)]), n, temperature=0)[0].tolist()
    ways = {'naive': dict(use_cache=False), 'cached': dict(use_cache=True),
            'speculative': dict(drafter=Knows(text))}
    return PhaseRace.record(model, prompt, n=n, ways=ways, rows=3, **how), text

def test_all_lanes_write_the_text_of_decode():
    w, text = race(); lanes = w.lanes
    assert list(lanes) == ['naive', 'cached', 'speculative', 'batched']
    assert all(lane.tokens == text[4:] for lane in lanes.values())
    assert [s['part'] for s in w.data['lanes']] == [None]*4
    assert [lane.rows for lane in lanes.values()] == [1, 1, 1, 3]

def test_lanes_say_what_each_pass_read_and_wrote():
    lanes = race()[0].lanes
    assert lanes['naive'].read == list(range(4, 14)) and lanes['naive'].again == [False] + [True]*9
    for name in ('cached', 'batched'):
        assert lanes[name].read == [4] + [1]*9 and not any(lanes[name].again)
        assert list(map(len, lanes[name].wrote)) == [1]*10
    assert list(map(len, lanes['speculative'].wrote)) == [4, 4, 2]      # three guesses and one of its own
    assert lanes['speculative'].read == [4 + 3, 1 + 3, 1 + 1] and not any(lanes['speculative'].again)

def test_a_full_window_is_read_again_and_the_lanes_say_so():
    w, text = race('abcdefgh'*2, 4)
    assert all(lane.tokens == text[16:] for lane in w.lanes.values())
    for name in ('naive', 'cached', 'speculative'): assert w.lanes[name].read == [16]*4
    assert w.lanes['batched'].read[0] == 16
    assert all(lane.again == [False, True, True, True] for lane in w.lanes.values())

@pytest.mark.parametrize('size', [1, 2, 3])
@pytest.mark.parametrize('rows', [1, 3])
def test_a_model_that_reads_little_can_race(size, rows):
    lanes = PhaseRace.record(small(block_size=size), 'a'*size, n=3, rows=rows).lanes
    assert len({tuple(lane.tokens) for lane in lanes.values()}) == 1

def test_times_rise_and_are_those_of_the_page():
    w, _ = race()
    for s, lane in zip(w.data['lanes'], w.lanes.values()):
        assert 0 < lane.seconds[0] and lane.seconds == sorted(set(lane.seconds))
        assert s['ms'] == [1e3*t for t in lane.seconds] and s['ttft'] == 1e3*lane.seconds[0] == 1e3*lane.ttft
        assert s['rate'] == lane.rate == 10/lane.seconds[-1]
        assert s['wrote'] == list(map(len, lane.wrote))
        assert s['tokens'] == [_label(CharTokenizer(ALPHABET).decode([t])) for t in lane.tokens]
    assert w.data['prompt'] == list('abcd') and json.loads(json.dumps(w.data)) == w.data
    assert w.chosen['time'] == min(s['ms'][-1] for s in w.data['lanes'])

def test_the_record_makes_no_other_passes_and_leaves_the_model_alone():
    model, calls = small().train(), []
    model.norm.register_forward_hook(lambda m, i, o: calls.append(o.shape[:2]))
    PhaseRace.record(model, 'abcd', n=6, ways={'one': dict(use_cache=True)}, rows=0)
    assert calls == [(1, 4), (1, 1), (1, 1)] + [(1, 4)] + [(1, 1)]*5   # three tokens to warm up
    assert model.training and 'begin' not in vars(model)
    model.norm.register_forward_hook(lambda *_: 1/0)
    with pytest.raises(ZeroDivisionError): PhaseRace.record(model, 'abcd')
    assert 'begin' not in vars(model)

def changes(model):
    "What of a model somebody has put in place of what its class says, and its hooks."
    ours = {'begin', 'logits', 'forward', 'prefill'}
    hooks = [h for m in model.modules() for h in (*m._forward_pre_hooks, *m._forward_hooks)]
    return [ours & vars(m).keys() for m in model.modules() if ours & vars(m).keys()], hooks

@pytest.mark.parametrize('listening', [_passes_of, _listening])
def test_ctrl_c_at_any_line_leaves_no_ear_on_the_model(listening):
    model, n, hit = small(), 0, True
    while hit:
        n += 1
        with failing('line', n) as f:
            with listening(model): model.logits
        hit = f.hit
        assert changes(model) == ([], []), n
    assert n > 10

RECORDS = [lambda model: PhaseRace.record(model, 'abcd', n=2, rows=2),
           lambda model: AttentionMap(model, 'abc', chunks=[2, 1]),
           lambda model: TokenProbabilities(model, 'abc'),
           lambda model: Timeline.record(model, torch.tensor([[1, 2]]), 3)]

@settings(max_examples=40, deadline=None)
@given(st.sampled_from(RECORDS), st.floats(0, 1))
def test_ctrl_c_while_a_widget_records_leaves_the_model_as_it_was(record, where):
    model = small(dropout=.1).train(); model.blocks[0].eval()
    modes, weights = [m.training for m in model.modules()], [w.clone() for w in model.parameters()]
    with failing('line', int(10**(4*where))): record(model)
    assert changes(model) == ([], []) and [m.training for m in model.modules()] == modes
    assert all(map(torch.equal, weights, model.parameters())) and torch.is_grad_enabled()
    record(model)

def lane(seconds=(.1, .2, .4), wrote=((1,), (2, 3), (4,)), read=(5, 3, 1), again=(False,)*3, rows=1):
    return Lane([*seconds], [*read], [[*new] for new in wrote], [*again], rows)

def test_where_a_text_parts_is_found():
    parts = lane(wrote=((1,), (2,), (5, 4)))
    w = PhaseRace({'a': lane(), 'b': parts, 'c': lane()})
    assert [s['part'] for s in w.data['lanes']] == [None, 2, None]

def test_a_prompt_in_chunks_has_its_first_token_later():
    chunked = lane(wrote=((), (1, 2), (3, 4)))
    assert chunked.ttft == .2 and chunked.rate == 10
    assert PhaseRace({'a': chunked}).data['lanes'][0]['wrote'] == [0, 2, 2]

@pytest.mark.parametrize('longest, speed', [(.003, .001), (.08, .01), (.9, .1), (9, 1), (900, 10)])
def test_play_takes_some_seconds(longest, speed):
    assert PhaseRace({'a': lane((longest/3, longest/2, longest))}).chosen['speed'] == pytest.approx(speed)

@settings(max_examples=25, deadline=None)
@given(st.floats(0, 400), st.floats(1e-3, 100))
def test_a_race_begins_at_any_time_and_speed(time, speed):
    assert PhaseRace({'a': lane()}, time=time, speed=speed).chosen == dict(time=time, speed=speed)

def test_a_long_race_is_drawn_with_few_objects():
    from matplotlib.figure import Figure
    n, fig = 3000, Figure()
    long = Lane([.1*(i + 1) for i in range(n)], [1]*n, [[0]]*n, [False]*n)
    PhaseRace({'a': long, 'b': long})._draw(fig)
    assert sum(len(ax.patches) + len(ax.collections) for ax in fig.axes) == 6

# --- batches

def check_step(got, step, shown):
    "A step of the page against that of the record."
    assert [{**j, 'wrote': None} for j in got['jobs']] == \
        [{k: j[k] for k in ('request', 'slot', 'phase', 'tokens')} | {'wrote': None} for j in step['jobs']]
    assert [j['wrote'] for j in got['jobs']] == \
        [None if j['wrote'] is None else shown(j['wrote']) for j in step['jobs']]
    assert (got['waiting'], got['free'], got['passes'], got['ms']) == \
        (step['waiting'], step['free'], step['passes'], 1e3*step['seconds'])

def test_the_batches_are_those_of_the_record():
    records, tokenizer = batches(), CharTokenizer(ALPHABET)
    decoded = lambda t: _label(tokenizer.decode([t]))
    for widget, shown in ((BatchTimeline(records), str), (BatchTimeline(records, tokenizer), decoded)):
        for s, (name, want) in zip(widget.data['series'], records.items()):
            assert (s['name'], s['slots'], s['pages']) == (name, want['slots'], want['pages'])
            assert s['requests'] == [{'number': r['number'], 'prompt': r['prompt'], 'new': len(r['new'])}
                                     for r in want['requests']]
            assert len(s['steps']) == len(want['steps'])
            for got, step in zip(s['steps'], want['steps']): check_step(got, step, shown)
        assert json.loads(json.dumps(widget.data)) == widget.data
    assert any(r['preempted'] for r in records['tight']['requests'])
    assert {j['phase'] for s in records['chunks']['steps'] for j in s['jobs']} == {'read', 'write'}

def test_a_record_that_was_saved_can_be_shown():
    want = record()
    assert BatchTimeline({'a': json.loads(json.dumps(want))}).data == BatchTimeline({'a': want}).data

# --- the chat

@settings(max_examples=15, deadline=None)
@given(st.lists(messages, max_size=3), messages | st.none(), st.integers(1, 9))
def test_the_chat_shows_what_was_said_and_what_it_took(questions, system, n):
    talk = chat(talker(), system=system, max_new_tokens=n)
    for q in questions: ''.join(talk.say(q))
    data = ChatBox(talk, MACHINE).data
    assert json.loads(json.dumps(data)) == data and data['gone'] == 0
    assert [_plain(m['content']) for m in talk.messages[len(talk.system):]] == \
        [t[key] for t in data['turns'] for key in ('asked', 'answer')]
    for got, turn in zip(data['turns'], talk.turns, strict=True):
        assert {k: got[k] for k in ('read', 'saved', 'dropped', 'ended')} == \
            {k: getattr(turn, k) for k in ('read', 'saved', 'dropped', 'ended')}
        assert got['ms'] == [1e3*s for s in turn.timeline.seconds]
        assert got['tokens'] == [_label(TOKENIZER.decode([t])) for t in turn.timeline.tokens]
        assert got['least'] == [1e3*MACHINE.seconds(c) for c in turn.timeline.costs]

def test_the_phases_of_a_turn_are_its_timeline_in_two():
    talk = chat(talker(), max_new_tokens=5)
    ''.join(talk.say('what is a token?'))
    turn = talk.turns[0]; phases = turn.phases()
    for key in ('seconds', 'costs', 'tokens'):
        parts = [getattr(line, key) for line in phases.values()]
        assert sum(parts, []) == getattr(turn.timeline, key) and list(map(len, parts)) == [1, 4]
    turn.timeline = Timeline(*([x[0]] for x in vars(turn.timeline).values()))
    assert list(turn.phases()) == ['prefill'] and 'decode' not in phases_of(turn, MACHINE)

def test_turns_whose_messages_went_are_counted():
    talk = chat(talker(block_size=64), max_new_tokens=4)
    with pytest.warns(UserWarning):
        for i in range(9): ''.join(talk.say(f'a word {i}'))
    data = ChatBox(talk, MACHINE).data
    assert data['gone'] == 9 - len(data['turns']) > 0
    assert data['turns'][-1]['asked'] == 'a word 8' and any(t['dropped'] for t in data['turns'])

def test_a_box_measures_the_machine_only_for_models_on_the_cpu(monkeypatch):
    monkeypatch.setattr(Machine, 'measure', classmethod(lambda cls: MACHINE))
    talk = chat(talker(), max_new_tokens=2); ''.join(talk.say('a'))
    assert ChatBox(talk).machine is MACHINE
    monkeypatch.setattr('tinylm.widgets.device_of', lambda model: torch.device('meta'))
    box = ChatBox(talk)
    assert box.machine is None and box.data['turns'][0]['least'] is None and box.to_html()

class Page:
    "The other end of a live box: what the page is shown, and what it asks for."
    def __init__(self, box):
        pytest.importorskip('anywidget')
        self.box, self.live, self.seen, self.steps = box, box.widget(), [], []
        self.live.observe(self.heard, 'detail')

    def heard(self, change):
        self.seen.append(change.new)
        if 'step' in change.new: self.steps.append(change.new['step'])

    def tell(self, **message): self.box._hear(self.live, message)

    def pull(self, most=10**6):
        "Ask for more at each step that it is shown, as the page does, until nothing is left to ask."
        while most and self.steps: self.tell(more=self.steps.pop(0)); most -= 1
        return self.live.data['turns']

def slow(monkeypatch):
    "Each look at the clock is a second later: a handler writes one piece."
    clock = iter(range(10**9))
    monkeypatch.setattr('tinylm.widgets.perf_counter', lambda: next(clock))

@settings(max_examples=10, deadline=None)
@given(st.lists(messages, min_size=1, max_size=3), st.booleans())
def test_a_live_box_writes_what_the_conversation_would(questions, slowly):
    plain, page = (chat(talker(), max_new_tokens=9) for _ in range(2))
    page = Page(ChatBox(page, MACHINE))
    with pytest.MonkeyPatch.context() as m:
        if slowly: slow(m)
        for q in questions:
            answer = ''.join(plain.say(q)); page.seen.clear(); page.tell(say=q)
            assert page.live.detail == {'asked': q, 'answer': '', 'step': 0}
            turns = page.pull()
            grown = [d['answer'] for d in page.seen if 'step' in d]
            assert all(b.startswith(a) and len(b) > len(a) for a, b in zip(grown, grown[1:]))
            assert turns[-1]['asked'] == _plain(q) and turns[-1]['answer'] == grown[-1] == _plain(answer)
            assert page.live.detail == {'line': ''} and page.live.chosen == {'turn': None}
    assert page.box.talk.messages == plain.messages

def test_a_handler_writes_for_a_moment_and_waits_to_be_asked(monkeypatch):
    page = Page(ChatBox(chat(talker(), max_new_tokens=9), MACHINE)); slow(monkeypatch)
    page.tell(say='a word')
    for i in range(3): page.tell(more=i); assert page.live.detail['step'] == i + 1
    before = page.live.detail
    page.tell(more=0); page.tell(more=7); assert page.live.detail == before       # of another view, or late
    assert len(page.pull()) == 1

@pytest.mark.parametrize('pieces', [0, 2])
def test_stop_keeps_what_is_there_and_gives_a_message_back_that_came_to_nothing(monkeypatch, pieces):
    page = Page(ChatBox(chat(talker(), max_new_tokens=9), MACHINE)); slow(monkeypatch)
    page.tell(say='a word'); page.pull(pieces); page.tell(stop=True)
    assert [t['ended'] for t in page.live.data['turns']] == ['stopped']*bool(pieces)
    assert page.live.detail == {'line': ''} | ({} if pieces else {'text': 'a word'})
    before = page.live.detail
    page.tell(stop=True); page.tell(more=3); assert page.live.detail == before     # late ones change nothing
    agrees_with_its_cache(page.box.talk)
    page.tell(say='what is a token?')
    monkeypatch.undo(); assert page.pull()[-1]['asked'] == 'what is a token?'

def test_one_answer_at_a_time(monkeypatch):
    page = Page(ChatBox(chat(talker(), max_new_tokens=9), MACHINE)); slow(monkeypatch)
    page.tell(say='a word'); page.pull(2); page.tell(say='another')
    assert 'one answer at a time' in page.live.detail['line'] and page.live.detail['text'] == 'another'
    assert page.live.detail['step'] == 2 and page.live.detail['asked'] == 'a word'
    page.pull(1); assert 'one answer' in page.live.detail['line'] and 'text' not in page.live.detail
    assert [t['asked'] for t in page.pull()] == ['a word']

def test_somebody_else_goes_on_with_the_conversation(monkeypatch):
    page = Page(ChatBox(chat(talker(), max_new_tokens=9), MACHINE)); slow(monkeypatch)
    page.tell(say='a word'); page.pull(2)
    ''.join(page.box.talk.say('from a cell'))
    turns = page.pull()
    assert [(t['asked'], t['ended']) for t in turns][0] == ('a word', 'stopped')
    assert turns[1]['asked'] == 'from a cell' and page.live.detail == {'line': ''}

def test_a_message_is_kept_or_given_back_whatever_cells_say_meanwhile(monkeypatch):
    page = Page(ChatBox(chat(talker(), max_new_tokens=9), MACHINE)); slow(monkeypatch)
    page.tell(say='a word'); ''.join(page.box.talk.say('from a cell'))          # ended before its first piece
    page.pull(); assert page.live.detail == {'line': '', 'text': 'a word'}
    half = page.box.talk.say('from a cell'); next(half)                       # ended by what the page says
    page.tell(say='x'*9000); assert page.live.detail['text'] == 'x'*9000
    half = page.box.talk.say('from a cell'); next(half)
    page.tell(say='a piece'); page.tell(stop=True); assert page.live.detail == {'line': '', 'text': 'a piece'}

def test_a_widget_shown_anew_ends_the_answer_that_nobody_asks_for(monkeypatch):
    page = Page(ChatBox(chat(talker(), max_new_tokens=9), MACHINE)); slow(monkeypatch)
    page.tell(say='a word'); page.pull(2)
    anew = Page(page.box); anew.tell(say='another')
    assert page.live.detail == {'line': ''} and anew.live.detail['asked'] == 'another'
    first, second = anew.pull()
    assert (first['asked'], first['ended'], second['asked']) == ('a word', 'stopped', 'another')

@settings(quick, max_examples=40)
@given(st.integers(2, 90))
def test_an_interrupt_gives_a_message_back_or_keeps_it(n):
    page = Page(ChatBox(chat(talker(), max_new_tokens=2), MACHINE))
    with failing('line', n): page.tell(say='a word')
    turns, told = page.pull(), page.live.detail
    assert told.get('text', 'a word') == 'a word' and len(turns) == ('text' not in told)

@pytest.mark.parametrize('error, line',
    [(KeyboardInterrupt(), ''), (RuntimeError('no\nroom'), 'RuntimeError: ')])
@pytest.mark.parametrize('at', [0, 1, 3])
def test_an_error_or_ctrl_c_becomes_one_line_and_nothing_is_half_changed(monkeypatch, error, line, at):
    talk = chat(talker(), max_new_tokens=9); page = Page(ChatBox(talk, MACHINE)); passes = []
    def fails(*_):
        passes.append(1)
        if len(passes) == at + 1: raise error
    hook = talk.model.blocks[-1].register_forward_pre_hook(fails)
    page.tell(say='a word'); turns = page.pull(); hook.remove()
    said = page.live.detail
    assert said['line'].startswith(line) and '\n' not in said['line'] and bool(said['line']) == bool(line)
    assert len(turns) == bool(at) and said.get('text') == (None if at else 'a word')
    agrees_with_its_cache(talk)
    page.tell(say='a word'); assert page.pull()[-1]['ended'] in ('end', 'length')

@pytest.mark.parametrize('message', ['', 3, None, 'x'*9000])
def test_what_is_no_message_gets_one_line(message):
    page = Page(ChatBox(chat(talker(), max_new_tokens=3), MACHINE)); page.tell(say=message)
    page.pull(); page.tell(stop=True)                                              # late: the line stays
    assert page.live.detail['line'].startswith('ValueError: ') and page.live.data['turns'] == []
    assert len(page.live.detail['line']) < 300
    page.box._hear(page.live, 5); assert page.live.detail['line'].startswith('TypeError: ')

def test_the_record_is_text_where_no_scripts_run():
    talk = chat(talker(), max_new_tokens=3); ''.join(talk.say('<b>é'))
    html = ChatBox(talk, MACHINE).to_html().partition('<script')[0]
    assert '<b>You:</b> &lt;b&gt;&#233;</p>' in html and html.count('<p ') == 2

# --- next token

def test_the_logits_are_those_of_the_last_position():
    model, text = small(), 'abcdefgh'*3
    w = TokenProbabilities(model, text)
    with torch.no_grad(): want = model.prefill(torch.tensor([model.tokenizer.encode(text)[-16:]]))[0][0, -1]
    assert torch.allclose(w.logits, want, atol=1e-5) and model.training
    got = struct.unpack(f'<{len(want)}f', base64.b64decode(w.data['logits']))
    assert torch.equal(torch.tensor(got), w.logits)

# --- tokens are data

def test_labels_make_every_sign_visible():
    assert [_label(t) for t in (' ', '\n', '\t', 'a b', '\u200f', '\u2028', '\x00', '\u00a0',
                                '\u0301', '<b>', '👩\u200d💻')] == \
        ['␣', '⏎', '⇥', 'a␣b', 'U+200F', 'U+2028', 'U+0000', 'U+00A0', '◌\u0301', '<b>', '👩\u200d💻']

def smuggled():
    "A record whose tokens, one a step, are what somebody wants to smuggle in."
    job = lambda i: {'request': 0, 'slot': 0, 'phase': 'write' if i else 'read', 'tokens': 1, 'wrote': i}
    step = lambda i: {'jobs': [job(i)], 'waiting': [], 'free': 3, 'passes': 1, 'seconds': .001}
    request = {'number': 0, 'prompt': 1, 'new': list(range(len(EVIL)))}
    return {'slots': 2, 'pages': 4, 'requests': [request], 'steps': [step(i) for i in range(len(EVIL))]}

def widgets():
    model = evil()
    line = Timeline([.1]*len(EVIL), [Ledger(1, 2, 3, 4)]*len(EVIL), list(range(len(EVIL))))
    return [AttentionMap(model, '|'.join(EVIL), Words()),
            DecodeTimeline({EVIL[0]: line}, Words(), EVIL[0]),
            TokenProbabilities(model, EVIL[0], Words()),
            BatchTimeline({w: smuggled() for w in EVIL}, Words()),
            PhaseRace({EVIL[0]: bad_lane(), EVIL[1]: bad_lane(-1)}, Words(), EVIL[0], time=1e3*len(EVIL)),
            ChatBox(bad_talk(), MACHINE), CostExplorer(), Playground(small())]

def bad_lane(turn=1):
    n = len(EVIL)
    return Lane([i + 1. for i in range(n)], [1]*n, [[i] for i in range(n)][::turn], [False]*n)

@cache                                                 # its times are measured once
def bad_talk():
    "A conversation in which everybody says what somebody wants to smuggle in."
    talk = chat(talker(), max_new_tokens=3)
    for sign in EVIL: ''.join(talk.say(sign))
    said = [{'role': ('user', 'assistant')[i % 2], 'content': sign} for sign in EVIL for i in (0, 1)]
    talk._past = said, talk.turns
    return talk

KINDS = range(len(Widget.__subclasses__()))

@pytest.mark.parametrize('i', KINDS)
def test_the_page_holds_one_script_and_no_markup_of_tokens(i):
    w = widgets()[i]; html = w.to_html()
    assert html.isascii() and html.count('<script') == html.count('</script') == 1
    assert html.rstrip().endswith('</script>')
    assert '<!--' not in html and 'onerror="' not in html
    values = re.search(r'state = (\{.*\});$', html, re.M)[1]
    data = json.loads(json.dumps(w.data))
    assert json.loads(values)['data'] == data              # the reader undoes the escapes, nothing is lost

STATIC = ROOT/'tinylm'/'static'
DRAWN = sorted({f.stem for f in STATIC.glob('*.js')} - {'base'})

@pytest.mark.parametrize('kind', DRAWN)
def test_the_drawing_asks_for_nothing_and_writes_no_markup(kind):
    source = _drawing(('base', kind))
    assert set(re.findall(r'https?:\S+', source)) == {"http://www.w3.org/2000/svg';"}
    for word in ('fetch(', 'XMLHttpRequest', 'import ', 'import(', 'innerHTML', 'outerHTML',
                 'insertAdjacentHTML', 'document.write', 'eval(', 'new Function', '</', '<!--', '```'):
        assert word not in source, word

@pytest.mark.parametrize('kind', DRAWN)
def test_a_drawing_is_what_all_share_its_own_file_and_an_export(kind):
    own = [(STATIC/f'{f}.js').read_text(encoding='utf-8') for f in ('base', kind)]
    assert _drawing(('base', kind)) == '\n'.join([*own, 'export default { render };'])
    assert _drawing(('base', kind)).count('export ') == 1 and f'KINDS.{kind} = ' in own[1]

def test_no_drawing_uses_what_another_one_has():
    "A name of one file does not occur as a call in another."
    sources = {k: (STATIC/f'{k}.js').read_text(encoding='utf-8') for k in DRAWN}
    made = {k: set(re.findall(r'^(?:function|const|let) (\w+)', s, re.M)) for k, s in sources.items()}
    for kind, source in sources.items():
        inside = set(re.findall(r'\b(?:function|const|let) (\w+)|(\w+) =>', source))
        known = {n for pair in inside for n in pair} | made[kind]
        for other in set(DRAWN) - {kind}:
            used = {n for n in made[other] if re.search(rf'(?<![.\w]){n}\(', source)}
            assert not used - known, (kind, other, used - known)

# --- ways to show it

def test_every_widget_brings_a_page_a_picture_and_a_line():
    for w in widgets():
        bundle = w._repr_mimebundle_()
        assert bundle.keys() == {'text/html', 'image/png', 'text/plain'} and bundle['text/plain'] == repr(w)
        assert base64.b64decode(bundle['image/png']).startswith(b'\x89PNG')
        assert bundle['image/png'] in bundle['text/html']

def test_names_of_timelines_are_no_formulas():
    w = DecodeTimeline({'a $\\frac$ b': line, 'c\ud800': line})
    assert w._repr_mimebundle_()['image/png'] and w.data['series'][1]['name'] == 'c?'

def test_the_same_widget_gives_the_same_bytes():
    model = small()
    bundle = lambda view: AttentionMap(model, 'abc', view=view)._repr_mimebundle_()
    for view in ('head', 'heads', 'phases'): assert bundle(view) == bundle(view)

def test_the_live_widget_has_traits_and_the_picture():
    pytest.importorskip('anywidget')
    for w in widgets():
        live = w.widget()
        assert live.data == w.data and live.chosen == w.chosen and {'data', 'chosen'} <= set(live.keys)
        bundle, _ = live._repr_mimebundle_()
        assert bundle['application/vnd.jupyter.widget-view+json']['model_id'] == live.model_id
        assert bundle['image/png'] and bundle['text/plain'] == repr(w)

def run_without(modules, code):
    code = f'import sys\nfor m in {modules}: sys.modules[m] = None\n{code}'
    done = run_python('-c', code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout

@pytest.mark.slow
def test_without_notebook_tools_there_is_still_a_page():
    code = '''
from tinylm.widgets import AttentionMap, LiveTraining
from tinylm.model import LanguageModel, LMConfig
from tinylm.data import CharTokenizer
w = AttentionMap(LanguageModel(LMConfig(vocab_size=3)), 'abc', CharTokenizer('abc'))
assert '<script>' in w.to_html() and 'AttentionMap of 3 tokens' in w.to_html()
assert 'image/png' not in w._repr_mimebundle_()
for f in (w.widget, lambda: LiveTraining(1)._show({})):
    try: f()
    except ImportError as e: print(e)'''
    lines = run_without(['anywidget', 'traitlets', 'ipywidgets', 'IPython', 'matplotlib'], code).splitlines()
    assert len(lines) == 2 and 'pip install anywidget' in lines[0] and 'IPython' in lines[1]

def test_the_drawing_is_packaged(tmp_path):
    for name in ('setup.py', 'settings.ini', 'README.md', 'pyproject.toml'): shutil.copy(ROOT/name, tmp_path)
    shutil.copytree(ROOT/'tinylm', tmp_path/'tinylm')
    run_python('setup.py', '-q', 'build_py', '-d', 'out', cwd=tmp_path, check=True)
    names = lambda folder: {f.name for f in (folder/'tinylm'/'static').iterdir()}
    assert names(tmp_path/'out') == names(ROOT) >= {'base.js'}

# --- training

class Output:
    def __init__(self): self.shown = []
    def update(self, bundle, raw): self.shown.append(bundle)

def test_live_training_leaves_one_output_with_the_last_step(monkeypatch):
    import IPython.display
    outputs = []
    def display(bundle, raw, display_id):
        outputs.append(Output()); outputs[-1].update(bundle, raw)
        return outputs[-1]
    monkeypatch.setattr(IPython.display, 'display', display)
    model, ids = small(), torch.arange(200) % 10
    live = LiveTraining(12, every=0)
    history = train(model, ids, ids, TrainConfig(steps=12, eval_every=4, eval_windows=2), callback=live)
    assert len(outputs) == 1 and len(outputs[0].shown) == 12
    last = outputs[0].shown[-1]
    assert last['text/plain'] == f'step 12 of 12, loss {history[-1]["loss"]:.3f}'
    assert base64.b64decode(last['image/png']).startswith(b'\x89PNG')
    assert list(live.losses) == list(range(1, 13)) and live.losses[12] == history[-1]['loss']

# --- bad input: one line that names the value

class Nothing:
    def encode(self, text): return []

def diverged():
    model = small()
    for p in model.parameters(): p.data.fill_(float('nan'))
    return model

def changed(**about): return {'a': smuggled() | about}

def changed_step(**about):
    step = smuggled()['steps'][0]
    return changed(steps=[step, step | about])

def changed_job(**about): return changed_step(jobs=[smuggled()['steps'][0]['jobs'][0] | about])

line = timeline(4)
BAD = {
    'no model': (lambda: AttentionMap('model', 'a'), 'model is str'),
    'no tokenizer': (lambda: AttentionMap(evil(), 'a'), 'has no tokenizer'),
    'empty': (lambda: AttentionMap(small(), ''), "text is ''"),
    'no text': (lambda: AttentionMap(small(), None), 'text is None'),
    'unknown': (lambda: AttentionMap(small(), 'abcz'), "'z' at position 3"),
    'of another vocabulary': (lambda: AttentionMap(small(vocab_size=5), 'hh', CharTokenizer(ALPHABET)),
        'token id 9: expected 0 to 4'),
    'long': (lambda: AttentionMap(small(), 'a'*17), 'text has 17 tokens: expected at most block_size 16'),
    'chunks': (lambda: AttentionMap(small(), 'abcd', chunks=[2, 1]), 'add up to 4'),
    'no chunks': (lambda: AttentionMap(small(), 'abcd', chunks=[]), 'add up to 4'),
    'chunks of zero': (lambda: AttentionMap(small(), 'abcd', chunks=[0, 4]), 'at least 1'),
    'view': (lambda: AttentionMap(small(), 'a', view='neuron'),
        "view is 'neuron': expected one of head, heads, phases"),
    'layer': (lambda: AttentionMap(small(), 'a', layer=2), 'layer is 2: expected a whole number from 0 to 1'),
    'head': (lambda: AttentionMap(small(), 'a', head=-1), 'head is -1'),
    'prompt': (lambda: AttentionMap(small(), 'abc', prompt=4),
        'prompt is 4: expected a whole number from 1 to 3'),
    'weights of another text': (lambda: AttentionMap.from_weights(torch.eye(3)[None, None], 'ab'),
        'weights have shape (1, 1, 3, 3): expected (n_layer, H, 2, 2)'),
    'weights of the future': (lambda: AttentionMap.from_weights(torch.ones(1, 1, 2, 2)/2, 'ab'),
        'zero for the future'),
    'weights that are none': (lambda: AttentionMap.from_weights(torch.eye(2)[None, None]*2, 'ab'),
        'expected numbers from 0 to 1'),
    'weights without text': (lambda: AttentionMap.from_weights(torch.eye(2)[None, None], ''), "text is ''"),
    'no timeline': (lambda: DecodeTimeline([1., 2.]), "timeline 'decode' is list"),
    'one of them none': (lambda: DecodeTimeline({'a': line, 'b': None}), "timeline 'b' is NoneType"),
    'no timelines': (lambda: DecodeTimeline({}), 'empty dict'),
    'uneven timeline': (lambda: DecodeTimeline(Timeline([.1], [], [1])), '1 times, 0 costs and 1 tokens'),
    'timeline without a clock': (lambda: DecodeTimeline(Timeline([0.], [Ledger(1, 1, 1, 1)], [1])),
        'holds 0.0 seconds'),
    'timeline of an endless token': (
        lambda: DecodeTimeline(Timeline([.1, float('inf')], [Ledger(1, 1)]*2, [1, 1])),
        'holds inf seconds'),
    'cause that one of them lacks': (
        lambda: DecodeTimeline({'a': line, 'b': Timeline([.1], [Ledger(1, 1)], [1])}, cause='read'),
        "cause is 'read'"),
    'nothing to read': (lambda: AttentionMap(small(), 'a', Nothing()), r'text has shape (1, 0)'),
    'attention that is no number': (lambda: AttentionMap(diverged(), 'abc'),
        'the attention of this model holds nan'),
    'logits that are no number': (lambda: TokenProbabilities(diverged(), 'abc'),
        'the logits of this model hold nan'),
    'cause': (lambda: DecodeTimeline(line, cause='luck'), "cause is 'luck'"),
    'cause that is not there': (lambda: DecodeTimeline(Timeline([.1], [Ledger(1, 1)], [1]), cause='read'),
        "cause is 'read'"),
    'scale': (lambda: DecodeTimeline(line, scale='root'), "scale is 'root'"),
    'timeline prompt': (lambda: DecodeTimeline(line, prompt=3), 'prompt is 3'),
    'temperature': (lambda: TokenProbabilities(small(), 'a', temperature=3.5),
        'temperature is 3.5: expected a number of at least 0, at most 3'),
    'nan': (lambda: TokenProbabilities(small(), 'a', temperature=float('nan')), 'temperature is nan'),
    'top_k': (lambda: TokenProbabilities(small(), 'a', top_k=0), 'top_k is 0'),
    'top_p': (lambda: TokenProbabilities(small(), 'a', top_p=1.5), 'top_p is 1.5'),
    'seed': (lambda: TokenProbabilities(small(), 'a', seed=-1), 'seed is -1'),
    'no records': (lambda: BatchTimeline({}),
        'records is an empty dict: expected a dict with at least one record'),
    'one record without a name': (lambda: BatchTimeline([smuggled()]), 'records is list'),
    'a record in place of records': (lambda: BatchTimeline(smuggled()),
        "record 'slots' is int: expected what Engine.record() returns"),
    'no record': (lambda: BatchTimeline({'a': smuggled(), 'b': {'x': 1}}),
        "record 'b' lacks slots, pages, requests or steps"),
    'record without steps': (lambda: BatchTimeline(changed(steps=[])),
        "record 'a' has no steps: expected at least one"),
    'record without slots': (lambda: BatchTimeline(changed(slots=0)), "record 'a' lacks slots"),
    'record of other requests': (lambda: BatchTimeline(changed(requests=[{'number': 0}])),
        "record 'a' lacks slots, pages, requests"),
    'job out of the batch': (lambda: BatchTimeline(changed_job(slot=2)),
        "step 1 of record 'a' is no step of an engine"),
    'job of an unknown phase': (lambda: BatchTimeline(changed_job(phase='sleep')),
        "step 1 of record 'a' is no step"),
    'step that is none': (lambda: BatchTimeline(changed(steps=[3])), "step 0 of record 'a' is no step"),
    **{f'step with {what} {bad}': (lambda what=what, bad=bad: BatchTimeline(changed_step(**{what: bad})),
                                   "step 1 of record 'a' is no step of an engine")
       for what, bad in (('free', -1), ('passes', 1.5), ('waiting', [-1]), ('seconds', float('nan')))},
    'step of a batch': (lambda: BatchTimeline({'a': smuggled()}, step=len(EVIL)),
        f'step is {len(EVIL)}: expected a whole number from 0 to {len(EVIL)-1}'),
    'request of a batch': (lambda: BatchTimeline({'a': smuggled()}, request=1),
        'request is 1: expected one of 0'),
    'no lanes': (lambda: PhaseRace({}), 'lanes is an empty dict: expected a dict with at least one Lane'),
    'one lane without a name': (lambda: PhaseRace(lane()), 'lanes is Lane'),
    'a lane that is none': (lambda: PhaseRace({'a': lane(), 'b': 3}), "lane 'b' is int: expected a Lane"),
    'an uneven lane': (lambda: PhaseRace({'a': lane(read=(1, 2))}),
        "lane 'a' has 3 times, 2 counts and 3 lists"),
    'a lane without tokens': (lambda: PhaseRace({'a': lane(wrote=((), (), ()))}), 'and a token at least'),
    'times that fall': (lambda: PhaseRace({'a': lane((.1, .3, .2))}), 'expected numbers above 0 that rise'),
    'times that are none': (lambda: PhaseRace({'a': lane((.1, .2, float('nan')))}), 'that rise'),
    'lanes of other lengths': (lambda: PhaseRace({'a': lane(), 'b': lane(wrote=((1,), (2,), (3,)))}),
        'the lanes have [4, 3] tokens: expected as many in each'),
    'rows of a lane': (lambda: PhaseRace({'a': lane(rows=0)}), 'rows is 0'),
    'counts of a lane': (lambda: PhaseRace({'a': lane(read=(1, 0, 1))}), 'read is 0'),
    'time of a race': (lambda: PhaseRace({'a': lane()}, time=401.), 'time is 401.0'),
    'speed of a race': (lambda: PhaseRace({'a': lane()}, speed=0), 'speed is 0'),
    'prompt of a race': (lambda: PhaseRace({'a': lane()}, prompt=3), 'prompt is 3'),
    'race of nothing': (lambda: PhaseRace.record(small(), 'a', n=0), 'n is 0'),
    'race of no rows': (lambda: PhaseRace.record(small(), 'a', rows=-1), 'rows is -1'),
    'race without a prompt': (lambda: PhaseRace.record(small(), ''), "text is ''"),
    'race without a lane': (lambda: PhaseRace.record(small(), 'a', ways={}, rows=0),
        'lanes is an empty dict'),
    'chat of nothing': (lambda: ChatBox('talk'), 'conversation is str: expected a Conversation'),
    'machine of a chat': (lambda: ChatBox(chat(talker()), 'fast'), 'machine is str: expected a Machine'),
    'turn of a chat': (lambda: ChatBox(chat(talker()), MACHINE, turn=0), 'turn is 0'),
    'steps': (lambda: LiveTraining(0), 'steps is 0'),
    'every': (lambda: LiveTraining(5, every=-1), 'every is -1'),
}

@pytest.mark.parametrize('name', BAD)
def test_bad_input_gets_one_line(name):
    make, says = BAD[name]
    with pytest.raises(ValueError) as e: make()
    assert says in str(e.value) and '\n' not in str(e.value)

def test_saved_widgets_hold_the_drawing_of_today():
    "Saved outputs carry a copy of the drawing; after a change their notebooks have to run again."
    with_widget = set()
    for path in (ROOT/'nbs').glob('*.ipynb'):
        for cell in nbformat.read(path, 4).cells:
            for html in (o.get('data', {}).get('text/html', '') for o in cell.get('outputs', [])):
                if 'tinylm-widget' not in html: continue
                with_widget.add(path.stem)
                drawn = [w for w in Widget.__subclasses__() if w.script().removesuffix(_EXPORT) in html]
                assert drawn, f'run {path.name} again'
    assert {'01_attention', '04_decode', '05_kv_cache', 'widgets'} <= with_widget

# --- pictures that nothing of the user's can break, and that stay small

@pytest.mark.parametrize('setting',
    [{'text.usetex': True}, {'axes.facecolor': 'red'}, {'font.size': 40},
     {'axes.formatter.use_locale': True}])
def test_no_setting_of_the_user_changes_a_picture(setting):
    import matplotlib
    plain = AttentionMap.from_weights(torch.eye(4)[None, None], 'abcd')._fallback()
    with matplotlib.rc_context(setting):
        assert AttentionMap.from_weights(torch.eye(4)[None, None], 'abcd')._fallback() == plain

def test_a_picture_is_drawn_once_for_all_places(monkeypatch):
    drawn = []
    for w in widgets():
        monkeypatch.setattr(type(w), '_draw', lambda self, fig: drawn.append(self))
        w._repr_mimebundle_()
    assert len(drawn) == len(widgets())

def bars(ax): return [(p.get_y() + p.get_height()/2, p.get_width(), p.get_facecolor()) for p in ax.patches]

def drawn(widget):
    from matplotlib.figure import Figure
    fig = Figure()
    widget._draw(fig)
    return fig.axes

@pytest.mark.parametrize('chunks', [None, [1, 3, 1, 1, 4], [9, 1], [10]])
def test_the_picture_of_phases_has_a_row_for_each_query_in_the_colour_of_its_pass(chunks):
    from matplotlib.colors import to_rgba
    ax, = drawn(AttentionMap(small(), 'abcdefghab', chunks=chunks, view='phases', prompt=6))
    phases = {True: to_rgba('#D55E00'), False: to_rgba('#0072B2')}
    passes, rows = chunks or [6, 1, 1, 1, 1], []
    for n in passes: rows += [(q, q + 1, phases[n == 1 and q > 0]) for q in range(len(rows), len(rows) + n)]
    assert bars(ax) == rows

def test_the_picture_of_batches_numbers_each_stay_of_a_request_once():
    records = batches()
    for ax, record in zip(drawn(BatchTimeline(records)), records.values(), strict=True):
        steps = enumerate(record['steps'])
        places = {(i, j['slot']): j['request'] for i, step in steps for j in step['jobs']}
        begun = [(i, slot, str(r)) for (i, slot), r in places.items() if places.get((i - 1, slot)) != r]
        texts = [(int(t.get_position()[0]), t.get_position()[1], t.get_text()) for t in ax.texts]
        assert sorted(texts) == sorted(begun)

def test_a_long_timeline_is_drawn_with_few_objects():
    from matplotlib.figure import Figure
    def objects(n):
        fig = Figure()
        DecodeTimeline(Timeline([.1]*n, [Ledger(1, 2, 3, 4)]*n, [0]*n))._draw(fig)
        return sum(len(ax.patches) + len(ax.collections) for ax in fig.axes)
    assert objects(200) == 400 and objects(201) == objects(3000) == 2

def test_live_training_shows_its_words_where_there_is_no_picture(monkeypatch):
    said = []
    monkeypatch.setattr('tinylm.widgets._picture', lambda *_: b'')
    monkeypatch.setattr(LiveTraining, '_show', lambda self, bundle: said.append(bundle))
    ids = torch.randint(8, (200,))
    train(small(), ids, ids, TrainConfig(steps=2, batch_size=2, eval_windows=1),
          callback=LiveTraining(2, every=0))
    assert len(said) == 2 and all(b.keys() == {'text/plain'} for b in said)
