"Notebooks, package, README and site say the same."
import ast, importlib.util, inspect, os, re, runpy, shutil, signal, sys
from collections import Counter
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from conftest import ROOT
from helpers import run, run_python, sets_up
from packaging.requirements import Requirement

import tinylm
from tinylm import cli

sys.path.insert(0, str(ROOT/'tools'))
from arguments import table
from finish_site import finish, ways
from pages import argument_tables, fold_source
from readme import readme

MODULES = sorted(p.stem for p in (ROOT/'tinylm').glob('*.py')
                 if p.stem not in ('__init__', '_modidx', '__main__'))
PAGES = sorted((ROOT/'nbs').glob('*.ipynb'))

def markdown(path):
    return '\n\n'.join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == 'markdown')

# --- the package is its notebooks

@pytest.mark.slow
def test_clean_and_export_change_nothing(tmp_path, monkeypatch):
    "On a copy whose modules are deleted first; so no module can be left over that has no notebook."
    monkeypatch.delenv('IN_TEST', raising=False)
    for name in ('settings.ini', '_quarto.yml', 'pyproject.toml'): shutil.copy(ROOT/name, tmp_path/name)
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs', symlinks=True,
                    ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    (tmp_path/'tinylm').mkdir()
    run_python('-c', 'from nbdev.clean import nbdev_clean; from nbdev.doclinks import nbdev_export; '
                     'nbdev_clean(); nbdev_export()', cwd=tmp_path, check=True)
    files = lambda folder, pattern: {p.name: p.read_text() for p in folder.glob(pattern)}
    for folder, pattern in (('tinylm', '*.py'), ('nbs', '*.ipynb')):
        old, new = files(ROOT/folder, pattern), files(tmp_path/folder, pattern)
        assert old.keys() == new.keys()
        changed = [name for name in old if old[name] != new[name]]
        assert changed == [], 'run `make export` and commit what it changes'

def test_a_module_imports_only_from_lower_numbers():
    made_by = {re.search(r'#\| default_exp (\w+)',
        '\n'.join(c.source for c in nbformat.read(p, 4).cells))[1]: p.stem for p in PAGES
        if p.name[0].isdigit()}
    for module, lesson in made_by.items():
        source = (ROOT/'tinylm'/f'{module}.py').read_text()
        for used in re.findall(r'^from \.(\w+) import', source, re.M):
            assert used in ('core', 'subwords') or made_by[used] < lesson, f'{module} imports {used}'
    assert not re.search(r'^from \.', (ROOT/'tinylm'/'core.py').read_text(), re.M)
    subwords = (ROOT/'tinylm'/'subwords.py').read_text()
    assert set(re.findall(r'^from \.(\w+) import', subwords, re.M)) <= {'core', 'data'}

def test_import_tinylm_is_the_whole_of_it():
    public = [name for m in MODULES if m not in ('cli', 'old', '__main__')
              for name in importlib.import_module(f'tinylm.{m}').__all__]
    assert sorted(tinylm.__all__) == sorted(public) and len(set(public)) == len(public)
    space = {}
    exec('from tinylm import *', space)
    assert set(public) <= space.keys()

def test_every_public_name_is_on_the_page_of_names():
    cells = nbformat.read(ROOT/'nbs'/'api.ipynb', 4).cells
    shown = ''.join(o.data['text/markdown'] for c in cells if c.cell_type == 'code' for o in c.outputs)
    assert [n for n in tinylm.__all__ if f'[`{n}`]' not in shown] == []

def made(name): return inspect.isclass(thing := getattr(tinylm, name)) or inspect.isroutine(thing)

def test_the_page_of_names_says_how_each_is_called_and_what_its_arguments_mean():
    cells = nbformat.read(ROOT/'nbs'/'api.ipynb', 4).cells
    shown = ''.join(o.data['text/markdown'] for c in cells if c.cell_type == 'code' for o in c.outputs)
    calls = re.findall(r'^\*\*\[`(\w+)(?:\(.*\))?`\]\(\w+\.ipynb#(\w+)\)\*\*$', shown, re.M)
    assert [name for name, _ in calls] == [n for n in tinylm.__all__ if made(n)]        # each of them once
    assert all(anchor == name.lower() for name, anchor in calls)
    assert [n for n in tinylm.__all__ if made(n) and table(getattr(tinylm, n)) not in shown] == []

def documented(name, module='model', text='*What it does.*'):
    source = f'[source](https://github.com/a/b/blob/main/tinylm/{module}.py#L3){{target="_blank"}}'
    shown = f'---\n\n{source}\n\n### {name}\n\n```python\ndef {name}(\n    x, # a number\n):\n```\n\n{text}'
    data = {'text/markdown': shown}
    return nbformat.v4.new_code_cell(f'#| echo: false\nshow_doc({name})', outputs=[
        nbformat.v4.new_output('execute_result', data)])

