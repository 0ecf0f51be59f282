import ast
import errno
import json
import os
import pickle
import re
from dataclasses import asdict
from math import log
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import tinylm
from tinylm import CharTokenizer, LanguageModel, LMConfig, causal_attention, causal_mask

quick = settings(deadline=None, max_examples=30)
SMALL = dict(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16)
CHARS = '\n"\\aß☃😀\x00\u2028zé'

def small_model(seed=0, tokenizer=None, **changes):
    torch.manual_seed(seed)
    model = LanguageModel(LMConfig(**{**SMALL, **changes}), tokenizer)
    for p in model.parameters(): torch.nn.init.normal_(p, std=.3)        # far from the tame start, so that differences show
    return model

def tokens(*shape, seed=0): return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))

def bits(model): return {name: (t.dtype, t.shape, t.numpy().tobytes()) for name, t in model.state_dict().items()}

@st.composite
def shapes(draw):
    "Changes of SMALL that make sense together."
    heads, head = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    return dict(n_layer=draw(st.integers(1, 3)), n_head=heads, n_embd=heads*head, bias=draw(st.booleans()))

# --- the config

@pytest.mark.parametrize('name', ['vocab_size', 'block_size', 'n_layer', 'n_head', 'n_embd'])
@pytest.mark.parametrize('bad', [0, -1, 2., True, '4', None])
def test_a_size_that_is_no_count_is_refused(name, bad):
    with pytest.raises(ValueError, match=f'{name} is {bad!r}: expected a whole number of at least 1'): LMConfig(**{name: bad})

@pytest.mark.parametrize('bad', [1., -.1, 2, float('nan'), 'much', None])
def test_a_dropout_that_is_no_share_is_refused(bad):
    with pytest.raises(ValueError, match=f'dropout is {bad!r}: expected a number from 0 to below 1'): LMConfig(dropout=bad)

@pytest.mark.parametrize('bad', [2, 'no', None])
def test_a_bias_that_is_neither_true_nor_false_is_refused(bad):
    "With bias=2 the formula of n_params counts a model that is never built."
    with pytest.raises(ValueError, match=f'bias is {bad!r}: expected True or False'): LMConfig(bias=bad)

def test_channels_that_the_heads_cannot_share_are_refused():
    with pytest.raises(ValueError, match='n_embd 16 is not divisible by n_head 3'): LMConfig(n_embd=16, n_head=3)

@quick
@given(shapes(), st.integers(1, 40), st.integers(1, 40))
def test_the_formula_counts_every_parameter(shape, V, block_size):
    model = LanguageModel(LMConfig(**shape, vocab_size=V, block_size=block_size))
    assert model.config.n_params == sum(p.numel() for p in model.parameters())
    assert shape['bias'] == any('bias' in name for name, _ in model.named_parameters())

def test_a_model_without_arguments_is_the_small_one_of_the_contract():
    model = LanguageModel()
    assert sum(p.numel() for p in model.parameters()) < 2e6
    assert model(torch.zeros(2, 64, dtype=torch.long))[0].shape == (2, 64, 65)

def test_a_tokenizer_with_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match='the tokenizer has 3 tokens and the config says vocab_size 11'): small_model(tokenizer=CharTokenizer('abc'))

@pytest.mark.parametrize('n_layer', [2, 8])
def test_weights_start_small_and_those_that_write_to_the_stream_smaller_with_depth(n_layer):
    torch.manual_seed(0)
    for name, p in LanguageModel(LMConfig(n_layer=n_layer)).named_parameters():
        if p.ndim == 2: assert p.std().item() == pytest.approx(.02/(2*n_layer)**.5 if name.endswith(('proj.weight', 'down.weight')) else .02, rel=.05), name
        else: assert (p == (name.endswith('weight'))).all(), name

# --- prefill

@pytest.mark.parametrize('V', [27, 65, 500, 5000])
def test_an_untrained_model_guesses_evenly(V):
    torch.manual_seed(0)
    x, y = torch.randint(V, (2, 8, 32))
    assert abs(LanguageModel(LMConfig(vocab_size=V))(x, y)[1].item() - log(V)) < .15

