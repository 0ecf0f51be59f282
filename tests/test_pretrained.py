"Real weights: parity with transformers, the files of other programs, and files that lie."
import contextlib, errno, json, os, pickle, random, resource, shutil, sys, time
from collections import OrderedDict
from configparser import ConfigParser
from dataclasses import replace
from math import exp
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
import pytest
import torch
import transformers as hf
from conftest import ROOT
from hypothesis import given, settings, strategies as st
from packaging.requirements import Requirement
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, gelu

from helpers import CHATML, close, quick, run_python, scalings, seeded, shapes, small_model, tokens
from tinylm import (PRESETS, CharTokenizer, KVCache, LanguageModel, load_corpus, phase_gap, phase_invariant,
                    pretrained, quantize_, tokenizer_from_hf, tokenizer_to_hf, train_subwords,
                    train_val_split, trained_model)
from tinylm.core import data_dir
from tinylm.pretrained import (FAMILIES, REAL_MODEL, family_of, from_gguf, from_hf, load_model, real_file,
                               to_gguf, to_hf)

hf.utils.logging.set_verbosity_error()
hf.utils.logging.disable_progress_bar()
few = settings(quick, max_examples=15)
long = pytest.mark.skipif('TINYLM_LONG' not in os.environ, reason='TINYLM_LONG=1 runs it: minutes')
REAL = Path(os.environ.get('TINYLM_REAL_MODEL') or data_dir()/REAL_MODEL)
real = pytest.mark.skipif(not REAL.exists(), reason=f'there is no {REAL}: make real-model fetches it')
LLAMA = dict(norm='rms', mlp='swiglu', positions='rotary', bias=False, n_head=4, n_kv_head=2)
OURS = {'gpt2': {}, 'llama': LLAMA, 'qwen2': LLAMA | dict(qkv_bias=True),
        'qwen3': LLAMA | dict(qk_norm=True, head_dim=6, tie_embeddings=False)}

@contextlib.contextmanager
def folder():
    with TemporaryDirectory() as name: yield Path(name)

def written(model, make=to_hf):
    "What comes back from a file."
    with folder() as f:
        make(model, f/'x')
        return load_model(f/'x')

def same(a, b): return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))

# --- parity with transformers

@st.composite
def stretched(draw, pairs):
    "Rotary positions as transformers has them; its dynamic ones need two pairs of channels."
    kind = draw(st.sampled_from(['default', 'linear', 'llama3'] + ['dynamic']*(pairs > 1)))
    more = {'default': {}, 'linear': {'factor': 2.}, 'dynamic': {'factor': 2.},
            'llama3': dict(factor=8., low_freq_factor=1., high_freq_factor=4.,
                           original_max_position_embeddings=draw(st.integers(1, 40)))}[kind]
    return dict(rope_type=kind, rope_theta=draw(st.sampled_from([100., 1e4, 1e6])), **more)

@st.composite
def configs(draw, families=tuple(FAMILIES)):
    "Small configs of any family: grouped heads, heads of any width, constants, tied and untied."
    family, yes = draw(st.sampled_from(families)), lambda: draw(st.booleans())
    G, per, V, L = (draw(st.integers(1, most)) for most in (3, 3, 30, 2))
    H, D, tied = G*per, draw(st.integers(1, 5)), yes()
    if family == 'gpt2':
        return hf.GPT2Config(vocab_size=V + 1, n_positions=12, n_embd=H*D, n_layer=L, n_head=H,
                             n_inner=draw(st.sampled_from([None, 7])), tie_word_embeddings=tied,
                             layer_norm_epsilon=draw(st.sampled_from([1e-5, 1e-3])))
    about = dict(vocab_size=V + 1, max_position_embeddings=12, num_hidden_layers=L, num_attention_heads=H,
                 num_key_value_heads=G, head_dim=2*D, hidden_size=draw(st.integers(2, 20)),
                 intermediate_size=draw(st.integers(1, 20)), tie_word_embeddings=tied,
                 rms_norm_eps=draw(st.sampled_from([1e-6, 1e-3])), rope_parameters=draw(stretched(D)))
    if family == 'llama': about |= dict(attention_bias=yes(), mlp_bias=yes())
    if family == 'qwen3': about |= dict(attention_bias=yes())
    if family == 'qwen2': about |= dict(hidden_size=2*H*D)
    if about['hidden_size'] % H: about['hidden_size'] = 2*H*D
    return {'llama': hf.LlamaConfig, 'qwen2': hf.Qwen2Config, 'qwen3': hf.Qwen3Config}[family](**about)

def theirs(config, seed=0):
    "A model of transformers, far from its tame start."
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters(): p.normal_(0, .3)
    return model

def dynamic(model):
    about = getattr(model.config, 'rope_parameters', None) or {}
    return about.get('rope_type') == 'dynamic'

def parity(ours, model, B=2):
    "The largest difference of logits, to the end of our window."
    x = torch.randint(ours.config.vocab_size, (B, ours.config.block_size), generator=seeded(1))
    with torch.no_grad(): return (ours.prefill(x)[0] - model(x).logits).abs().max().item()

def reloaded(path, **how): return hf.AutoModelForCausalLM.from_pretrained(path, **how).eval()

@quick
@given(configs(), st.sampled_from(['5GB', '2KB']), st.integers(0, 99))
def test_logits_are_those_of_transformers_at_every_position(config, shard, seed):
    model = theirs(config, seed)
    with folder() as f:
        model.save_pretrained(f, max_shard_size=shard)
        ours, tokenizer = from_hf(f)
        files = len([*f.glob('*.safetensors')])
    assert tokenizer is None and not ours.training and ours.dtype == torch.float32
    assert parity(ours, model) <= 1e-4
    if shard == '2KB' and ours.config.n_params > 2000: assert files > 1

@quick
@given(configs(), st.integers(0, 99))
def test_what_goes_back_to_transformers_is_the_same(config, seed):
    model = theirs(config, seed)
    with folder() as f:
        model.save_pretrained(f/'a')
        ours, _ = from_hf(f/'a')
        to_hf(ours, f/'b')
        assert parity(ours, reloaded(f/'b')) <= 1e-4
        again, _ = from_hf(f/'b')
    assert again.config == ours.config and same(again, ours)

def parted(model, a, b, rounding=1e-4):
    "Whether two greedy texts part where two logits are not equal within rounding."
    first = next((t for t in range(len(a)) if a[t] != b[t]), None)
    if first is None: return False
    top = model.prefill(a[None, :first])[0][0, -1].topk(2).values
    return (top[0] - top[1]).item() > rounding

def greedy(model, x, n):
    "What a model of transformers writes, whatever it takes for an end."
    return model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=n, do_sample=False,
                          eos_token_id=None, pad_token_id=0)

def writes_the_same(ours, other, x, n):
    "Greedy texts of both, token for token; no two of their tokens differ that are not equal within rounding."
    got, want = ours.decode(x, n, temperature=0), greedy(other, x, n)
    return got.shape == want.shape and not any(parted(ours, a, b) for a, b in zip(got, want))

@few
@given(configs(), st.integers(0, 99))
def test_greedy_text_is_that_of_generate_to_the_end_of_the_window(config, seed):
    model = theirs(config, seed)
    with folder() as f: model.save_pretrained(f); ours, _ = from_hf(f)
    x = torch.randint(ours.config.vocab_size, (1, 3), generator=seeded(seed))
    assert writes_the_same(ours, model, x, ours.config.block_size - 3)

@few
@given(configs(), st.sampled_from([torch.float16, torch.bfloat16, torch.float64]))
def test_other_numbers_in_the_file_become_float32(config, dtype):
    model = theirs(config).to(dtype)
    with folder() as f:
        model.save_pretrained(f)
        (ours, _), other = from_hf(f), reloaded(f, dtype=torch.float32)
    assert ours.dtype == torch.float32 and parity(ours, other) <= 1e-4

