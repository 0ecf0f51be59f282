"int8 weights: the error of a row, the same model with fewer bytes, files, and what is refused."
import copy, gc
from dataclasses import asdict, replace

import pytest
import torch
from helpers import DEVICE, close, decided, failing, models, quick, seeded, small_model, tokens
from hypothesis import assume, given, strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tinylm import (CharTokenizer, Engine, Int8Linear, Int8Table, KVCache, LanguageModel, LMConfig,
                    ModelDrafter, NGramDrafter, PagedKVCache, Request, TrainConfig, Trainer, evaluate,
                    int8_linear, int8_rows, phase_invariant, quantize_, train, watch_pass)

MODERN = dict(norm='rms', mlp='swiglu', positions='rotary', qk_norm=True, n_kv_head=1, bias=False)
FLOATS = torch.float16, torch.bfloat16, torch.float32
kinds = st.sampled_from([{}, MODERN, MODERN | dict(tie_embeddings=False), dict(bias=False)])
pairs = st.tuples(kinds, st.integers(0, 99))

def pair(kind, **changes):
    "A float model, and the same with int8 weights."
    kind, seed = kind
    model = small_model(seed, **kind | changes).eval()
    return model, quantize_(copy.deepcopy(model))

def unrounded(model):
    "A float model with the very numbers that an int8 model stands for."
    twin, state = LanguageModel(replace(model.config, weights='float')), model.state_dict()
    whole = {k: t*state[k.replace('weight', 'scale')][:, None] if t.dtype == torch.int8 else t
             for k, t in state.items() if not k.endswith('scale')}
    twin.load_state_dict(whole)
    return twin.to(DEVICE, model.dtype).eval()

# --- a row

@st.composite
def matrices(draw):
    "Rows of many sizes, some of zeros, some with one number far out, of any type."
    N, K, dtype = draw(st.integers(1, 9)), draw(st.integers(1, 40)), draw(st.sampled_from(FLOATS))
    w = torch.randn(N, K, generator=seeded(draw(st.integers(0, 99))), dtype=torch.float64)
    low, high = {torch.float16: (-8, 4), torch.bfloat16: (-40, 37), torch.float32: (-44, 37)}[dtype]
    size = torch.tensor(draw(st.lists(st.integers(low, high), min_size=N, max_size=N)), dtype=torch.float64)
    for r in range(N):
        if draw(st.booleans()): w[r, draw(st.integers(0, K-1))] *= 10**draw(st.integers(0, 3))
    w *= 10**size[:, None]
    if draw(st.booleans()): w[draw(st.integers(0, N-1))] = 0
    most = torch.finfo(dtype).max
    return w.clamp(-most, most).to(dtype)

@quick
@given(matrices())
def test_no_weight_moves_by_more_than_half_a_scale(w):
    whole, scale = int8_rows(w)
    assert whole.dtype == torch.int8 and scale.dtype == w.dtype and scale.shape == w.shape[:1]
    assert whole.abs().max() <= 127 and (scale > 0).all() and scale.isfinite().all()
    exact, s = w.double(), scale.double()[:, None]
    assert ((exact - whole.double()*s).abs() <= s/2).all()
    tight = exact.abs().amax(1) > 300*torch.finfo(w.dtype).tiny*torch.finfo(w.dtype).eps
    assert (whole.abs().amax(1)[tight] >= 63).all()           # the range is used, also far down
    assert (whole[exact.abs().amax(1) == 0] == 0).all()

@quick
@given(matrices(), st.integers(1, 9))
def test_rows_do_not_know_each_other(w, n):
    whole, scale = int8_rows(w)
    for part in w.split(n):
        a, b = int8_rows(part)
        i = len(part)
        assert torch.equal(a, whole[:i]) and torch.equal(b, scale[:i])
        whole, scale = whole[i:], scale[i:]

def test_a_large_matrix_is_rounded_row_by_row():
    w = torch.randn(3000, 5, generator=seeded())
    whole, scale = int8_rows(w)
    assert torch.equal(whole, (w/scale[:, None]).round().to(torch.int8))
    assert torch.allclose(scale, w.abs().amax(1)/127)