@quick
@given(st.integers(1, 4), st.integers(1, 8), shapes())
def test_prefill_gives_logits_for_every_position_and_the_mean_loss(B, T, shape):
    model, x, y = small_model(**shape), tokens(B, T), tokens(B, T, seed=1)
    logits, loss = model.prefill(x, y)
    assert logits.shape == (B, T, 11) and loss.shape == ()
    by_hand = [-logits[b, t].log_softmax(-1)[y[b, t]] for b in range(B) for t in range(T)]
    assert loss.item() == pytest.approx(sum(by_hand).item()/(B*T), abs=1e-5)
    assert torch.equal(loss, F.cross_entropy(logits.view(-1, 11), y.view(-1)))
    assert model.prefill(x)[1] is None

def test_forward_is_prefill():
    model, x, y = small_model(), tokens(3, 8), tokens(3, 8, seed=1)
    for called, named in zip(model(x, y), model.prefill(x, y)): assert torch.equal(called, named)
    assert model(x)[1] is None

@quick
@given(shapes())
def test_prefill_is_the_network_written_out(shape):
    "Pre-norm blocks on a residual stream, GELU by tanh, a final norm and the token table as output."
    model, x = small_model(**shape), tokens(2, 8)
    norm = lambda layer, x: F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias)
    stream = model.tok_emb.weight[x] + model.pos_emb.weight[:8]
    for block in model.blocks:
        heads = causal_attention(*block.attention.heads(norm(block.norm1, stream)))
        stream = stream + block.attention.proj(heads.transpose(1, 2).flatten(2))
        stream = stream + block.mlp.down(F.gelu(block.mlp.up(norm(block.norm2, stream)), approximate='tanh'))
    assert torch.allclose(model(x)[0], norm(model.norm, stream) @ model.tok_emb.weight.T, atol=1e-5)

@quick
@given(st.integers(1, 3), st.integers(1, 8), shapes(), st.data())
def test_a_changed_token_moves_no_logits_before_it(B, T, shape, data):
    model, x = small_model(**shape), tokens(B, T)
    j = data.draw(st.integers(0, T-1))
    changed = x.clone()
    changed[:, j] = (x[:, j] + data.draw(st.integers(1, 10))) % 11
    assert torch.allclose(model(changed)[0][:, :j], model(x)[0][:, :j], atol=1e-5)

def test_the_whole_text_before_a_token_counts():
    model, x = small_model(), tokens(1, 8)
    changed = x.clone()
    changed[0, 0] = (x[0, 0] + 1) % 11
    assert ((model(changed)[0] - model(x)[0]).abs().amax(-1) > 1e-3).all()

def test_dropout_works_in_training_only():
    x, model = tokens(2, 8), small_model(dropout=.5)
    assert not torch.equal(model.train()(x)[0], model(x)[0])
    assert torch.equal(model.eval()(x)[0], small_model(dropout=0.)(x)[0])

def test_dropout_works_on_the_embeddings_the_attention_and_both_writes_of_a_block():
    model, rates = small_model(dropout=.5), []
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout): m.register_forward_hook(lambda m, *_: rates.append(m.p))
    model(tokens(1, 8))
    assert rates == [.5]*(1 + 2*2) and [block.attention.dropout for block in model.blocks] == [.5, .5]

# --- bad input

