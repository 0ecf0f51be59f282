import json, re
from dataclasses import field, make_dataclass, replace
from math import inf, log, sqrt

import pytest
import torch

from hypothesis import given, strategies as st
from torch.nn import functional as F

from helpers import FailingOperation, quick, seeded
from tinylm import (OPTIMIZERS, PACES, PRESETS, CharTokenizer, LanguageModel, LMConfig, Muon, TrainConfig,
                    Trainer, check_device, checkpoint_path, course_model, course_path, evaluate, evaluating,
                    learning_rate, model_path, orthogonal, read_run, shown, train, training)

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
    # dropout is on, so two equal results show that it was off
    assert evaluate(m, TEXT, 3) == evaluate(m, TEXT, 3) and m.training
    assert all(p.grad is None for p in m.parameters())

def test_a_validation_text_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match='8 tokens is too short: block_size 8 needs at least 9'):
        evaluate(model(), TEXT[:8])
    with pytest.raises(ValueError, match='max_windows is 0'): evaluate(model(), TEXT, 0)

def test_evaluating_restores_the_mode_of_every_part_after_an_error():
    m = model().train(); m.blocks[0].eval()
    before = [p.training for p in m.modules()]
    with pytest.raises(KeyError), evaluating(m.modules()):
        assert not any(p.training for p in m.modules())
        raise KeyError
    assert [p.training for p in m.modules()] == before

# --- the recipe

def test_the_learning_rate_warms_up_and_falls_along_a_straight_line():
    c = TrainConfig(steps=100, warmup=10, lr=1., min_lr=.1)
    rates = [learning_rate(s, c) for s in range(100)]
    assert rates[0] == .1 and rates[9] == 1. and max(rates) == 1.
    assert all(a < b for a, b in zip(rates[:9], rates[1:10]))
    falls = [a - b for a, b in zip(rates[10:], rates[11:])]
    assert falls == pytest.approx([.01]*89)
    assert learning_rate(55, c) == pytest.approx(.55) and learning_rate(100, c) == pytest.approx(.1)

def test_the_learning_rate_may_fall_along_a_cosine():
    c = TrainConfig(steps=110, warmup=10, lr=1., min_lr=0., pace='cosine')
    assert [learning_rate(s, c) for s in (10, 35, 60, 110)] == pytest.approx([1, .5 + .5**.5/2, .5, 0])

@quick
@given(st.integers(0, 50), st.integers(1, 50), st.integers(0, 200), st.sampled_from(list(PACES)))
def test_the_learning_rate_stays_inside_its_limits_and_at_the_lowest_after_the_end(warmup, steps, step, pace):
    c = TrainConfig(steps=steps, warmup=warmup, lr=1., min_lr=.1, pace=pace)
    rate = learning_rate(step, c)
    assert 0 < rate <= 1 and (step < warmup or rate >= .1)
    if step >= max(steps, warmup) and steps > warmup: assert rate == pytest.approx(.1)

@pytest.mark.parametrize('bad',
    [dict(steps=0), dict(batch_size=-1), dict(eval_every=0), dict(eval_windows=1.5),
     dict(lr=1e-5, min_lr=1e-3), dict(lr=-1.), dict(lr=float('nan')),
                                 dict(grad_clip=0.), dict(warmup=-1), dict(weight_decay=-.1), dict(beta1=1.),
                                 dict(beta2=-.1), dict(seed=-1), dict(seed='3'), dict(warmup=float('inf')),
                                 dict(lr='fast'), dict(pace='slow'), dict(weight_decay=float('inf'))])
def test_a_recipe_without_sense_is_refused(bad):
    with pytest.raises(ValueError, match=list(bad)[-1]) as e: TrainConfig(**bad)
    assert shown(list(bad.values())[-1]) in str(e.value)

def test_the_edges_of_a_recipe_make_sense():
    flat = TrainConfig(steps=1, warmup=0, lr=1e-3, min_lr=1e-3, weight_decay=0, beta1=0, grad_clip=inf)
    assert learning_rate(0, flat) == learning_rate(9, flat) == 1e-3

@pytest.mark.parametrize('seed', [2**63, 2**64, 10**30])
def test_a_seed_that_no_generator_takes_is_refused_where_it_is_given(seed):
    with pytest.raises(ValueError, match=f'seed is {seed}: expected a whole number from 0 to '
                                         f'9223372036854775807'):
        TrainConfig(seed=seed)
    assert Trainer(model(), TEXT, TEXT, replace(RECIPE, seed=2**63-1)).generator.initial_seed() == 2**63-1