def test_a_signature_stands_once_and_its_arguments_in_a_table():
    "On the page of a lesson, where the code stands below."
    for name, row in (('LanguageModel.prefill', '| `idx` | `Tensor` |  | (B, T) token ids, T at most'),
                      ('LMConfig', '| `n_kv_head` | `int` or `None` | `None` |')):
        argument_tables(cell := documented(name))
        text = cell.outputs[0].data['text/markdown']
        assert '```' not in text and '[source](' in text and f'### {name}' in text
        assert text.index('*What it does.*') < text.index('| argument | type |') < text.index(row)
    argument_tables(cell := documented('phase_invariant', 'decoding'))
    assert '| `k` | `int` |  | the cut, from 1 to T |' in cell.outputs[0].data['text/markdown']
    for cell in (nbformat.v4.new_markdown_cell('show_doc(x)'), nbformat.v4.new_code_cell('1 + 1')):
        before = dict(cell); argument_tables(cell); assert cell == before

def test_the_page_of_the_command_line_shows_the_help_of_each_command_and_folds_its_source(tmp_path):
    path = ROOT/'nbs'/'cli.ipynb'
    cells = nbformat.read(path, 4).cells
    shown = '\n'.join(o.data['text/markdown'] for c in cells if c.cell_type == 'code' for o in c.outputs
                      if 'text/markdown' in o.get('data', {}))
    commands, = [a.choices for a in cli._parser()._actions if a.dest == 'command']
    for name, parser in commands.items():
        begin = shown.index(f'| `tinylm {name}` |')
        rows = shown[begin:].split('\n| `tinylm ')[0].split('\n')[2:]
        actions = [a for a in parser._actions if a.dest != 'help']
        assert [re.match(r'\| `(-[\w-]+)', r)[1] for r in rows] == [a.option_strings[0] for a in actions]
        for row, a in zip(rows, actions): assert row.endswith(f'{parser._get_formatter()._expand_help(a)} |')
    for name, kind in (('cli', 'true'), ('04_decode', 'show')):
        nb = type('Notebook', (dict,), {'path_': f'nbs/{name}.ipynb'})(cells=[])
        cell = nbformat.v4.new_code_cell('#| code-fold: show\n#| code-summary: "Exported source"\nx = 1')
        fold_source(nb).cell(cell)
        assert cell.source.startswith(f'#| code-fold: {kind}\n')

def test_every_public_function_has_a_docstring_and_a_comment_for_each_argument():
    for module in MODULES:
        source = (ROOT/'tinylm'/f'{module}.py').read_text()
        tree, lines = ast.parse(source), source.splitlines()
        functions = [n for c in [tree,
            *(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != '_')] for n in c.body
            if isinstance(n, (ast.FunctionDef, ast.ClassDef))
            and not (n.name.startswith('_') and n.name != '__init__')]
        for f in functions:
            if f.name == 'attend' and f.args.args[-1].lineno == f.lineno: continue  # `Pass` documents it
            if f.name != '__init__': assert ast.get_docstring(f), f'{module}.{f.name} has no docstring'
            if isinstance(f, ast.ClassDef): continue
            for a in [*f.args.args, *f.args.kwonlyargs]:
                if a.arg not in ('self', 'cls'):
                    assert re.search(r'#\s*\S',
                                     lines[a.lineno-1]), f'{module}.{f.name}: {a.arg} has no comment'

def test_the_phases_are_marked_where_they_happen():
    source = {m: (ROOT/'tinylm'/f'{m}.py').read_text() for m in ('model', 'training', 'decoding')}
    assert '# PREFILL PHASE' in source['model'] and '# PREFILL PHASE' in source['training']
    assert '# DECODE PHASE' in source['decoding']

def test_the_library_never_unpickles():
    for module in MODULES:
        source = (ROOT/'tinylm'/f'{module}.py').read_text()
        assert not re.search(r'pickle|torch\.load|torch\.save|weights_only', source), module

# --- the shape of the sources

def sources(): return {m: ast.parse((ROOT/'tinylm'/f'{m}.py').read_text()) for m in MODULES}

def code_cells(path): return [c.source for c in nbformat.read(path, 4).cells if c.cell_type == 'code']

def test_blocks_know_a_pass_and_no_cache():
    for part in (tinylm.Block, tinylm.CausalSelfAttention):
        assert list(inspect.signature(part.forward).parameters) == ['self', 'x', 'p', 'layer']
    for part in (tinylm.Block, tinylm.CausalSelfAttention, tinylm.MLP):
        assert 'cache' not in inspect.getsource(part)

def asks_for_a_cache(node):
    "A comparison of a cache with None, or a test of whether there is one."
    is_cache = lambda n: isinstance(n, ast.Name) and n.id == 'cache' or isinstance(n,
        ast.Attribute) and n.attr == 'cache'
    if isinstance(node, ast.Compare):
        return is_cache(node.left) and any(isinstance(c, ast.Constant) and c.value is None
                                           for c in node.comparators)
    tests = [node.test] if isinstance(node,
        (ast.If, ast.IfExp, ast.While)) else node.values if isinstance(node,
            ast.BoolOp) else [node.operand] if isinstance(node, ast.UnaryOp) else []
    return any(map(is_cache, tests))

