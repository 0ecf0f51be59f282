"The contract of the project's founding document: code written against it keeps working."
import torch

from tinylm import AttentionMap, CharTokenizer, Engine, KVCache, LanguageModel, LMConfig
from tinylm import NGramDrafter, Request

def batch(): return torch.randint(65, (2, 4, 64), generator=torch.Generator().manual_seed(0))

def test_prefill():
    logits, loss = LanguageModel().prefill(*batch())
    assert logits.shape == (4, 64, 65) and loss.ndim == 0 and loss.requires_grad
    assert LanguageModel().prefill(batch()[0])[1] is None

def test_decode():
    ctx = torch.zeros((1, 1), dtype=torch.long)
    out = LanguageModel().decode(ctx, max_new_tokens=100)
    assert out.shape == (1, 101) and torch.equal(out[:, :1], ctx)
    assert out.min() >= 0 and out.max() < 65 and not out.requires_grad

def test_backward_compatibility(tmp_path):
    model, (xb, yb) = LanguageModel(), batch()
    for old, new in zip(model(xb, yb), model.prefill(xb, yb)): assert torch.equal(old, new)
    ctx, seed = xb[:, :5], lambda: torch.Generator().manual_seed(0)
    assert torch.equal(model.generate(ctx, 100, generator=seed()), model.decode(ctx, 100, generator=seed()))
    model.save_safetensors(tmp_path/'model.safetensors')
    other = LanguageModel()
    other.load_safetensors(tmp_path/'model.safetensors'); other.eval()
    assert torch.equal(other(xb)[0], model.eval()(xb)[0])

def test_every_line_of_the_contract(tmp_path):
    "The calls of the design, as they stand there."
    model, generator = LanguageModel(), torch.Generator().manual_seed(0)
    assert model.config.vocab_size == 65 and model.config.block_size == 64
    xb, yb = batch()
    logits, loss = model(xb, yb)
    assert logits.shape == (4, 64, 65) and loss.ndim == 0
    ctx = xb[:1, :4]
    cache = KVCache(model.config, 1, 32)
    assert model.prefill(ctx, cache=cache)[0].shape == (1, 4, 65) and cache.lengths == [4]
    plain = model.decode(ctx, 100, temperature=0)
    dials = dict(temperature=0, top_k=None, top_p=None, generator=generator)
    assert torch.equal(model.decode(ctx, 100, **dials, use_cache=True, drafter=NGramDrafter(), compile=None),
                       plain)
    assert torch.equal(model.decode(ctx, 100, **dials, use_cache=False), plain)
    assert torch.equal(Engine(model).generate([Request(ctx, max_new_tokens=12, temperature=0)])[0],
                       plain[0, :16])
    text = 'abc'*10
    assert '<script>' in AttentionMap(LanguageModel(LMConfig(vocab_size=3)), text,
                                      CharTokenizer(text)).to_html()

def test_decode_leaves_mode_and_gradients_as_they_are_and_crops_to_the_window():
    model = LanguageModel(LMConfig(dropout=.3)).train()
    long = torch.randint(65, (1, 90), generator=torch.Generator().manual_seed(1))
    out = model.decode(long, 5, temperature=0)
    assert model.training and not out.requires_grad
    assert torch.equal(out[:, 90:], model.decode(long[:, -64:], 5, temperature=0)[:, 64:])