# --- a product

@quick
@given(st.integers(1, 70), st.integers(1, 70), st.lists(st.integers(1, 5), max_size=3),
       st.sampled_from(FLOATS), st.integers(0, 99), st.booleans())
def test_a_product_is_that_of_the_numbers_behind(N, K, lead, dtype, seed, in_blocks):
    if in_blocks: N, K = 16*(1 + N % 4), 16*(1 + K % 4)       # shapes that a kernel takes
    w, x = (torch.randn(*s, K, generator=seeded(seed)).to(dtype) for s in ((N,), lead))
    whole, scale = int8_rows(w)
    y = int8_linear(x, whole, scale)
    assert y.shape == (*lead, N) and y.dtype == dtype
    want = F.linear(x.double(), whole.double()*scale.double()[:, None])
    size = F.linear(x.double().abs(), (whole.double()*scale.double()[:, None]).abs())
    units = (K + 3)/2 if dtype == torch.float32 else 4   # K sums round, half a unit each; halves at the end
    room = units*torch.finfo(dtype).eps*size + 1e-4*(dtype == torch.float16)
    assert ((y.double() - want).abs() <= room).all()
    moved = F.linear(x.double(), w.double()) - want           # what the rounding of weights does
    assert (moved.abs() <= 1.0001*(x.double().abs().sum(-1, keepdim=True)*scale.double()/2) + 1e-12).all()

@pytest.mark.parametrize('far', [lambda x: x[1:2], lambda x: x[:, 16:48], lambda x: x.T[:3, :32],
                                 lambda x: x.flatten()[3:35], lambda x: x[:1, ::2]])
def test_a_product_takes_any_view_of_memory(far):
    x, w = torch.randn(64, 64).bfloat16(), torch.randn(16, 32).bfloat16()
    part = far(x)[..., :32]
    whole, scale = int8_rows(w)
    want = F.linear(part.float(), whole*scale[:, None].float())
    assert torch.allclose(int8_linear(part, whole, scale).float(), want, atol=.05*want.abs().max().item())
    odd = torch.empty(16*32 + 1, dtype=torch.int8)[1:].view(16, 32)
    odd.copy_(whole)
    assert torch.allclose(int8_linear(part, odd, scale).float(), want, atol=.05*want.abs().max().item())

class Largest(TorchDispatchMode):
    "The numbers of the largest tensor of floats that an operation makes."
    numbers = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_floating_point():
            self.numbers = max(self.numbers, out.numel())
        return out

@pytest.mark.parametrize('N, K', [(700, 300), (9, 2**16), (5, 2**17 + 1)])
@pytest.mark.parametrize('rows', [1, 3])
def test_a_large_product_is_made_of_pieces_that_fit_into_the_processors_cache(N, K, rows):
    w, x = torch.randn(N, K, generator=seeded()), torch.randn(rows, K, generator=seeded(1))
    whole, scale = int8_rows(w)
    with Largest() as largest: y = int8_linear(x, whole, scale)
    want = x.double() @ (whole*scale[:, None].double()).T
    assert torch.allclose(y.double(), want, atol=1e-3*K**.5) and y.shape == (rows, N)
    assert largest.numbers <= max(K, 2**17, x.numel()) < N*K

@pytest.mark.parametrize('rows, dtype, N, K, aligned, used', [
    (1, torch.bfloat16, 32, 48, True, True), (8, torch.bfloat16, 48, 16, True, True),
    (9, torch.bfloat16, 32, 48, True, False), (1, torch.float32, 32, 48, True, False),
    (1, torch.float16, 32, 48, True, False), (1, torch.bfloat16, 33, 48, True, False),
    (1, torch.bfloat16, 32, 40, True, False), (1, torch.bfloat16, 32, 48, False, False)])
