"Modern parts: equal to slow references, counted exactly, and held to all that a GPT promises."
import math, re
from dataclasses import asdict, replace

import pytest
import torch
from helpers import SMALL, close, models, modern_shapes, quick, scalings, seeded, small_model, tokens
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional as F

from tinylm import (Engine, KVCache, LanguageModel, LMConfig, NGramDrafter, Request, Rotary, TrainConfig,
                    phase_invariant, rope_speeds, train, watch_pass)
from tinylm.attention import ATTENTION, causal_attention
from tinylm.model import MEET, MLPS, NORMS, POSITIONS, Fresh
from tinylm.modern import SCALINGS, QKNorm, SwiGLU

LLAMA = dict(norm='rms', mlp='swiglu', positions='rotary', bias=False, n_head=4, n_kv_head=2)
QWEN3 = LLAMA | dict(qk_norm=True, head_dim=6, tie_embeddings=False, rope_theta=1e6)
NUMBERS = dict(default={}, linear=dict(factor=4.), dynamic=dict(factor=4, original_max_position_embeddings=4),
               llama3=dict(factor=8., low_freq_factor=1., high_freq_factor=4.,
                           original_max_position_embeddings=64))
SCALED = {kind: dict(rope_type=kind, **numbers) for kind, numbers in NUMBERS.items()}

def config(**changes): return LMConfig(**SMALL | changes)
def rotary(**changes): return config(positions='rotary', **changes)
def standing(*positions): return Fresh(torch.tensor([positions]), ATTENTION['reference'])

# --- rotary positions

