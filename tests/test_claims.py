"What the lessons say is what their cells show."
import sys

import pytest
import yaml
from conftest import ROOT
from hypothesis import assume, given, strategies as st

sys.path.insert(0, str(ROOT/'tools'))
from claims import data, holds, unexplained, unsupported

EXPLAINED = yaml.safe_load((ROOT/'tools/claims.yml').read_text(encoding='utf-8'))
PAGES = sorted((ROOT/'nbs').glob('*.ipynb'))

@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_numbers_and_comparisons_in_prose_are_shown_or_explained(path):
    left, stale = unexplained(path, EXPLAINED.get(path.stem, {}))
    assert not left, left
    assert not stale, f'nothing needs these explanations: {stale}'

def test_explanations_are_of_pages_and_give_a_reason():
    assert EXPLAINED.keys() <= {p.stem for p in PAGES}
    for page in EXPLAINED.values():
        assert all(len(words) > 5 and len(reason) > 5 for words, reason in page.items()), page

# --- the script finds what it should find

def notebook(prose, code='x = y', output='', between=()):
    cell = lambda kind, source: dict(id=f'{kind}{source[:4]}', cell_type=kind, source=source, outputs=[])
    cells = [cell('markdown', prose), *(cell('markdown', t) for t in between), cell('code', code)]
    cells[-1]['outputs'] = [dict(output_type='stream', text=output)]
    return dict(cells=cells)

def claims(*args, **kw): return [claim for _, claim, _ in unsupported(notebook(*args, **kw))]

numbers = st.decimals(2, 9999, places=2).map(lambda d: f'{d:,}')

@given(numbers, numbers)
def test_a_number_is_found_unless_a_cell_of_its_section_holds_it(said, shown):
    prose = f'The result is {said} here.'
    assume(not holds(said, data(shown)))
    assert claims(prose, output=f'the loss is {shown} nats') == [said]
    assert claims(prose, output=f'{shown} {said}') == []
    assert claims(prose, code=f'f({said})') == []
    assert claims(prose, output=said, between=['## Another section']) == [said]
    assert claims(f'Call `f({said})`, where $x = {said}$ and [it](page{said}.html) is.') == []

@given(st.floats(2, 999))
def test_a_rounded_number_and_a_percentage_are_what_they_round(x):
    assert claims(f'About {x:.1f}.', output=f'{x:.4f}') in ([], [f'{x:.1f}'])     # halves round either way
    assert claims(f'About {x:.0f}%.', output=repr(round(x)/100)) == []
    assert claims(f'About {x + 1:.1f}.', output=f'{x:.4f}') == [f'{x + 1:.1f}']

@pytest.mark.parametrize('sentence', ['Decode is slower than prefill.', 'It never fails.', 'It takes half.',
                                      'A third of it is read.', 'The model wins.', 'It is twice the size.'])
def test_a_comparison_needs_an_assertion_or_numbers_near_it(sentence):
    assert claims(sentence) and claims(sentence, output='done')
    assert claims(sentence, code='assert a < b') == claims(sentence, output='1.5 against 2.5') == []
    assert claims(sentence, code='assert a < b', between=['One.', 'Two.', 'Three.'])

@pytest.mark.parametrize('plain', ['See lesson 07.', 'Vaswani et al. (2017).', 'Python 3.11.',
                                   'It costs 2·P.', 'See [04 · Decode](04_decode.ipynb).'])
def test_names_and_formulas_are_no_claims(plain): assert claims(plain) == []