# --- where it computes

class Elsewhere(torch.Tensor):
    "Ids as on a GPU: no model on the CPU takes them before `to`, and no numpy before `cpu`."
    def numpy(self, **_): raise TypeError("can't convert cuda:0 device type tensor to numpy")
    def cpu(self): return self.as_subclass(torch.Tensor)
    def to(self, *a, **k): return self.as_subclass(torch.Tensor).to(*a, **k)
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (F.embedding, F.cross_entropy):
            raise RuntimeError('expected all tensors to be on the same device')
        return super().__torch_function__(func, types, args, kwargs)

def test_batches_and_windows_follow_the_device_of_the_model(tmp_path):
    ids = TEXT.as_subclass(Elsewhere)
    # the stand-in works
    with pytest.raises(RuntimeError, match='same device'): model().prefill(ids[None, :8])
    histories, models = [], []
    for text in (ids, TEXT):
        models.append(model())
        run = train(models[-1], text, text, RECIPE, out=tmp_path/f'{len(models)}.safetensors', callback=quiet)
        histories.append([(h['step'], h['val_loss']) for h in run])
    assert histories[0] == histories[1] and bits(models[0]) == bits(models[1])
    assert (tmp_path/'1.safetensors').read_bytes() == (tmp_path/'2.safetensors').read_bytes()

@pytest.mark.parametrize('device', ['cpu', torch.device('cpu')])
def test_a_device_is_where_the_model_goes(device):
    run = Trainer(model(), TEXT, TEXT, RECIPE, device=device)
    run.update()
    assert {p.device.type for p in run.model.parameters()} == {'cpu'}
    assert check_device(device) == torch.device('cpu')

@pytest.mark.parametrize('bad', ['gpu', '', 'cuda:999', 'meta', 'cpu:x', 3.5, 'two\nlines', 'x'*999])
def test_a_device_that_is_not_there_is_refused_in_one_line_and_nothing_moves(bad):
    m = model()
    with pytest.raises(ValueError) as e: Trainer(m, TEXT, TEXT, RECIPE, device=bad)
    assert str(e.value).startswith(f'device is {shown(bad)}: this machine has cpu')
    assert len(str(e.value)) < 300
    assert {p.device.type for p in m.parameters()} == {'cpu'}

@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_training_learns(optimizer):
    ids = torch.arange(900) % 9                                # after 3 comes 4, always
    m = LanguageModel(replace(SHAPE, dropout=0.))
    recipe = TrainConfig(steps=80, batch_size=8, lr=2e-2, warmup=8, eval_every=40, optimizer=optimizer)
    history = train(m, ids[:800], ids[800:], recipe, callback=quiet)
    assert abs(history[0]['val_loss'] - log(9)) < .3 and history[-1]['val_loss'] < .1

def test_history_has_a_line_for_each_evaluation():
    steps = []
    history = train(model(), TEXT, TEXT, RECIPE, callback=lambda run: steps.append(run.step))
    assert [h['step'] for h in history] == [0, 5, 10, 12] and steps == list(range(1, 13))

def test_a_gradient_step_is_clipped():
    torch.manual_seed(0)
    run = Trainer(model(), TEXT, TEXT, replace(RECIPE, grad_clip=1e-3))
    run.update()
    assert torch.cat([p.grad.flatten() for p in run.model.parameters()]).norm() == pytest.approx(1e-3,
        rel=1e-3)

@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_every_parameter_moves_once_and_only_matrices_decay(optimizer):
    run = Trainer(model(), TEXT, TEXT, replace(RECIPE, optimizer=optimizer))
    groups = [(o, g) for o in run.optimizers for g in o.param_groups]
    moved = [p for _, g in groups for p in g['params']]
    assert {id(p) for p in moved} == {id(p) for p in run.model.parameters()}
    assert len(moved) == len({id(p) for p in moved})
    decayed = [p for _, g in groups if g.get('weight_decay') for p in g['params']]
    assert decayed and all(p.ndim > 1 for p in decayed)
    by_muon = {id(p) for o, g in groups if isinstance(o, Muon) for p in g['params']}
    inner = {id(p) for p in run.model.blocks.parameters() if p.ndim > 1}
    assert by_muon == (inner if optimizer == 'muon' else set())