def test_few_rows_of_bfloat16_go_through_pytorchs_kernel_and_nothing_else_does(
        monkeypatch, rows, dtype, N, K, aligned, used):
    kernel, calls = torch._weight_int8pack_mm, []
    monkeypatch.setattr(torch, '_weight_int8pack_mm', lambda *a: calls.append(a) or kernel(*a))
    whole, scale = int8_rows(torch.randn(N, K).to(dtype))
    if not aligned: whole = torch.cat([torch.zeros(1, dtype=torch.int8), whole.flatten()])[1:].view(N, K)
    int8_linear(torch.randn(rows, K).to(dtype), whole, scale)
    assert bool(calls) == used

def test_nan_stays_nan():
    w, s = int8_rows(torch.randn(16, 16))
    for dtype in FLOATS:
        x = torch.full((2, 16), float('nan')).to(dtype)
        assert int8_linear(x, w, s.to(dtype)).isnan().all()

# --- a model

@quick
@given(pairs, st.integers(1, 8))
def test_the_logits_are_those_of_the_numbers_behind(kind, T):
    model, small = pair(kind)
    x = tokens(2, T)
    with torch.no_grad(), pytest.MonkeyPatch.context() as m:
        m.setattr('tinylm.model.NATIVE', [])           # loops round the activations, too (lesson 14)
        assert close(small.prefill(x)[0], unrounded(small).prefill(x)[0], 1e-3)
        assert not torch.equal(small.prefill(x)[0], model.prefill(x)[0])

@quick
@given(pairs)
def test_what_is_rounded_and_what_is_not(kind):
    model, small = pair(kind)
    before, after = model.state_dict(), small.state_dict()
    assert asdict(small.config) == asdict(model.config) | dict(weights='int8')
    for name, t in before.items():
        matrix = t.ndim == 2 and name != 'pos_emb.weight'
        assert (after[name].dtype == torch.int8) == matrix
        if not matrix: assert torch.equal(after[name], t)
        elif name.startswith('tok_emb'): assert isinstance(small.tok_emb, Int8Table)
        else: assert isinstance(small.get_submodule(name.removesuffix('.weight')), Int8Linear)
    scales = [k for k in after if k not in before]
    assert len(scales) == sum(t.dtype == torch.int8 for t in after.values())
    assert small.config.n_params == model.config.n_params == sum(p.numel() for p in small.parameters())
    assert small.dtype == torch.float32 and {k: p.shape for k, p in small.named_parameters()} == {
        k: p.shape for k, p in model.named_parameters()}

def n_bytes(model): return sum(t.nbytes for t in model.state_dict().values())

def test_a_quarter_of_the_memory_and_nothing_is_kept():
    model = LanguageModel(LMConfig(vocab_size=512, n_embd=256, n_layer=2, block_size=16))
    before, old = n_bytes(model), {id(p) for p in model.parameters() if p.ndim == 2}
    quantize_(model)
    assert .25 < n_bytes(model)/before < .27
    gc.collect()
    alive = {id(o) for o in gc.get_objects() if type(o) is torch.nn.Parameter} # others hold dead references
    assert len(old & alive) == 1                              # pos_emb

@quick
@given(pairs, st.sampled_from(FLOATS), st.integers(1, 3), st.integers(1, 8))
def test_other_types_keep_the_law_and_write(kind, dtype, B, T):
    _, small = pair(kind, n_embd=32)
    small.to(dtype)
    assert small.dtype == dtype and small.tok_emb.weight.dtype == torch.int8
    x, loose = tokens(B, T), {torch.float32: 1e-3, torch.float16: .2, torch.bfloat16: 2}[dtype]
    for k in {1, T}: assert phase_invariant(small, x, k, cache=KVCache.of(small, B), atol=loose)
    assert KVCache.of(small).kv[0].dtype == dtype == Engine(small).cache.kv[0].dtype
    assert small.decode(x[:1], 4, temperature=0).shape == (1, T+4)