def test_only_begin_and_the_law_ask_whether_there_is_a_cache():
    who = {(m, f.name) for m, tree in sources().items() for f in ast.walk(tree)
           if isinstance(f, ast.FunctionDef) and any(map(asks_for_a_cache, ast.walk(f)))}
    assert who == {('model', 'begin'), ('crew', 'takes'), ('decoding', 'phase_gap'),
                   ('pretrained', '_adapt'), ('pretrained', 'prefill')}     # the law, for models of others

def test_no_lesson_redefines_what_another_has_defined():
    "Functions, classes and methods of all exported cells; the page of old names is not a lesson."
    seen = Counter()
    for m, tree in sources().items():
        if m == 'old': continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                seen.update([node.name, *(f'{node.name}.{f.name}' for f in node.body
                                          if isinstance(f, ast.FunctionDef))])
            if isinstance(node, ast.FunctionDef):
                patched = any('patch' in ast.unparse(d) for d in node.decorator_list)
                seen[f'{ast.unparse(node.args.args[0].annotation)}.{node.name}' if patched
                     else f'{m}.{node.name}' if node.name[0] == '_' else node.name] += 1
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
                seen[ast.unparse(node.targets[0])] += 1
    assert [name for name, n in seen.items() if n > 1] == []

def test_private_names_stay_in_their_module():
    trees = [*sources().values(),
             *(ast.parse(c) for p in PAGES for c in code_cells(p) if not c.startswith('%'))]
    taken = [a.name for t in trees for n in ast.walk(t) if isinstance(n, ast.ImportFrom)
        and (n.level or (n.module or '').startswith('tinylm')) for a in n.names if re.match('_[a-z]', a.name)]
    assert taken == []

def test_no_line_is_longer_than_110():
    "`__all__` and `_modidx.py` are written by nbdev, and a directive of nbdev has to stand in one line."
    long = []
    for m in MODULES:
        tree = ast.parse(source := (ROOT/'tinylm'/f'{m}.py').read_text())
        free = {n for a in tree.body if isinstance(a, ast.Assign)
                and ast.unparse(a.targets[0]) == '__all__' for n in range(a.lineno, a.end_lineno + 1)}
        long += [f'{m}:{i}' for i, l in enumerate(source.splitlines(), 1) if len(l) > 110
                 and i not in free and not l.startswith('"""')]
    assert long == []

def test_ruff_has_nothing_to_say():
    done = run_python('-m', 'ruff', 'check', '--output-format', 'concise', '.', cwd=ROOT)
    assert done.returncode == 0, done.stdout

# --- packaging

def test_the_package_runs_without_notebook_tools():
    "Jupyter, nbdev and matplotlib are for the course; the installed package must not need them."
    blocked = ['IPython', 'nbdev', 'matplotlib', 'ipywidgets', 'anywidget', 'traitlets', 'playwright',
               'jupyterlab', 'execnb', 'nbclient', 'nbformat', 'yaml', 'pytest', 'hypothesis']
    code = (f'import sys\nfor m in {blocked}: sys.modules[m] = None\n'
            'import tinylm, tinylm.cli\nprint(tinylm.LanguageModel().config.n_params)')
    assert int(run_python('-c', code, check=True).stdout) > 0

def settings():
    config = ConfigParser(); config.read(ROOT/'settings.ini', encoding='utf-8')
    return config['DEFAULT']

def test_every_runtime_dependency_is_imported_and_justified():
    sources = '\n'.join(p.read_text() for p in (ROOT/'tinylm').glob('*.py'))
    used = set(re.findall(r'^(?:from|import) (\w+)', sources,
                          re.M)) - set(sys.stdlib_module_names) - {'tinylm', 'pydoc_data'}
    declared = {re.split(r'[<>=]', r)[0] for r in settings()['requirements'].split()}
    assert used <= declared
    reasons = (ROOT/'CONTRIBUTING.md').read_text()
    assert [d for d in declared if f'`{d}`' not in reasons] == []

def test_the_version_has_one_source():
    assert tinylm.__version__ == settings()['version']
    assert f"## {settings()['version']}" in (ROOT/'CHANGELOG.md').read_text()

def test_the_citation_is_that_of_the_settings():
    cite, cfg = yaml.safe_load((ROOT/'CITATION.cff').read_text()), settings()
    assert (cite['title'], cite['version'], cite['repository-code']) == (cfg['title'], cfg['version'],
                                                                         cfg['git_url'])
    assert cite['authors'] == [{'name': cfg['author']}] and 'doi' not in cite