# --- Muon

@quick
@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 3), st.integers(0, 99))
def test_orthogonal_keeps_the_directions_and_makes_them_equally_strong(m, n, count, seed):
    "Against a decomposition, for random matrices whose singular values are known."
    g, least = seeded(seed), min(m, n)
    draw = lambda *size: torch.linalg.qr(torch.randn(*size, generator=g))[0]
    u, v = draw(count, m, least), draw(count, n, least)
    strength = torch.rand(count, 1, least, generator=g) + .05
    got = orthogonal((u*strength) @ v.mT)
    assert torch.allclose(u.mT @ got @ v, torch.diag_embed((u.mT @ got @ v).diagonal(dim1=-2, dim2=-1)),
                          atol=1e-3)
    new = torch.linalg.svdvals(got)
    assert .6 < new.min() and new.max() < 1.25

@pytest.mark.skipif(not hasattr(torch.optim, 'Muon'), reason='torch has it from 2.9 on')
@quick
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(2, 4), st.booleans()), min_size=1, max_size=3),
       st.integers(1, 4), st.floats(0, .99), st.integers(0, 99))
def test_muon_is_that_of_torch_up_to_its_rounding(sizes, steps, momentum, seed):
    "torch computes in bfloat16; a matrix that is no square has no direction too weak for that."
    g = seeded(seed)
    shapes = [(n, n*k) if wide else (n*k, n) for n, k, wide in [*sizes, sizes[0]]]
    ours, theirs = ([torch.nn.Parameter(torch.zeros(s)) for s in shapes] for _ in range(2))
    a = Muon(ours, lr=1., momentum=momentum)
    b = torch.optim.Muon(theirs, lr=1., momentum=momentum, weight_decay=0., adjust_lr_fn='match_rms_adamw')
    for _ in range(steps):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn(p.shape, generator=g)
            q.grad, p.data, q.data = p.grad.clone(), torch.zeros_like(p), torch.zeros_like(q)
        a.step(); b.step()
        for p, q in zip(ours, theirs): assert (p - q).abs().max() < 8e-2*.2*sqrt(max(p.shape))

def test_muon_leaves_what_has_no_gradient():
    moving, still = (torch.nn.Parameter(torch.ones(3, 3)) for _ in range(2))
    moving.grad = torch.eye(3)
    Muon([moving, still], lr=.1).step()
    assert torch.equal(still, torch.ones(3, 3)) and not torch.equal(moving, torch.ones(3, 3))

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
    with pytest.raises(KeyboardInterrupt):
        train(model(), TEXT, TEXT, RECIPE, out=tmp_path/'m.safetensors', callback=stopper)
    resumed = model(9)
    got = train(resumed, TEXT, TEXT, RECIPE, out=tmp_path/'m.safetensors', resume=True, callback=quiet)
    assert bits(resumed) == bits(whole) and [(h['step'], h['val_loss'])
                                             for h in got] == [(h['step'], h['val_loss']) for h in want]
    assert bits(LanguageModel.from_safetensors(tmp_path/'m.safetensors')) == bits(whole)

def saved(tmp_path, **how):
    "The file of a run after one step."
    path = tmp_path/'r.safetensors'
    run = Trainer(how.get('model') or model(), TEXT, TEXT,
                  how.get('recipe', RECIPE)); run.update(); run.record()
    run.save(path)
    return path

def assert_refused(path, run, says):
    "Loading it is one short line that names the file, and nothing changes: not even chance."
    chance = lambda: (run.generator.get_state().tolist(), torch.get_rng_state().tolist())
    before, odds = bits(run.model), chance()
    with pytest.raises(ValueError, match=says) as e: run.load(path)
    assert path.name in str(e.value) and len(str(e.value)) < 300 + len(str(path)) and '\n' not in str(e.value)
    assert bits(run.model) == before and run.step == 0 and run.history == []
    assert not any(optimizer.state for optimizer in run.optimizers)
    assert chance() == odds