@quick
@given(pairs, st.integers(1, 8), st.integers(0, 7), st.integers(1, 3), st.sampled_from(FLOATS), st.booleans())
def test_the_ledger_counts_bytes_as_they_are(kind, T, past, B, dtype, last_only):
    _, small = pair(kind, block_size=16)
    small.to(dtype)
    cache = KVCache.of(small, B)
    if past: small.prefill(tokens(B, past), cache=cache)
    seen, _ = watch_pass(small, tokens(B, T), cache, last_only)
    cost = small.config.pass_cost(T, past, B, last_only=last_only, itemsize=dtype.itemsize)
    assert seen == replace(cost, flops=0)
    of_floats = replace(small.config, weights='float').pass_cost(T, past, B, last_only=last_only)
    assert cost.flops == of_floats.flops

def test_the_ledger_on_paper():
    c, V, C, L = LMConfig(vocab_size=103, weights='int8'), 103, 128, 4
    matrices, rows, others = 12*C*C*L + V*C, 9*C*L + V, 13*C*L + 2*C # others: biases and norms
    token, place = C + 4, 4*C                                 # a row of each table
    assert c.pass_cost(1).weight_bytes == matrices + 4*rows + 4*others + token + place

# --- every way through the model

@quick
@given(pairs, st.integers(1, 8), st.integers(1, 9), st.data())
def test_every_step_writes_the_same_text(kind, T0, n, data):
    _, small = pair(kind)
    idx = tokens(1, T0)
    whole, sure = decided(small, idx, n)
    assume(sure)
    for how in (dict(use_cache=True), dict(drafter=NGramDrafter(1, 3)), dict(drafter=ModelDrafter(small, 2)),
                dict(drafter=ModelDrafter(pair(kind)[0], 2))):
        assert torch.equal(small.decode(idx, n, temperature=0, **how), whole)
    requests = [Request(idx[0].tolist(), n, temperature=0) for _ in range(3)]
    for ids in Engine(small, slots=2, budget=3).generate(requests): assert torch.equal(ids, whole[0].cpu())

@pytest.mark.parametrize('kind', [{}, MODERN | dict(n_embd=32)])
def test_autocast_works_in_caches_and_in_the_engine(kind):
    small, x = quantize_(small_model(**kind)).eval(), tokens(1, 8)
    plain = small.prefill(x)[0]
    with torch.autocast(torch.device(DEVICE).type, torch.bfloat16):
        cache = KVCache.of(small)
        parts = [small.prefill(part, cache=cache)[0] for part in x.split([5, 1, 2], 1)]
        ones = torch.ones(2, small.config.n_embd, device=DEVICE)
        assert small.blocks[0].mlp.up(ones).dtype == torch.bfloat16
        assert len(Engine(small).generate([Request([1, 2], 4, temperature=0)])[0]) == 6
    assert (torch.cat(parts, 1) - plain).abs().max() < .1*plain.abs().max()

@quick
@given(models(weights=['int8']), st.data())
def test_a_cache_of_the_float_model_fits(model, data):
    x = tokens(1, model.config.block_size)
    float_config = replace(model.config, weights='float')
    assert phase_invariant(model, x, 1, cache=KVCache(float_config, device=DEVICE))
    pages = PagedKVCache(float_config, 20, 2, device=DEVICE)
    assert phase_invariant(model, x, 1, cache=pages.batch([pages.open([])]))
    with pytest.raises(ValueError, match='n_layer'):
        model.prefill(x, cache=KVCache(replace(model.config, n_layer=7), device=DEVICE))

def test_an_engine_notices_that_its_model_was_quantized():
    model = small_model().eval()
    engine = Engine(model)
    engine.generate([Request([1, 2], 2)])
    quantize_(model)
    with pytest.raises(ValueError, match='changed'): engine.generate([Request([1, 2], 2)])
    engine = Engine(model)
    model.blocks[0].mlp.up.scale[0] *= 2
    with pytest.raises(ValueError, match='changed'): engine.generate([Request([1, 2], 2)])

