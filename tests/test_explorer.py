"The cost explorer: the sums of its page against lesson 06, on random shapes, and every control moved."
import random
from importlib.resources import files

import pytest

from tinylm.cost import Machine
from tinylm.explorer import MACHINES, MODELS, _LLAMA, CostExplorer, _limits, _shape
from tinylm.model import LMConfig

def any_setting(r):
    "A random model, machine and load: (config, machine, memory, load)."
    H, D, shared = r.choice((1, 2, 3, 8)), 2*r.randint(1, 40), r.choice((1, 2))
    blocks = dict(_LLAMA, qk_norm=r.random() < .5) if r.random() < .5 else {}
    config = LMConfig(r.randint(2, 10**5), r.randint(1, 5000), r.randint(1, 90), H*shared,
                      r.choice((H*shared*D, r.randint(1, 900))), n_kv_head=H, head_dim=D,
                      n_inner=r.randint(1, 3000), tie_embeddings=r.random() < .5, **blocks)
    machine = Machine(10**r.uniform(9, 16), 10**r.uniform(8, 13), 0)
    load = {'context': r.randint(1, 10**5), 'batch': r.randint(1, 500),
            'weight_bytes': r.choice((4, 2, 1, .5)), 'cache_bytes': r.choice((4, 2, 1))}
    return config, machine, 10**r.uniform(8, 13), load

def want(config, machine, memory, load):
    "What lesson 06 says of the two phases, and lesson 05 of the caches."
    def cost(T, past, B):
        c = config.pass_cost(T, past, B, last_only=True, itemsize=1)
        c.weight_bytes *= load['weight_bytes']
        c.cache_read, c.cache_written = (n*load['cache_bytes'] for n in (c.cache_read, c.cache_written))
        return c
    P, B = load['context'], load['batch']
    row, weights = config.cache_bytes(1, P + 1, load['cache_bytes']), config.n_params*load['weight_bytes']
    costs = cost(P, 0, 1), cost(1, P, B)
    return {'params': config.n_params, 'row': row, 'rows': max(0, (memory - weights)//row),
            'seconds': [machine.seconds(c) for c in costs], 'flops': [c.flops for c in costs],
            'weights': [c.weight_bytes for c in costs],
            'caches': [c.cache_read + c.cache_written for c in costs]}

PRICED = """all => all.map(s => { const p = priced(s), phases = [p.prefill, p.decode]; return {
    params: p.params, row: p.row, rows: p.rows, seconds: [p.ttft.seconds, p.tpot.seconds],
    flops: phases.map(c => c.flops), weights: phases.map(c => c.weightBytes),
    caches: phases.map(c => c.cacheBytes) }; })"""

def test_the_page_computes_what_lesson_06_computes(show):
    settings = [any_setting(random.Random(i)) for i in range(200)]
    states = [_shape(c) | _limits(m, memory) | load for c, m, memory, load in settings]
    page = show('')
    static = files('tinylm')/'static'
    page.add_script_tag(content='\n'.join((static/f).read_text() for f in ('base.js', 'costs.js')))
    for setting, got in zip(settings, page.evaluate(PRICED, states)):
        for key, value in want(*setting).items():
            assert got[key] == pytest.approx(value, rel=1e-12), (key, setting)

def test_every_control_changes_what_it_should(show):
    card = show(CostExplorer('GPT-2 small', 'laptop').to_html()).locator('.tlm')
    first = card.locator('.big').inner_text()
    for slider in card.get_by_role('slider').all():
        name, before = slider.get_attribute('aria-label'), card.inner_text()
        there, back = ('ArrowLeft', 'ArrowRight')[::-1 if slider.input_value() == '0' else 1]
        slider.press(there); card.page.wait_for_timeout(60)
        assert card.inner_text() != before, name
        slider.press(back); card.page.wait_for_timeout(60)
    assert card.locator('.big').inner_text() == first                  # there and back
    for picker in ('Model', 'Machine'):
        box = card.get_by_label(picker, exact=True)
        for name in (MODELS if picker == 'Model' else MACHINES):
            box.select_option(name); card.page.wait_for_timeout(40)
            assert box.input_value() == name
    card.get_by_label('Layers', exact=True).press('ArrowLeft'); card.page.wait_for_timeout(40)
    assert card.get_by_label('Model', exact=True).input_value() == ''  # nobody's any more
    for what, value in (('Weights', '½'), ('Cache', '1'), ('Blocks', 'GPT-2'), ('Head', 'tied')):
        before = card.inner_text()
        card.get_by_role('group', name=what, exact=True).get_by_text(value, exact=True).click()
        card.page.wait_for_timeout(40)
        assert card.inner_text() != before, what

@pytest.mark.parametrize('about', [dict(color_scheme='dark'), dict(viewport={'width': 390, 'height': 800})])
def test_it_fits_on_a_phone_and_into_the_dark(show, about):
    page = show(CostExplorer().to_html(), **about)
    page.wait_for_timeout(100)
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    assert page.locator('.tlm').get_attribute('data-theme') == about.get('color_scheme', 'light')

def test_models_have_the_sizes_that_their_names_say():
    sizes = {'GPT-2 small': 124e6, 'SmolLM2 135M': 135e6, 'Qwen3 0.6B': .6e9, 'Llama 2 7B': 6.74e9,
             'Llama 3.1 8B': 8.03e9, 'Llama 3.1 70B': 70.6e9}
    for name, n in sizes.items(): assert MODELS[name].n_params == pytest.approx(n, rel=.01), name

def test_what_it_shows_without_scripts_is_lesson_06():
    e = CostExplorer('Llama 3.1 8B', 'A100', context=2000, batch=8)
    machine, config = MACHINES['A100'][0], MODELS['Llama 3.1 8B']
    first = machine.seconds(config.pass_cost(2000, last_only=True, itemsize=2))
    each = machine.seconds(config.pass_cost(1, 2000, 8, last_only=True, itemsize=2))
    assert f'{first:.2g} s' in repr(e) and f'{each:.2g} s' in repr(e)
    assert e.to_html().isascii()

def test_a_shape_or_a_machine_of_ones_own_is_shown_first():
    mine, machine = LMConfig(300, 99, 3, 2, 32), Machine(1e9, 2e9, 1e-6)
    e = CostExplorer(mine, machine, memory=5e9)
    assert e.chosen.items() >= (_shape(mine) | _limits(machine, 5e9)).items()
    assert {'yours'} == set(e.data['models']) - set(MODELS) == set(e.data['machines']) - set(MACHINES)

@pytest.mark.parametrize('bad, words', [
    (dict(model='Llama 9'), 'model is'), (dict(machine='abacus'), 'machine is'),
    (dict(model=LMConfig(norm='rms')), 'expected blocks of GPT-2 or Llama'),
    (dict(model=LMConfig(qkv_bias=False)), 'expected blocks'), (dict(context=0), 'context is 0'),
    (dict(batch=-1), 'batch is -1'), (dict(memory=0), 'memory is 0')])
def test_what_makes_no_sense_is_refused_in_one_line(bad, words):
    with pytest.raises(ValueError, match=words) as e: CostExplorer(**bad)
    assert '\n' not in str(e.value)