def test_every_flag_of_a_dataclass_is_explained():
    assert {f.name for f in [*cli._SHAPE, *cli._RECIPE]} == cli._ABOUT.keys()

@pytest.mark.slow
def test_both_distributions_build_and_the_installed_package_works(tmp_path):
    "The wheel is built from the source distribution, so that this holds all that is needed."
    pytest.importorskip('setuptools')
    for name in ('settings.ini', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE'):
        shutil.copy(ROOT/name, tmp_path/name)
    shutil.copytree(ROOT/'tinylm', tmp_path/'tinylm', ignore=shutil.ignore_patterns('__pycache__'))
    build = lambda call, where: run_python('-c', f'from setuptools import build_meta as b; b.{call}(".")',
                                           cwd=where, check=True)
    build('build_sdist', tmp_path)
    archive, = tmp_path.glob('tinylm-*.tar.gz')
    shutil.unpack_archive(archive, tmp_path/'out')
    unpacked, = (tmp_path/'out').iterdir()
    build('build_wheel', unpacked)
    wheel, = unpacked.glob('tinylm-*.whl')
    run_python('-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', tmp_path/'site', wheel,
               check=True)
    static = lambda folder: {p.name for p in (folder/'tinylm'/'static').iterdir()}
    assert static(tmp_path/'site') == static(ROOT)
    env = os.environ | {'PYTHONPATH': str(tmp_path/'site')}
    said = run_python(tmp_path/'site'/'bin'/'tinylm', '--version', env=env, check=True).stdout
    where = run_python('-c', 'import tinylm; print(tinylm.__file__)', cwd=tmp_path/'out', env=env).stdout
    assert said == f"tinylm {settings()['version']}\n"
    assert Path(where.strip()) == tmp_path/'site'/'tinylm'/'__init__.py'

# --- whoever joins

PYTHONS = ['3.10', '3.11', '3.12', '3.13']

def workflows():
    return {p.stem: yaml.safe_load(p.read_text()) for p in (ROOT/'.github'/'workflows').glob('*.yml')}

def test_each_python_has_its_tests():
    jobs = workflows()['test']['jobs']
    commands = {name: [s['run'] for s in job['steps'] if 'run' in s] for name, job in jobs.items()}
    assert commands == {'all': ['make test'], 'quick': ['make quick']}
    setup = lambda job: next(s['with'] for s in job['steps'] if 'setup-python' in s.get('uses', ''))
    everything, others = setup(jobs['all'])['python-version'], jobs['quick']['strategy']['matrix']['python']
    assert sorted([everything, *others], key=lambda v: int(v.split('.')[1])) == PYTHONS
    assert setup(jobs['quick'])['python-version'] == '${{ matrix.python }}'
    assert PYTHONS[0] == settings()['min_python']

@pytest.mark.parametrize('name', ['test', 'site'])
def test_a_workflow_may_little_ends_and_runs_what_the_makefile_has(name):
    flow = workflows()[name]
    assert flow['permissions'] == {'contents': 'read'} and flow['concurrency']['group']
    assert flow[True]['push']['branches'] == [settings()['branch']]       # YAML reads `on` as true
    targets = re.findall(r'^([\w-]+):', (ROOT/'Makefile').read_text(), re.M)
    for job in flow['jobs'].values():
        assert job['timeout-minutes'] <= 90
        for step in job['steps']:
            if 'uses' in step: assert re.fullmatch(r'[\w-]+(/[\w-]+)+@v\d+', step['uses'])
            else: assert step['run'].split()[0] == 'make' and step['run'].split()[1] in targets

@pytest.mark.parametrize('python', PYTHONS)
def test_the_constraints_hold_each_dependency_at_one_version(python):
    lines, here = (ROOT/'constraints.txt').read_text().splitlines(), {'python_version': python}
    held = [r for r in (Requirement(l) for l in lines if l and l[0] != '#')
            if not r.marker or r.marker.evaluate(here)]
    pins = {r.name: r.specifier for r in held}
    wanted = [Requirement(r) for kind in ('requirements', 'weights_requirements', 'native_requirements',
                                                'serve_requirements', 'dev_requirements')
              for r in settings()[kind].split()]
    assert len(held) == len(pins) and {r.name for r in wanted} == pins.keys()
    for r in wanted:
        pin, = pins[r.name]
        assert pin.operator == '==' and pin.version in r.specifier

def test_the_marks_are_known_and_quick_leaves_both_out(pytestconfig):
    known = {line.split(':')[0] for line in pytestconfig.getini('markers')}
    assert {'slow', 'browser', 'trained'} <= known and '--strict-markers' in pytestconfig.getini('addopts')
    recipe = re.findall(r'-m pytest (.*)', (ROOT/'Makefile').read_text())
    assert recipe == ["-n auto --maxschedchunk 1 -m 'slow or browser'",
                      "-n auto -m 'not slow and not browser'"]

@pytest.mark.slow
def test_quick_runs_no_notebook_and_no_browser_and_something_of_every_file():
    words = '-m pytest --collect-only -q -o addopts= -m'.split()
    listed = run_python(*words, 'not slow and not browser', cwd=ROOT, check=True).stdout
    names = re.findall(r'^tests/(test_\w+\.py)::(\w+)', listed, re.M)
    files = {p.name for p in (ROOT/'tests').glob('test_*.py')}
    assert {file for file, _ in names} == files - {'test_browser.py'}
    assert 'test_run_all_from_a_fresh_kernel' not in {test for _, test in names}

def test_processes_are_started_in_one_place():
    starts = r'\bsubprocess\.(run|Popen|call|check_)|os\.system|preexec[_]fn='
    assert [p.name for p in (ROOT/'tests').glob('*.py') if re.search(starts, p.read_text())] == ['helpers.py']

def test_ctrl_c_works_in_a_process_although_the_tests_were_told_to_ignore_it():
    "As in `make test &` of a shell without job control."
    code = 'import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)'
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try: said = run_python('-c', code).stdout
    finally: signal.signal(signal.SIGINT, before)
    assert said == 'True\n'

def test_the_forms_can_be_filled_in():
    for form in (ROOT/'.github'/'ISSUE_TEMPLATE').glob('*.yml'):
        if form.stem == 'config': continue
        body = yaml.safe_load(form.read_text())['body']
        assert len({field['id'] for field in body}) == len(body)
        assert all(field['attributes']['label'] and field['type'] in ('input', 'textarea', 'dropdown')
                   for field in body)

# --- links and installs

def texts():
    "What people read or copy from, by path."
    patterns = '*.md', 'CITATION.cff', '_quarto.yml', 'Makefile', '.github/**/*.*', 'nbs/*.ipynb', \
        'tinylm/*.py', 'tools/*.py', 'benchmarks/*.py'
    return {p.relative_to(ROOT): p.read_text() for pattern in patterns for p in ROOT.glob(pattern)}

def test_links_to_the_repository_are_those_of_the_settings():
    cfg, seen = settings(), set()
    home, site, more = re.escape(cfg['git_url']), cfg['doc_host'] + cfg['doc_baseurl'], r'[^\s)\]"\'`<>\\]*'
    for path, text in texts().items():
        for link in re.findall(rf'(?:git\+)?https?://{more}/{cfg["repo"]}\b{more}', text):
            if link.startswith(site): continue
            m = re.fullmatch(rf'(?:git\+)?{home}(?:@(.+)|/(?:blob|tree|raw|edit)/([^/]+).*|[/#].*|)', link)
            assert m and {*m.groups()} <= {None, cfg['branch']}, f'{path}: {link}'
            seen.add(str(path))
    assert {'README.md', 'SECURITY.md', 'CITATION.cff'} <= seen

def test_nobody_is_told_to_install_a_bare_name():
    "It may belong to somebody else."
    lib, seen = settings()['lib_name'], 0
    for path, text in texts().items():
        for words in re.findall(r'\bpip3? install ([^\n`]*)', text):
            assert not re.search(rf"(^|[\s'\"]){lib}(?![\w/]| @ git\+)", words), f'{path}: {words}'
            seen += f'{lib} @ git+' in words
    assert seen

# --- README and site

def test_readme_is_the_home_page(): assert (ROOT/'README.md').read_text() == readme(), 'run `make export`'

def test_readme_starts_with_two_commands():
    block = re.search(r'```sh\n(.*?)```', (ROOT/'README.md').read_text(), re.S)[1]
    commands = [line.split('#')[0].strip() for line in block.splitlines()]
    assert commands == ['make demo', 'make test']
    makefile = (ROOT/'Makefile').read_text()
    for c in [*commands, 'make lab', 'make docs', 'make export']: assert f"\n{c.split()[1]}: " in makefile
    assert 'make test' in (ROOT/'.ci'/'run').read_text()

def asked():
    "The line of README that asks the real model: the lines of code, the question, and the answer."
    block = next(b for b in re.findall(r'```python\n(.*?)```', (ROOT/'README.md').read_text(), re.S)
                 if 'from_gguf' in b)
    return block, *re.search(r"say\('(.+?)'\).*\n# (.+)", block).groups()

def test_readme_asks_the_real_model_and_the_answer_is_that_of_lesson_12():
    code, question, answer = asked()
    imports, = re.findall('from tinylm import (.*)', code)
    assert {*imports.split(', '), 'ChatBox'} <= {*tinylm.__all__}
    cells = nbformat.read(ROOT/'nbs'/'12_pretrained.ipynb', 4).cells
    cell = next(c for c in cells if c.cell_type == 'code' and f"say('{question}')" in c.source)
    assert [o.text.strip() for o in cell.outputs] == [answer]
    name, = re.findall("data_dir\\(\\)/'(.+?)'", code)
    assert name == tinylm.REAL_MODEL and 'REAL_MODEL' in (ROOT/'tools'/'real_model.py').read_text()

@pytest.mark.skipif(not shutil.which('make'), reason='needs make')
def test_make_docs_says_where_to_get_quarto_and_installs_nothing(tmp_path):
    shutil.copy(ROOT/'Makefile', tmp_path/'Makefile')
    for tool in ('make', 'sh'): (tmp_path/tool).symlink_to(shutil.which(tool))
    done = run(tmp_path/'make', 'docs', cwd=tmp_path, env={'PATH': str(tmp_path)})
    assert done.returncode != 0 and done.stdout == ('make docs needs Quarto, which is a program of its own: '
                                                    'https://quarto.org/docs/get-started/\n')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['Makefile', 'make', 'sh']

def sidebar(items):
    for item in items:
        if isinstance(item, str): yield item
        else: yield from sidebar(item['contents'])

def test_every_page_is_in_the_sidebar_in_reading_order():
    site = yaml.safe_load((ROOT/'_quarto.yml').read_text())
    pages = list(sidebar(site['website']['sidebar']['contents']))
    assert sorted(pages) == [p.name for p in PAGES]
    lessons = [p for p in pages if p[0].isdigit()]
    assert lessons == sorted(lessons) and pages[0] == 'index.ipynb'

def test_the_site_is_described_once():
    "nbdev looks only beside the notebooks, and a symbolic link breaks on some systems: so there is a copy."
    assert (ROOT/'nbs'/'_quarto.yml').read_text() == (ROOT/'_quarto.yml').read_text(), 'run `make export`'
    assert not re.findall('^120000', run('git', 'ls-files', '-s', cwd=ROOT).stdout, re.M)

def slug(heading):
    return re.sub(r'[^\w\- ]', '', re.sub(r'`|\*', '', heading).lower()).strip().replace(' ', '-')

def anchors(path):
    text = markdown(path)
    exported = re.findall(r'^(?:def|class) (\w+)',
        '\n'.join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == 'code'), re.M)
    return {slug(h) for h in re.findall(r'^#+ (.*)$', text, re.M)} | {n.lower() for n in exported}

