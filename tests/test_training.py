import json
from dataclasses import replace
from math import log

import pytest
import torch

from tinylm import (CharTokenizer, LanguageModel, LMConfig, TrainConfig, Trainer, checkpoint_path, course_model, course_path, evaluate, evaluating,
                    learning_rate, train, training)

TEXT = torch.randint(9, (2000,), generator=torch.Generator().manual_seed(0))
SHAPE = LMConfig(vocab_size=9, block_size=8, n_layer=1, n_head=2, n_embd=16, dropout=.1)
RECIPE = TrainConfig(steps=12, batch_size=4, eval_every=5, eval_windows=4, warmup=3)
quiet = lambda run: None

def model(seed=0):
    torch.manual_seed(seed)
    return LanguageModel(SHAPE)

def bits(m): return [t.numpy().tobytes() for t in m.state_dict().values()]

# --- evaluate

def test_evaluate_is_the_mean_loss_of_all_windows():
    m, ids = model().eval(), TEXT[:8*5+3]
    by_hand = [m.prefill(ids[None, i:i+8], ids[None, i+1:i+9])[1].item() for i in range(0, 40, 8)]
    assert evaluate(m, ids, batch_size=2) == pytest.approx(sum(by_hand)/5, abs=1e-6)

def test_evaluate_takes_spread_windows_and_changes_nothing():
    m = model().train()
    assert evaluate(m, TEXT, 3) == evaluate(m, TEXT, 3) and m.training       # dropout is on, so two equal results show that it was off
    assert all(p.grad is None for p in m.parameters())

def test_a_validation_text_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match='8 tokens is too short: block_size 8 needs at least 9'): evaluate(model(), TEXT[:8])
    with pytest.raises(ValueError, match='max_windows is 0'): evaluate(model(), TEXT, 0)

def test_evaluating_restores_the_mode_of_every_part_after_an_error():
    m = model().train(); m.blocks[0].eval()
    before = [p.training for p in m.modules()]
    with pytest.raises(KeyError), evaluating(m.modules()):
        assert not any(p.training for p in m.modules())
        raise KeyError
    assert [p.training for p in m.modules()] == before

# --- the recipe

def test_the_learning_rate_warms_up_and_falls_along_a_cosine():
    c = TrainConfig(steps=100, warmup=10, lr=1., min_lr=.1)
    rates = [learning_rate(s, c) for s in range(100)]
    assert rates[0] == .1 and rates[9] == 1. and max(rates) == 1.
    assert all(a < b for a, b in zip(rates[:9], rates[1:10])) and all(a > b for a, b in zip(rates[10:], rates[11:]))
    assert learning_rate(55, c) == pytest.approx(.55) and learning_rate(100, c) == pytest.approx(.1)

@pytest.mark.parametrize('bad', [dict(steps=0), dict(batch_size=-1), dict(eval_every=0), dict(eval_windows=1.5), dict(lr=1e-5, min_lr=1e-3), dict(lr=-1.), dict(lr=float('nan')),
                                 dict(grad_clip=0.), dict(warmup=-1), dict(weight_decay=-.1), dict(beta1=1.), dict(beta2=-.1), dict(seed=-1), dict(seed='3'), dict(warmup=float('inf')), dict(lr='fast'), dict(weight_decay=float('inf'))])
def test_a_recipe_without_sense_is_refused(bad):
    with pytest.raises(ValueError, match=list(bad)[-1]): TrainConfig(**bad)

def test_training_learns():
    ids = torch.arange(900) % 9                                # after 3 comes 4, always
    m = LanguageModel(replace(SHAPE, dropout=0.))
    history = train(m, ids[:800], ids[800:], TrainConfig(steps=80, batch_size=8, lr=1e-2, eval_every=40), callback=quiet)
    assert abs(history[0]['val_loss'] - log(9)) < .3 and history[-1]['val_loss'] < .1

def test_history_has_a_line_for_each_evaluation():
    steps = []
    history = train(model(), TEXT, TEXT, RECIPE, callback=lambda run: steps.append(run.step))
    assert [h['step'] for h in history] == [0, 5, 10, 12] and steps == list(range(1, 13))

def test_a_gradient_step_is_clipped():
    torch.manual_seed(0)
    run = Trainer(model(), TEXT, TEXT, replace(RECIPE, grad_clip=1e-3))
    run.update()
    assert torch.cat([p.grad.flatten() for p in run.model.parameters()]).norm() == pytest.approx(1e-3, rel=1e-3)

def test_only_matrices_decay():
    decayed = {id(p) for g in Trainer(model(), TEXT, TEXT, RECIPE).optimizer.param_groups if g['weight_decay'] for p in g['params']}
    assert decayed and all(p.ndim > 1 for g in [Trainer(model(), TEXT, TEXT, RECIPE).optimizer.param_groups[0]] for p in g['params'])

def test_a_diverging_run_says_so_and_keeps_the_weights_finite():
    m = model()
    run = Trainer(m, TEXT, TEXT, RECIPE)
    m.tok_emb.weight.data[0] = float('inf')
    others = [p.clone() for p in m.blocks.parameters()]
    with pytest.raises(RuntimeError, match='loss is nan at step 0'): run.update()
    assert all(torch.equal(a, b) for a, b in zip(others, m.blocks.parameters()))