@pytest.mark.parametrize('idx, says', [
    (torch.tensor([[3, -1]]), 'idx holds the token id -1: expected 0 to 10'), (torch.tensor([[11, 3]]), 'idx holds the token id 11: expected 0 to 10'),
    (torch.zeros(1, 3), 'idx is torch.float32: expected a tensor of integers'), (torch.zeros(1, 3, dtype=torch.bool), 'idx is torch.bool: expected a tensor of integers'),
    (torch.zeros(3, dtype=torch.long), 'idx has shape (3,): expected (B, T) with at least one token'), (torch.zeros(1, 0, dtype=torch.long), 'idx has shape (1, 0): expected (B, T)'),
    (torch.zeros(0, 3, dtype=torch.long), 'idx has shape (0, 3): expected (B, T)'), (torch.zeros(1, 2, 3, dtype=torch.long), 'idx has shape (1, 2, 3): expected (B, T)'),
    (torch.tensor(3), 'idx has shape (): expected (B, T)'), (torch.zeros(1, 9, dtype=torch.long), '9 tokens are more than block_size 8'),
    ([[1, 2]], 'idx is list: expected a tensor of integers'), (None, 'idx is NoneType: expected a tensor of integers')])
def test_bad_ids_are_refused(idx, says):
    with pytest.raises(ValueError, match=re.escape(says)): small_model().prefill(idx)

@pytest.mark.parametrize('targets, says', [
    (torch.zeros(2, 3, dtype=torch.long), 'targets have shape (2, 3) and idx (2, 4): expected the same'), (torch.zeros(8, dtype=torch.long), 'targets have shape (8,) and idx (2, 4)'),
    (torch.full((2, 4), 11), 'targets holds the token id 11: expected 0 to 10'), (torch.full((2, 4), -100), 'targets holds the token id -100: expected 0 to 10'),
    (torch.zeros(2, 4), 'targets is torch.float32: expected a tensor of integers'), ([[1]*4]*2, 'targets')])
def test_bad_targets_are_refused(targets, says):
    with pytest.raises(ValueError, match=re.escape(says)): small_model().prefill(tokens(2, 4), targets)

def test_ids_of_32_bits_are_as_good():
    model, x, y = small_model(), tokens(2, 4), tokens(2, 4, seed=1)
    for short, long in zip(model(x.int(), y.int()), model(x, y)): assert torch.equal(short, long)

# --- the cache

class ListCache:
    "The simplest cache: for each layer the list of all keys and values so far."
    def __init__(self, n_layer): self.keys, self.values = [[] for _ in range(n_layer)], [[] for _ in range(n_layer)]
    def length(self): return sum(k.shape[2] for k in self.keys[0])
    def begin(self, model, idx): return torch.arange(self.length(), self.length()+idx.shape[1])
    def commit(self): pass
    def update(self, layer, kv):
        k, v = kv
        self.keys[layer].append(k); self.values[layer].append(v)
        keys, values = torch.cat(self.keys[layer], 2), torch.cat(self.values[layer], 2)
        return keys, values, causal_mask(k.shape[2], keys.shape[2])

def chunked(model, x, sizes, cache): return torch.cat([model.prefill(chunk, cache=cache)[0] for chunk in x.split(sizes, 1)], 1)

@quick
@given(st.integers(1, 3), shapes(), st.lists(st.integers(1, 8), min_size=1).filter(lambda sizes: sum(sizes) <= 8), st.integers(0, 99))
def test_prefill_in_chunks_through_a_cache_gives_the_logits_of_one_prefill(B, shape, sizes, seed):
    model, x = small_model(seed, **shape), tokens(B, sum(sizes), seed=seed)
    assert torch.allclose(chunked(model, x, sizes, ListCache(shape['n_layer'])), model(x)[0], atol=1e-5)

class ZeroPositions(ListCache):
    def begin(self, model, idx): return torch.zeros(idx.shape[1], dtype=torch.long)

class SeesAll(ListCache):
    def update(self, layer, kv):
        k, v, mask = super().update(layer, kv)
        return k, v, torch.ones_like(mask)

class Forgets(ListCache):
    def update(self, layer, kv): return *kv, causal_mask(kv.shape[3])

class LayerZeroForAll(ListCache):
    def update(self, layer, kv):
        _, _, mask = super().update(layer, kv)
        return torch.cat(self.keys[0], 2), torch.cat(self.values[0], 2), mask