def by_complex_numbers(x, positions, config, end=0):
    "A pair of channels is a complex number, and a turn multiplies it by e^(i angle)."
    out, (*_, T, D) = torch.empty_like(x), x.shape
    speeds = rope_speeds(config, end).double().tolist()
    for t in range(T):
        for i, speed in enumerate(speeds):
            z = torch.complex(x[..., t, i].double(), x[..., t, i + D//2].double())
            z = z*complex(math.cos(positions[t]*speed), math.sin(positions[t]*speed))
            out[..., t, i], out[..., t, i + D//2] = z.real, z.imag
    return out

@quick
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3),
       st.lists(st.integers(0, 500), min_size=1, max_size=5), st.floats(2, 1e6), scalings())
def test_a_turn_is_a_product_with_a_complex_number(pairs, G, B, positions, theta, scaling):
    c = rotary(head_dim=2*pairs, rope_theta=theta, rope_scaling=scaling)
    q, k = (torch.randn(B, heads, len(positions), 2*pairs, generator=seeded(heads)) for heads in (2*G, G))
    for got, x in zip(Rotary(c)(q, k, standing(*positions)), (q, k)):
        assert torch.allclose(got, by_complex_numbers(x, positions, c), atol=5e-4)
        assert torch.allclose(got.norm(dim=-1), x.norm(dim=-1), atol=1e-4)            # nothing but turned

@quick
@given(st.integers(1, 4), st.integers(0, 40), st.integers(0, 40), st.integers(1, 60), scalings())
def test_scores_depend_on_the_distance_only(pairs, a, b, more, scaling):
    c = rotary(head_dim=2*pairs, rope_scaling=scaling)
    q, k = torch.randn(2, 1, 1, 1, 2*pairs, generator=seeded(a)).double()
    def score(at, to):
        turned, _ = Rotary(c)(q, q, standing(at))
        return turned.flatten() @ Rotary(c)(k, k, standing(to))[1].flatten()
    assert abs(score(a, b) - score(a + more, b + more)) < 1e-4
    if a != b and scaling is None: assert abs(score(a, b) - score(a, b + 1)) > 1e-7

def test_places_matter_and_positions_have_no_parameters():
    model = small_model(**LLAMA).eval()
    assert model.pos_emb is None and not list(Rotary(model.config).parameters())
    there, back = (model.prefill(torch.tensor([ids]))[0][0, -1] for ids in ([1, 2, 3], [2, 1, 3]))
    assert not close(there, back, 1e-3)

@pytest.mark.parametrize('kind', NUMBERS)
@pytest.mark.parametrize('D, theta, end', [(8, 1e4, 0), (64, 5e5, 9), (128, 1e6, 4000), (6, 100., 5)])
def test_speeds_are_those_of_transformers(kind, D, theta, end):
    hf = pytest.importorskip('transformers')
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    theirs = hf.LlamaConfig(head_dim=D, hidden_size=2*D, num_attention_heads=2, max_position_embeddings=4,
                            rope_parameters=dict(SCALED[kind], rope_theta=theta))
    if kind == 'default': want = hf.models.llama.modeling_llama.LlamaRotaryEmbedding(theirs).inv_freq
    else: want, _ = ROPE_INIT_FUNCTIONS[kind](theirs, 'cpu', seq_len=max(end, 1))
    ours = rotary(head_dim=D, rope_theta=theta, rope_scaling=SCALED[kind])
    assert torch.allclose(rope_speeds(ours, end), want.float(), rtol=1e-5, atol=0)

def test_stretching_slows_and_llama3_keeps_what_turns_fast():
    speeds = {kind: rope_speeds(rotary(head_dim=64, rope_scaling=SCALED[kind]), 100) for kind in SCALED}
    original = speeds['default']
    assert torch.equal(speeds['linear'], original/4)
    assert torch.equal(rope_speeds(rotary(head_dim=64, rope_scaling=SCALED['dynamic']), 4), original)
    slower = original/speeds['dynamic']
    assert slower[0] == 1 and (slower.diff() > 0).all()
    ratio, rounds = original/speeds['llama3'], original*64/(2*math.pi)
    for kept, want in ((ratio[rounds > 4], 1.), (ratio[rounds < 1], 8.)):
        assert torch.allclose(kept, torch.tensor(want))

def test_dynamic_breaks_the_law_beyond_the_window_of_its_training_and_not_before():
    shape = LLAMA | dict(head_dim=8, rope_theta=20.)
    model = small_model(block_size=12, **shape, rope_scaling=SCALED['dynamic']).eval()
    x = tokens(1, 12)
    assert phase_invariant(model, x[:, :4], 1, cache=KVCache.of(model))
    assert not phase_invariant(model, x, 4, cache=KVCache.of(model), atol=1e-2)
    same = small_model(block_size=12, **shape).eval()
    same.load_state_dict(model.state_dict())
    assert close(same.prefill(x[:, :4])[0], model.prefill(x[:, :4])[0])
    longer = model.prefill(x)[0]
    assert not close(same.prefill(x)[0], longer, 1e-2)
    assert not close(model.prefill(x[:, :11])[0], longer[:, :11], 1e-3)   # the end moves what was before

def test_with_dynamic_the_longest_text_of_a_batch_sets_the_speed_for_all():
    shape = LLAMA | dict(head_dim=8, rope_theta=20., rope_scaling=SCALED['dynamic'])
    model = small_model(block_size=12, **shape).eval()
    def beside(n): # the next logits of a text of 3, beside one of n
        cache = KVCache.of(model, 2)
        for row, length in enumerate((3, n)): model.prefill(tokens(1, length, row), cache=cache.row(row))
        return model.prefill(tokens(2, 1), cache=cache)[0][0]
    assert close(beside(1), beside(3)) and not close(beside(3), beside(9), 1e-3)

# --- norms, gates, heads

@quick
@given(st.integers(1, 30), st.floats(1e-6, 1), st.floats(.01, 100))
def test_rms_norm_divides_by_the_root_of_the_mean_square(C, eps, size):
    norm = NORMS['rms'](config(n_head=1, n_embd=C, norm_eps=eps))
    nn.init.normal_(norm.weight, generator=seeded(1))
    x = size*torch.randn(2, 3, C, generator=seeded(2))
    want = x/(x.square().mean(-1, keepdim=True) + eps).sqrt()*norm.weight
    assert torch.allclose(norm(x), want, rtol=1e-4, atol=1e-5)
    assert [name for name, _ in norm.named_parameters()] == ['weight']

@quick
@given(st.integers(1, 8), st.integers(1, 20), st.booleans())
def test_swiglu_is_a_gate_times_a_value(C, wide, bias):
    mlp = SwiGLU(config(n_head=1, n_embd=C, n_inner=wide, bias=bias))
    x = torch.randn(2, 3, C, generator=seeded(1))
    gate, value = mlp.up.weight[:wide], mlp.up.weight[wide:]
    b = mlp.up.bias if bias else torch.zeros(2*wide)
    opened = x @ gate.T + b[:wide]
    inside = opened*opened.sigmoid()*(x @ value.T + b[wide:])
    assert close(mlp(x), F.linear(inside, mlp.down.weight, mlp.down.bias))

@quick
@given(st.integers(1, 9), st.floats(1, 1e3))
def test_qk_norm_bounds_every_score(D, size):
    part = QKNorm(config(head_dim=D))
    q, k = size*torch.randn(2, 1, 2, 5, D, generator=seeded(D))
    q, k = part(q, k, None)
    assert (q @ k.mT/math.sqrt(D)).abs().max() <= math.sqrt(D)*(1 + 1e-5)

@quick
@given(models(attention=['reference'], shapes=modern_shapes(), weights=['float']), st.integers(1, 8))
def test_a_modern_model_is_the_network_written_out(model, T):
    "Head by head, part by part, with every choice spelled out."
    c, x = model.config, tokens(2, min(T, model.config.block_size))
    T, n = x.shape[1], c.n_head//c.n_kv
    def norm(part, x):
        if c.norm == 'layer': return F.layer_norm(x, x.shape[-1:], part.weight, part.bias, c.norm_eps)
        return x/(x.square().mean(-1, keepdim=True) + c.norm_eps).sqrt()*part.weight
    def meet(part, x, which):
        if c.qk_norm:
            weight = getattr(part['qk_norm'], which).weight
            x = x/(x.square().mean(-1, keepdim=True) + c.norm_eps).sqrt()*weight
        return by_complex_numbers(x, range(T), c) if c.positions == 'rotary' else x
    def attention(part, x):
        D, each = c.head_size, []
        rows = part.qkv(x)
        for h in range(c.n_head):
            g = c.n_head + h//n
            q, k = (rows[..., i*D:i*D+D] for i in (h, g))
            v = rows[..., (g + c.n_kv)*D:(g + c.n_kv + 1)*D]
            each.append(causal_attention(meet(part.meet, q, 'q'), meet(part.meet, k, 'k'), v))
        return part.proj(torch.cat(each, -1))
    def mlp(part, x):
        up = part.up(x)
        if c.mlp == 'gelu': return part.down(F.gelu(up, approximate='tanh'))
        return part.down(F.silu(up[..., :c.n_wide])*up[..., c.n_wide:])
    with torch.no_grad():
        stream = model.tok_emb(x) + (0 if model.pos_emb is None else model.pos_emb.weight[:T])
        for block in model.blocks:
            stream = stream + attention(block.attention, norm(block.norm1, stream))
            stream = stream + mlp(block.mlp, norm(block.norm2, stream))
        head = model.tok_emb.weight if c.tie_embeddings else model.head.weight
        want = norm(model.norm, stream) @ head.T
        assert close(model.prefill(x)[0], want, 1e-3)

# --- sizes follow from the parts

@quick
@given(modern_shapes(), st.integers(1, 40), st.integers(1, 40))
def test_n_params_counts_a_modern_model(shape, V, block_size):
    model = LanguageModel(LMConfig(**shape, vocab_size=V, block_size=block_size))
    assert model.config.n_params == sum(p.numel() for p in model.parameters())

@quick
@given(models(attention=('fused', 'reference'), shapes=modern_shapes()), st.integers(1, 3), st.booleans(),
       st.data())
def test_what_a_pass_moves_is_what_was_counted(model, B, last_only, data):
    past = data.draw(st.integers(0, model.config.block_size - 1))
    T, cache = data.draw(st.integers(1, model.config.block_size - past)), KVCache.of(model, B)
    if past: model.prefill(tokens(B, past), cache=cache)
    seen, _ = watch_pass(model, tokens(B, T), cache, last_only)
    assert seen == replace(model.config.pass_cost(T, past, B, last_only), flops=0)

def test_published_models_have_their_published_size():
    smol = LMConfig(49152, 2048, 30, n_embd=576, n_inner=1536, **LLAMA | dict(n_head=9, n_kv_head=3))
    heads = dict(n_head=16, n_kv_head=8, head_dim=128, tie_embeddings=True)
    qwen = LMConfig(151936, 40960, 28, n_embd=1024, n_inner=3072, **QWEN3 | heads)
    assert (smol.n_params, qwen.n_params) == (134_515_008, 596_049_920)

def test_groups_make_the_cache_smaller_and_nothing_else():
    whole, shared = (LMConfig(n_head=8, n_embd=64, n_kv_head=G) for G in (8, 2))
    a, b = (c.pass_cost(1, 63) for c in (whole, shared))
    assert a.cache_read == 4*b.cache_read and a.cache_written == 4*b.cache_written

# --- files and training

@quick
@given(modern_shapes(), st.integers(0, 99))
def test_a_modern_model_is_kept_in_a_file(tmp_path_factory, shape, seed):
    path = tmp_path_factory.mktemp('m')/'m.safetensors'
    model = small_model(seed, **shape).eval()
    model.save_safetensors(path)
    again = LanguageModel.from_safetensors(path).eval()
    assert again.config == model.config and asdict(again.config) == asdict(model.config)
    assert torch.equal(again.prefill(tokens(2, 8))[0], model.prefill(tokens(2, 8))[0])
    other = LanguageModel(model.config).eval()
    other.load_safetensors(path)
    assert torch.equal(other.prefill(tokens(2, 8))[0], model.prefill(tokens(2, 8))[0])

def test_a_file_of_another_kind_of_model_is_refused_by_name(tmp_path):
    small_model(**LLAMA).save_safetensors(tmp_path/'m.safetensors')
    with pytest.raises(ValueError, match='norm'): small_model().load_safetensors(tmp_path/'m.safetensors')

TEXT = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]*12)