# --- stop and resume

@pytest.mark.parametrize('stop', [1, 5, 7, 11])
def test_a_saved_run_goes_on_with_the_same_bits(tmp_path, stop):
    torch.manual_seed(7)
    unbroken = Trainer(model(), TEXT, TEXT, RECIPE)
    for _ in range(12): unbroken.update()
    first = Trainer(model(), TEXT, TEXT, RECIPE)
    for _ in range(stop): first.update()
    first.save(tmp_path/'run.safetensors')
    torch.manual_seed(99)
    second = Trainer(model(5), TEXT, TEXT, RECIPE).load(tmp_path/'run.safetensors')
    for _ in range(12-stop): second.update()
    assert second.step == 12 and bits(second.model) == bits(unbroken.model)

@pytest.mark.parametrize('stop', [5, 6, 12])
def test_train_stopped_anywhere_resumes_to_the_same_bits_and_history(tmp_path, stop):
    whole = model()
    want = train(whole, TEXT, TEXT, RECIPE, callback=quiet)
    def stopper(run):
        if run.step == stop: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train(model(), TEXT, TEXT, RECIPE, out=tmp_path/'m.safetensors', callback=stopper)
    resumed = model(9)
    got = train(resumed, TEXT, TEXT, RECIPE, out=tmp_path/'m.safetensors', resume=True, callback=quiet)
    assert bits(resumed) == bits(whole) and [(h['step'], h['val_loss']) for h in got] == [(h['step'], h['val_loss']) for h in want]
    assert bits(LanguageModel.from_safetensors(tmp_path/'m.safetensors')) == bits(whole)

@pytest.mark.parametrize('what, other', [('model', dict(shape=replace(SHAPE, n_layer=2))), ('recipe', dict(recipe=replace(RECIPE, steps=13))), ('text', dict(text=TEXT[1:]))])
def test_a_checkpoint_of_another_run_is_refused_and_nothing_changes(tmp_path, what, other):
    path = tmp_path/'run.safetensors'
    first = Trainer(model(), TEXT, TEXT, RECIPE); first.update(); first.save(path)
    mine = Trainer(LanguageModel(other.get('shape', SHAPE)), other.get('text', TEXT), TEXT, other.get('recipe', RECIPE))
    before = bits(mine.model)
    with pytest.raises(ValueError, match=f'another {what}'): mine.load(path)
    assert bits(mine.model) == before and mine.step == 0