@pytest.mark.parametrize('wrong', [ZeroPositions, SeesAll, Forgets, LayerZeroForAll])
def test_positions_mask_keys_and_layers_are_those_of_the_cache(wrong):
    model, x = small_model(), tokens(2, 8)
    assert (chunked(model, x, [3, 3, 2], ListCache(2)) - model(x)[0]).abs().max() < 1e-5
    assert (chunked(model, x, [3, 3, 2], wrong(2)) - model(x)[0]).abs().max() > 1e-3

def test_chunks_through_a_cache_have_the_loss_of_one_prefill():
    model, x, y, cache = small_model(), tokens(2, 8), tokens(2, 8, seed=1), ListCache(2)
    losses = [model(a, b, cache=cache)[1] for a, b in zip(x.split(2, 1), y.split(2, 1))]
    assert torch.allclose(sum(losses)/4, model(x, y)[1], atol=1e-5)

@pytest.mark.parametrize('x, y', [(torch.tensor([[1, 11]]), None), (torch.tensor([[1, 2]]), torch.tensor([[1]]))])
def test_refused_tokens_do_not_enter_the_cache(x, y):
    model, cache = small_model(), ListCache(2)
    with pytest.raises(ValueError): model.prefill(x, y, cache=cache)
    assert cache.keys == cache.values == [[], []]

# --- files: what is saved comes back

@pytest.mark.parametrize('shape', [{}, dict(bias=False, dropout=.25, n_head=4)])
@pytest.mark.parametrize('chars', [None, CHARS])
def test_a_file_gives_back_every_bit_the_config_and_the_tokenizer(tmp_path, shape, chars):
    model = small_model(tokenizer=chars and CharTokenizer(chars), **shape)
    model.tok_emb.weight.data[0, :4] = torch.tensor([float('nan'), float('-inf'), -0., 1e-45])
    model.save_safetensors(tmp_path/'m.safetensors')
    built, loaded = LanguageModel.from_safetensors(tmp_path/'m.safetensors'), small_model(1, **shape).load_safetensors(str(tmp_path/'m.safetensors'))
    for other in (built, loaded):
        assert bits(other) == bits(model) and other.config == model.config
        assert (other.tokenizer and other.tokenizer.chars) == (chars and ''.join(sorted(chars)))

def test_a_model_built_from_a_file_is_in_evaluation_mode_and_can_be_trained(tmp_path):
    small_model(dropout=.5).save_safetensors(tmp_path/'m.safetensors')
    model = LanguageModel.from_safetensors(tmp_path/'m.safetensors')
    assert not any(m.training for m in model.modules())
    model(tokens(2, 8), tokens(2, 8))[1].backward()
    assert all(p.grad is not None for p in model.parameters())

def test_a_model_can_be_saved_over_the_file_that_it_came_from(tmp_path):
    path = tmp_path/'m.safetensors'
    small_model().save_safetensors(path)
    model = LanguageModel.from_safetensors(path)
    with torch.no_grad():
        for p in model.parameters(): p += 1
    model.save_safetensors(path)
    assert bits(LanguageModel.from_safetensors(path)) == bits(model) != bits(small_model())

@pytest.mark.parametrize('load', [LanguageModel.from_safetensors, lambda path: small_model(1).load_safetensors(path)])
def test_a_loaded_model_does_not_follow_later_changes_of_its_file(tmp_path, load):
    path = tmp_path/'m.safetensors'
    small_model().save_safetensors(path)
    model = load(path)
    with open(path, 'r+b') as f: f.write(b'\0'*path.stat().st_size)
    assert bits(model) == bits(small_model())

@pytest.mark.parametrize('mode', [True, False])
def test_loading_keeps_the_mode_of_every_part(tmp_path, mode):
    small_model().save_safetensors(tmp_path/'m.safetensors')
    model = small_model(1).train(mode)
    model.blocks[0].train(not mode)
    before = [m.training for m in model.modules()]
    assert model.load_safetensors(tmp_path/'m.safetensors') is model
    assert [m.training for m in model.modules()] == before