def bits(model): return {name: t.numpy().tobytes() for name, t in model.state_dict().items()}

@pytest.mark.parametrize('optimizer', ['muon', 'adamw'])
@pytest.mark.parametrize('kind', [LLAMA, QWEN3, dict(qk_norm=True, n_kv_head=1), QWEN3 | dict(dropout=.2)])
def test_a_modern_model_learns_and_resumes_to_the_same_bits(tmp_path, kind, optimizer):
    recipe = TrainConfig(steps=40, batch_size=4, warmup=4, eval_every=10, optimizer=optimizer)
    def fresh(seed=0): torch.manual_seed(seed); return LanguageModel(config(**kind))
    quiet = lambda run: None
    whole = fresh()
    history = train(whole, TEXT, TEXT, recipe, callback=quiet)
    assert history[-1]['val_loss'] < history[0]['val_loss'] - .5
    class Stop(Exception): pass
    def stop(run):
        if run.step == 25: raise Stop
    with pytest.raises(Stop): train(fresh(), TEXT, TEXT, recipe, out=tmp_path/'m.safetensors', callback=stop)
    again = fresh(9)
    train(again, TEXT, TEXT, recipe, out=tmp_path/'m.safetensors', resume=True, callback=quiet)
    assert bits(again) == bits(whole)
    assert phase_invariant(whole, tokens(1, 8), 3, cache=KVCache.of(whole))