def links(path):
    shown = [o.data['text/markdown'] for c in nbformat.read(path, 4).cells if c.cell_type == 'code'
             for o in c.outputs if 'text/markdown' in o.get('data', {})]
    return re.findall(r'\]\(([^)\s]+)\)',
                      re.sub(r'```.*?```', '', '\n'.join([markdown(path), *shown]), flags=re.S))

@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_links_and_anchors_resolve(path):
    for link in links(path):
        if link.startswith('http'): continue
        name, _, anchor = link.partition('#')
        target = path.parent/name if name else path
        assert target.exists(), f'{path.name} links to {link}'
        if anchor: assert anchor in anchors(target), f'{path.name} links to {link}'

def test_links_of_the_readme_resolve():
    for link in re.findall(r'\]\(([^)\s]+)\)', (ROOT/'README.md').read_text()):
        if not link.startswith('http'): assert (ROOT/link).exists(), link

@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_every_page_begins_with_a_title_and_a_promise(path):
    "nbdev makes the front matter from a title and a line with >, and takes the whole cell away."
    first, second = nbformat.read(path, 4).cells[:2]
    assert re.fullmatch(r'# .+\n\n> .+', first.source)
    assert second.cell_type == 'markdown' and len(second.source) > 60

def test_the_home_page_begins_with_the_live_model_and_the_readme_with_its_picture():
    "Where no script runs, and in JupyterLab, the picture stands there, too."
    cell = nbformat.read(ROOT/'nbs'/'index.ipynb', 4).cells[1].source
    element, rest = cell.split('<script src="play/play.js" defer></script>\n')
    assert element.startswith('<div class="tinylm-play" data-form="short">\n<picture>')
    assert re.sub('<[^>]*>', '', element).strip() == '' and 'make demo' in rest
    text = (ROOT/'README.md').read_text()
    assert text == readme() and 'tinylm-play' not in text and '<script' not in text and '<div' not in text
    assert text.split('\n\n')[2].startswith('<picture>')
    assert re.findall(r'```sh\n(.*?)```', text, re.S)[0].count('\nmake') == 1      # two commands

