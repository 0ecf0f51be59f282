"Wherever the models are: `TINYLM_DEVICE=cuda python -m pytest tests/test_device.py tests/test_law.py`."
import pytest
import torch
from helpers import DEVICE, close, seeded, small_model, tokens

from tinylm import (AttentionMap, CharTokenizer, DecodeTimeline, Engine, KVCache, LanguageModel, NGramDrafter,
                    Request, Sampling, Timeline, TokenProbabilities, TrainConfig, compare_phases,
                    evaluate, train)
from tinylm.cli import main

TEXT = 'one of the others is not as the one before, and so on, until one is found. '*8
TOKENIZER = CharTokenizer(TEXT)
IDS = torch.tensor(TOKENIZER.encode(TEXT))
MODERN = dict(norm='rms', mlp='swiglu', positions='rotary', qk_norm=True, n_kv_head=1, bias=False)

def model(**changes): return small_model(tokenizer=TOKENIZER, vocab_size=TOKENIZER.vocab_size, **changes)

@pytest.mark.parametrize('kind', [{}, MODERN])
@pytest.mark.parametrize('optimizer', ['muon', 'adamw'])
def test_training_stops_resumes_and_learns(tmp_path, kind, optimizer):
    out, recipe = tmp_path/'m.safetensors', dict(batch_size=4, eval_every=10, optimizer=optimizer, warmup=2)
    def run(steps, **how):
        torch.manual_seed(1)
        m = LanguageModel(model(**kind).config, TOKENIZER)
        return m, train(m, IDS, IDS, TrainConfig(steps=steps, **recipe), device=DEVICE, callback=lambda _: _,
                        **how)
    whole, history = run(30)
    assert whole.tok_emb.weight.device.type == torch.device(DEVICE).type
    assert history[-1]['val_loss'] < history[0]['val_loss'] - .3
    class Stop(Exception): pass
    def stop(run):
        if run.step == 10: raise Stop
    m = LanguageModel(whole.config, TOKENIZER)
    torch.manual_seed(1)
    with pytest.raises(Stop):
        train(m, IDS, IDS, TrainConfig(steps=30, **recipe), out=out, device=DEVICE, callback=stop)
    again = LanguageModel(whole.config, TOKENIZER)
    train(again, IDS, IDS, out=out, resume=True, device=DEVICE, callback=lambda _: _)
    loaded = LanguageModel.from_safetensors(out)
    x = tokens(2, 8)
    assert close(loaded.to(DEVICE).prefill(x)[0], again.eval().prefill(x)[0])
    assert abs(evaluate(again, IDS) - evaluate(loaded, IDS)) < 1e-4

@pytest.mark.parametrize('kind', [{}, MODERN])
def test_every_way_to_write_draws_from_the_same_distribution(kind):
    m, idx = model(**kind).eval(), tokens(1, 5)
    want = m.decode(idx, 20, temperature=0, use_cache=False)
    for how in (dict(use_cache=True), dict(drafter=NGramDrafter())):
        assert torch.equal(m.decode(idx, 20, temperature=0, **how), want)
    seeded_text = [m.decode(idx, 20, sampling=Sampling(.8, 5, .9, seed=3)) for _ in range(2)]
    assert torch.equal(*seeded_text) and seeded_text[0].device == m.tok_emb.weight.device
    m.decode(idx, 5, generator=seeded(0, DEVICE), drafter=NGramDrafter())
    jobs = Engine(m).generate([Request(idx[0].tolist(), 6, temperature=t, seed=4) for t in (0., 1.)])
    assert torch.equal(jobs[0].to(DEVICE), m.decode(idx, 6, temperature=0)[0])

def test_what_is_measured_and_shown():
    m = model(block_size=32).eval()
    assert [c.tokens for c in compare_phases(m, 2, 8, 1)] == [64, 16]
    line = Timeline.record(m, tokens(1, 4), 6, temperature=0)
    for widget in (AttentionMap(m, 'one of', TOKENIZER), DecodeTimeline(line, TOKENIZER),
                   TokenProbabilities(m, 'one of', TOKENIZER)):
        assert len(widget.to_html()) > 1000
    with torch.autocast(torch.device(DEVICE).type, torch.bfloat16):
        cache = KVCache.of(m)
        assert m.prefill(tokens(1, 4), cache=cache)[0].isfinite().all()

def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'t.txt').write_text(TEXT)
    shape = '--block-size 8 --n-layer 1 --n-embd 16 --steps 5 --batch-size 2 --eval-every 5'.split()
    assert main(['train', '--corpus', 't.txt', '--device', DEVICE, *shape]) == 0
    assert main(['generate', '--checkpoint', 'model.safetensors', '--prompt', 'one', '--max-tokens', '5',
                 '--device', DEVICE]) == 0
    assert 'one' in capsys.readouterr().out