def test_every_part_gets_a_gradient_from_the_first_step():
    torch.manual_seed(0)
    model = LanguageModel(config(**QWEN3))
    model.prefill(tokens(2, 8), tokens(2, 8, 1))[1].backward()
    for name, p in model.named_parameters(): assert p.grad is not None and p.grad.abs().max() > 0, name

def test_norms_begin_with_factor_one():
    for name, p in LanguageModel(config(**QWEN3)).named_parameters():
        if p.ndim == 1: assert 'norm' in name and (p == 1).all(), name

# --- every way to write, with grouped heads

@pytest.mark.parametrize('kind', [LLAMA, QWEN3, LLAMA | dict(attention='tiled'),
                                  QWEN3 | dict(rope_scaling=SCALED['llama3'])])
def test_every_way_writes_the_same_text_also_past_the_window(kind):
    model = small_model(block_size=16, **kind).eval()
    idx = tokens(1, 5)
    want = model.decode(idx, 24, temperature=0, use_cache=False)
    assert torch.equal(model.decode(idx, 24, temperature=0), want)
    assert torch.equal(model.decode(idx, 24, temperature=0, drafter=NGramDrafter(2, 4)), want)
    prompts = [tokens(1, n, n)[0].tolist() for n in (1, 3, 5, 8)]
    got = Engine(model, slots=3, budget=6, size=4).generate([Request(p, 8, temperature=0) for p in prompts])
    for p, text in zip(prompts, got):
        assert torch.equal(text, model.decode(torch.tensor([p]), 8, temperature=0, use_cache=False)[0])