@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_every_figure_has_an_alt_text(path):
    "A picture that stands alone; a widget brings its own page."
    figures = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == 'code'
               and any('image/png' in o.get('data', {}) and 'text/html' not in o.data for o in c.outputs)]
    assert [s for s in figures if not re.match(r'#\| fig-alt: "[^"\\]{30,}"\n', s)] == []

@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_no_page_ends_with_code_that_the_site_moves(path):
    "nbdev looks at the cell after each `#| exports`."
    assert not re.match(r'#\|\s*exports', nbformat.read(path, 4).cells[-1].source)

@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_a_cell_that_imports_does_little_else(path):
    "nbdev executes such cells when it makes the site: nothing is trained, measured or served there."
    for c in nbformat.read(path, 4).cells:
        if c.cell_type != 'code' or re.search(r'^(%%|#\|\s*exports?\b)', c.source, re.M): continue
        nodes = ast.parse(c.source).body
        if any(isinstance(n, (ast.Import, ast.ImportFrom)) for top in nodes for n in ast.walk(top)):
            assert [ast.unparse(n)[:60] for n in nodes if not sets_up(n)] == [], c.id

@pytest.mark.slow
def test_the_site_is_processed_with_code_docs_and_outputs(tmp_path):
    "nbdev's own processing, which Quarto then renders: sources stay visible, docments become tables."
    for name in ('settings.ini', '_quarto.yml', 'tinylm'):
        (shutil.copytree if (ROOT/name).is_dir() else shutil.copy)(ROOT/name, tmp_path/name)
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs', symlinks=True)
    code = 'from nbdev.serve import proc_nbs\nif __name__ == "__main__": proc_nbs(n_workers=0)'
    paths = os.pathsep.join([str(ROOT), str(ROOT/'tools')])                # as `make docs` has them
    assert 'PYTHONPATH=tools $(BIN)/nbdev_docs' in (ROOT/'Makefile').read_text()
    done = run_python('-c', code, cwd=tmp_path, env=dict(os.environ, PYTHONPATH=paths))
    assert done.returncode == 0, done.stderr
    pages = {p.name: nbformat.read(p, 4) for p in (tmp_path/'_proc').glob('*.ipynb')}
    assert sorted(pages) == [p.name for p in PAGES] and (tmp_path/'_proc'/'images'/'phases.svg').exists()
    assert (tmp_path/'_proc'/'404.qmd').exists()
    page = pages['02_model.ipynb'].cells
    assert any('def prefill(' in c.source for c in page if c.cell_type == 'code')
    shown = ''.join(str(o.get('data', {}).get('text/markdown', ''))
        + str(o.get('data', {}).get('text/html', '')) for c in page if c.cell_type == 'code'
        for o in c.outputs)
    assert 'LanguageModel.prefill' in shown and 'token ids, T at most block_size' in shown
    assert re.search(r'\[source\]\(\S+/tinylm/model\.py#L\d+\)', shown)
    assert '| `idx` | `Tensor` |' in shown and 'def LanguageModel.prefill' not in shown
    assert all('#| echo: false' in c.source for c in pages['api.ipynb'].cells if c.cell_type == 'code')
    folds = [c.source for c in pages['cli.ipynb'].cells if 'Exported source' in c.source]
    assert len(folds) > 10 and all(s.startswith('#| code-fold: true\n') for s in folds)
    for name, nb in pages.items():
        about = yaml.safe_load(re.match(r'---\n(.*?)\n---', nb.cells[0].source, re.S)[1])
        assert about['title'] and about['description'], name