def test_modes_devices_and_copies():
    model = small_model().train()
    model.blocks[0].mlp.eval()
    modes = {n: m.training for n, m in model.named_modules()}
    quantize_(model)
    assert {n: m.training for n, m in model.named_modules()} == modes
    assert model.to('meta').blocks[0].mlp.up.scale.is_meta and model.tok_emb.weight.is_meta
    other = quantize_(small_model())
    assert all(t.device.type == torch.device(DEVICE).type for t in other.to(DEVICE).state_dict().values())
    assert torch.equal(copy.deepcopy(other)(tokens(1, 4))[0], other(tokens(1, 4))[0])

# --- files

def test_a_file_gives_the_same_bits_and_is_a_quarter_as_large(tmp_path):
    text = CharTokenizer('abcdefghijk')
    model = small_model(tokenizer=text, n_embd=64, n_layer=4)
    model.save_safetensors(tmp_path/'float')
    quantize_(model).save_safetensors(tmp_path/'int8')
    assert (tmp_path/'int8').stat().st_size < .4*(tmp_path/'float').stat().st_size
    again = LanguageModel.from_safetensors(tmp_path/'int8')
    assert again.config == model.config and again.tokenizer.chars == text.chars and not again.training
    assert torch.equal(again(tokens(2, 8).cpu())[0], model.cpu().eval()(tokens(2, 8).cpu())[0])
    other = LanguageModel(model.config).load_safetensors(tmp_path/'int8')
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), again.state_dict().values()))
    again.to(torch.bfloat16).save_safetensors(tmp_path/'half')
    assert LanguageModel.from_safetensors(tmp_path/'half').dtype == torch.bfloat16

def test_a_config_alone_makes_an_int8_model():
    model = LanguageModel(LMConfig(weights='int8'))
    assert model.tok_emb.weight.dtype == torch.int8 and model.decode(tokens(1, 2).cpu(), 3).shape == (1, 5)
    assert model.config.hollow().tok_emb.weight.is_meta

def refused(path, model, words):
    before = {k: t.clone() for k, t in model.state_dict().items()}
    for load in (model.load_safetensors, LanguageModel.from_safetensors):
        with pytest.raises(ValueError) as e: load(path)
        assert words in str(e.value) and '\n' not in str(e.value) and str(path) in str(e.value), e.value
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())

def test_float_and_int8_files_are_told_apart(tmp_path):
    model, small = pair(({}, 0))
    model.save_safetensors(tmp_path/'float'); small.save_safetensors(tmp_path/'int8')
    with pytest.raises(ValueError, match="weights 'int8': this one has weights 'float'"):
        model.load_safetensors(tmp_path/'int8')
    with pytest.raises(ValueError, match="weights 'float': this one has weights 'int8'"):
        small.load_safetensors(tmp_path/'float')

NAME = 'blocks.1.attention.qkv'

@pytest.mark.parametrize('name, bad, words', [
    (f'{NAME}.scale', lambda t: t*float('nan'), 'nan: expected scales above 0'),
    (f'{NAME}.scale', lambda t: t*0, '0.0: expected scales above 0'),
    (f'{NAME}.scale', lambda t: torch.cat([t[:-1], -t[-1:]]), 'expected scales above 0'),
    ('tok_emb.scale', lambda t: t/0, 'inf: expected scales above 0'),
    ('tok_emb.scale', lambda t: t.half(), 'several types'),
    ('tok_emb.scale', lambda t: t.to(torch.int8), 'as torch.int8: expected floating-point'),
    ('tok_emb.scale', lambda t: t[1:], 'with shape (10,): expected (11,)'),
    ('tok_emb.scale', lambda t: None, 'with shape None: expected (11,)'),
    (f'{NAME}.weight', lambda t: t.float(), 'as torch.float32: expected torch.int8'),
    (f'{NAME}.weight', lambda t: t.to(torch.uint8), 'as torch.uint8: expected torch.int8'),
    (f'{NAME}.weight', lambda t: t[:, 1:], 'expected (48, 16)'),
    ('norm.weight', lambda t: t.to(torch.int8), 'as torch.int8: expected floating-point'),
    ('more.scale', lambda t: torch.ones(2), 'expected None')])