@pytest.mark.parametrize('other, says', [
    (dict(shape=replace(SHAPE, n_layer=2)), 'another model: it has n_layer 1, this run has n_layer 2'),
    (dict(shape=replace(SHAPE, n_inner=5, norm_eps=.1)), 'another model: it has n_inner None, norm_eps '
                                                         '1e-05, this'),
    (dict(shape=replace(SHAPE, dropout=.2)), 'another model: it has dropout 0.1, this run has dropout 0.2'),
    (dict(recipe=replace(RECIPE, steps=13, lr=.1)), 'recipe: it has steps 12, lr 0.01, this run has steps '
                                                    '13, lr 0.1'),
    (dict(text=TEXT[1:]), 'another text')])
def test_a_checkpoint_of_another_run_is_refused_with_what_differs_and_nothing_changes(tmp_path, other, says):
    mine = Trainer(LanguageModel(other.get('shape', SHAPE)), other.get('text', TEXT), TEXT,
                   other.get('recipe', RECIPE))
    assert_refused(saved(tmp_path), mine, says)

def test_what_changes_no_weight_does_not_matter_for_a_resume(tmp_path):
    other = LanguageModel(replace(SHAPE, attention='reference'))
    recipe = replace(RECIPE, eval_every=1, eval_windows=1)
    assert Trainer(other, TEXT, TEXT, recipe).load(saved(tmp_path)).step == 1

@quick
@given(st.sampled_from(['model', 'recipe']), st.data())
def test_any_field_that_matters_is_compared(tmp_path_factory, what, data):
    "A random field, moved a little."
    path = saved(tmp_path_factory.mktemp('run'))
    names = ['n_layer', 'block_size', 'dropout'] if what == 'model' else [
        'steps', 'batch_size', 'lr', 'min_lr', 'warmup', 'weight_decay', 'beta1', 'beta2', 'grad_clip',
        'seed']
    name = data.draw(st.sampled_from(names))
    old = getattr(SHAPE if what == 'model' else RECIPE, name)
    new = old + 1 if isinstance(old, int) else old*1.01
    shape, recipe = (replace(x, **{name: new}) if what == kind else x for x,
                     kind in ((SHAPE, 'model'), (RECIPE, 'recipe')))
    assert_refused(path, Trainer(LanguageModel(shape), TEXT, TEXT, recipe),
                   f'another {what}: it has {name} {old}, ')

def test_a_resumed_run_without_a_recipe_takes_that_of_its_file(tmp_path):
    out = tmp_path/'m.safetensors'
    recipe = replace(RECIPE, lr=1e-3, seed=5)
    whole = model()
    want = train(whole, TEXT, TEXT, recipe, callback=quiet)
    def stop(run):
        if run.step == 6: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train(model(), TEXT, TEXT, recipe, out=out, callback=stop)
    read = read_run(checkpoint_path(out))
    assert read.recipe == recipe and read.model == SHAPE
    assert read.progress['step'] == 5 and read.tokenizer is None
    resumed = LanguageModel(read.model)
    got = train(resumed, TEXT, TEXT, out=out, resume=True, callback=quiet)
    assert bits(resumed) == bits(whole) and [h['val_loss'] for h in got] == [h['val_loss'] for h in want]

@pytest.mark.parametrize('optimizer', ['SGD', 'Muon', None, 3, []])
def test_a_checkpoint_with_an_unknown_optimizer_is_refused_by_name(tmp_path, optimizer):
    path = saved(tmp_path)
    about = json.loads(read_metadata(path))['about']
    tamper(path, about=about | {'recipe': about['recipe'] | {'optimizer': optimizer}})
    assert_refused(path, Trainer(model(3), TEXT, TEXT, RECIPE), f'optimizer is {re.escape(repr(optimizer))}')

def test_a_checkpoint_from_before_there_were_two_optimizers_goes_on_with_adamw(tmp_path):
    recipe = replace(RECIPE, optimizer='adamw', pace='cosine')
    whole, first = (Trainer(model(), TEXT, TEXT, recipe) for _ in range(2))
    chance = torch.get_rng_state()
    for _ in range(4): whole.update()
    torch.set_rng_state(chance)
    first.update(); first.save(path := tmp_path/'r.safetensors')
    about = json.loads(read_metadata(path))['about']
    about['recipe'] = {k: v for k, v in about['recipe'].items() if k not in ('optimizer', 'momentum', 'pace')}
    tamper(path, about=about | {'optimizer': 'AdamW'})
    assert read_run(path).recipe == recipe
    second = Trainer(model(3), TEXT, TEXT, recipe).load(path)
    for _ in range(3): second.update()
    assert bits(second.model) == bits(whole.model)
    with pytest.raises(ValueError, match="another recipe: it has optimizer 'adamw'"):
        Trainer(model(3), TEXT, TEXT, RECIPE).load(path)

