"The widgets in a real browser: every control is moved, and what is shown is compared with the tensors."
import json, math

import nbformat
import pytest
import torch
from test_conversation import MACHINE, talker
from test_widgets import EVIL, KINDS, batches, lane, means, race, small, squeezed, timeline, widgets

from tinylm.conversation import chat, phases_of
from tinylm.cost import Ledger, Timeline
from tinylm.data import CharTokenizer
from tinylm.decoding import probabilities
from tinylm.explorer import CostExplorer
from tinylm.play import Playground
from tinylm.training import course_model
from tinylm.widgets import AttentionMap, BatchTimeline, ChatBox, DecodeTimeline, PhaseRace, TokenProbabilities
from tinylm.widgets import _drawing, _label, _plain, _script, _whole

TEXT = 'a bad cafe\nabc'

SHADOW = "document.querySelector('.tinylm-widget').shadowRoot"

def choose(card, label, value):
    card.get_by_role('group', name=label, exact=True).get_by_text(str(value), exact=True).click()

def settle(card):
    card.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

def slide(card, label, value):
    "Move a slider as a hand does: the value, the event, and time to draw (it may move another one's end)."
    move = "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', { bubbles: true })); }"
    card.get_by_label(label, exact=True).evaluate(move, str(value))
    settle(card)

def cell(card, q, k, T):
    "Put the mouse on a cell of the map."
    canvas = card.locator('.map canvas'); canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box(); side = (box['width'] - 34)/T
    card.page.mouse.move(box['x'] + 30 + (k + .5)*side, box['y'] + 30 + (q + .5)*side)
    settle(card)

def weight(card): return float(card.locator('.weight').inner_text())

# --- the attention map