def test_a_checkpoint_cut_short_is_refused_and_nothing_changes(tmp_path):
    path = tmp_path/'run.safetensors'
    run = Trainer(model(), TEXT, TEXT, RECIPE); run.update(); run.save(path)
    whole = path.read_bytes()
    for size in [0, 1, 8, 100, len(whole)//2, len(whole)-1]:
        path.write_bytes(whole[:size])
        other = Trainer(model(3), TEXT, TEXT, RECIPE)
        before = bits(other.model)
        with pytest.raises(ValueError, match='not a whole safetensors file'): other.load(path)
        assert bits(other.model) == before

def test_a_model_file_is_not_a_checkpoint(tmp_path):
    model().save_safetensors(tmp_path/'m.safetensors')
    with pytest.raises(ValueError, match='not a training checkpoint'): Trainer(model(), TEXT, TEXT, RECIPE).load(tmp_path/'m.safetensors')

def test_resume_without_a_file_to_resume_from_is_refused():
    with pytest.raises(ValueError, match='resume'): train(model(), TEXT, TEXT, RECIPE, resume=True, callback=quiet)

def test_an_unwritable_folder_is_found_before_the_first_step(tmp_path):
    (tmp_path/'file').write_text('not a folder')
    steps = []
    with pytest.raises(OSError): train(model(), TEXT, TEXT, RECIPE, out=tmp_path/'file'/'m.safetensors', callback=steps.append)
    assert steps == []

@pytest.mark.parametrize('out, state', [('a/b.safetensors', 'a/b.training.safetensors'), ('m-0.1', 'm-0.1.training.safetensors'), ('m-0.2', 'm-0.2.training.safetensors')])
def test_the_run_lies_beside_the_model(out, state): assert checkpoint_path(out).as_posix() == state

def test_a_run_stopped_before_its_first_checkpoint_leaves_nothing(tmp_path):
    def stop(run): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train(model(), TEXT, TEXT, RECIPE, out=tmp_path/'m.safetensors', callback=stop)
    assert list(tmp_path.iterdir()) == []

def finished(tmp_path):
    out = tmp_path/'m.safetensors'
    train(model(), TEXT, TEXT, RECIPE, out=out, callback=quiet)
    return out, {p.name: p.read_bytes() for p in tmp_path.iterdir()}

def test_resuming_a_finished_run_writes_its_model_again(tmp_path):
    out, before = finished(tmp_path)
    out.unlink()
    train(model(3), TEXT, TEXT, RECIPE, out=out, resume=True, callback=quiet)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before

@pytest.mark.parametrize('how, says', [
    (dict(text=torch.full((2000,), 9)), 'token id 9'), (dict(text=TEXT.float()), 'training text is no row'), (dict(text=TEXT[None]), 'training text is no row'), (dict(text=[1, 2]), 'training text is no row'),
    (dict(text=TEXT[:8]), 'training text of 8 tokens is too short'), (dict(recipe={'steps': 3}), 'expected a TrainConfig'), (dict(recipe=replace(RECIPE, lr=1e30, warmup=0)), 'try a learning rate below')])
def test_a_run_that_is_refused_or_diverges_keeps_the_files_of_the_last_one(tmp_path, how, says):
    out, before = finished(tmp_path)
    with pytest.raises((ValueError, RuntimeError), match=says): train(model(), how.get('text', TEXT), TEXT, how.get('recipe', RECIPE), out=out, callback=quiet)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before

@pytest.mark.parametrize('name, says', [('corpus.txt', 'not a whole safetensors file'), ('folder', 'is not a tinylm file'), ('m.training.safetensors', 'no name for a model')])
def test_out_overwrites_nothing_but_models(tmp_path, name, says):
    (tmp_path/'folder').mkdir(); (tmp_path/'corpus.txt').write_text('a precious text')
    with pytest.raises(ValueError, match=says): train(model(), TEXT, TEXT, RECIPE, out=tmp_path/name, callback=quiet)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['corpus.txt', 'folder'] and (tmp_path/'corpus.txt').read_text() == 'a precious text'
    with pytest.raises(ValueError, match='no name for a model'): train(model(), TEXT, TEXT, RECIPE, out='', callback=quiet)

def test_another_vocabulary_or_validation_text_is_another_run(tmp_path):
    def run(chars, val=TEXT):
        m = model(); m.tokenizer = CharTokenizer(chars)
        return Trainer(m, TEXT, val, RECIPE)
    first = run('abcdefghi'); first.update(); first.save(tmp_path/'r.safetensors')
    with pytest.raises(ValueError, match='another vocabulary'): run('abcdefghj').load(tmp_path/'r.safetensors')
    with pytest.raises(ValueError, match='another text'): run('abcdefghi', TEXT[:-1]).load(tmp_path/'r.safetensors')
    assert run('abcdefghi').load(tmp_path/'r.safetensors').step == 1

def tamper(path, tensors=None, **changes):
    from safetensors.torch import save_file
    from tinylm import read_safetensors
    old, metadata = read_safetensors(path)
    file = json.loads(metadata['tinylm.training'])
    file['progress'] |= changes.pop('progress', {})
    save_file({k: t for k, t in (old | (tensors or {})).items() if t is not None}, path, {'tinylm.training': json.dumps(file | changes)})

@pytest.mark.parametrize('change', [
    dict(tensors={'optimizer.0.exp_avg': torch.zeros(3)}), dict(tensors={'random.batches': None}), dict(tensors={'model.norm.bias': None}), dict(tensors={'model.norm.bias': torch.zeros(2)}),
    dict(tensors={'optimizer.1.step': None}), dict(tensors={'extra': torch.zeros(1)}), dict(about={}), dict(progress={'step': -5}), dict(progress={'step': 2.5}), dict(progress={'step': 99}), dict(progress={'history': None})])
def test_a_checkpoint_that_was_tampered_with_is_refused_whole(tmp_path, change):
    path = tmp_path/'r.safetensors'
    run = Trainer(model(), TEXT, TEXT, RECIPE); run.update(); run.save(path)
    tamper(path, **change)
    other = Trainer(model(3), TEXT, TEXT, RECIPE)
    before, chance = bits(other.model), other.generator.get_state()
    with pytest.raises(ValueError, match='r.safetensors'): other.load(path)
    assert bits(other.model) == before and other.step == 0 and not other.optimizer.state and torch.equal(other.generator.get_state(), chance)

# --- the course's model

def test_the_course_model_is_trained_once_and_again_when_the_recipe_changes(tmp_path, monkeypatch):
    monkeypatch.setenv('TINYLM_DATA', str(tmp_path))
    monkeypatch.setattr(training, 'load_corpus', lambda: 'a short text, ' * 200)
    small = replace(TrainConfig(), steps=2, batch_size=2, eval_windows=2)
    monkeypatch.setattr(TrainConfig.__init__, '__defaults__', tuple(vars(small).values()))
    runs = []
    monkeypatch.setattr(training, 'train', lambda *a, real=train, **k: (runs.append(1), real(*a, callback=quiet)))
    before = torch.get_rng_state()
    first, second = course_model(), course_model()
    assert len(runs) == 1 and bits(first) == bits(second) and second.tokenizer.chars == CharTokenizer('a short text, ').chars
    assert torch.equal(before, torch.get_rng_state())
    path = course_path()
    monkeypatch.setattr(training, 'load_corpus', lambda: 'another text, ' * 200)
    assert course_path() != path
    course_model()
    assert len(runs) == 2
    course_path().write_bytes(b'broken')
    with pytest.raises(ValueError, match='remove it, and it is made anew'): course_model()