@pytest.mark.parametrize('prefix', ['transformer.', ''])
def test_gpt2_files_with_short_names_and_old_tables_are_read(tmp_path, prefix):
    model = theirs(hf.GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    model.save_pretrained(tmp_path)
    tensors = {n.replace('transformer.', prefix): t for n,
               t in load_file(tmp_path/'model.safetensors').items()}
    tensors[prefix + 'h.0.attn.bias'] = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
    save_file(tensors, tmp_path/'model.safetensors', {'format': 'pt'})
    assert parity(from_hf(tmp_path)[0], model) <= 1e-4

def test_llama_files_with_short_names_are_read(tmp_path):
    model = theirs(hf.LlamaConfig(**TINY))
    model.save_pretrained(tmp_path)
    tensors = {n.replace('model.', ''): t for n, t in load_file(tmp_path/'model.safetensors').items()}
    save_file(tensors, tmp_path/'model.safetensors', {'format': 'pt'})
    assert parity(from_hf(tmp_path)[0], model) <= 1e-4

def test_configs_of_transformers_4_are_read(tmp_path):
    scaling = dict(rope_type='llama3', factor=8., low_freq_factor=1., high_freq_factor=4.,
                   original_max_position_embeddings=4)
    model = theirs(hf.LlamaConfig(**TINY, rope_parameters=scaling | {'rope_theta': 50.}))
    model.save_pretrained(tmp_path)
    about = json.loads((tmp_path/'config.json').read_text())
    del about['rope_parameters']
    for old in (dict(rope_scaling=scaling),
                dict(rope_scaling=scaling, rope_parameters={'rope_type': 'yarn'})):
        (tmp_path/'config.json').write_text(json.dumps(about | old | {'rope_theta': 50.}))
        assert parity(from_hf(tmp_path)[0], model) <= 1e-4
    typed = {k: v for k, v in scaling.items() if k != 'rope_type'} | {'type': 'llama3'}
    (tmp_path/'config.json').write_text(json.dumps(about | {'rope_scaling': typed, 'rope_theta': 50.}))
    assert parity(from_hf(tmp_path)[0], model) <= 1e-4

# --- our own models leave and come back

@st.composite
def exportable(draw):
    "Our models that other programs know, with random numbers wherever those have a place for them."
    family, shape = draw(st.sampled_from([*FAMILIES])), draw(shapes()) | dict(
        attention='fused', norm_eps=draw(st.sampled_from([1e-5, 1e-3])))
    if family == 'gpt2': shape |= dict(n_kv_head=draw(st.sampled_from([None, shape['n_head']])))
    else:
        shape |= dict(norm='rms', mlp='swiglu', positions='rotary', head_dim=2*draw(st.integers(1, 4)),
                      rope_theta=draw(st.floats(2, 1e6)), qk_norm=family == 'qwen3',
                      rope_scaling=draw(scalings()))
    model = small_model(draw(st.integers(0, 99)), **shape).eval()
    if family == 'qwen3':
        for name, p in model.named_parameters():
            if name.endswith('.bias') and ('.mlp.' in name or '.proj.' in name): p.data.zero_()
    return model

@quick
@given(exportable())
def test_any_model_of_ours_that_leaves_writes_the_same_logits_in_transformers(model):
    with folder() as f:
        to_hf(model, f)
        other, (back, _) = reloaded(f), from_hf(f)
        assert other.config.model_type == family_of(model.config)
    assert parity(model, other) <= 1e-4 and parity(back, other) <= 1e-4

@quick
@given(exportable())
def test_any_model_of_ours_comes_back_from_gguf(model):
    try:
        with folder() as f:
            to_gguf(model, f/'m.gguf')
            back, _ = from_gguf(f/'m.gguf')
    except ValueError as e:                            # said before anything is written
        assert 'rope_scaling is llama3: a GGUF file of the kind qwen3 has no such rule' in str(e)
        return
    x = tokens(2, 8)
    assert close(back.prefill(x)[0], model.prefill(x)[0])
    assert not any(p.isnan().any() for p in back.parameters())
    assert back.config.norm_eps == model.config.norm_eps

@pytest.mark.parametrize('family', OURS)
@pytest.mark.parametrize('make', [to_hf, to_gguf])
def test_a_file_keeps_tokenizer_config_and_numbers(family, make):
    model = small_model(tokenizer=CharTokenizer('abcdefghijk'), **OURS[family]).eval()
    back = written(model, make)
    assert back.tokenizer.chars == 'abcdefghijk' and same(back,
        model) and family_of(back.config) == family == family_of(model.config)
    assert back.config.norm_eps == 1e-5 and not back.training

def test_a_gguf_file_may_be_of_version_2_and_have_any_alignment(tmp_path):
    model = small_model(**LLAMA).eval()
    to_gguf(model, path := tmp_path/'m.gguf')
    content = bytearray(path.read_bytes())
    content[4] = 2
    path.write_bytes(content)
    assert same(from_gguf(path)[0], model)
    rewritten(path, tmp_path/'n.gguf', alignment=128)
    assert same(from_gguf(tmp_path/'n.gguf')[0], model)

@pytest.mark.parametrize('factor, length', [(8., 8192), (32., 8192), (8., 64), (4., 16), (8., 8)])
def test_factors_of_other_programs_become_llama_3s_rule(tmp_path, factor, length):
    rule = dict(rope_type='llama3', factor=factor, low_freq_factor=1., high_freq_factor=4.,
                original_max_position_embeddings=length)
    for shape in (dict(head_dim=64, rope_theta=5e5), dict(head_dim=8, rope_theta=100.)):
        model = small_model(**LLAMA | shape, rope_scaling=rule).eval()
        to_gguf(model, tmp_path/'own.gguf')
        rewritten(tmp_path/'own.gguf', tmp_path/'m.gguf', drop=['tinylm.rope_scaling'])
        back, _ = from_gguf(tmp_path/'m.gguf')
        x = tokens(1, 8)
        assert back.config.rope_scaling['rope_type'] == 'llama3'
        assert close(back.prefill(x)[0], model.prefill(x)[0], 1e-3)

@pytest.mark.parametrize('changes, says', [
    (dict(norm='rms'), "mlp is 'gelu' beside rms, gelu, learned"),
    (dict(positions='rotary'), "norm is 'layer' beside layer, gelu, rotary"),
    (LLAMA | dict(mlp='gelu'), "mlp is 'gelu' beside rms, gelu, rotary: no other program knows this model"),
    (dict(qk_norm=True), 'a GPT-2 has no qk_norm'),
    (dict(n_kv_head=1), 'all its heads share n_embd channels'),
    (dict(head_dim=3), 'all its heads share n_embd channels'),
    (LLAMA | dict(qk_norm=True, bias=True), 'is not zero: a Qwen3 has no such constants')])
@pytest.mark.parametrize('make', [to_hf, to_gguf])
def test_a_model_that_nobody_else_knows_does_not_leave(tmp_path, changes, says, make):
    with pytest.raises(ValueError, match=says): make(small_model(**changes), tmp_path/'x')
    assert not (tmp_path/'x').exists()

@pytest.mark.parametrize('make', [to_hf, to_gguf])
def test_int8_weights_and_unknown_rules_do_not_leave(tmp_path, make):
    with pytest.raises(ValueError, match='the weights are int8: export the float model'):
        make(quantize_(small_model(**LLAMA)), tmp_path/'x')
    rule = dict(rope_type='dynamic', factor=2., original_max_position_embeddings=4)
    if make is to_gguf:
        with pytest.raises(ValueError, match='rope_scaling is dynamic: a GGUF file'):
            make(small_model(**LLAMA, rope_scaling=rule), tmp_path/'x')
    assert not (tmp_path/'x').exists()

# --- trained models leave

def hidden(model, rows, length):
    "Windows of the text that it has not learnt from."
    ids = model.tokenizer.encode(train_val_split(load_corpus())[1])
    return torch.tensor([ids[i*len(ids)//rows:][:length] for i in range(rows)])

def goes_on_in_transformers(model, path):
    to_hf(model, path)
    other, T = reloaded(path), model.config.block_size
    words = hf.AutoTokenizer.from_pretrained(path)
    x = hidden(model, 10, T)
    assert words(model.tokenizer.decode(x[0])).input_ids == x[0].tolist()
    with torch.no_grad(): assert (model.prefill(x)[0] - other(x).logits).abs().max() <= 1e-4
    assert writes_the_same(model, other, x[:, :9], T - 9)

@pytest.mark.slow
@pytest.mark.parametrize('name', PRESETS)
def test_transformers_goes_on_after_fifty_steps_of_training(tmp_path, name):
    shape, recipe = PRESETS[name]
    few_steps = replace(recipe, steps=50, batch_size=4, eval_windows=4)
    goes_on_in_transformers(trained_model('fifty', shape, few_steps), tmp_path)

@pytest.mark.slow
@pytest.mark.trained
@pytest.mark.parametrize('name', PRESETS)
def test_transformers_goes_on_with_a_trained_model(tmp_path, name, request):
    if name == 'demo': request.getfixturevalue('demo')
    goes_on_in_transformers(trained_model(name, *PRESETS[name]), tmp_path)

@pytest.mark.parametrize('end', [None, [], [3], [5, 3]])
@pytest.mark.parametrize('family', OURS)
def test_transformers_ends_where_our_tokenizer_says_and_nowhere_else(tmp_path, family, end):
    tokenizer = end if end is None else train_subwords('a cat '*9, 300, NAMES, end=end)
    rows = 300 if end is None else tokenizer.vocab_size
    to_hf(small_model(tokenizer=tokenizer, vocab_size=rows, **OURS[family]), tmp_path)
    about = reloaded(tmp_path).generation_config
    assert about.eos_token_id == {0: None, 1: 3, 2: [5, 3]}[len(end or [])] and about.bos_token_id is None
    if end: assert [*from_hf(tmp_path)[1].end] == end

# --- the law judges ours and theirs

@few
@given(configs(), st.integers(1, 12))
def test_the_law_holds_for_both_within_the_window(config, k):
    model = theirs(config)
    with folder() as f: model.save_pretrained(f); ours, _ = from_hf(f)
    x = torch.randint(config.vocab_size, (2, 12), generator=seeded(k))
    assert phase_invariant(model, x, k) and phase_invariant(ours, x, k, cache=KVCache.of(ours, 2))

def test_the_law_finds_positions_that_stretch_while_the_text_grows():
    grows = dict(rope_type='dynamic', factor=4., rope_theta=20.)
    model = theirs(hf.LlamaConfig(**TINY, rope_parameters=grows))
    x = torch.randint(11, (1, 24), generator=seeded(3))
    assert phase_invariant(model, x[:, :8], 3)
    gap = phase_gap(model, x, 4)
    assert (gap[:4] > 1e-3).any() or (gap[8:] > 1e-3).any()
    still = theirs(hf.LlamaConfig(**TINY, rope_parameters=dict(rope_type='default', rope_theta=20.)))
    assert phase_invariant(still, x, 4)

def test_the_law_needs_logits_and_a_cache():
    bare = hf.LlamaModel(hf.LlamaConfig(**TINY))
    with pytest.raises(ValueError, match='LlamaModel has no logits or no cache: the law needs both'):
        phase_gap(bare, tokens(1, 5), 2)

# --- numbers that are packed

TINY = dict(vocab_size=11, max_position_embeddings=8, hidden_size=8, intermediate_size=6, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, head_dim=4)
WRITERS = {bool: 'bool', int: 'uint32', float: 'float32', str: 'string', list: 'array'}

def rewritten(source, target, tensors=lambda name, t: (t, None), fields=None, drop=(), alignment=None,
              more=()):
    "A GGUF file with other tensors or fields, by the package's own reader and writer."
    reader = gguf.GGUFReader(source)
    about = OrderedDict((n, f.contents()) for n, f in reader.fields.items() if not n.startswith('GGUF.'))
    family = about.pop('general.architecture')
    writer = gguf.GGUFWriter(target, family)
    if alignment: writer.add_custom_alignment(alignment)
    for name, value in {**about, **(fields or {})}.items():
        if name not in drop: getattr(writer, f'add_{WRITERS[type(value)]}')(name, value)
    for t in reader.tensors:
        numbers, kind = tensors(t.name, t.data)
        if numbers is not None: writer.add_tensor(t.name, numbers, raw_dtype=kind)
    for name, numbers in dict(more).items(): writer.add_tensor(name, numbers)
    for part in ('header', 'kv_data', 'tensors'): getattr(writer, f'write_{part}_to_file')()
    writer.close()

def packed(kind, numbers, noise):
    "Numbers in blocks: by the package, or random blocks whose scales are tame."
    try: return gguf.quants.quantize(numbers, kind)
    except NotImplementedError: pass
    each, size = gguf.GGML_QUANT_SIZES[kind]
    rows, n = numbers.shape[0], numbers.shape[1]//each
    blocks = noise.integers(0, 256, (rows, n, size), dtype=np.uint8)
    scales = {'Q4_K': [0, 2], 'Q6_K': [size - 2]}[kind.name]
    for at in scales:
        blocks[..., at:at+2] = noise.uniform(-.01, .01, (rows, n, 1)).astype(np.float16).view(np.uint8)
    return blocks.reshape(rows, n*size)

@pytest.mark.parametrize('name', ['F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1', 'Q4_K', 'Q6_K'])
def test_packed_numbers_are_read_as_the_package_unpacks_them(tmp_path, name):
    kind, noise, plain = gguf.GGMLQuantizationType[name], np.random.default_rng(0), {}
    model = small_model(**LLAMA | dict(n_embd=256, n_inner=512, head_dim=64)).eval()
    to_gguf(model, tmp_path/'m.gguf')
    def pack(name, t):
        if t.ndim < 2: return t, None
        blocks = packed(kind, np.array(t), noise)
        plain[name] = gguf.quants.dequantize(blocks, kind)
        return (blocks, None) if kind.name == 'F16' else (blocks, kind)
    rewritten(tmp_path/'m.gguf', tmp_path/'packed.gguf', pack)
    rewritten(tmp_path/'m.gguf', tmp_path/'plain.gguf', lambda n, t: (plain.get(n, t), None))
    got, want = (from_gguf(tmp_path/f'{kind}.gguf')[0] for kind in ('packed', 'plain'))
    assert same(got, want) and not same(got, model) and len(plain) > 9
    assert all(p.isfinite().all() for p in got.parameters())
    assert got.config == want.config and got.dtype == torch.float32

@pytest.mark.parametrize('name', ['Q5_0', 'Q2_K', 'IQ4_NL', 'F64', 'I8'])
def test_a_type_that_is_not_read_is_named(tmp_path, name):
    kind = gguf.GGMLQuantizationType[name]
    model = small_model(**LLAMA | dict(n_embd=256, n_inner=512, head_dim=64))
    to_gguf(model, tmp_path/'m.gguf')
    each, size = gguf.GGML_QUANT_SIZES[kind]
    def pack(name, t):
        if name != 'token_embd.weight': return t, None
        return np.zeros((t.shape[0], t.shape[1]//each*size), np.uint8), kind
    rewritten(tmp_path/'m.gguf', tmp_path/'n.gguf', pack)
    said = refusal(tmp_path/'n.gguf')
    assert f"'token_embd.weight' as {name}: expected one of F32, F16, BF16, Q8_0" in said

# --- files that lie: one line that names the file, soon, and with little memory

@contextlib.contextmanager
def little_memory(more=2**29):
    "No room for what an absurd header asks for."
    used = int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_AS, before)

def refusal(path):
    "What reading it says; None where it can be read."
    begin = time.process_time()
    try:
        with little_memory(): model = load_model(path)
    except (ValueError, OSError) as e:
        said = str(e)
        assert str(path) in said and '\n' not in said and len(said) < 400 + 2*len(str(path)), said
        return said
    finally: assert time.process_time() - begin < 1
    assert isinstance(model, LanguageModel)

@pytest.fixture(scope='module')
def small_gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp('gguf')/'m.gguf'
    shape = LLAMA | dict(n_layer=1, n_embd=4, n_head=2, n_kv_head=1, n_inner=3)
    to_gguf(small_model(tokenizer=CharTokenizer('abcdefghijk'), **shape), path)
    return path

@pytest.fixture(scope='module')
def hf_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('hf')
    to_hf(small_model(tokenizer=CharTokenizer('abcdefghijk'), **LLAMA), path)
    return path

@pytest.fixture
def copied(hf_folder, tmp_path): return Path(shutil.copytree(hf_folder, tmp_path/'copy'))

def cut_at(source, target, n, model):
    target.write_bytes(source.read_bytes()[:n])
    said = refusal(target)
    assert said or n > source.stat().st_size - 32 and same(load_model(target), model), n

def changed(content, chance):
    "A few bytes changed, by chance; mostly in the first third, where the header is."
    content = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(len(content)//chance.choice([1, 3]))
        content[at] = chance.choice([0, 1, 255, 128, chance.randrange(256),
                                     content[at] ^ 1 << chance.randrange(8)])
    return bytes(content)

def storm(source, target, name, n, seed=0):
    "Changed copies of a file: each is refused or read."
    chance, content, refused = random.Random(seed), (source/name).read_bytes(), 0
    for _ in range(n):
        (target/name).write_bytes(changed(content, chance))
        refused += refusal(target if target.name == 'copy' else target/name) is not None
    return refused

def test_a_gguf_file_that_is_cut_is_refused(small_gguf, tmp_path):
    model, size = load_model(small_gguf), small_gguf.stat().st_size
    for n in {*range(0, 40), *random.Random(1).sample(range(size), 200), *range(size - 40, size)}:
        cut_at(small_gguf, tmp_path/'m.gguf', n, model)

@long
@pytest.mark.slow
def test_a_gguf_file_that_is_cut_anywhere_is_refused(small_gguf, tmp_path):
    model = load_model(small_gguf)
    for n in range(small_gguf.stat().st_size): cut_at(small_gguf, tmp_path/'m.gguf', n, model)

def test_a_changed_gguf_file_is_refused_or_read(small_gguf, tmp_path):
    assert storm(small_gguf.parent, tmp_path, 'm.gguf', 300) > 100

@long
@pytest.mark.slow
def test_ten_thousand_changed_gguf_files(small_gguf, tmp_path):
    assert storm(small_gguf.parent, tmp_path, 'm.gguf', 10_000, 1) > 3000

@pytest.mark.parametrize('name',
                         ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'])
def test_changed_files_of_a_folder_are_refused_or_read(hf_folder, copied, name):
    assert storm(hf_folder, copied, name, 100) > 10

@long
@pytest.mark.slow
@pytest.mark.parametrize('name',
                         ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'])
def test_thousands_of_changed_files_of_a_folder(hf_folder, copied, name):
    assert storm(hf_folder, copied, name, 2500, 1) > 250

@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_a_folder_with_a_file_that_is_cut_is_refused(hf_folder, copied, name):
    content = (hf_folder/name).read_bytes()
    for n in {0, 1, 8, len(content) - 1, *random.Random(1).sample(range(len(content)), 60)}:
        (copied/name).write_bytes(content[:n])
        assert refusal(copied)

@long
@pytest.mark.slow
@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_a_folder_with_a_file_that_is_cut_anywhere_is_refused(hf_folder, copied, name):
    content = (hf_folder/name).read_bytes()
    for n in range(min(len(content), 6000)):
        (copied/name).write_bytes(content[:n])
        assert refusal(copied), n

# a header by hand: (magic, version, tensors, fields, and what follows)
def text(s): return len(s).to_bytes(8, 'little') + s
def u32(n): return n.to_bytes(4, 'little')
def u64(n): return n.to_bytes(8, 'little')
def field(name, kind, value): return text(name) + u32(kind) + value
def header(*fields, tensors=0, n=None, version=3):
    return b'GGUF' + u32(version) + u64(tensors) + u64(len(fields) if n is None else n) + b''.join(fields)
def tensor(name=b'token_embd.weight', dims=(4, 11), kind=0, offset=0):
    return text(name) + u32(len(dims)) + b''.join(map(u64, dims)) + u32(kind) + u64(offset)

HUGE = 2**63
@pytest.mark.parametrize('content, says', [
    (b'', 'not a whole safetensors file'), (b'GGUF', 'cut short'), (b'GGUF\3\0', 'cut short'),
    (b'gguf' + bytes(99), 'not a whole safetensors file'),
    (header(version=1), 'of version 1: expected 2 or 3'), (header(version=4), 'of version 4'),
    (header(version=3 << 24), 'big-endian'),
    (header(n=HUGE), 'asks for more than it holds'),
    (header(tensors=HUGE) + bytes(99), 'cut short|dimensions|holds'),
    (header(n=2**64 - 1) + bytes(1000), "holds '' twice"),
    (header(text(b'a')[:8].replace(b'\1', b'\xff')), 'cut short'),
    (header(u64(HUGE) + b'abc'), 'asks for more than it holds'),
    (header(field(b'a', 8, u64(2**40))), 'asks for more than it holds'),
    (header(field(b'a', 9, u32(8) + u64(HUGE))), 'asks for more than it holds'),
    (header(field(b'a', 9, u32(10) + u64(2**61))), 'asks for more than it holds'),
    (header(field(b'a', 9, u32(9) + u64(1) + u32(9) + u64(1))), 'type 9'),
    (header(field(b'a', 99, bytes(9))), 'type 99'),
    (header(field(b'\xff\xfe', 4, u32(1))), 'codec'), (header(field(b'a', 8, text(b'\xff'))), 'codec'),
    (header(field(b'a', 4, u32(1)), field(b'a', 4, u32(1))), 'twice'),
    (header(field(b'general.alignment', 4, u32(0))), 'alignment is 0: expected a power of 2'),
    (header(field(b'general.alignment', 4, u32(48))), 'alignment is 48'),
    (header(field(b'general.alignment', 8, text(b'32'))), "alignment is '32'"),
    (header(tensors=1) + tensor(dims=(1,)*5), 'with 5 dimensions'),
    (header(tensors=1) + text(b'x') + u32(2**32 - 1), 'dimensions'),
    (header(tensors=1) + tensor(dims=(HUGE, HUGE)), 'beyond its end'),
    (header(tensors=1) + tensor(dims=(0, 2**40)), 'with shape'),
    (header(tensors=1) + tensor(dims=()), 'with shape'),
    (header(tensors=1) + tensor(offset=HUGE) + bytes(999), 'beyond its end'),
    (header(tensors=1) + tensor(kind=7777) + bytes(999), 'as type 7777: expected one of'),
    (header(tensors=1) + tensor(kind=2) + bytes(999), 'expected multiples of 32'),
    (header(tensors=2) + tensor() + tensor() + bytes(999), 'twice'),
    (header(tensors=9) + b''.join(tensor(b'%d' % i, (64, 4)) for i in range(9)) + bytes(1100),
     'on each other'),
    (header(tensors=1) + tensor() + bytes(999), 'of the kind None: expected one of gpt2, llama'),
    (header(field(b'general.architecture', 8, text(b'mamba')), tensors=1) + tensor() + bytes(999),
     "kind 'mamba'"),
    (header(field(b'general.architecture', 8, text(b'../../etc')), tensors=1) + tensor() + bytes(999),
     'kind'),
    (header(field(b'general.architecture', 8, text(b'llama'))), 'no tensor token_embd.weight'),
    (header(field(b'general.architecture', 8, text(b'llama')), tensors=1) + tensor() + bytes(999),
     'it has no llama.context_length')])
def test_a_header_that_lies_is_refused(tmp_path, content, says):
    (path := tmp_path/'m.gguf').write_bytes(content)
    said = refusal(path)
    assert said and any(word in said for word in says.split('|')), said

STRANGE = [None, -1, 0, 1, 2, 3, 2**31, 2**40, 1e300, .5, float('nan'), 'x', '../x', [], [1, 2], {}, {'a': 1},
           True, False]

def test_any_field_may_hold_anything(hf_folder, copied):
    about, refused = json.loads((hf_folder/'config.json').read_text()), 0
    for name in about:
        for value in STRANGE:
            (copied/'config.json').write_text(json.dumps(about | {name: value}))
            refused += refusal(copied) is not None
        (copied/'config.json').write_text(json.dumps({k: v for k, v in about.items() if k != name}))
        refusal(copied)
    assert refused > 150

def test_any_field_of_a_gguf_file_may_hold_anything(small_gguf, tmp_path):
    names, refused = [n for n in gguf.GGUFReader(small_gguf).fields if n.startswith('llama.')], 0
    for name in names:
        for value in (0, 1, 3, 2**32 - 1, .5, 1e30, float('nan'), 'x', [1, 2], ['a'], True):
            rewritten(small_gguf, tmp_path/'m.gguf', fields={name: value})
            refused += refusal(tmp_path/'m.gguf') is not None
        rewritten(small_gguf, tmp_path/'m.gguf', drop=[name])
        refusal(tmp_path/'m.gguf')
    assert refused > 60

@pytest.mark.parametrize('fields, says', [
    ({'llama.attention.head_count': 3}, 'attn_q.weight with shape (4, 4): expected (6, 4)'),
    ({'llama.attention.sliding_window': 4}, 'sliding_window is 4'),
    ({'llama.expert_count': 8}, 'llama.expert_count is 8: this library knows 0 only'),
    ({'llama.rope.scaling.type': 'yarn'}, "rope.scaling.type is 'yarn': expected none or linear"),
    ({'llama.rope.scaling.type': 'linear'}, 'it has no llama.rope.scaling.factor'),
    ({'llama.attention.value_length': 4}, 'llama.attention.value_length is 4: this library knows 2 only'),
    ({'llama.rope.dimension_count': 1}, 'llama.rope.dimension_count is 1'),
    ({'llama.block_count': 2}, 'holds no tensor blk.1.attn_norm.weight'),
    ({'llama.block_count': 0}, 'n_layer is 0'), ({'llama.block_count': 2**32 - 1},
                                                 'n_layer is 4294967295|blocks and holds'),
    ({'llama.embedding_length': 6}, 'with shape (11, 4): expected (11, 6)'),
    ({'llama.feed_forward_length': 4}, 'holds blk.0.ffn_gate.weight with shape'),
    ({'llama.attention.layer_norm_rms_epsilon': 'x'}, "norm_eps is 'x'"),
    ({'split.count': 2}, 'split.count is 2'),
    ({'tinylm.tokenizer': '[]'}, 'm.gguf'), ({'tinylm.tokenizer': '{"kind": "chars", "chars": "ab"}'},
                                             'the tokenizer has 2 tokens and the config says vocab_size 11')])
def test_a_gguf_file_whose_fields_make_no_sense_is_refused(small_gguf, tmp_path, fields, says):
    rewritten(small_gguf, tmp_path/'m.gguf', fields=fields)
    said = refusal(tmp_path/'m.gguf')
    assert said and any(word in said for word in says.split('|')), said

@pytest.mark.parametrize('family', FAMILIES)
def test_a_tensor_that_is_missing_or_too_much_is_named(tmp_path, family):
    to_gguf(small_model(**OURS[family]), tmp_path/'m.gguf')
    names = [t.name for t in gguf.GGUFReader(tmp_path/'m.gguf').tensors]
    for name in names:
        rewritten(tmp_path/'m.gguf', tmp_path/'n.gguf', lambda n, t: (None if n == name else t, None))
        said = refusal(tmp_path/'n.gguf')
        assert said and name in said or name == 'output.weight', name   # without it the head is tied
    for name in ('../../etc/passwd', 'blk.9.attn_q.weight', 'x'*5000):
        rewritten(tmp_path/'m.gguf', tmp_path/'n.gguf', more={name: np.zeros((2, 2), np.float32)})
        assert 'the model has no place for it' in refusal(tmp_path/'n.gguf')

def test_factors_that_are_no_rule_are_refused(tmp_path):
    rule = dict(rope_type='llama3', factor=8., low_freq_factor=1., high_freq_factor=4.,
                original_max_position_embeddings=64)
    to_gguf(small_model(**LLAMA | dict(head_dim=8), rope_scaling=rule), tmp_path/'m.gguf')
    for factors in ([1, 5, 2, 3], [1, 1, 1, .5], [1, 2], [0, 0, 0, 0], [float('nan')]*4, [float('inf')]*4,
                    [-1]*4):
        new = np.array(factors, np.float32)
        rewritten(tmp_path/'m.gguf', tmp_path/'n.gguf', lambda n,
                  t: (new if n == 'rope_freqs.weight' else t, None))
        assert 'rope_freqs.weight' in refusal(tmp_path/'n.gguf')
    for own in ('{', '[]', '3', '{"rope_type": "yarn"}'):
        rewritten(tmp_path/'m.gguf', tmp_path/'n.gguf', fields={'tinylm.rope_scaling': own})
        assert refusal(tmp_path/'n.gguf')

# --- folders

@pytest.mark.parametrize('changes, says', [
    (dict(model_type='mistral'), "kind 'mistral': expected one of gpt2, llama, qwen2, qwen3"),
    (dict(model_type=None), 'of the kind None'), (dict(model_type=['llama']), "of the kind ['llama']"),
    (dict(num_attention_heads=5), 'n_head 5 is not divisible by n_kv_head 2'),
    (dict(num_attention_heads=5, num_key_value_heads=5, head_dim=None),
     'n_embd 16 is not divisible by n_head 5'),
    (dict(hidden_size=18), 'holds model.embed_tokens.weight with shape (11, 16): expected (11, 18)'),
    (dict(vocab_size=12), 'vocab_size 12|expected (12, 16)'),
    (dict(intermediate_size=9), 'gate_proj.weight with shape'),
    (dict(num_hidden_layers=1), 'and the model has no place for it'),
    (dict(num_hidden_layers=3), 'holds no tensor model.layers.2'),
    (dict(num_hidden_layers=10**6), 'says 1000000 blocks and holds'),
    (dict(hidden_act='gelu'), "hidden_act is 'gelu': this library knows 'silu' only"),
    (dict(use_sliding_window=True), 'use_sliding_window is True: this library knows False only'),
    (dict(sliding_window=4), 'sliding_window is 4'),
    (dict(layer_types=['sliding_attention']*2), "layer_types is ['sliding_attention"),
    (dict(layer_types=3), 'layer_types is 3'),
    (dict(partial_rotary_factor=.5), 'partial_rotary_factor is 0.5'),
    (dict(rope_parameters={'rope_type': 'yarn', 'factor': 2.}), "rope_type of rope_scaling is 'yarn'"),
    (dict(rope_scaling={'type': 'longrope'}), "rope_type of rope_scaling is 'longrope'"),
    (dict(rope_scaling='linear'), "rope_scaling is 'linear': expected an object"),
    (dict(rope_parameters={'rope_type': 'dynamic'}), 'it has no factor'),
    (dict(rope_parameters={'rope_type': 'dynamic', 'factor': 1e308}), 'factor is 1e+308'),
    (dict(rope_parameters={'rope_type': 'default', 'partial_rotary_factor': .5}),
     'partial_rotary_factor is 0.5'),
    (dict(rope_theta=0, rope_parameters=None), 'rope_theta is 0: expected a number above 0'),
    (dict(attention_bias='no'), "attention_bias is 'no': expected true or false"),
    (dict(attention_bias=True), 'holds no tensor model.layers.0.self_attn.q_proj.bias'),
    (dict(mlp_bias=True), 'holds no tensor model.layers.0.mlp.gate_proj.bias'),
    (dict(tie_word_embeddings=1), 'tie_word_embeddings is 1'),
    (dict(tie_word_embeddings=False), 'lm_head.weight'),
    (dict(rms_norm_eps='small'), "norm_eps is 'small'"), (dict(rms_norm_eps=0), 'norm_eps is 0'),
    (dict(model_type='qwen2'), 'q_proj.bias'), (dict(model_type='qwen3'), 'q_norm.weight'),
    (dict(model_type='gpt2'), 'it has no n_positions')])
def test_a_config_that_makes_no_sense_is_refused(copied, changes, says):
    about = json.loads((copied/'config.json').read_text())
    (copied/'config.json').write_text(json.dumps(about | changes))
    said = refusal(copied)
    assert said and any(word in said for word in says.split('|')), said

@pytest.mark.parametrize('name', ['vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads',
                                  'intermediate_size', 'max_position_embeddings'])
def test_a_field_that_is_missing_is_named(copied, name):
    about = json.loads((copied/'config.json').read_text())
    del about[name]
    (copied/'config.json').write_text(json.dumps(about))
    assert refusal(copied).endswith(f'config.json: it has no {name}')

@pytest.mark.parametrize('changes, says', [
    (dict(activation_function='relu'), "activation_function is 'relu'"),
    (dict(scale_attn_weights=False), 'scale_attn'),
    (dict(scale_attn_by_inverse_layer_idx=True), 'inverse'),
    (dict(add_cross_attention=True), 'add_cross_attention'),
    (dict(n_head=3), 'n_embd 16 is not divisible by n_head 3'),
    (dict(n_positions=9), 'wpe.weight with shape'),
    (dict(n_inner=5), 'c_fc.weight with shape')])
def test_a_gpt2_that_is_none_of_ours_is_refused(tmp_path, changes, says):
    to_hf(small_model(), tmp_path)
    about = json.loads((tmp_path/'config.json').read_text())
    (tmp_path/'config.json').write_text(json.dumps(about | changes))
    assert says in refusal(tmp_path)

@pytest.mark.parametrize('content',
                         [b'', b'{', b'[]', b'3', b'\xff\xfe', b'['*10**5, b'{"a": ' + b'9'*9999 + b'}'])
def test_a_config_that_is_no_object_is_refused(copied, content):
    (copied/'config.json').write_bytes(content)
    assert 'config.json' in refusal(copied)

def tensors_changed(path, change):
    tensors = load_file(path/'model.safetensors')
    change(tensors)
    save_file(tensors, path/'model.safetensors', {'format': 'pt'})

Q = 'model.layers.0.self_attn.q_proj.weight'
@pytest.mark.parametrize('change, says', [
    (lambda t: t.pop(Q), f'holds no tensor {Q}'),
    (lambda t: t.update({'../x': torch.ones(1)}), "'model.../x'"),
    (lambda t: t.update({'x': torch.ones(1)}), "'model.x', and the model has no place for it"),
    (lambda t: t.update({Q: t[Q][:3].clone()}), f'{Q} with shape'),
    (lambda t: t.update({Q: t[Q].flatten()}), Q),
    (lambda t: t.update({Q: t[Q].T.contiguous().reshape(1, 16, 16)}), Q),
    (lambda t: t.update({Q: t[Q].long()}), 'torch.int64: expected floating-point numbers'),
    (lambda t: t.update({Q: t[Q].bool()}), 'torch.bool: expected floating-point'),
    (lambda t: t.update({Q: t[Q].to(torch.float8_e4m3fn)}), 'torch.float8_e4m3fn: expected'),
    (lambda t: t.clear(), 'blocks and holds 0 tensors'),
    (lambda t: t.update({Q + '_scale': torch.ones(1)}), 'no place for it')])
def test_tensors_that_do_not_fit_are_named(copied, change, says):
    tensors_changed(copied, change)
    assert says in refusal(copied)

@pytest.fixture
def sharded(hf_folder, tmp_path):
    reloaded(hf_folder).save_pretrained(tmp_path, max_shard_size='3KB')
    return tmp_path

def reindexed(path, change):
    index = path/'model.safetensors.index.json'
    about = json.loads(index.read_text())
    change(about['weight_map'])
    index.write_text(json.dumps(about))

@pytest.mark.parametrize('name',
    ['../m.safetensors', '/etc/m.safetensors', 'a/b.safetensors', 'm.bin', '..', '', 7, None,
                                  'a\0.safetensors', 'a\\b.safetensors', ['m.safetensors'],
                                  'a\nb.safetensors', '\x1b[2J.safetensors', '\udcff.safetensors',
                                  '\u202e.safetensors', 'é'*130 + '.safetensors', 'x'*5000 + '.safetensors',
                                  'none.safetensors', 'x'*243 + '.safetensors'])
def test_an_index_that_points_elsewhere_is_refused(sharded, name):
    reindexed(sharded, lambda index: index.update({Q: name}))
    said = refusal(sharded)
    inside = name in ('none.safetensors', 'x'*243 + '.safetensors')
    assert ('there is no file' if inside else 'expected a safetensors file of its folder') in said

def test_shards_that_are_missing_doubled_or_wrong_are_refused(sharded, tmp_path_factory):
    assert refusal(sharded) is None
    first, second, *_ = sorted(sharded.glob('*.safetensors'))
    work = tmp_path_factory.mktemp('shards')
    def fresh(): return Path(shutil.copytree(sharded, work/str(len([*work.iterdir()]))))
    (f := fresh()).joinpath(first.name).unlink()
    assert f'there is no file {f/first.name}' in refusal(f)
    (f := fresh()).joinpath(first.name).write_bytes(b'x'*100)
    assert f'{f/first.name} is not a whole safetensors file' in refusal(f)
    shutil.copy(sharded/first.name, (f := fresh())/second.name)
    assert 'both hold' in refusal(f)
    reindexed(f := fresh(), lambda index: index.update({'lost.weight': first.name}))
    assert f"{f/first.name} does not hold 'lost.weight', as the index says" in refusal(f)
    for content in ('{}', '[]', '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": 3}', 'x'):
        (f := fresh()).joinpath('model.safetensors.index.json').write_text(content)
        assert 'index.json' in refusal(f)

def test_what_could_run_code_is_never_opened(copied, tmp_path):
    class Bomb:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'exploded'),)
    (copied/'model.safetensors').unlink()
    assert refusal(copied).endswith('copy holds no model.safetensors')
    (copied/'pytorch_model.bin').write_bytes(pickle.dumps(Bomb()))
    assert 'pytorch_model.bin could run code when it is opened: it is not read' in refusal(copied)
    for name in ('model.safetensors', 'config.json', 'tokenizer.json'):
        (copied/name).write_bytes(pickle.dumps(Bomb()))
        assert refusal(copied)
    (tmp_path/'m.gguf').write_bytes(pickle.dumps(Bomb()))
    assert refusal(tmp_path/'m.gguf') and not (tmp_path/'exploded').exists()

def test_folders_and_files_that_are_not_there(tmp_path):
    for path in (tmp_path/'none', tmp_path/'none.gguf'):
        for read in (load_model, from_hf, from_gguf):
            with pytest.raises(FileNotFoundError, match=f'there is no file {path}'): read(path)
    assert 'config.json' in refusal(tmp_path)
    (tmp_path/'config.json').mkdir()
    assert 'config.json' in refusal(tmp_path)
    with pytest.raises(OSError, match=str(tmp_path)): from_gguf(tmp_path)

def test_links_are_followed(hf_folder, tmp_path):
    (tmp_path/'links').mkdir()
    for file in hf_folder.iterdir(): (tmp_path/'links'/file.name).symlink_to(file)
    (tmp_path/'whole').symlink_to(hf_folder)
    for path in (tmp_path/'links', tmp_path/'whole'): assert same(load_model(path), load_model(hf_folder))

def test_a_tokenizer_of_another_model_is_refused(copied):
    to_hf(small_model(vocab_size=5, tokenizer=CharTokenizer('abcde'), **LLAMA), copied.parent/'other')
    for file in ('tokenizer.json', 'tokenizer_config.json'):
        shutil.copy(copied.parent/'other'/file, copied/file)
    assert 'the tokenizer has 5 tokens and the config says vocab_size 11' in refusal(copied)

def test_load_model_knows_all_forms(tmp_path):
    model = small_model(tokenizer=CharTokenizer('abcdefghijk'), **LLAMA).eval()
    to_hf(model, tmp_path/'folder'); to_gguf(model, tmp_path/'model'); model.save_safetensors(tmp_path/'own')
    for name in ('folder', 'model', 'own'):
        back = load_model(str(tmp_path/name))
        assert same(back, model) and back.tokenizer.chars == 'abcdefghijk' and not back.training

# --- what was there before survives

class NoTokenizer:
    "Known to LanguageModel, to no other program."
    vocab_size = 11
    def encode(self, text): return [0]
    def decode(self, ids): return ''
    def to_json(self): return {'kind': 'chars', 'chars': 'abcdefghijk'}

def content(path):
    return {p.name: p.read_bytes() for p in path.iterdir()} if path.is_dir() else path.read_bytes()

@pytest.mark.parametrize('make', [to_hf, to_gguf])
def test_a_tokenizer_that_cannot_be_written_leaves_the_old_files(tmp_path, make):
    model = small_model(tokenizer=CharTokenizer('abcdefghijk'), **LLAMA)
    make(model, tmp_path/'x')
    before = content(tmp_path/'x')
    with pytest.raises(ValueError, match='expected a SubwordTokenizer or a CharTokenizer'):
        make(small_model(1, tokenizer=NoTokenizer(), **LLAMA), tmp_path/'x')
    assert content(tmp_path/'x') == before and [p.name for p in tmp_path.iterdir()] == ['x']

def writers(tmp_path):
    "Ours and those of transformers, whole and cut into shards, with every tokenizer or none."
    def words(**about): return train_subwords('the cat sat on the mat '*9, 300, NAMES, **about)
    shape = LLAMA | dict(vocab_size=words().vocab_size)
    def ours(tokenizer): return lambda path: to_hf(small_model(tokenizer=tokenizer, **shape), path)
    ours(words(chat_template=CHATML, end=[0, 2]))(tmp_path/'source')
    def theirs(size):
        def write(path):
            reloaded(tmp_path/'source').save_pretrained(path, max_shard_size=size)
            hf.AutoTokenizer.from_pretrained(tmp_path/'source').save_pretrained(path)
        return write
    chars = small_model(tokenizer=CharTokenizer('abcdefghijk'), **LLAMA)
    return [lambda path: to_hf(chars, path), ours(None), ours(words()),
            ours(words(chat_template=CHATML, end=[0, 2])), theirs('5GB'), theirs('20KB')]

NAMES = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']

def test_a_folder_holds_nothing_of_the_model_that_was_there_before(tmp_path):
    makers = writers(tmp_path)
    for i, after in enumerate(makers[:4]):
        after(fresh := tmp_path/f'fresh{i}')
        for j, before in enumerate(makers):
            before(path := tmp_path/f'{j}{i}')
            notes = {'README.md': b'mine', 'other.gguf': b'too', 'model-old.safetensors': b'and this'}
            for name, words in notes.items(): (path/name).write_bytes(words)
            after(path)
            assert content(path) == content(fresh) | notes

def test_a_tokenizer_leaves_nothing_of_the_one_before(tmp_path):
    chats = train_subwords('a cat '*9, 300, NAMES, chat_template=CHATML, end=[0, 2])
    tokenizer_to_hf(train_subwords('a cat '*9, 300, NAMES), tmp_path/'fresh')
    tokenizer_to_hf(chats, tmp_path/'x')
    (tmp_path/'x'/'chat_template.jinja').write_text('of another')
    assert tokenizer_from_hf(tmp_path/'x').chat_template == 'of another'
    tokenizer_to_hf(train_subwords('a cat '*9, 300, NAMES), tmp_path/'x')
    assert content(tmp_path/'x') == content(tmp_path/'fresh')

def test_a_full_disk_leaves_the_old_gguf_and_names_the_users_path(tmp_path, monkeypatch):
    model = small_model(**LLAMA)
    to_gguf(model, path := tmp_path/'m.gguf')
    before = path.read_bytes()
    def full(*_, **__): raise OSError(errno.ENOSPC, 'No space left on device', '/tmp/elsewhere')
    monkeypatch.setattr(gguf.GGUFWriter, 'write_tensors_to_file', full)
    with pytest.raises(OSError, match='No space left on device.*m.gguf'):
        to_gguf(small_model(1, **LLAMA), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['m.gguf']

def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path/'x').write_text('mine')
    with pytest.raises(OSError, match=str(tmp_path/'x')): to_hf(small_model(**LLAMA), tmp_path/'x')
    assert (tmp_path/'x').read_text() == 'mine'

# --- extras are asked for only when they are needed

def extras():
    "The packages that settings.ini asks for beside those of the library, and those of lessons to come."
    about = ConfigParser()
    about.read(ROOT/'settings.ini', encoding='utf-8')
    words = ' '.join(v for k, v in about['DEFAULT'].items() if k.endswith('_requirements')).split()
    return {Requirement(w).name for w in words} | {'numba'}

def test_import_brings_no_extra():
    code = """import sys, tinylm
from importlib.metadata import PackageNotFoundError, files
def loaded(name):
    try: return any(f.parts[0].removesuffix('.py') in sys.modules for f in files(name))
    except PackageNotFoundError: return False
print(*filter(loaded, sys.argv[1:]))"""
    assert {'gguf', 'jupyterlab'} < extras()
    assert run_python('-c', code, 'torch', 'tqdm', *extras()).stdout.split() == ['torch', 'tqdm']

def test_a_missing_package_is_one_line(tmp_path, small_gguf, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gguf', None)
    for attempt in (lambda: from_gguf(small_gguf), lambda: to_gguf(small_model(**LLAMA), tmp_path/'m.gguf')):
        with pytest.raises(ImportError, match=r'^GGUF files need the package gguf \(pip install .*gguf.*\)$'):
            attempt()
    assert not (tmp_path/'m.gguf').exists()
    to_hf(small_model(**LLAMA), tmp_path/'f')          # which needs none
    assert load_model(tmp_path/'f')

# --- the real model

PROMPTS = ['The capital of France is', 'until one is found', 'def fibonacci(n):', 'Once upon a time',
           '1, 2, 3,',
           'The sun rises in the', 'Dear Sir or Madam,', 'Water boils at', 'In Python, a list',
           'Roses are red,']
HOSTILE = ['', ' ', '\n\n\t', 'a'*500, '🙂👩\u200d👩\u200d👧', '中文字符 日本語', '한국어', 'عربى', 'हिन्दी',
           'e\u0301\u0302', '\u202eabc', '<|im_end|>', '<script>', "Robert'); DROP TABLE", '12345 67,890.5',
           '\x00\x01\x7f', '\ufeffx', 'ﬀ ﬁ ＡＢ', 'Ǆ ß İ', "I'll we've"]

@pytest.mark.slow
@real
def test_the_real_model_takes_little_more_memory_than_its_weights():
    code = f'''
import gguf, tokenizers
from tinylm.pretrained import from_gguf
about = lambda name: int(open('/proc/self/status').read().split(name + ':')[1].split()[0])*1024
before = about('VmRSS')
model, _ = from_gguf({str(REAL)!r})
print((about('VmHWM') - before)/sum(4*p.numel() for p in model.parameters()))'''
    done = run_python('-c', code, env=os.environ | {'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    assert 1 <= float(done.stdout) <= 2.2

@pytest.fixture(scope='module')
def both(tmp_path_factory):
    model, tokenizer = from_gguf(REAL)
    to_hf(model, path := tmp_path_factory.mktemp('real'))
    return model, tokenizer, reloaded(path), hf.AutoTokenizer.from_pretrained(path)

@pytest.mark.slow
@real
def test_the_real_model_writes_what_transformers_writes(both):
    model, tokenizer, other, _ = both
    for prompt in PROMPTS:
        x = torch.tensor([tokenizer.encode(prompt)])
        assert writes_the_same(model, other, x, 32), prompt
    with torch.no_grad(): assert (model.prefill(x)[0] - other(x).logits).abs().max() <= 1e-3

@pytest.mark.slow
@real
def test_the_real_models_perplexity_is_that_of_transformers(both):
    "On the held-out tenth of the course's text, in windows."
    model, tokenizer, other, _ = both
    ids, T = tokenizer.encode(train_val_split(load_corpus())[1]), 256
    rows = torch.tensor([ids[i:i+T+1] for i in range(0, 8*T, T)])
    x, y = rows[:, :-1], rows[:, 1:].flatten()
    with torch.no_grad(): logits = model.prefill(x)[0], other(x).logits
    got, want = (exp(cross_entropy(l.flatten(0, 1), y).item()) for l in logits)
    print(f'perplexity {got:.5f}, that of transformers {want:.5f}')
    assert got == pytest.approx(want, rel=1e-5) and 2 < got < 100

@pytest.mark.slow
@real
def test_the_real_tokenizer_is_that_of_transformers(both):
    _, tokenizer, _, other = both
    for text in (*HOSTILE, *PROMPTS):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        if '<|' not in text: assert ids == other.encode(text, add_special_tokens=False), text

# --- llama.cpp

@pytest.mark.slow
@pytest.mark.parametrize('family', FAMILIES)
def test_llama_cpp_reads_our_files_and_writes_the_same(tmp_path, family): beside_llama_cpp(tmp_path, family)

RULE = dict(rope_type='llama3', factor=8., low_freq_factor=1., high_freq_factor=4.,
            original_max_position_embeddings=16)
@pytest.mark.slow
@pytest.mark.parametrize('family, changes', [
    ('gpt2', dict(bias=False)), ('gpt2', dict(bias=False, qkv_bias=True)),
    ('gpt2', dict(tie_embeddings=False)),
    ('llama', dict(bias=True)), ('llama', dict(bias=True, qkv_bias=False)),
    ('llama', dict(rope_scaling=RULE)),
    ('qwen2', dict(rope_scaling=RULE)), ('qwen3', dict(qkv_bias=True)),
    ('qwen3', dict(rope_scaling=dict(rope_type='linear', factor=2.)))])
def test_llama_cpp_reads_what_is_rare(tmp_path, family, changes):
    beside_llama_cpp(tmp_path, family, **changes)

def beside_llama_cpp(tmp_path, family, **changes):
    chars = 'abcdefghijklmnopqrstuvwxyz .,\n?'
    shape = OURS[family] | dict(n_embd=64, head_dim=None, vocab_size=len(chars), block_size=64) | changes
    model = small_model(tokenizer=CharTokenizer(chars), **shape).eval()
    goes_on_in_llama_cpp(model, tmp_path/'m.gguf', [torch.randint(len(chars), (1, 5 + n), generator=seeded(n))
                                                    for n in range(10)])

def tabled_gelu(x, approximate):
    "As llama.cpp has it: looked up in a table of 16-bit numbers."
    table = gelu(x.half().float(), approximate=approximate).half().float()
    return torch.where(x <= -10, 0., torch.where(x >= 10, x, table))

@torch.no_grad()
def as_llama_cpp(model, ids):
    """Logits of a text with llama.cpp's GELU, and how far single ones may be from it.

    A number that lies between two rows of the table falls to one or the other by rounding.
    """
    logits = model.prefill(ids)[0][0]
    if model.config.mlp != 'gelu': return logits, 1e-3
    with pytest.MonkeyPatch.context() as m:
        m.setattr(torch.nn.functional, 'gelu', tabled_gelu)
        tabled = model.prefill(ids)[0][0]
    return tabled, max(1e-3, (tabled - logits).abs().max().item())

def goes_on_in_llama_cpp(model, path, prompts):
    "Its logits at each position and its greedy text, to the end of the window."
    lcpp, T = pytest.importorskip('llama_cpp'), model.config.block_size
    to_gguf(model, path)
    # its cache in float32, too
    other = lcpp.Llama(str(path), n_ctx=T, logits_all=True, verbose=False, type_k=0, type_v=0)
    for x in prompts:
        other.reset(); other.eval(x[0].tolist())
        got, ids = model.decode(x, T - x.shape[1], temperature=0)[0], x[0].tolist()
        while len(ids) < T:
            ids.append(int(other.scores[len(ids) - 1].argmax()))
            other.eval(ids[-1:])
        logits, most = as_llama_cpp(model, torch.tensor([ids]))
        gaps = (logits - torch.tensor(other.scores[:T].copy())).abs().flatten()
        assert gaps.quantile(.99) <= 1e-3 and gaps.max() <= most < .02
        assert not parted(model, got, torch.tensor(ids), 2*most)

@pytest.mark.slow
@pytest.mark.parametrize('name', PRESETS)
def test_llama_cpp_goes_on_with_a_trained_model(tmp_path, name):
    pytest.importorskip('llama_cpp')
    model = trained_model(name, *PRESETS[name])
    goes_on_in_llama_cpp(model, tmp_path/'m.gguf', [*hidden(model, 10, 9)[:, None]])

# --- the file that lessons ask for

def test_without_the_real_model_a_small_one_of_its_kind_stands_in(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, 'data_dir', lambda: tmp_path)
    before = torch.get_rng_state()
    model = load_model(real_file())
    said = capsys.readouterr().out
    assert said.count('\n') == 1 and 'make real-model' in said and torch.equal(torch.get_rng_state(), before)
    assert family_of(model.config) == 'llama' and model.config.n_kv < model.config.n_head
    x = torch.tensor([model.tokenizer.encode('What is the capital of France?')])
    assert phase_invariant(model, x, 4, cache=KVCache.of(model, 1, 64), atol=1e-3)
    assert model.tokenizer.chat_template and same(model, load_model(real_file()))
    real_file().rename(tmp_path/REAL_MODEL); capsys.readouterr()
    assert real_file() == tmp_path/REAL_MODEL and not capsys.readouterr().out

def test_without_the_packages_the_stand_in_is_a_file_of_our_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, 'data_dir', lambda: tmp_path)
    (tmp_path/REAL_MODEL).touch()
    monkeypatch.setattr(pretrained, 'find_spec', lambda name: None)
    model = load_model(real_file())
    assert 'needs the packages' in capsys.readouterr().out
    text = 'What is the capital of France?'
    assert model.tokenizer.decode(model.tokenizer.encode(text)) == text and model.config.n_kv == 2
