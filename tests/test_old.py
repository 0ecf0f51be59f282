"What version 0.1 wrote still loads, and its names still import, each with a warning."
import ast
import json
import warnings

import pytest
import torch
from conftest import ROOT

import tinylm
from tinylm import BatchTimeline, DecodeTimeline, LanguageModel, LMConfig, Timeline
from tinylm import TrainConfig, checkpoint_path, train
from tinylm import decoding, old, serving

DATA = ROOT/'tests'/'data'
WRITTEN = json.loads((DATA/'v0.1.json').read_text())

# --- files that version 0.1 wrote

def test_a_model_file_gives_the_same_text():
    model, ids = LanguageModel.from_safetensors(DATA/'v0.1.safetensors'), torch.tensor([WRITTEN['greedy']])
    assert model.tokenizer.decode(model.tokenizer.encode('bad cafe')) == 'bad cafe'
    assert torch.equal(model.decode(ids[:, :4], 12, temperature=0), ids)
    other = LanguageModel(model.config).load_safetensors(DATA/'v0.1.safetensors')
    assert other.tokenizer.chars == model.tokenizer.chars
    assert LanguageModel.from_safetensors(DATA/'v0.1.bare.safetensors').tokenizer is None

def test_a_run_goes_on(tmp_path):
    for name in ('v0.1.safetensors', 'v0.1.training.safetensors'):
        (tmp_path/name).write_bytes((DATA/name).read_bytes())
    saved = tinylm.read_run(checkpoint_path(tmp_path/'v0.1.safetensors'))
    assert saved.recipe == TrainConfig(steps=6, batch_size=2, eval_every=2, eval_windows=2, warmup=1, lr=5e-3,
                                       optimizer='adamw', pace='cosine')
    model = LanguageModel.from_safetensors(tmp_path/'v0.1.safetensors').train()
    for block in model.blocks: block.attention.dropout = model.config.dropout      # 0.1 dropped there, too
    ids = torch.tensor(model.tokenizer.encode(WRITTEN['text']))
    history = train(model, ids[:500], ids[500:], out=tmp_path/'v0.1.safetensors', resume=True,
                    callback=lambda run: None)
    # with dropout, as then
    for h, (step, loss, val_loss) in zip(history[1:], WRITTEN['history'][1:], strict=True):
        assert h['step'] == step and h['loss'] == pytest.approx(loss,
            abs=1e-4) and h['val_loss'] == pytest.approx(val_loss, abs=1e-4)

def test_a_timeline_and_a_trace_are_drawn():
    line = Timeline.load(DATA/'v0.1.timeline.json')
    assert len(DecodeTimeline(line).data['series'][0]['ms']) == 5
    record = json.loads((DATA/'v0.1.trace.json').read_text())
    series = BatchTimeline({'old': record}).data['series'][0]
    assert len(series['steps']) == len(record['steps'])
    renamed = {('pages' if k == 'blocks' else k): v for k, v in record.items()}
    assert BatchTimeline({'old': renamed}).data['series'][0] == series

# --- names of version 0.1

def old_names():
    "Every public name of version 0.1, with its module."
    return [(m, n) for m, names in json.loads((DATA/'v0.1.names.json').read_text()).items() for n in names]

@pytest.mark.parametrize('module, name', old_names())
def test_every_public_name_still_imports(module, name):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        exec(f'from tinylm.{module} import {name}\nfrom tinylm import {name}')
    for w in said: assert w.category is DeprecationWarning and 'tinylm 0.3' in str(w.message)
    assert bool(said) == (name in old._OLD)

def test_what_went_says_what_to_use_and_still_works():
    model, x = LanguageModel(LMConfig(n_layer=1)).eval(), torch.zeros(1, 3, dtype=torch.long)
    with pytest.warns(DeprecationWarning, match='Linear goes with tinylm 0.3: use torch.nn.Linear'):
        assert tinylm.Linear is torch.nn.Linear
    with pytest.warns(DeprecationWarning, match='the model itself'): assert model.bare() is model
    with pytest.warns(DeprecationWarning, match='the model itself'):
        assert serving.pack_weights(model) is model
    with pytest.warns(DeprecationWarning, match='use Sampling'): check = decoding.check_dials
    check(0)
    with pytest.raises(ValueError, match='top_k is 0'): check(3, top_k=0)
    with pytest.raises(ValueError, match='max_new_tokens is -1'): check(-1)
    with pytest.warns(DeprecationWarning, match='n_pages='):
        engine = tinylm.Engine(model, n_blocks=7, size=16)
    with pytest.warns(DeprecationWarning, match='n_pages='):
        cache = tinylm.PagedKVCache(model.config, n_blocks=7)
    assert len(engine.cache.refs) == len(cache.refs) == 7
    row = cache.open([])
    with pytest.warns(DeprecationWarning, match=r'batch\(\)'): model.prefill(x, cache=cache.view([row]))
    with pytest.warns(DeprecationWarning, match='pages'): assert row.blocks == row.pages and len(row.ids) == 3
    with pytest.warns(DeprecationWarning, match='LMConfig'):
        tinylm.CausalSelfAttention(8, 2, attention='fused')
    with pytest.raises(AttributeError, match='nonsense'): tinylm.nonsense

@pytest.mark.parametrize('use', [
    'from tinylm import Linear', 'tinylm.cost.linear', 'assert tinylm.cost.LARGE == 131_072', 'model.bare()',
    'tinylm.Engine(model, n_blocks=7)', 'tinylm.CausalSelfAttention(8, 2, attention="fused")',
    'cache.view([cache.open([])])', 'cache.open([]).blocks'])
def test_a_warning_points_at_the_line_that_uses_the_old_name(use):
    model = LanguageModel(LMConfig(n_layer=1))
    names = dict(tinylm=tinylm, model=model, cache=tinylm.PagedKVCache(model.config, 7))
    with pytest.warns(DeprecationWarning) as said: exec(compile(use, 'mine.py', 'exec'), names)
    assert {w.filename for w in said} == {'mine.py'}

def test_nothing_of_it_is_used_by_the_library():
    for path in (ROOT/'tinylm').glob('*.py'):
        if path.stem in ('old', '_modidx'): continue
        names = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
        assert not names & {'Linear', 'pack_weights', 'check_dials', 'LARGE'}, path.stem