def test_a_finished_page_asks_no_other_host_and_links_within_the_site():
    cdn, home = 'https://cdn.jsdelivr.net/npm', 'https://example.org/tinylm/'
    raw = f"""<script src="{cdn}/requirejs@2.3.6/require.min.js" crossorigin="anonymous"></script>
<script src="{cdn}/jquery@3.5.1/dist/jquery.min.js"></script><script src="site_libs/a.js"></script>
<script type="application/javascript">define('jquery', [],function() {{return window.jQuery;}})</script>
<a href="{home}kv_cache.html#kvcache"><code>KVCache</code></a>
<a href="{home}data.html#_download"><code>_download</code></a>
<a href="https://quarto.org">Quarto</a>
<figure><img src="a.svg"><figcaption>Two <em>phases</em></figcaption></figure>"""
    assert finish(raw, home).split('\n') == [
        '<script src="site_libs/a.js"></script>',
        '<a href="kv_cache.html#kvcache"><code>KVCache</code></a>', '<code>_download</code>',
        '<a href="https://quarto.org">Quarto</a>',
        '<figure><img alt="Two phases" src="a.svg"><figcaption>Two <em>phases</em></figcaption></figure>']

def test_a_lesson_can_be_taken_along():
    html = ways('<header id="title-block-header">\n04</header><p>text</p>', 'nbs/04_decode.ipynb',
                settings()['git_url'], 'main')
    assert html.startswith('<header id="title-block-header">\n04</header>') and html.endswith('<p>text</p>')
    addresses = re.findall('href="(.*?)"', html)
    assert len(addresses) == 3 and all(re.search(r'main.*nbs/04_decode\.ipynb$', a) for a in addresses)