def test_a_model_that_differs_only_in_dropout_is_loaded_and_keeps_its_own(tmp_path):
    small_model(dropout=.5).save_safetensors(tmp_path/'m.safetensors')
    model = small_model(1, dropout=.1).load_safetensors(tmp_path/'m.safetensors')
    assert bits(model) == bits(small_model()) and model.config.dropout == .1

def test_a_file_without_a_tokenizer_leaves_the_one_of_the_model(tmp_path):
    small_model().save_safetensors(tmp_path/'m.safetensors')
    tokenizer = CharTokenizer(CHARS)
    assert small_model(tokenizer=tokenizer).load_safetensors(tmp_path/'m.safetensors').tokenizer is tokenizer

# --- files: anything else is refused, and the model stays as it was

def assert_load_refused(path, says, error=ValueError):
    tokenizer = CharTokenizer(CHARS)
    model = small_model(1, tokenizer).train()
    before = bits(model)
    with pytest.raises(error, match=says): model.load_safetensors(path)
    assert bits(model) == before and model.config == LMConfig(**SMALL) and model.tokenizer is tokenizer and model.training

def assert_refused(path, says, error=ValueError):
    assert_load_refused(path, says, error)
    with pytest.raises(error, match=says): LanguageModel.from_safetensors(path)