@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_an_interrupt_while_a_run_is_loaded_leaves_the_weights_as_they_were(tmp_path, optimizer):
    recipe, n, loaded = replace(RECIPE, optimizer=optimizer), 0, False
    run = Trainer(model(), TEXT, TEXT, recipe)
    run.update(); run.save(path := tmp_path/'r.safetensors')
    while not loaded:
        n, other = n + 1, Trainer(model(3), TEXT, TEXT, recipe)
        before = bits(other.model)
        try:
            with FailingOperation(n, KeyboardInterrupt): other.load(path)
            loaded = True
        except (KeyboardInterrupt, ValueError):          # safetensors turns one into an error of its own
            assert bits(other.model) in (before, bits(run.model))
    assert bits(other.model) == bits(run.model) and n > 20

def test_a_checkpoint_of_a_newer_format_is_refused_with_its_number(tmp_path):
    path = saved(tmp_path)
    tamper(path, format=7)
    assert_refused(path, Trainer(model(3), TEXT, TEXT, RECIPE),
                   'of format 7: this version of tinylm reads up to 1')

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
    with pytest.raises(ValueError, match='not a training checkpoint'):
        Trainer(model(), TEXT, TEXT, RECIPE).load(tmp_path/'m.safetensors')

def test_resume_without_a_file_to_resume_from_is_refused():
    with pytest.raises(ValueError, match='resume'):
        train(model(), TEXT, TEXT, RECIPE, resume=True, callback=quiet)

def test_an_unwritable_folder_is_found_before_the_first_step(tmp_path):
    (tmp_path/'file').write_text('not a folder')
    steps = []
    with pytest.raises(OSError):
        train(model(), TEXT, TEXT, RECIPE, out=tmp_path/'file'/'m.safetensors', callback=steps.append)
    assert steps == []

@pytest.mark.parametrize('out, state',
    [('a/b.safetensors', 'a/b.training.safetensors'), ('m-0.1', 'm-0.1.training.safetensors'),
     ('m-0.2', 'm-0.2.training.safetensors')])
def test_the_run_lies_beside_the_model(out, state): assert checkpoint_path(out).as_posix() == state

def test_a_run_stopped_before_its_first_checkpoint_leaves_nothing(tmp_path):
    def stop(run): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train(model(), TEXT, TEXT, RECIPE, out=tmp_path/'m.safetensors', callback=stop)
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
    (dict(text=torch.full((2000,), 9)), 'token id 9'), (dict(text=TEXT.float()), 'training text is no row'),
    (dict(text=TEXT[None]), 'training text is no row'), (dict(text=[1, 2]), 'training text is no row'),
    (dict(text=TEXT[:8]), 'training text of 8 tokens is too short'),
    (dict(recipe={'steps': 3}), 'expected a TrainConfig'),
    (dict(recipe=replace(RECIPE, lr=1e30, warmup=0)), 'try a learning rate below')])
def test_a_run_that_is_refused_or_diverges_keeps_the_files_of_the_last_one(tmp_path, how, says):
    out, before = finished(tmp_path)
    with pytest.raises((ValueError, RuntimeError), match=says):
        train(model(), how.get('text', TEXT), TEXT, how.get('recipe', RECIPE), out=out, callback=quiet)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before

@pytest.mark.parametrize('name, says',
    [('corpus.txt', 'not a whole safetensors file'), ('folder', 'is not a tinylm file'),
     ('m.training.safetensors', 'no name for a model')])
def test_out_overwrites_nothing_but_models(tmp_path, name, says):
    (tmp_path/'folder').mkdir(); (tmp_path/'corpus.txt').write_text('a precious text')
    with pytest.raises(ValueError, match=says):
        train(model(), TEXT, TEXT, RECIPE, out=tmp_path/name, callback=quiet)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['corpus.txt',
        'folder'] and (tmp_path/'corpus.txt').read_text() == 'a precious text'
    with pytest.raises(ValueError, match='no name for a model'):
        train(model(), TEXT, TEXT, RECIPE, out='', callback=quiet)