def check_map(card, want):
    "Every layer and head, by hand and by key, against the tensor."
    L, H, T, _ = want.shape
    for layer in range(L):
        for head in range(H):
            for label, n, value in (('Layer', L, layer), ('Head', H, head)):
                if n > 1: choose(card, label, value)                   # what cannot be chosen is not offered
            for q, k in ((T-1, 0), (T//2, T//3), (0, 0)):
                cell(card, q, k, T)
                assert abs(weight(card) - want[layer, head, q, k]) < 1e-4
            card.page.mouse.move(1, 1); settle(card)
            best = want[layer, head, T-1].sort(descending=True).values[:9]
            rows = card.locator('.bars li').all()
            assert len(rows) == min(9, T)
            for row, w in zip(rows, best):
                assert abs(float(row.locator('output').inner_text()) - w) < 1e-4
                assert abs(want[layer, head, T-1, int(row.get_attribute('data-key'))] - w) < 1e-4

def test_every_head_shows_its_weights(show):
    w = AttentionMap(small(), TEXT)
    check_map(show(w.to_html()).locator('.tlm'), _whole(w.maps))

def test_keys_move_the_query_and_the_key(show):
    w = AttentionMap(small(), TEXT); card = show(w.to_html()).locator('.tlm'); T = len(TEXT)
    canvas = card.locator('.map canvas'); canvas.focus()
    for key in ('ArrowUp', 'ArrowUp', 'ArrowLeft', 'ArrowLeft', 'ArrowLeft', 'ArrowRight'): canvas.press(key)
    settle(card)
    assert abs(weight(card) - w.maps[0][0, 0, T-3, T-5]) < 1e-4
    label = canvas.get_attribute('aria-label')
    assert f'({T-3})' in label and f'({T-5})' in label
    canvas.press('Home'); settle(card)
    assert weight(card) == 1

def test_a_token_of_the_text_is_linked_to_its_keys(show):
    w = AttentionMap(small(), TEXT); card = show(w.to_html()).locator('.tlm')
    card.locator('.t').nth(9).click(); card.page.mouse.move(1, 1); settle(card)
    row = w.maps[0][0, 0, 9]
    assert card.locator('.text path').count() == (row[:9] > .02).sum()
    card.locator('.t').nth(4).hover(); settle(card)                   # a key of this query
    assert abs(weight(card) - row[4]) < 1e-4

def test_a_small_map_is_enlarged(show):
    w = AttentionMap(small(), TEXT, view='heads'); card = show(w.to_html()).locator('.tlm'); T = len(TEXT)
    assert card.locator('.grid button').count() == 4
    card.get_by_role('button', name='enlarge layer 1, head 0').press('Enter'); settle(card)
    cell(card, 7, 3, T)
    assert abs(weight(card) - w.maps[0][1, 0, 7, 3]) < 1e-4
    choose(card, 'View', 'all heads'); settle(card)
    assert card.locator('.grid button[aria-pressed=true]').get_attribute('data-layer') == '1'

def work(passes, step):
    "What pass `step` computes, pair by pair: with a cache, without, and again; and the sums so far."
    known, with_, without = set(), [], []
    for i in range(step + 1):
        end = sum(passes[:i+1]); pairs = {(q, k) for q in range(end) for k in range(q + 1)}
        with_.append(len(pairs - known)); without.append(len(pairs)); known |= pairs
    new, all_ = with_[-1], without[-1]
    return [[passes[step], end], [new, all_], [0, all_ - new]], [sum(with_), sum(without)]

def facts(card):
    number = lambda text: int(text.replace(',', ''))
    settle(card)
    rows = [[number(t) for t in row.locator('td').all_inner_texts()[1:]]
            for row in card.locator('tr[data-fact]').all()]
    return rows, [number(t) for t in card.locator('.bars output').all_inner_texts()]

def test_phases_count_the_work_of_each_pass(show):
    T, card = len(TEXT), show(AttentionMap(small(), TEXT, view='phases').to_html()).locator('.tlm')
    for prompt in (1, 5, T):
        slide(card, 'Prompt', prompt)
        passes = [prompt] + [1]*(T - prompt)
        for step in {0, len(passes)//2, len(passes)-1}:
            slide(card, 'Pass', step)
            assert facts(card) == work(passes, step)
            assert card.locator('.t.future').count() == T - sum(passes[:step+1])
    slide(card, 'Prompt', 4); slide(card, 'Pass', 5)
    assert card.locator('.t.redo').count() == 0 and 'come from the cache' in card.locator('.say').inner_text()
    card.get_by_label('without a cache').check(); settle(card)
    assert card.locator('.t.redo').count() == 8 and 'read once more' in card.locator('.say').inner_text()

def test_play_goes_through_the_passes(show):
    card = show(AttentionMap(small(), 'abcd', view='phases', prompt=2).to_html()).locator('.tlm')
    card.get_by_role('button', name='play').click()
    card.page.wait_for_function(
        f"() => {SHADOW}.querySelector('.slide:nth-child(2) output').textContent === '3 of 3'")
    card.get_by_role('button', name='play').wait_for()

def test_chunks_are_rectangles(show):
    chunks = [5, 1, 6, 2]
    w = AttentionMap(small(), TEXT, chunks=chunks); card = show(w.to_html()).locator('.tlm')
    check_map(card, _whole(w.maps))
    choose(card, 'View', 'phases')
    assert not card.get_by_label('Prompt').is_visible()
    for step in range(4):
        slide(card, 'Pass', step)
        assert facts(card) == work(chunks, step)

def test_256_tokens_are_drawn_not_built(show):
    text = 'abc defgh\n'*25 + 'abcdef'
    w = AttentionMap(small(block_size=256), text); page = show(w.to_html()); card = page.locator('.tlm')
    for q, k in ((255, 3), (200, 100), (100, 0)):
        cell(card, q, k, 256)
        assert abs(weight(card) - w.maps[0][0, 0, q, k]) < 1e-4
    assert page.evaluate(f"() => {SHADOW}.querySelectorAll('*').length") < 1000

@pytest.mark.parametrize('most, p', [(700, 1), (200, 2), (60, 4)])
def test_a_large_map_shows_means_and_says_so(show, monkeypatch, most, p):
    squeezed(monkeypatch, most)
    w = AttentionMap(small(), TEXT); want = means(w.maps[0], p); T = len(TEXT); assert w.data['pool'] == p
    card = show(w.to_html()).locator('.tlm')
    steps = lambda w: .02*w**.5 + .001                                 # 256 steps, and two digits
    for layer, head in ((0, 0), (1, 1)):
        choose(card, 'Layer', layer); choose(card, 'Head', head)
        for q, k in ((T-1, 0), (T//2, T//3), (0, 0)):
            cell(card, q, k, T)
            mean = want[layer, head, q//p, k//p]
            assert abs(weight(card) - mean) <= steps(mean)
            if p > 1: assert f'{q//p*p}' in card.locator('.say').inner_text()
        card.page.mouse.move(1, 1); settle(card)
        best = want[layer, head, (T-1)//p].sort(descending=True).values
        for row, mean in zip(card.locator('.bars li').all(), best):
            block = int(row.get_attribute('data-key'))//p
            assert abs(want[layer, head, (T-1)//p, block] - mean) <= steps(mean)
            assert abs(float(row.locator('output').inner_text()) - mean) <= steps(mean)
    says = 'each weight in 256 steps' if p == 1 else f'each block of {p} queries and {p} keys in 256 steps'
    assert says in card.locator('.note').last.inner_text()
    choose(card, 'View', 'all heads'); settle(card)
    sizes = card.locator('.grid canvas').evaluate_all("es => es.map(e => [e.width, e.height])")
    assert sizes == [[-(-T//p)]*2]*4

def test_colours_of_a_map_grow_with_its_means(show, monkeypatch):
    squeezed(monkeypatch, 200)
    w = AttentionMap(small(), TEXT, view='heads'); want = means(w.maps[0], 2)[1, 0]
    card = show(w.to_html()).locator('.tlm'); settle(card)
    pixels = card.locator('.grid canvas').nth(2).evaluate(
        "e => [...e.getContext('2d').getImageData(0, 0, e.width, e.height).data]")
    n = len(want); got = torch.tensor(pixels).view(n, n, 4)
    seen = [(want[q, k].item(), got[q, k, 0].item()) for q in range(n) for k in range(q + 1)]
    assert all(a[1] >= b[1] - 1 for a, b in zip(sorted(seen), sorted(seen)[1:]))   # light to dark
    assert all(got[q, k, 3] == (255 if k <= q else 0) for q in range(n) for k in range(n))

# --- the timeline

UNITS = {'kB': 1e3, 'MB': 1e6, 'thousand': 1e3, 'million': 1e6, 'billion': 1e9, '': 1}

def lines(): return {'cached': timeline(16), 'naive': timeline(16, use_cache=False)}

def check_timeline(card, data):
    first = data['series'][0]; n = len(first['ms'])
    plot = card.locator('svg.plot'); plot.scroll_into_view_if_needed()
    box = plot.bounding_box(); band = (box['width'] - 74)/n
    for i in (0, n//2, n-1):
        card.page.mouse.move(box['x'] + 66 + (i + .5)*band, box['y'] + box['height']*.6); settle(card)
        for s in data['series']:
            cells = card.locator(f'tr[data-name="{s["name"]}"] td').all_inner_texts()
            token, time, size, flops, read = cells[1:]
            assert token == f'{s["tokens"][i]} ({i+1})' and read == f'{s["read"][i]:,}'
            assert abs(float(time.split()[0]) - s['ms'][i]) < 6e-4
            for shown, want in ((size, s['bytes'][i]), (flops, s['flops'][i])):
                scale = next(v for k, v in UNITS.items() if k in shown)
                assert abs(float(shown.split()[0])*scale - want) < .006*want
        assert card.locator('.t.now').inner_text() == first['tokens'][i]
    card.page.mouse.move(1, 1); settle(card)

def test_the_timeline_shows_time_cause_and_text(show):
    w = DecodeTimeline(lines(), CharTokenizer('abcdefgh \n'), 'abcd')
    card = show(w.to_html()).locator('.tlm')
    check_timeline(card, w.data)
    card.locator('.t').nth(4 + 6).click()                    # four tokens of prompt, then the seventh new one
    card.page.mouse.move(1, 1); settle(card)
    assert f'{w.data["series"][0]["ms"][6]:.3f} ms' in card.locator('tr[data-name="cached"]').inner_text()
    card.locator('svg.plot').press('ArrowLeft'); settle(card)
    assert f'{w.data["series"][0]["ms"][5]:.3f} ms' in card.locator('tr[data-name="cached"]').inner_text()

def heights(card, chart, series):
    settle(card)
    bars = card.locator(f'rect[data-series="{series}"]')
    high = bars.evaluate_all("es => es.map(e => +e.getAttribute('height'))")
    n = len(high)//2
    return high[chart*n:(chart+1)*n]

@pytest.mark.parametrize('label, key',
    [('bytes moved', 'bytes'), ('FLOPs', 'flops'), ('tokens read', 'read')])
def test_bars_are_as_high_as_what_they_mean(show, label, key):
    w = DecodeTimeline(lines(), CharTokenizer('abcdefgh \n'), 'abcd')
    card = show(w.to_html()).locator('.tlm')
    choose(card, 'Cause', label)
    for i, s in enumerate(w.data['series']):
        for chart, values in ((0, s['ms']), (1, s[key])):
            got = heights(card, chart, i)
            unit = got[values.index(max(values))]/max(values)
            assert all(abs(h - max(1, unit*v)) < .02 for h, v in zip(got, values)) # from zero, no bar cut

def test_odd_timelines_are_drawn(show):
    nothing, long = Timeline([.1]*3, [Ledger()]*3, [1, 2, 3]), 'x'*300
    counted = Timeline([.1]*3, [Ledger(1, 1, 8, 8), Ledger(1, 1, 12, 4), Ledger(1, 1, 16, 4)], [1, 2, 3])
    for lines in ({'a': nothing}, {'a': counted, long: nothing}):
        page = show(DecodeTimeline(lines).to_html()); card = page.locator('.tlm')
        for label in ('FLOPs', 'bytes moved'): choose(card, 'Cause', label); settle(card)
        assert card.locator('rect[data-token]').count() == 6*len(lines)
        offered = card.locator('.seg').filter(has_text='FLOPs').inner_text().split('\n')
        assert offered == ['bytes moved', 'FLOPs']                     # tokens read: not all of them say
        assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')

def test_a_logarithmic_axis_says_so(show):
    w = DecodeTimeline(lines()); card = show(w.to_html()).locator('.tlm')
    assert 'logarithmic axis' not in card.locator('svg.plot').inner_html()
    choose(card, 'Time axis', 'logarithmic')
    ms, got = w.data['series'][1]['ms'], heights(card, 0, 1)
    assert 'it does not start at 0' in card.locator('svg.plot').inner_html()
    low, high = ms.index(min(ms)), ms.index(max(ms))
    for i, v in enumerate(ms):
        want = math.log(v/ms[low])/math.log(ms[high]/ms[low])
        assert abs((got[i] - got[low])/(got[high] - got[low]) - want) < .02

def test_the_cliff_stands_where_the_window_is_full(show):
    card = show(DecodeTimeline(lines()).to_html()).locator('.tlm'); settle(card)
    x = float(card.locator('line.cliff').get_attribute('x1'))
    bars = card.locator('rect[data-series="0"]')
    left = dict(bars.evaluate_all("es => es.map(e => [+e.dataset.token, +e.getAttribute('x')])"))
    assert left[12] < x <= left[13]               # block_size 16, prompt 4: the 14th token needs position 17

def long_line(n, naive):
    read = lambda i: i + 4 if naive else 1
    return Timeline([.001*(1 + i % 7) for i in range(n)],
                    [Ledger(1000 + i, 4000, (i + 4)*64, read(i)*64) for i in range(n)],
                    [i % 10 for i in range(n)])

def test_1000_tokens_are_few_shapes_and_moving_over_them_draws_nothing_anew(show):
    w = DecodeTimeline({'cached': long_line(1000, False), 'naive': long_line(1000, True)})
    page = show(w.to_html()); card = page.locator('.tlm'); settle(card)
    assert card.locator('svg.plot *').count() < 150 and card.locator('svg.plot rect').count() < 10
    bars = card.locator('path[data-series="1"]').evaluate_all(
        "es => es.map(e => e.getAttribute('d').split('M').length - 1)")
    assert sum(bars) == 2*1000                                         # time and cause of each token
    page.evaluate(f"""() => {{ window.made = 0;
        new MutationObserver(changes => changes.forEach(c => {{ window.made += c.addedNodes.length; }}))
            .observe({SHADOW}.querySelector('svg.plot'), {{ childList: true, subtree: true }}); }}""")
    check_timeline(card, w.data)
    card.locator('svg.plot').press('End'); settle(card)
    assert page.evaluate('window.made') == 0
    choose(card, 'Cause', 'FLOPs'); settle(card)
    assert page.evaluate('window.made') > 0

def test_the_lanes_of_a_timeline_are_pointed_at(show):
    w = DecodeTimeline(lines()); card = show(w.to_html()).locator('.tlm'); settle(card)
    for j, s in enumerate(w.data['series']):
        places = card.locator(f'rect[data-lane="{j}"]')
        for i in (0, 7, 15):
            places.nth(i).hover(); settle(card)
            got = card.locator(f'tr[data-name="{s["name"]}"] td').nth(1).inner_text()
            assert got == f'{s["tokens"][i]} ({i+1})'

# --- the race

def a_race(**how):
    again = (False, True, True, True)
    lanes = {'slow': lane((.1, .2, .3, .4), ((1,), (2,), (3,), (4,)), (3, 4, 5, 6), again),
             'fast': lane((.05, .15, .2), ((), (1, 2), (3, 4)), (2, 1, 2), rows=3)}
    return PhaseRace(lanes, CharTokenizer('abcdefgh \n'), 'abc', **how)

def written(card):
    "The new tokens that can be seen in each lane."
    settle(card)
    return [len(e.locator('.t.made:not(.wait)').all()) for e in card.locator('.lane').all()]

def race_table(card):
    settle(card)
    return [row.locator('td').all_inner_texts()[1:] for row in card.locator('tr[data-lane]').all()]

def test_each_token_comes_when_it_came(show):
    w = a_race(time=0); card = show(w.to_html()).locator('.tlm')
    want = {0: [0, 0], 60: [0, 0], 120: [1, 0], 150: [1, 2], 199.6: [1, 2],
            200: [2, 4], 300: [3, 4], 400: [4, 4]}
    for ms in [*want, *reversed(want)]:
        slide(card, 'Time', ms)
        assert written(card) == want[ms], ms
        assert f'{ms:.1f} of 400.0 ms' in card.locator('.clock output').inner_text()
        first = card.locator('.lane').first.locator('.t.prompt.future')
        assert first.count() == (3 if ms < 100 else 0)                 # until the prompt has been read
    slide(card, 'Time', 200)
    assert race_table(card) == [['2', '2', '100.0 ms', '–'], ['4', '3', '150.0 ms', '20']]
    assert card.locator('.lane').first.locator('.fresh').inner_text() == w.data['lanes'][0]['tokens'][1]
    slide(card, 'Time', 400)
    assert race_table(card) == [['4', '4', '100.0 ms', '10'], ['4', '3', '150.0 ms', '20']]
    assert card.locator('.fresh').count() == 0

def test_passes_stand_in_their_colours_and_several_tokens_are_marked(show):
    card = show(a_race().to_html()).locator('.tlm'); settle(card)
    kinds = lambda j: [c.split()[0] for c in card.locator(f'rect[data-lane="{j}"]').evaluate_all(
        "es => es.map(e => e.getAttribute('class'))")]
    assert kinds(0) == ['prefill', 'solid', 'solid', 'solid'] and kinds(1) == ['prefill', 'prefill', 'decode']
    about = "es => es.map(e => [+e.getAttribute('x'), +e.getAttribute('width')])"
    (x0, w0), (x1, w1), *_ = card.locator('rect[data-lane="0"]').evaluate_all(about)
    (y0, v0), (y1, v1), _ = card.locator('rect[data-lane="1"]').evaluate_all(about)
    assert x0 == y0 and abs(w0 - 2*v0) < .01 and abs(v1 - 2*v0) < .01  # one axis, as long as it took
    assert card.locator('svg text.many').all_text_contents() == ['2', '2']
    assert [e.locator('.leap').count() for e in card.locator('.lane').all()] == [0, 4]
    starts = card.locator('.leap.start').evaluate_all("es => es.map(e => +e.dataset.i)")
    assert starts == [3, 5]                                            # after three tokens of prompt

def test_the_race_says_who_shares_passes_and_whether_texts_agree(show):
    card = show(a_race().to_html()).locator('.tlm'); settle(card)
    says = card.locator('.agree').inner_text()
    assert 'All lanes write the same 4 tokens.' in says
    assert 'fast is one of 3 texts' in says and 'all 3 together came at 60 a second' in says
    assert 'one of 3 rows at once' in card.locator('.lane').nth(1).inner_text()
    assert 'rows' not in card.locator('.lane').first.inner_text()
    parts = PhaseRace({'a': lane(), 'b': lane(wrote=((1,), (2,), (5, 4)))})
    card = show(parts.to_html()).locator('.tlm'); settle(card)
    assert 'b parts from a at token 3: 5 in place of 3.' in card.locator('.agree').inner_text()
    assert card.locator('.t.parts').count() == 1

def test_keys_move_from_pass_to_pass(show):
    card = show(a_race(time=0).to_html()).locator('.tlm'); plot = card.locator('svg.plot')
    for key, ms in (('ArrowRight', 50), ('ArrowRight', 100), ('ArrowRight', 150), ('ArrowLeft', 100),
                    ('End', 400), ('PageUp', 360), ('ArrowLeft', 300), ('Home', 0), ('ArrowLeft', 0)):
        plot.press(key); settle(card)
        assert f'After {ms:.1f} ms' in plot.get_attribute('aria-label'), key
    assert 'slow 0 of 4, fast 0 of 4' in plot.get_attribute('aria-label')
    box = plot.bounding_box()
    card.page.mouse.click(box['x'] + 88 + (box['width'] - 116)/2, box['y'] + 20); settle(card)
    at = float(card.locator('.clock output').inner_text().split()[0]); assert abs(at - 200) < 2
    assert 'After' in card.locator('.say').inner_text()

RUN = """async () => { const s = %s, out = [], now = () => [...s.querySelectorAll('.lane')].map(
        e => e.querySelectorAll('.t.made:not(.wait)').length);
    s.querySelector('button').click();
    do { out.push(now()); await new Promise(requestAnimationFrame); }
    while (s.querySelector('button').textContent.includes('pause') || out.length < 3);
    out.push(now()); return out; }""" % SHADOW

@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_the_race_plays_to_its_end_and_begins_anew(show, scheme):
    page = show(a_race(time=0, speed=.5).to_html(), color_scheme=scheme)
    card = page.locator('.tlm'); settle(card)
    assert card.get_attribute('data-theme') == scheme
    for _ in range(2):                                                 # the second time from the end
        seen = page.evaluate(RUN)
        for lane_ in zip(*seen): assert list(lane_[3:]) == sorted(lane_[3:]) and lane_[-1] == 4
        assert len(set(map(tuple, seen))) >= 3
    assert 'done' in card.locator('.say').inner_text()
    assert min(contrast(page, [['--on', '--decode'], ['--on', '--prefill']])) >= 3

def test_a_pause_holds_the_race(show):
    card = show(a_race(time=0, speed=.01).to_html()).locator('.tlm'); button = card.locator('button').first
    button.click(); card.page.wait_for_timeout(150); button.click(); settle(card)
    held = card.locator('.clock output').inner_text(); assert 0 < float(held.split()[0]) < 400
    card.page.wait_for_timeout(150); assert card.locator('.clock output').inner_text() == held
    card.locator('svg.plot').press(' '); settle(card); assert 'pause' in button.inner_text()
    choose(card, 'Speed', 'real time')
    card.get_by_role('button', name='play').wait_for(); assert written(card) == [4, 4]

def test_who_wants_no_motion_sees_jumps(show):
    page = show(a_race(time=0, speed=1).to_html(), reduced_motion='reduce'); card = page.locator('.tlm')
    card.locator('button').first.click(); page.wait_for_timeout(400)
    assert float(card.locator('.clock output').inner_text().split()[0]) == 0
    page.wait_for_timeout(500)
    assert abs(float(card.locator('.clock output').inner_text().split()[0]) - 400/12) < .1
    card.locator('button').first.click()

def test_a_recorded_race_is_shown(show):
    w, _ = race(); card = show(w.to_html()).locator('.tlm')
    card.locator('svg.plot').press('End')
    assert written(card) == [10]*4
    for row, s in zip(race_table(card), w.data['lanes']):
        assert row == ['10', str(len(s['ms'])), f'{s["ttft"]:.1f} ms', f'{s["rate"]:,.0f}']

def test_playing_a_long_race_touches_only_what_changes(show):
    n = 1000
    long = lane([.01*(i + 1) for i in range(n)], [[i % 10] for i in range(n)], [1]*n, [False]*n)
    page = show(PhaseRace({'a': long, 'b': long}, time=0).to_html())
    card = page.locator('.tlm'); settle(card)
    assert card.locator('svg.plot *').count() < 60
    page.evaluate(f"""() => {{ window.made = 0;
        new MutationObserver(changes => {{ window.made += changes.length; }}).observe(
            {SHADOW}.querySelector('.lanes'), {{ attributes: true, childList: true, subtree: true }}); }}""")
    for key in ('ArrowRight',)*3: card.locator('svg.plot').press(key); settle(card)
    assert written(card) == [3, 3] and page.evaluate('window.made') < 100

# --- batches

PHASES = {'read': 'prefill', 'write': 'decode'}

def check_step(chart, step, slots, shown):
    "What stands beside one chart in one step."
    jobs = {j['slot']: j for j in step['jobs']}
    for slot in range(slots):
        want, got = jobs.get(slot), chart.locator(f'tr[data-slot="{slot}"] td').all_inner_texts()
        if not want: assert got == ['–']*4; continue
        wrote = '–' if want['wrote'] is None else shown(want['wrote'])
        assert got == [str(want['request']), PHASES[want['phase']], str(want['tokens']), wrote]
    facts = dict(read=sum(j['tokens'] for j in step['jobs']),
                 written=sum(j['wrote'] is not None for j in step['jobs']),
                 waiting=', '.join(map(str, step['waiting'])) or 'nobody',
                 free=step['free'], passes=step['passes'], ms=f'{1e3*step["seconds"]:.2f} ms')
    got = {f.get_attribute('data-fact'): f.inner_text() for f in chart.locator('[data-fact]').all()}
    assert got == {k: str(v) for k, v in facts.items()}

def check_batches(card, records, shown=str):
    "Every chart at several steps, place by place, against the record."
    assert card.locator('.batch').count() == len(records)
    for i in sorted({0, 1, 4, max(len(r['steps']) for r in records.values()) - 1}):
        slide(card, 'Step', i)
        for chart, record in zip(card.locator('.batch').all(), records.values()):
            if i < len(record['steps']): check_step(chart, record['steps'][i], record['slots'], shown)
            else: assert 'done after' in chart.locator('.note').inner_text()

def steps_of(record, r):
    return [(i + 1, j) for i, s in enumerate(record['steps']) for j in s['jobs'] if j['request'] == r]

def check_request(card, records, r):
    "The request is bright in all charts, all others are pale, and the table says when it worked."
    settle(card)
    charts, ways = card.locator('.batch').all(), card.locator('tr[data-way]').all()
    for chart, way, record in zip(charts, ways, records.values()):
        mine = steps_of(record, r); wrote = [i for i, j in mine if j['wrote'] is not None]
        bright = chart.locator('rect[data-request]:not(.dim)')
        about = bright.evaluate_all("es => es.map(e => [+e.dataset.request, +e.dataset.step + 1])")
        assert sorted(about) == [[r, i] for i, _ in mine]
        want = [str(n) for n in (mine[0][0], wrote[0], wrote[-1], len(mine))]
        assert way.locator('td').all_inner_texts()[1:] == want

def test_every_step_of_a_batch_is_that_of_the_record(show):
    records = batches(); check_batches(show(BatchTimeline(records).to_html()).locator('.tlm'), records)

def test_a_bar_for_each_job_in_the_colour_of_its_phase(show):
    records = batches(); card = show(BatchTimeline(records).to_html()).locator('.tlm'); settle(card)
    unit, about = {}, """es => es.map(e => [+e.dataset.step, +e.dataset.request,
        e.classList.contains('prefill') ? 'read' : 'write', +e.getAttribute('x')])"""
    for chart, record in zip(card.locator('.batch').all(), records.values()):
        steps, got = record['steps'], chart.locator('rect[data-request]').evaluate_all(about)
        want = [[i, j['request'], j['phase']] for i, s in enumerate(steps) for j in s['jobs']]
        assert sorted(g[:3] for g in got) == sorted(want)
        for i, _, _, x in got: assert abs(unit.setdefault(i, x) - x) < .01      # one axis for all
        idle, places = sum(record['slots'] - len(s['jobs']) for s in steps), record['slots']*len(steps)
        assert f'{idle} of {places} places without work' in chart.locator('.head').inner_text()

def test_a_request_is_followed_through_all_charts(show):
    records = batches(); card = show(BatchTimeline(records).to_html()).locator('.tlm'); settle(card)
    assert card.locator('.dim').count() == 0
    bar = card.locator('rect[data-request="3"]').first; bar.hover(); check_request(card, records, 3)
    card.page.mouse.move(1, 1); settle(card); assert card.locator('.dim').count() == 0
    bar.click(); card.page.mouse.move(1, 1); check_request(card, records, 3)
    i, job = steps_of(records['chunks'], 3)[0]
    assert card.locator('.slide output').inner_text().startswith(f'{i} of ')
    plot = card.locator('svg.plot').nth(1); plot.press('ArrowDown'); check_request(card, records, 4)
    plot.press('ArrowRight'); settle(card)
    assert card.locator('.slide output').inner_text().startswith(f'{i+1} of ')
    assert f'step {i+1}' in plot.get_attribute('aria-label')
    plot.press('Escape'); settle(card); assert card.locator('.dim').count() == 0

def test_play_goes_through_the_steps_of_all_charts(show):
    records = batches(); n = max(len(r['steps']) for r in records.values())
    card = show(BatchTimeline(records, step=n-3).to_html()).locator('.tlm')
    card.get_by_role('button', name='play').click()
    card.page.wait_for_function(f"() => {SHADOW}.querySelector('.slide output').textContent === '{n} of {n}'")
    card.get_by_role('button', name='play').wait_for()
    assert len(set(card.locator('.headline').evaluate_all("es => es.map(e => e.getAttribute('x'))"))) == 1

def test_play_pause_play_is_no_faster_than_play(show):
    page = show(BatchTimeline(batches()).to_html()); card = page.locator('.tlm'); settle(card)
    page.clock.install(time=0); page.clock.pause_at(1000)               # nothing moves but by `run_for`
    play = card.locator('.scrub button')
    for _ in range(3): play.click(); page.clock.run_for(25)            # a frame, to draw
    assert 'pause' in play.inner_text()
    for i in range(2, 5):
        page.clock.run_for(355)
        assert card.locator('.slide output').inner_text().startswith(f'{i} of ')
    play.click(); page.clock.run_for(2000)
    assert card.locator('.slide output').inner_text().startswith('4 of ') and 'play' in play.inner_text()

# --- the next token

def check_probabilities(card, logits, **dials):
    settle(card)
    want, uncut = probabilities(logits, **dials), probabilities(logits, dials.get('temperature', 1))
    rows = card.locator('li[data-id]').evaluate_all("""es => es.map(e => [+e.dataset.id,
        +e.querySelector('output').textContent, e.className, e.querySelector('.why').textContent])""")
    for id_, p, kind, why in rows:
        assert abs(p - want[id_]) < 6e-5, (dials, id_, p)
        assert (kind == 'cut') == bool(why), (dials, id_, why)
        if want[id_] > 0 or uncut[id_] > 0:                            # else nobody sees a difference
            assert (kind == 'cut') == bool(want[id_] == 0), (dials, id_, p)

def test_dials_agree_with_the_library(show):
    w = TokenProbabilities(small(), TEXT); card = show(w.to_html()).locator('.tlm')
    check_probabilities(card, w.logits)
    for t in (0, .05, .5, 1, 3):
        slide(card, 'Temperature', t)
        for k in (None, 1, 4):
            slide(card, 'Top-k', 9 if k is None else k-1)
            for p in (None, .05, .6, .95):
                slide(card, 'Top-p', 1 if p is None else p)
                check_probabilities(card, w.logits, temperature=t, top_k=k, top_p=p)

def mulberry(seed, n):
    "The n-th number of the page's generator, written down a second time."
    M = 2**32; imul = lambda a, b: a*b % M
    for i in range(1, n+1):
        a = (seed + i*0x6d2b79f5) % M
        t = imul(a ^ a >> 15, 1 | a); t = (t + imul(t ^ t >> 7, 61 | t)) % M ^ t
    return (t ^ t >> 14)/M

def test_draws_repeat_and_follow_the_distribution(show):
    w = TokenProbabilities(small(), TEXT, temperature=2, seed=5); card = show(w.to_html()).locator('.tlm')
    best, order = probabilities(w.logits, 2).sort(descending=True, stable=True)
    for n in range(1, 6):
        settle(card)
        u = mulberry(5, n); want = order[int((best.cumsum(0) <= u).sum())]
        assert card.locator('.say .hit').inner_text() == w.data['tokens'][want]
        assert f'{u:.4f}' in card.locator('.say').inner_text()
        assert card.locator('li.drawn').get_attribute('data-id') == str(want.item())
        assert card.locator('.draws code').count() == n
        card.get_by_role('button', name='draw').click()

# --- the chat

def talk(*questions, n=12):
    talk = chat(talker(), max_new_tokens=n)
    for q in questions or ('what is a token?', 'a word', 'a piece of a word'): ''.join(talk.say(q))
    return talk

def check_chat(card, data):
    "What was said, what each answer took, and for each turn its tokens on the clock and the table."
    settle(card)
    said = [t[key] for t in data['turns'] for key in ('asked', 'answer')]
    parts = [p.text_content() for p in card.locator('.log p').all()]
    assert parts == [who + words for words, who in zip(said, ['You: ', 'Model: ']*len(said))]
    for button, t in zip(card.locator('.facts').all(), data['turns'], strict=True):
        button.click(); settle(card)
        assert card.locator('[aria-pressed=true]').count() == 1
        assert button.get_attribute('aria-pressed') == 'true'
        for words in (f'{t["read"]} read', f'{t["saved"]} from the cache', f'{len(t["ms"])-1} decoded'):
            assert words in button.inner_text()
        kinds = card.locator('[data-place]').evaluate_all("es => es.map(e => e.classList[0])")
        assert kinds == ['prefill'] + ['decode']*(len(t['ms'])-1)
        widths = card.locator('[data-place]').evaluate_all("es => es.map(e => +e.getAttribute('width'))")
        assert all(abs(w*sum(t['ms'])/sum(widths) - ms) < .05*sum(t['ms']) for w, ms in zip(widths, t['ms']))
        assert card.locator('.turn .t').all_text_contents() == t['tokens']

def chat_table(card):
    settle(card)
    cells = [row.locator('td').all_inner_texts() for row in card.locator('tr[data-phase]').all()]
    return [[c.replace(' ms', '') for c in row] for row in cells]

def test_the_chat_shows_every_turn_and_the_numbers_of_the_library(show):
    c = talk(); box = ChatBox(c, MACHINE); card = show(box.to_html()).locator('.tlm')
    check_chat(card, box.data)
    for i, turn in enumerate(c.turns):
        card.locator('.facts').nth(i).click()
        assert chat_table(card) == [line.split() for line in phases_of(turn, MACHINE).splitlines()[1:]]
    assert card.locator('svg.roof .took').count() == card.locator('svg.roof .least').count() == 2
    assert card.locator('textarea').count() == 0 and 'a record' in card.locator('.note').last.inner_text()

def test_the_marks_of_the_roofline_stand_where_its_axes_say(show):
    c = talk(); card = show(ChatBox(c, MACHINE).to_html()).locator('.tlm'); settle(card)
    digit = {c: str(i) for i, c in enumerate('⁰¹²³⁴⁵⁶⁷⁸⁹')} | {'⁻': '-'}
    texts = card.locator('svg.roof text').evaluate_all("""es => es
        .filter(e => e.textContent.startsWith('10'))
        .map(e => [e.textContent.slice(2), ...['text-anchor', 'x', 'y'].map(k => e.getAttribute(k))])""")
    marks = lambda kind: card.locator(f'svg.roof .{kind}').evaluate_all(
        "es => es.map(e => { const b = e.getBBox(); return [b.x + b.width/2, b.y + b.height/2]; })")
    for kind, seconds in (('took', lambda line: sum(line.seconds)),
                          ('least', lambda line: sum(map(MACHINE.seconds, line.costs)))):
        for (x, y), line in zip(marks(kind), c.turns[-1].phases().values()):
            cost = sum(line.costs, Ledger())
            assert place(texts, 'middle', 0, digit)(math.log10(cost.intensity)) == pytest.approx(x, abs=1)
            rate = math.log10(cost.flops/seconds(line))
            assert place(texts, 'end', 1, digit)(rate) == pytest.approx(y, abs=1)

def place(texts, anchor, at, digit):
    "From the logarithm of a value to pixels, by the first and the last number of an axis."
    ends = [(int(''.join(digit[c] for c in k)), (float(x), float(y) - 4)[at])
            for k, kind, x, y in texts if kind == anchor]
    (k0, p0), (k1, p1) = ends[0], ends[-1]
    return lambda v: p0 + (v - k0)/(k1 - k0)*(p1 - p0)

def test_keys_move_through_the_tokens_of_a_turn(show):
    box = ChatBox(talk(), MACHINE, turn=0); t = box.data['turns'][0]; n = len(t['ms'])
    card = show(box.to_html()).locator('.tlm')
    plot = card.locator('.turn svg').first; plot.focus()
    for key, i in (('ArrowRight', 1), ('ArrowRight', 2), ('End', n-1), ('ArrowRight', n-1), ('Home', 0),
                   ('ArrowLeft', 0)):
        plot.press(key); settle(card)
        words = f'Token {i+1} {t["tokens"][i]}: {"decode" if i else "prefill"}, {t["ms"][i]:.2f} ms'
        assert plot.get_attribute('aria-label').startswith(words)
        assert card.locator('.t.now').text_content() == t['tokens'][i]

def test_a_chat_of_nothing_is_a_page_too(show):
    card = show(ChatBox(chat(talker()), MACHINE).to_html()).locator('.tlm'); settle(card)
    assert 'Nothing was said yet.' in card.inner_text() and not card.locator('table').is_visible()

def test_the_page_asks_for_more_until_the_answer_is_there(show):
    box = ChatBox(talk('a word'), MACHINE); page = show(live(box)); card = page.locator('.tlm')
    told = lambda: page.evaluate('() => window.told.splice(0)')
    put = lambda **traits: [page.evaluate('([k, v]) => window.put(k, v)', [*item]) for item in traits.items()]
    field, stop = card.get_by_label('Your message'), card.get_by_role('button', name='Stop')
    field.fill('  '); field.press('Enter'); assert told() == []
    field.fill('<i>what?'); card.get_by_role('button', name='Send').click()
    assert told() == [{'say': '<i>what?'}] and field.input_value() == ''
    settle(card)
    assert card.locator('.log').get_attribute('aria-busy') == 'true'
    for step, answer in enumerate(('', 'a ', 'a <b>')):
        put(detail={'asked': '<i>what?', 'answer': answer, 'step': step}); settle(card)
        assert told() == [{'more': step}]
        assert [p.text_content() for p in card.locator('.log > div').last.locator('p').all()] == \
            ['You: <i>what?', 'Model: ' + (answer or '…')]
    field.fill('soon'); field.press('Enter'); settle(card); assert told() == []
    put(detail={'asked': '<i>what?', 'answer': 'a <b>!', 'step': 3}); settle(card)
    assert told() == [{'more': 3}] and field.input_value() == 'soon'
    assert 'One answer at a time' in card.locator('.say').first.inner_text()
    stop.click(); assert told() == [{'stop': True}]
    put(detail={'asked': '<i>what?', 'answer': 'a <b>c', 'step': 4}); assert told() == []   # was on its way
    put(data=ChatBox(talk('a word', 'what?'), MACHINE).data, chosen={'turn': None}, detail={'line': ''})
    settle(card)
    assert card.locator('.facts').count() == 2 and not stop.is_visible() and field.input_value() == 'soon'
    field.press('Enter'); assert told() == [{'say': 'soon'}]
    put(detail={'line': 'ValueError: no', 'text': 'soon'}); settle(card)
    assert field.input_value() == 'soon' and card.locator('.say').first.inner_text() == 'ValueError: no'

def test_a_view_that_opens_in_the_middle_of_an_answer_goes_on_with_it(show):
    page = show(live(ChatBox(talk('a'), MACHINE), asked='what?', answer='a w', step=4))
    settle(page.locator('.tlm'))
    assert page.evaluate('() => window.told') == [{'more': 4}]
    assert page.locator('.log p').last.text_content() == 'Model: a w'

def message_box(show, **detail):
    "A live box on a page: its card, its field, what it told Python, and how it hears."
    page = show(live(ChatBox(talk('a word'), MACHINE), **detail)); card = page.locator('.tlm')
    def put(**detail): page.evaluate('d => window.put("detail", d)', detail); settle(card)
    return page, card, card.get_by_label('Your message'), put

def test_a_message_that_cannot_be_sent_stays(show):
    page, card, field, _ = message_box(show)
    page.evaluate("() => { window.fails = true; }"); say(card, 'a long one'); settle(card)
    assert field.input_value() == 'a long one'
    assert 'The kernel cannot be reached' in card.locator('.say').first.inner_text()
    page.evaluate("() => { window.fails = false; }"); field.press('Enter'); settle(card)
    assert page.evaluate('() => window.told') == [{'say': 'a long one'}]

def test_what_comes_back_is_put_before_what_was_typed_since_and_only_where_it_came_from(show):
    page, card, field, put = message_box(show)
    field.fill('mine'); field.press('Enter'); field.fill('nex')
    put(line='ValueError: no', text='of another view'); assert field.input_value() == 'nex'
    put(line='ValueError: no', text='mine'); assert field.input_value() == 'mine\nnex'
    say(card, 'first'); field.press('Escape'); settle(card); say(card, 'second')
    put(asked='first', answer='', step=0); put(line='', text='first')         # stopped before the second
    put(asked='second', answer='', step=0)
    assert field.input_value() == 'first'

def test_a_view_that_opens_after_a_refusal_shows_it(show):
    page, card, field, _ = message_box(show, line='ValueError: no', text='mine'); settle(card)
    assert field.input_value() == 'mine' and card.locator('.say').first.inner_text() == 'ValueError: no'

def test_half_a_letter_is_replaced(show):
    page, card, field, _ = message_box(show)
    field.evaluate("e => { e.value = 'a\\ud83d'; }"); field.press('Enter')
    assert page.evaluate('() => window.told') == [{'say': 'a\ufffd'}]

# --- strangers in the text

@pytest.mark.parametrize('i', KINDS)
def test_tokens_run_nothing_and_are_shown(show, i):
    page = show(widgets()[i].to_html()); card = page.locator('.tlm'); settle(card)
    for view in ('all heads', 'phases', 'one head') if i == 0 else ():
        choose(card, 'View', view); settle(card)
    card.locator('canvas, svg.plot, .scroll').first.hover(); settle(card)
    if i == 3:
        for step in range(len(EVIL)):
            slide(card, 'Step', step)
            assert card.locator('tr[data-slot="0"] code').first.inner_text() == _label(EVIL[step])
    assert page.evaluate(f"""() => [window.hacked, document.querySelectorAll('script').length,
        {SHADOW}.querySelectorAll('script, img').length]""") == [None, 1, 0]
    if i == 3: assert card.locator('.batch .head b').all_text_contents() == EVIL; return
    if i > 5: return                                     # they show no token of somebody else's
    text = card.inner_text()
    shown = _plain if i == 5 else _label
    for token in EVIL: assert shown(token).strip() in text, token

# --- looks

CONTRAST = """pairs => {
    const c = %s.querySelector('.tlm'), s = getComputedStyle(c);
    const rgb = v => {
        const d = document.createElement('i'); d.style.color = s.getPropertyValue(v); c.append(d);
        const m = getComputedStyle(d).color.match(/[\\d.]+/g).slice(0, 3).map(Number); d.remove();
        return m;
    };
    const line = x => (x /= 255) <= .03928 ? x/12.92 : ((x + .055)/1.055)**2.4;
    const lum = m => m.map(line).reduce((a, x, i) => a + x*[.2126, .7152, .0722][i], 0);
    return pairs.map(pair => {
        const [x, y] = pair.map(v => lum(rgb(v))).sort((p, q) => q - p);
        return (x + .05)/(y + .05);
    }); }""" % SHADOW

def contrast(page, pairs): return page.evaluate(CONTRAST, pairs)

@pytest.mark.parametrize('about, theme', [
    (dict(color_scheme='light'), 'light'), (dict(color_scheme='dark'), 'dark'),
    (dict(color_scheme='dark', body='class="quarto-light"'), 'light'),
    (dict(body='class="quarto-dark"'), 'dark'), (dict(body='style="background: #222"'), 'dark'),
    (dict(body='data-jp-theme-light="false"'), 'dark')])
def test_light_and_dark_are_those_of_the_page_and_readable(show, about, theme):
    page = show(AttentionMap(small(), TEXT).to_html(), **about)
    assert page.locator('.tlm').get_attribute('data-theme') == theme
    text = contrast(page, [['--ink', '--surface'], ['--muted', '--surface'], ['--muted', '--soft'],
                           ['--on', '--prefill']])
    marks = contrast(page, [[f'--{c}', '--surface'] for c in ('prefill', 'decode', 'again', 'kept', 'focus')])
    assert min(text) >= 4.5 and min(marks) >= 3

def test_the_theme_follows_a_switch(show):
    page = show(AttentionMap(small(), TEXT).to_html(), body='class="quarto-light"')
    page.evaluate("() => { document.body.className = 'quarto-dark'; }")
    page.locator('.tlm[data-theme=dark]').wait_for()

@pytest.mark.parametrize('i', KINDS)
@pytest.mark.parametrize('width', [360, 900, 1280])
def test_nothing_sticks_out(show, i, width):
    w = [AttentionMap(small(), TEXT, view='phases'),
         DecodeTimeline(lines(), CharTokenizer('abcdefgh \n'), 'abcd'),
         TokenProbabilities(small(), TEXT), BatchTimeline(batches()), race()[0],
         ChatBox(talk('what'*30), MACHINE), CostExplorer(), Playground(small())][i]
    page = show(w.to_html(), viewport={'width': width, 'height': 720}); settle(page.locator('.tlm'))
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width

@pytest.mark.parametrize('i', KINDS)
def test_whatever_takes_the_focus_has_a_name(show, i):
    page = show(widgets()[i].to_html()); settle(page.locator('.tlm'))
    nameless = page.evaluate("""() => {
        const words = e => e?.textContent.trim();
        const named = e => e.getAttribute('aria-label') || words(e) || words(e.labels?.[0]);
        return [...%s.querySelectorAll('input, button, [tabindex]')]
            .filter(e => e.offsetParent !== null && !named(e))
            .map(e => e.outerHTML.slice(0, 80)); }""" % SHADOW)
    assert nameless == []

# the drawing as anywidget runs it: a module, and a model whose other end takes notes of what it is told
LIVE = '''<div id="el"></div><script type="module">{drawing}
const state = {values}; window.told = []; window.on = {{}};
const model = {{ get: k => state[k], set: (k, v) => {{ state[k] = v; }}, save_changes() {{}}, off() {{}},
  on: (event, f) => {{ window.on[event] = f; }},
  send: message => {{ if (window.fails) throw Error('no'); window.told.push(message); }} }};
window.put = (k, v) => {{ state[k] = v; window.on['change:' + k]?.(); }};
render({{ model, el: document.querySelector('#el') }});
</script>'''

def live(w, **detail):
    values = {'data': w.data, 'chosen': w.chosen, 'detail': detail}
    drawing = _drawing(w.rooms).removesuffix('export default { render };')
    return LIVE.format(drawing=drawing, values=_script(values))

@pytest.mark.parametrize('form', ['page', 'live'])
@pytest.mark.parametrize('i', KINDS)
def test_every_widget_says_in_words_what_it_is(show, i, form):
    w = widgets()[i]; page = show(w.to_html() if form == 'page' else live(w)); card = page.locator('.tlm')
    settle(card)
    heading, label = card.locator('b').first.text_content(), card.get_attribute('aria-label')
    assert card.get_attribute('role') == 'group' and label.startswith(heading + ', ')
    wordless = card.evaluate('''card => [...card.querySelectorAll('svg, canvas, .wheel')]
        .filter(e => e.checkVisibility() && !e.closest('[aria-hidden=true], button[aria-label]'))
        .filter(e => !e.matches('[role=img][aria-label], [role=application][aria-label]'))
        .map(e => e.outerHTML.slice(0, 80))''')
    assert wordless == []

@pytest.mark.parametrize('i', KINDS)
def test_where_no_scripts_run_the_picture_has_words_too(show, i):
    w = widgets()[i]; page = show(w.to_html(), script=False)
    assert page.locator('img').get_attribute('alt') == repr(w)

def test_a_viewer_without_scripts_shows_the_picture(show):
    page = show(AttentionMap(small(), TEXT).to_html(), script=False)
    image = page.locator('img')
    assert image.is_visible()
    assert image.get_attribute('alt') == f'AttentionMap of {len(TEXT)} tokens (2 × 2 heads)'

def test_two_widgets_share_a_page(show):
    a, b = AttentionMap(small(), TEXT), AttentionMap(small(1), TEXT)
    page = show(a.to_html() + b.to_html())
    check_map(page.locator('.tlm').nth(1), _whole(b.maps))
    assert page.locator('.tlm').first.get_by_role('group', name='Layer').get_by_label('0').is_checked()

# --- in JupyterLab

FOR = 'The "for" statement is used to iterate over the elements'

def value(nb, expression): return json.loads(nb.python(f'import json; print(json.dumps({expression}))'))

def dark(page):
    theme = "'apputils:change-theme', { theme: 'JupyterLab Dark' }"
    page.evaluate(f'() => window.jupyterapp.commands.execute({theme})')
    page.locator('body[data-jp-theme-light=false]').wait_for(state='attached')

def check_dark(card):
    card.page.locator('.tlm[data-theme=dark]').first.wait_for()
    for element, low, high in (('backgroundColor', 0, 64), ('color', 192, 255)):
        rgb = card.evaluate(f"e => getComputedStyle(e).{element}.match(/[0-9]+/g).slice(0, 3).map(Number)")
        assert all(low <= n <= high for n in rgb), element

def test_the_page_of_widgets_in_jupyterlab(open_notebook):
    model = course_model()
    nb = open_notebook('widgets.ipynb')
    saved = nb.page.locator('.jp-OutputArea-output img')               # not trusted yet, so no script has run
    assert nb.widgets().count() == 0 and saved.first.is_visible()
    assert 'AttentionMap' in saved.first.get_attribute('alt')
    nb.run_all()
    cards = nb.widgets().all()
    assert len(cards) == 8
    one, heads, phases, chunked, clock, lanes, batch, dials = cards
    whole = _whole(AttentionMap(model, FOR).maps)
    check_map(one, whole)
    heads.get_by_role('button', name='enlarge layer 2, head 3').click()
    cell(heads, 40, 12, 56); assert abs(weight(heads) - whole[2, 3, 40, 12]) < 1e-4
    slide(phases, 'Prompt', 30); slide(phases, 'Pass', 9); assert facts(phases) == work([30] + [1]*26, 9)
    phases.get_by_label('without a cache').check(); settle(phases)
    assert phases.locator('.t.redo').count() == 38
    choose(chunked, 'View', 'phases'); slide(chunked, 'Pass', 2)
    assert facts(chunked) == work([24, 16, 10, 6], 2)
    check_timeline(clock, value(nb, 'DecodeTimeline(lines, model.tokenizer, prompt).data'))
    shown = value(nb, 'race.data')
    lanes.locator('svg.plot').press('End'); assert written(lanes) == [46]*len(shown['lanes'])
    assert [row[1] for row in race_table(lanes)] == [str(len(s['ms'])) for s in shown['lanes']]
    check_batches(batch, value(nb, 'records'), lambda t: _label(model.tokenizer.decode([t])))
    slide(dials, 'Temperature', 1.5); slide(dials, 'Top-k', 7); slide(dials, 'Top-p', .8)
    logits = TokenProbabilities(model, 'The value of the ').logits
    check_probabilities(dials, logits, temperature=1.5, top_k=8, top_p=.8)
    assert nb.page.locator('.jp-RenderedImage img').count() == 1     # the loss curve, replaced, not piled up
    dark(nb.page); check_dark(one)
    assert nb.page.bad == []

def test_a_live_widget_talks_to_python(open_notebook, lab):
    code = ['from tinylm.widgets import AttentionMap\nfrom tinylm.training import course_model\n'
            'live = AttentionMap(course_model(), "The value of").widget()', 'live']
    cells = [nbformat.v4.new_code_cell(c, id=f'cell{i}') for i, c in enumerate(code)]
    kernel = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), lab[1]/'live.ipynb')
    nb = open_notebook('live.ipynb').run_all()
    card = nb.widgets().first; card.wait_for()
    choose(card, 'Layer', 2); choose(card, 'Head', 3); settle(card)
    nb.page.wait_for_timeout(300)
    assert nb.python('print(live.chosen["layer"], live.chosen["head"])') == '2 3'
    nb.python('live.chosen = live.chosen | {"layer": 1, "head": 0, "query": 7, "key": 4}')
    card.locator('.weight').wait_for(); nb.page.wait_for_timeout(300)
    want = _whole(AttentionMap(course_model(), 'The value of').maps)
    assert abs(weight(card) - want[1, 0, 7, 4]) < 1e-4
    nb.python('live.chosen = live.chosen | {"query": 11, "key": None}')
    card.locator('.weight').wait_for(state='detached')
    check_map(card, want)
    dark(nb.page); check_dark(card)
    assert nb.page.bad == []

def test_a_large_live_map_asks_for_the_head_that_is_chosen(open_notebook, lab):
    code = ['import tinylm.widgets as w\nw._MOST = w._MOST_LIVE = 400\n'
            'from tinylm.training import course_model\n'
            'live = w.AttentionMap(course_model(), "The value of").widget()', 'live']
    cells = [nbformat.v4.new_code_cell(c, id=f'cell{i}') for i, c in enumerate(code)]
    kernel = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), lab[1]/'large.ipynb')
    nb = open_notebook('large.ipynb').run_all()
    card, want = nb.widgets().first, _whole(AttentionMap(course_model(), 'The value of').maps)
    card.wait_for(); assert value(nb, 'live.data["pool"]') > 1
    for layer, head in ((0, 0), (2, 3), (1, 0)):
        choose(card, 'Layer', layer); choose(card, 'Head', head); nb.page.wait_for_timeout(400)
        cell(card, 11, 4, 12)
        assert abs(weight(card) - want[layer, head, 11, 4]) < 1e-4
        assert value(nb, '[live.detail["layer"], live.detail["head"]]') == [layer, head]
    assert 'shown to 4 decimals' in card.locator('.note').last.inner_text()
    choose(card, 'View', 'all heads'); settle(card)
    assert 'the chosen head has every weight' in card.locator('.note').last.inner_text()
    assert nb.page.bad == []

TALK = '''
import time, torch
from tinylm import ChatBox, LanguageModel, LMConfig, Machine, chat, train_subwords
torch.manual_seed(0)
template = ("{% for m in messages %}<|im_start|>{{ m.role }}\\n{{ m.content }}<|im_end|>\\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}")
tokenizer = train_subwords('what is a token? a piece of a word. '*9, 300, ['<|im_end|>', '<|im_start|>'],
                           chat_template=template)
model = LanguageModel(LMConfig(tokenizer.vocab_size, block_size=512, n_layer=2, n_embd=32), tokenizer).eval()
for p in model.parameters(): p.data.mul_(4)
pause = 0.
model.blocks[0].register_forward_pre_hook(lambda *_: time.sleep(pause))
talk = chat(model, max_new_tokens=40)
box = ChatBox(talk, Machine(1e11, 1e10, 1e-6)); live = box.widget()'''

def test_a_live_chat_in_jupyterlab(open_notebook, lab):
    cells = [nbformat.v4.new_code_cell(c, id=f'cell{i}') for i, c in enumerate((TALK, 'live'))]
    kernel = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), lab[1]/'chat.ipynb')
    nb = open_notebook('chat.ipynb').run_all(); page, card = nb.page, nb.widgets().first; card.wait_for()
    field, answers = card.get_by_label('Your message'), card.locator('.facts')
    field.click(); page.keyboard.type('a b dd 00 m x?'); page.keyboard.press('Shift+Enter')
    page.keyboard.type('<b>é'); page.keyboard.press('Enter')         # JupyterLab takes none of these keys
    answers.wait_for()
    asked = 'a b dd 00 m x?\n<b>é'
    assert value(nb, 'talk.messages[0]["content"]') == asked and page.locator('.jp-Cell').count() == 2
    nb.python('print("".join(talk.say("what is a token?")))')         # from a cell, into the same cache
    say(card, 'a word'); answers.nth(2).wait_for()
    check_chat(card, value(nb, 'box.data'))
    assert value(nb, 'len(talk.turns)') == 3

    nb.python('pause = .3')
    grown = growing(card, say(card, 'a piece'))                                # token by token
    assert nb.python('print(1 + 1)') == '2' and card.get_by_role('button', name='Stop').is_visible()
    field.fill('too soon'); field.press('Enter'); settle(card)
    assert 'One answer at a time' in card.locator('.say').first.inner_text()
    assert field.input_value() == 'too soon'
    field.press('Escape'); answers.nth(3).wait_for()
    assert 'stopped' in answers.nth(3).inner_text()
    last = card.locator('.log p').last.text_content().removeprefix('Model: ')
    assert _plain(value(nb, 'talk.messages[-1]["content"]')) == last and last.startswith(grown)

    field.fill(''); growing(card, say(card, 'a word'))
    card.get_by_role('button', name='■ Stop').click()
    answers.nth(4).wait_for()
    assert 'stopped' in answers.nth(4).inner_text()
    growing(card, say(card, 'a word'))                           # a cell speaks, which Jupyter runs beside it
    assert nb.python('pause = 0.; print("".join(talk.say("a piece")) != "")') == 'True'
    answers.nth(5).wait_for(); assert 'stopped' in answers.nth(5).inner_text()
    say(card, 'a'*9000); card.get_by_text('ValueError: ').wait_for()           # one line, and nothing is lost
    assert field.input_value() == 'a'*9000 and answers.count() == 7
    say(card, 'a word'); answers.nth(7).wait_for()
    check_chat(card, value(nb, 'box.data'))
    dark(page); check_dark(card)
    assert page.bad == []

def say(card, text):
    "Say it; where in the log it will stand."
    at = card.locator('.log > div').count()
    card.get_by_label('Your message').fill(text); card.get_by_role('button', name='Send').click()
    return at

def growing(card, at):
    "Wait until the answer at a place in the log has grown twice; what it was then."
    words = card.locator('.log > div').nth(at).locator('.answer span').last
    longer = '([e, n]) => e.textContent.length > n'
    wait = lambda n: card.page.wait_for_function(longer, arg=[words.element_handle(), n])
    wait(1); seen = words.text_content(); wait(len(seen))
    assert words.text_content().startswith(seen)
    return seen

# how many widgets; lesson 03 has a picture that grows, and trains for a minute
LESSONS = {'01_attention': 1, '04_decode': 2, '05_kv_cache': 3, '10_batching': 1, 'conversation': 1}

def cut_after_the_last_widget(path):
    "What follows no widget needs; that all of a lesson runs is shown in `test_notebooks`."
    nb = nbformat.read(path, 4)
    last = max(i for i, c in enumerate(nb.cells) if 'tinylm-widget' in str(c.get('outputs')))
    nb.cells = nb.cells[:last+1]
    nbformat.write(nb, path)

@pytest.mark.parametrize('name', LESSONS)
def test_lessons_with_a_widget_in_jupyterlab(open_notebook, lab, name):
    course_model()                                           # in the cache folder before a kernel asks for it
    cut_after_the_last_widget(lab[1]/f'{name}.ipynb')
    nb = open_notebook(f'{name}.ipynb').run_all(); cards = nb.widgets().all()
    assert len(cards) == LESSONS[name]
    if name == '01_attention':
        check_map(cards[0], torch.tensor(value(nb, 'torch.stack(list(maps.values()))[None].tolist()')))
    if name == '04_decode':
        dials, clock = cards
        slide(dials, 'Temperature', .5); slide(dials, 'Top-k', 4); slide(dials, 'Top-p', 1)
        logits = TokenProbabilities(course_model(), 'The "').logits
        check_probabilities(dials, logits, temperature=.5, top_k=5)
        for cause in ('bytes moved', 'tokens read', 'FLOPs'): choose(clock, 'Cause', cause); settle(clock)
        assert clock.locator('rect[data-series="0"]').count() == 2*128
    if name == '05_kv_cache':
        phases, chunks, clock = cards
        slide(phases, 'Prompt', 10); slide(phases, 'Pass', 15)
        assert facts(phases) == work([10] + [1]*19, 15)
        phases.get_by_label('without a cache').check(); settle(phases)
        assert phases.locator('.t.redo').count() == 24
        slide(chunks, 'Pass', 2); assert facts(chunks) == work([7, 1, 12, 9], 2)
        shown = 'DecodeTimeline(lines, model.tokenizer, model.tokenizer.decode(prompt[0])).data'
        check_timeline(clock, value(nb, shown))
    if name == 'conversation':
        assert value(nb, 'len(box.data["turns"])') == 5
        check_chat(cards[0], value(nb, 'box.data'))
    if name == '10_batching':
        records = value(nb, '{name: e.record() for name, e in engines.items()}')
        check_batches(cards[0], records, lambda t: _label(course_model().tokenizer.decode([t])))
        cards[0].locator('svg.plot').first.press('ArrowDown'); check_request(cards[0], records, 0)
    dark(nb.page); check_dark(cards[0])
    assert nb.page.bad == []