def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    path = tmp_path/'m.safetensors'
    small_model().save_safetensors(path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], 'little')
    for size in {0, 1, 7, 8, 9, header-1, header, header+1, len(whole)-1, *range(0, len(whole), len(whole)//30)}:
        path.write_bytes(whole[:size])
        assert_refused(path, 'm.safetensors is not a whole safetensors file')

def test_a_file_with_a_byte_too_many_is_refused(tmp_path):
    path = tmp_path/'m.safetensors'
    small_model().save_safetensors(path)
    path.write_bytes(path.read_bytes() + b'\0')
    assert_refused(path, 'm.safetensors is not a whole safetensors file')

@pytest.mark.parametrize('write', [lambda path: torch.save(small_model().state_dict(), path), lambda path: path.write_bytes(pickle.dumps(dict(a=1))), lambda path: path.write_text('some text '*20)])
def test_another_kind_of_file_under_the_name_is_refused(tmp_path, write):
    write(tmp_path/'m.safetensors')
    assert_refused(tmp_path/'m.safetensors', 'm.safetensors is not a whole safetensors file')

def test_a_missing_file_is_not_found(tmp_path):
    assert_refused(tmp_path/'m.safetensors', 'there is no file .*m.safetensors', FileNotFoundError)

def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    assert_refused(tmp_path/'pipe', 'pipe is not a whole safetensors file')

def test_a_folder_is_refused(tmp_path): assert_refused(tmp_path, f'{tmp_path.name} is not a whole safetensors file')

def about(chars=None, **changes): return {'tinylm': json.dumps({'config': {**asdict(LMConfig(**SMALL)), **changes}, 'chars': chars})}

@pytest.mark.parametrize('metadata', [
    None, {'format': 'pt'}, {'tinylm': ''}, {'tinylm': '{"config": {'}, {'tinylm': '[]'}, {'tinylm': 'null'}, {'tinylm': '['*100_000}, {'tinylm': '{"config": {}}'},
    {'tinylm': '{"config": [], "chars": null}'}, about(n_experts=4), about(n_layer=0), about(n_layer='2'), about(dropout='much'), about(n_head=3), about(chars=5), about(chars=0), about(chars=''), about(chars='cba'), about(vocab_size=10**30), about(n_layer=10**9)], ids=lambda m: str(m)[:50])
def test_a_file_that_does_not_say_what_model_it_holds_is_refused(tmp_path, metadata):
    save_file(small_model().state_dict(), tmp_path/'m.safetensors', metadata)
    assert_refused(tmp_path/'m.safetensors', 'm.safetensors does not say what model it holds: expected a file that save_safetensors wrote')

def test_a_file_whose_vocabulary_is_not_that_of_its_weights_is_refused(tmp_path):
    save_file(small_model().state_dict(), tmp_path/'m.safetensors', about(chars='abc'))
    assert_refused(tmp_path/'m.safetensors', 'the tokenizer has 3 tokens and the config says vocab_size 11')

@pytest.mark.parametrize('changes', [dict(n_layer=1), dict(n_head=4), dict(n_embd=8), dict(block_size=9), dict(vocab_size=12), dict(bias=False)])
def test_another_architecture_is_refused_with_both_configs_named(tmp_path, changes):
    other = small_model(**changes)
    other.save_safetensors(tmp_path/'m.safetensors')
    assert_load_refused(tmp_path/'m.safetensors', re.escape(f'{other.config}, and this one is {LMConfig(**SMALL)}'))

@pytest.mark.parametrize('name, tensor, says', [
    ('norm.weight', None, r'norm.weight with shape None: expected \(16,\)'), ('extra', torch.zeros(3), r'extra with shape \(3,\): expected None'),
    ('pos_emb.weight', torch.zeros(16, 8), r'pos_emb.weight with shape \(16, 8\): expected \(8, 16\)'), ('norm.weight', torch.zeros(1, 16), r'norm.weight with shape \(1, 16\)'),
    ('norm.weight', torch.zeros(16, dtype=torch.long), 'norm.weight as torch.int64: expected floating-point numbers')])
def test_a_missing_foreign_or_malformed_tensor_is_refused(tmp_path, name, tensor, says):
    tensors = {**small_model().state_dict(), name: tensor}
    save_file({k: t for k, t in tensors.items() if t is not None}, tmp_path/'m.safetensors', about())
    assert_refused(tmp_path/'m.safetensors', says)

# --- files: a save that fails loses nothing

@pytest.mark.parametrize('call', ['fsync', 'replace'])
@pytest.mark.parametrize('old', [True, False])
def test_a_save_on_a_full_disk_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch, call, old):
    path = tmp_path/'m.safetensors'
    if old: small_model().save_safetensors(path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    def full(*_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as m:
        m.setattr(os, call, full)
        with pytest.raises(OSError, match='No space left'): small_model(1).save_safetensors(path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before and len(before) == old

@pytest.mark.parametrize('below, error', [('m.safetensors', FileExistsError), ('folder/m.safetensors', NotADirectoryError)])
def test_a_save_below_a_regular_file_leaves_nothing(tmp_path, below, error):
    (tmp_path/'file').write_text('text')
    with pytest.raises(error): small_model().save_safetensors(tmp_path/'file'/below)
    assert list(tmp_path.rglob('*')) == [tmp_path/'file'] and (tmp_path/'file').read_text() == 'text'

def test_a_save_over_a_folder_leaves_the_folder(tmp_path):
    (tmp_path/'folder').mkdir()
    (tmp_path/'folder'/'file').write_text('text')
    with pytest.raises(OSError): small_model().save_safetensors(tmp_path/'folder')
    assert sorted(tmp_path.rglob('*')) == [tmp_path/'folder', tmp_path/'folder'/'file']

def test_a_saved_file_is_plain_safetensors(tmp_path):
    model = small_model()
    model.save_safetensors(tmp_path/'m.safetensors')
    tensors = load_file(tmp_path/'m.safetensors')
    assert tensors.keys() == model.state_dict().keys() and all(torch.equal(tensors[k], t) for k, t in model.state_dict().items())

def test_no_module_can_run_code_from_a_file():
    modules = sorted(Path(tinylm.__file__).parent.glob('*.py'))
    assert 'model.py' in [path.name for path in modules]
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = [a.name for a in getattr(node, 'names', []) if isinstance(a, ast.alias)] + [getattr(node, 'module', None)]
            assert not {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'marshal', 'shelve'} & set(names), path
            assert not (isinstance(node, ast.ImportFrom) and node.module == 'torch' and {'load', 'save'} & set(names)), path
            assert not (isinstance(node, ast.Attribute) and ast.unparse(node) in ('torch.load', 'torch.save')), path
