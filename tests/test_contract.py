"The contract of the project's founding document: code written against it keeps working."
import torch

from tinylm import LanguageModel

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