# --- bad input: one clear line

@pytest.mark.parametrize('changes, says', [
    (dict(head_dim=5), 'rotary positions turn pairs of channels, and a head has 5'),
    (dict(n_embd=6, n_head=2), 'rotary positions turn pairs of channels, and a head has 3'),
    (dict(rope_theta=0), 'rope_theta is 0: expected a number above 0')])
def test_a_shape_that_cannot_turn_is_refused(changes, says):
    with pytest.raises(ValueError, match=re.escape(says)): rotary(**changes)

@pytest.mark.parametrize('scaling, says', [
    ('linear', "rope_scaling is 'linear': expected a dict or None"),
    (4, 'rope_scaling is 4: expected a dict or None'),
    ([], 'rope_scaling is []: expected a dict or None'),
    ({}, 'rope_type of rope_scaling is None: expected one of default, linear, dynamic, llama3'),
    (dict(factor=2.), 'rope_type of rope_scaling is None: expected one of default, linear, dynamic, llama3'),
    (dict(rope_type='yarn', factor=2.), "rope_type of rope_scaling is 'yarn': expected one of default"),
    (dict(rope_type=['linear']), "rope_type of rope_scaling is ['linear']: expected one of default"),
    (dict(rope_type='default', factor=2.), 'expected rope_type default with nothing'),
    (dict(rope_type='linear'), 'expected rope_type linear with factor'),
    (dict(SCALED['linear'], speed=1), 'expected rope_type linear with factor'),
    ({**SCALED['linear'], 7: 1}, 'expected rope_type linear with factor'),
    (dict(SCALED['linear'], factor='4'), "factor of rope_scaling is '4': expected a number above 0"),
    (dict(SCALED['linear'], factor=float('nan')), 'factor of rope_scaling is nan: expected a number above 0'),
    (dict(SCALED['linear'], factor=True), 'factor of rope_scaling is True: expected a number above 0'),
    (dict(SCALED['linear'], factor=.5), 'factor of rope_scaling is 0.5: expected a number of at least 1'),
    (dict(SCALED['dynamic'], original_max_position_embeddings=0), 'embeddings of rope_scaling is 0'),
    (dict(SCALED['llama3'], low_freq_factor=4.), 'expected low_freq_factor below high_freq_factor'),
    (dict(SCALED['llama3'], high_freq_factor=None), 'high_freq_factor of rope_scaling is None')])
def test_a_way_to_stretch_that_makes_no_sense_is_refused(scaling, says):
    with pytest.raises(ValueError) as e: rotary(rope_scaling=scaling)
    assert says in str(e.value) and '\n' not in str(e.value) and len(str(e.value)) < 300

def test_learned_positions_cannot_be_stretched():
    with pytest.raises(ValueError, match='learned positions have none'): config(rope_scaling=SCALED['linear'])

@pytest.mark.parametrize('table, name, known', [(NORMS, 'norm', 'layer, rms'), (MLPS, 'mlp', 'gelu, swiglu'),
                                                (POSITIONS, 'positions', 'learned, rotary')])
def test_the_rows_of_this_lesson_are_named_where_another_is_asked_for(table, name, known):
    with pytest.raises(ValueError, match=f"{name} is 'x': expected one of {known}"): config(**{name: 'x'})
    assert list(table) == known.split(', ') and set(MEET) == {'rotary', 'qk_norm'}

def test_all_ways_to_stretch_are_tried_here(): assert list(SCALINGS) == list(NUMBERS)
