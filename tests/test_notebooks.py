"Every notebook runs from a fresh kernel, and every exercise has a check that tells right from wrong."
import ast, json, os, re, sys
from collections import defaultdict

import nbformat
import pytest
from conftest import ROOT
from helpers import sets_up
from nbclient import NotebookClient

sys.path.insert(0, str(ROOT/'tools'))
from lessons import EXERCISE, measure

NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))         # lesson 03 trains the model that later ones load
LESSONS = [p for p in NOTEBOOKS if p.name[0].isdigit()]
SOLUTION = re.compile(r'<summary>Solution</summary>\s*```python\n(.*?)```', re.S)
ANSWER = re.compile(r'^# (\w+) (right|wrong): (.+)\n((?:(?!# \w+ (?:right|wrong):).*\n)*)', re.M)
names = lambda p: p.stem

def cells(path): return nbformat.read(path, 4).cells

def answers(path):
    "Other answers to the exercises of a lesson: by name, (right or wrong, why, code)."
    found, file = defaultdict(list), ROOT/'tests'/'answers'/f'{path.stem}.py'
    for name, kind, why, code in ANSWER.findall(file.read_text() if file.exists() else ''):
        found[name].append((kind, why, code))
    return found

def name_of(stub): return re.search(r'^(?:def |class )?(\w+)', stub, re.M)[1]

def with_answers(nb, path):
    "After each exercise and its check: other answers, the solution, each with the check again."
    out, checks, others, code = [], [], answers(path), []
    for c in nb.cells:
        out.append(c)
        if c.cell_type == 'code': code.append(c.source); continue
        (stub, *check), code = code or [''], []
        if not (m := SOLUTION.search(c.source)): continue
        check = '\n'.join(check)                            # all between the cell to fill in and the solution
        checks.append((len(out)-2, 'wrong', 'an empty answer', check))
        for kind, why, answer in [*others.pop(name_of(stub), []), ('right', 'the solution', m[1])]:
            out += [nbformat.v4.new_code_cell(answer), nbformat.v4.new_code_cell(check)]
            checks.append((len(out)-1, kind, why, check))
    assert not others, f'answers to no exercise: {list(others)}'
    nb.cells = out
    return checks

def printed(cell): return ''.join(o.get('text', '') for o in cell.outputs if o.get('name') == 'stdout')

def run_all(nb):
    place = {'metadata': {'path': ROOT/'nbs'}}
    NotebookClient(nb, timeout=600, kernel_name='python3', resources=place).execute()

@pytest.mark.slow
@pytest.mark.trained
@pytest.mark.parametrize('path', NOTEBOOKS, ids=names)
def test_run_all_from_a_fresh_kernel(path, request):
    if path.stem.startswith('13'): request.getfixturevalue('demo')
    nb = nbformat.read(path, 4)
    checks = with_answers(nb, path)
    run_all(nb)
    for at, kind, why, check in checks:
        said = printed(nb.cells[at])
        assert said.startswith('Right.' if kind == 'right' else 'Not yet'), f'{why}: {said}\n{check}'

AGAIN = """
import contextlib as _c, io as _i, time as _t
_end, _said = _t.time() + 3, []
while _t.time() < _end and len(_said) < 400:
    with _c.redirect_stdout(_i.StringIO()) as _out: exec({check!r}, globals())
    _said.append(_out.getvalue().startswith('Right.'))
print(sum(_said), len(_said))
"""

@pytest.mark.slow
@pytest.mark.trained
@pytest.mark.skipif('TINYLM_LONG' not in os.environ, reason='TINYLM_LONG=1 runs it: minutes')
@pytest.mark.parametrize('path', LESSONS, ids=names)
def test_a_check_that_draws_its_cases_judges_the_same_each_time(path):
    nb = nbformat.read(path, 4)
    checks = [c for c in with_answers(nb, path) if c[1:3] != ('wrong', 'an empty answer')]
    for at, *_, check in checks: nb.cells[at].source = AGAIN.format(check=check)
    run_all(nb)
    for at, kind, why, _ in checks:
        right, n = map(int, printed(nb.cells[at]).split()[-2:])
        assert right == (n if kind == 'right' else 0), f'{why}: {right} of {n}'

@pytest.mark.parametrize('path', LESSONS, ids=names)
def test_every_lesson_has_its_parts(path):
    text = '\n'.join(c.source for c in cells(path) if c.cell_type == 'markdown')
    title, promise = text.splitlines()[0], text.splitlines()[2]
    assert title.startswith(f'# {path.stem[:2]} · ') and promise.startswith('> ')
    assert '**You need**' in text and '**It takes**' in text
    exercises = [number for number, _ in EXERCISE.findall(text)]
    assert 3 <= len(exercises) <= 5 and exercises == [str(i+1) for i in range(len(exercises))]
    assert text.count('### Exercise') == len(exercises) == text.count('<summary>Hint</summary>')
    assert len(SOLUTION.findall(text)) == len(exercises)
    assert '## To read' in text and len(re.findall(r'\(\d{4}\)', text.split('## To read')[1])) >= 3

@pytest.mark.parametrize('path', LESSONS, ids=names)
def test_an_exercise_has_wrong_answers_of_five_kinds_and_another_right_one(path):
    found = answers(path)
    assert len(found) == measure(path)['exercises']
    for name, others in found.items():
        kinds = [kind for kind, *_ in others]
        assert kinds.count('wrong') >= 5 and 'right' in kinds, name
        assert len({why for _, why, _ in others}) == len(others), name

@pytest.mark.parametrize('path', LESSONS, ids=names)
def test_a_lesson_is_one_sitting_of_small_cells_that_show_something(path):
    m = measure(path)
    assert m['median'] <= 6 and m['90th'] <= 15 and m['shown'] >= 1/3, m
    assert 1200 <= m['words'] <= 2500 and m['text per code'] >= .6, m
    assert 4 <= m['predictions'] <= 6 and m['breaks'] and m['first shown'] <= 10, m

@pytest.mark.parametrize('path', NOTEBOOKS, ids=names)
def test_saved_outputs_are_there_and_clean(path):
    code = [c for c in cells(path) if c.cell_type == 'code']
    outputs = [o for c in code for o in c.outputs]
    assert outputs and not [o for o in outputs if o.output_type == 'error']
    assert not [o.text for o in outputs if o.get('name') == 'stderr' and 'Warning' in o.text]
    bars = [o for o in outputs if o.output_type == 'stream' and o.text.count('\r') > 20]
    assert not bars                                                       # all frames of a progress bar
    text = json.dumps(outputs)
    assert str(ROOT) not in text and os.path.expanduser('~') + '/' not in text and '/tmp/' not in text
    assert all(c.execution_count is None for c in code)                   # nbdev_clean has been here

FOLD, HEADING = re.compile(r'^#\| (code-fold: true|hide)$', re.M), re.compile(r'^## ', re.M)

@pytest.mark.parametrize('path', NOTEBOOKS, ids=names)
def test_jupyterlab_folds_what_the_site_folds_and_what_a_lesson_imports(path):
    begun = path not in LESSONS                           # imports of later cells, or of a page, are shown
    for c in cells(path):
        begun = begun or c.cell_type == 'markdown' and bool(HEADING.search(c.source))
        if c.cell_type != 'code': continue
        if FOLD.search(c.source) or not begun and all(map(sets_up, ast.parse(c.source).body)):
            assert c.metadata.get('jupyter', {}).get('source_hidden'), f'collapse this cell: {c.source[:80]}'