def test_another_vocabulary_or_validation_text_is_another_run(tmp_path):
    def run(chars, val=TEXT):
        m = model(); m.tokenizer = CharTokenizer(chars)
        return Trainer(m, TEXT, val, RECIPE)
    first = run('abcdefghi'); first.update(); first.save(tmp_path/'r.safetensors')
    with pytest.raises(ValueError, match='another vocabulary'):
        run('abcdefghj').load(tmp_path/'r.safetensors')
    with pytest.raises(ValueError, match='another text'):
        run('abcdefghi', TEXT[:-1]).load(tmp_path/'r.safetensors')
    assert run('abcdefghi').load(tmp_path/'r.safetensors').step == 1

def read_metadata(path):
    from tinylm import read_safetensors
    return read_safetensors(path)[1]['tinylm.training']

def tamper(path, tensors=None, **changes):
    from safetensors.torch import save_file
    from tinylm import read_safetensors
    old, file = read_safetensors(path)[0], json.loads(read_metadata(path))
    file['progress'] |= changes.pop('progress', {})
    kept = {k: t for k, t in (old | (tensors or {})).items() if t is not None}
    save_file(kept, path, {'tinylm.training': json.dumps(file | changes)})

STATE = torch.zeros_like(torch.get_rng_state())
LINE = {'step': 1, 'seconds': 1., 'loss': 1., 'val_loss': 1.}

@pytest.mark.parametrize('change', [
    dict(tensors={'optimizer.0.mean': torch.zeros(3)}), dict(tensors={'optimizer.0.mean': None}),
    dict(tensors={'random.batches': None}),
    dict(tensors={'model.norm.bias': None}), dict(tensors={'model.norm.bias': torch.zeros(2)}),
    dict(tensors={'optimizer.9.step': None}), dict(tensors={'optimizer.9.exp_avg': torch.zeros(3)}),
    dict(tensors={'extra': torch.zeros(1)}), dict(about={}),
    dict(about=[]), dict(about=None), dict(progress={'step': -5}), dict(progress={'step': 2.5}),
    dict(progress={'step': 99}), dict(progress={'step': True}), dict(progress={'history': None}),
    dict(progress={'seconds': 'long'}), dict(progress={'loss': None}),
    dict(tensors={'random.batches': STATE}), dict(tensors={'random.dropout': STATE}),
    dict(tensors={'random.dropout': STATE[:9]}), dict(tensors={'random.batches': STATE.float()})],
    ids=lambda c: str(c)[:50])
def test_a_checkpoint_that_was_tampered_with_is_refused_whole(tmp_path, change):
    path = saved(tmp_path)
    tamper(path, **change)
    assert_refused(path, Trainer(model(3), TEXT, TEXT, RECIPE), 'r.safetensors')

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))

@quick
@given(st.data())
def test_a_history_of_nonsense_is_refused_with_the_name_of_the_file(tmp_path_factory, data):
    "A line of anything, a line that lacks a field, a field of anything, a step that was never made."
    line = data.draw(JSON | st.sampled_from(sorted(LINE)).flatmap(lambda name: st.just({k: v for k,
        v in LINE.items() if k != name})
        | JSON.filter(lambda v: not isinstance(v, float) and v not in (0, 1)).map(lambda v: LINE
            | {name: v})))
    path = saved(tmp_path_factory.mktemp('run'))
    tamper(path, progress={'history': data.draw(st.sampled_from([[line], [LINE, line]]))})
    assert_refused(path, Trainer(model(3), TEXT, TEXT, RECIPE), 'r.safetensors is not a training checkpoint')

# --- the course's model

def test_the_course_model_is_trained_once_and_again_when_the_recipe_changes(tmp_path, monkeypatch):
    monkeypatch.setenv('TINYLM_DATA', str(tmp_path))
    monkeypatch.setattr(training, 'load_corpus', lambda: 'a short text, ' * 200)
    small = replace(TrainConfig(), steps=2, batch_size=2, eval_windows=2)
    monkeypatch.setattr(TrainConfig.__init__, '__defaults__', tuple(vars(small).values()))
    runs = []
    monkeypatch.setattr(training, 'train', lambda *a, real=train,
                        **k: (runs.append(1), real(*a, callback=quiet)))
    before = torch.get_rng_state()
    first, second = course_model(), course_model()
    assert len(runs) == 1 and bits(first) == bits(second)
    assert second.tokenizer.chars == CharTokenizer('a short text, ').chars
    assert torch.equal(before, torch.get_rng_state())
    path = course_path()
    monkeypatch.setattr(training, 'load_corpus', lambda: 'another text, ' * 200)
    assert course_path() != path
    course_model()
    assert len(runs) == 2
    course_path().write_bytes(b'broken')
    with pytest.raises(ValueError, match='remove it, and it is made anew'): course_model()