def test_a_damaged_file_is_refused_by_name(tmp_path, name, bad, words):
    small = quantize_(small_model()).cpu()
    small.save_safetensors(tmp_path/'m')
    tensors = load_file(tmp_path/'m')
    tensors[name] = bad(tensors.get(name))
    with safe_open(tmp_path/'m', 'pt') as f: about = f.metadata()
    save_file({k: t.contiguous() for k, t in tensors.items() if t is not None}, tmp_path/'bad', about)
    refused(tmp_path/'bad', small, words)
    with pytest.raises(ValueError, match=name.replace('.', r'\.') if words != 'several types' else words):
        small.load_safetensors(tmp_path/'bad')

# --- what is refused

def test_what_cannot_be_quantized_is_refused_and_stays():
    model = small_model()
    for bad, words in ((quantize_(small_model()), 'int8 already'), (model.config.hollow(), 'meta device'),
                       (torch.nn.Linear(2, 2), 'Linear: expected a LanguageModel'), (None, 'NoneType')):
        with pytest.raises(ValueError, match=words): quantize_(bad)
    model.blocks[1].mlp.up.weight.data[3, 4] = float('inf')
    with pytest.raises(ValueError, match=r'blocks\.1\.mlp\.up\.weight holds nan'): quantize_(model)
    assert model.config.weights == 'float' and model.tok_emb.weight.dtype == torch.float32
    for weights in ('int4', None, 8):
        with pytest.raises(ValueError, match='weights is .*float, int8'): LMConfig(weights=weights)

def test_training_is_refused_in_one_line():
    small, ids, x = quantize_(small_model()), torch.arange(200) % 11, tokens(1, 4)
    for work in (lambda: Trainer(small, ids, ids), lambda: train(small, ids, ids, TrainConfig(steps=1)),
                 lambda: small.prefill(x, x), lambda: small(x, x)):
        with pytest.raises(ValueError, match='int8 weights have no gradients') as e: work()
        assert '\n' not in str(e.value)
    with torch.no_grad(): assert small.prefill(x, x)[1].isfinite()
    assert evaluate(small, ids) > 0 and not small.prefill(x)[0].requires_grad

@quick
@given(pairs, st.sampled_from(['operation', 'line']), st.integers(1, 400))
def test_a_failure_anywhere_leaves_a_float_model_or_an_int8_one(kind, how, n):
    kind, seed = kind
    model = small_model(seed, **kind, n_layer=1).eval()
    want = [m.prefill(tokens(1, 5))[0] for m in (model, quantize_(copy.deepcopy(model)))]
    with failing(how, n): quantize_(model)
    assert torch.equal(model.prefill(tokens(1, 5))[0], want[model.config.weights == 'int8'])
    rounded = 'up.weight', 'down.weight', 'qkv.weight', 'proj.weight', 'tok_emb.weight'
    kinds = {t.dtype == torch.int8 for k, t in model.state_dict().items() if k.endswith(rounded)}
    assert kinds == {model.config.weights == 'int8'}
    if model.config.weights == 'float': quantize_(model)
    assert torch.equal(model.prefill(tokens(1, 5))[0], want[1])

@pytest.mark.parametrize('kind', [{}, MODERN])
def test_the_loss_hardly_moves(kind):
    "A model that has learned something."
    text = 'until one is found to be true, no one is found. '*30
    ids = torch.tensor(CharTokenizer(text).encode(text))
    torch.manual_seed(0)
    model = LanguageModel(LMConfig(vocab_size=int(ids.max())+1, block_size=16, n_layer=2, n_embd=64, **kind))
    train(model, ids, ids, TrainConfig(steps=60, batch_size=8, eval_every=60, warmup=5), callback=lambda _: _)
    before = evaluate(model, ids)
    assert before < 1.5 and evaluate(quantize_(model), ids) < 1.01*before + .002