@pytest.mark.parametrize('path', [p for p in PAGES if p.stem[0].isdigit()], ids=lambda p: p.stem)
def test_a_lesson_brings_its_library_where_it_is_missing(path, monkeypatch):
    "Where the notebook is opened alone, as in Colab; no lesson reads a file that stands beside it."
    first, asked = code_cells(path)[0], []
    shell = type('Shell', (), {'run_line_magic': lambda self, *words: asked.append(words)})
    run = lambda: exec(first, {'get_ipython': shell})
    run()
    assert first.startswith('#| hide\n') and not asked            # it is here
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    run()
    source = f"'tinylm @ git+{settings()['git_url']}@{settings()['branch']}'"
    assert [w[0] for w in asked] == ['pip'] and asked[0][1].endswith(source)
    assert 'tinylm.mplstyle' not in ''.join(code_cells(path))

@pytest.fixture
def speedrun(tmp_path, monkeypatch, capsys):
    "Its exit code, what it prints, and the last line of its errors."
    (tmp_path/'text.txt').write_text('the cat sat on the mat.\n'*200)
    module = runpy.run_path(str(ROOT/'benchmarks'/'speedrun.py'))
    monkeypatch.setitem(tinylm.ATTENTION, 'hiding', None)         # runs put it there; taken out at the end
    def go(*words):
        small = ['--corpus', str(tmp_path/'text.txt'), 'n_layer=1', 'n_embd=16', 'block_size=16']
        monkeypatch.setattr(sys, 'argv', ['speedrun.py', *small, *words])
        code = 0
        try: module['main']()
        except SystemExit as e: code = e.code
        out, err = capsys.readouterr()
        return code, out, (err.splitlines() or [''])[-1]
    go.names = module['main'].__globals__
    return go

def test_the_speedrun_measures_a_change(speedrun, monkeypatch):
    counts, loss = [], speedrun.names['CountModel'].loss
    monkeypatch.setattr(speedrun.names['CountModel'], 'loss', lambda *a: counts.append(1) or loss(*a))
    code, out, _ = speedrun('steps=2', '--seeds', '1')
    assert code == 0 and 'steps=2' in out and '1 seeds' in out
    code, out, _ = speedrun('steps=2', '--seeds', '1', '--hide', '.1')
    assert code == 0 and 'steps=2 --hide 0.1' in out
    code, out, _ = speedrun('steps=1', 'n_head=2', '--parts', '--seeds', '1')
    assert code == 0 and 'QK-norm' in out and len(counts) == 3         # once for each text

@pytest.mark.parametrize('words, says', [
    ('depth=3', 'depth'), ('steps=0', 'steps'), ('optimizer=sgd', 'optimizer'),
    ('weights=int8', 'int8 weights have no gradients'), ('block_size=5000', 'too short'),
    ('--seeds 0', 'seeds is 0'), ('--hide 1', 'hide is 1'), ('batch_size=1 --search', 'batch_size is 0'),
    ('lr=1e30 min_lr=1e30 warmup=0 steps=9', 'try a learning rate below')])
def test_the_speedrun_refuses_what_cannot_be_trained(speedrun, words, says):
    code, out, error = speedrun(*words.split())
    assert code == 2 and error.startswith('speedrun.py: error: ') and says in error
    assert not out or 'lr' in words                    # before the first row

def test_a_hidden_key_is_not_heard_and_nobody_misses_himself(speedrun):
    hiding, (q, k, v) = speedrun.names['hiding'], torch.randn(3, 4, 2, 9, 8)
    assert torch.equal(hiding(.5, q, k, v), tinylm.fused_attention(q, k, v))
    torch.manual_seed(1); seen = torch.rand(4, 1, 9, 9) >= .5
    mask = (seen | torch.eye(9, dtype=torch.bool)) & tinylm.causal_mask(9)
    torch.manual_seed(1); heard = hiding(.5, q.requires_grad_(), k, v)
    assert torch.allclose(heard, tinylm.causal_attention(q, k, v, mask), atol=1e-5)

def test_any_field_of_a_speedrun_may_hold_anything(speedrun, monkeypatch):
    monkeypatch.setitem(speedrun.names, 'run', lambda *_: (1., 1.))
    shape, recipe = tinylm.PRESETS['course']
    codes = Counter(speedrun(f'{name}={value}')[0] for name in {**vars(shape), **vars(recipe)}
                    for value in (0, -1, 3, .5, 10**12, None, True, 'int8', [], {}))
    assert {*codes} == {0, 2} and min(codes.values()) > 30

def test_the_words_of_the_glossary_stand_where_it_says_and_lessons_link_to_them():
    page = markdown(ROOT/'nbs'/'glossary.ipynb')
    terms = re.findall(r'^### (.+)\n\n.+\n\nFirst seen in \[.+\]\((\S+?\.ipynb)', page, re.M)
    assert len(terms) == page.count('\n### ') >= 40
    linked = {link.partition('#')[2] for p in PAGES for link in links(p)
              if link.startswith('glossary.ipynb#')}
    assert linked <= {slug(term) for term, _ in terms} and len(linked) >= 30
    for term, name in terms:
        if slug(term) in linked: assert f'glossary.ipynb#{slug(term)}' in links(ROOT/'nbs'/name), term