def grown(config, **changes):
    "The same of a later version, which has two more fields."
    more = [('young', int, field(default=7)), ('younger', list, field(default_factory=list))]
    return make_dataclass('Later', more, bases=(type(config),))(**vars(config) | changes)

@pytest.mark.parametrize('shape, recipe', PRESETS.values(), ids=PRESETS)
def test_a_field_that_comes_later_renames_no_trained_model(shape, recipe, monkeypatch):
    monkeypatch.setattr(training, 'load_corpus', lambda: 'a short text')
    assert model_path('x', grown(shape), grown(recipe)) == model_path('x', shape, recipe)
    others = [(grown(shape, young=8), recipe), (shape, grown(recipe, younger=[1])),
              (replace(shape, n_embd=64), recipe), (shape, replace(recipe, lr=.5)), (shape, recipe)]
    assert len({model_path('x', *both) for both in others}) == 5

@pytest.mark.parametrize('config', [LMConfig, TrainConfig])
def test_a_default_that_changes_renames_the_models_that_had_it(config, monkeypatch):
    monkeypatch.setattr(training, 'load_corpus', lambda: 'a short text')
    def name(): return model_path('x', LMConfig(), TrainConfig())
    names, before = {name()}, config.__init__.__defaults__
    for i, value in enumerate(before):
        if type(value) in (int, float) and value:
            other = *before[:i], type(value)(value/2), *before[i+1:]
            monkeypatch.setattr(config.__init__, '__defaults__', other)
            try: names.add(name())
            except ValueError: continue                # heads that share no channels, and the like
    assert len(names) > 4

# --- models that cannot be trained as they are, and runs that somebody else is writing

@pytest.mark.parametrize('frozen', [('tok_emb',), ('blocks.0', 'norm'), ('pos_emb', 'blocks.0.mlp')])
def test_a_frozen_part_stays_as_it_is_and_its_run_can_be_resumed(tmp_path, frozen):
    def make(seed=0):
        m = model(seed)
        for part in frozen: m.get_submodule(part).requires_grad_(False)
        return m
    m, out = make(), tmp_path/'m.safetensors'
    before = {k: v.clone() for k, v in m.state_dict().items()}
    def stop(run):
        if run.step == 7: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train(m, TEXT, TEXT, RECIPE, out=out, callback=stop)
    train(again := make(3), TEXT, TEXT, RECIPE, out=out, resume=True, callback=quiet)
    for k, v in again.state_dict().items(): assert torch.equal(v, before[k]) == k.startswith(frozen), k

@pytest.mark.parametrize('make, says', [
    (lambda: torch.compile(model(), backend='eager'), 'expected a LanguageModel that is not compiled'),
    (lambda: (m := model(), m.compile(backend='eager'))[0], 'the model is compiled'),
    (lambda: model().requires_grad_(False), 'all parameters of the model are frozen'),
    (lambda: torch.nn.Linear(2, 2), 'model is Linear')])
def test_what_cannot_be_trained_is_refused_before_the_first_step(make, says):
    with pytest.raises(ValueError, match=says): Trainer(make(), TEXT, TEXT, RECIPE)

def test_a_run_belongs_to_the_process_that_writes_it(tmp_path):
    out, tries = tmp_path/'m.safetensors', []
    def second(run):
        if run.step == 6:
            with pytest.raises(ValueError, match='m.safetensors is being written by another process'):
                train(model(), TEXT, TEXT, RECIPE, out=out, resume=True, callback=quiet)
            tries.append(1)
    train(model(), TEXT, TEXT, RECIPE, out=out, callback=second)
    assert tries and sorted(p.name for p in tmp_path.iterdir()) == ['m.safetensors', 'm.training.safetensors']
    # and to nobody afterwards
    train(model(), TEXT, TEXT, RECIPE, out=out, resume=True, callback=quiet)
