# bits_per_character right: through the perplexity
def bits_per_character(nats):
    from math import log2
    return log2(exp(nats))
# bits_per_character wrong: bytes
def bits_per_character(nats): return nats/log(2)/8
# bits_per_character wrong: the other way
def bits_per_character(nats): return nats*log(2)
# bits_per_character wrong: the perplexity
def bits_per_character(nats): return exp(nats)
# bits_per_character wrong: right for one loss
def bits_per_character(nats): return 1.
# bits_per_character wrong: rounded
def bits_per_character(nats): return int(nats/log(2))
# bits_per_character wrong: a text
def bits_per_character(nats): return f'{nats/log(2):.2f}'
# buggy_training right: by cross_entropy
def buggy_training(x, y):
    m = LanguageModel(LMConfig(tokenizer.vocab_size, n_layer=1))
    opt = torch.optim.AdamW(m.parameters(), lr=3e-3)
    loss = lambda target: F.cross_entropy(m.prefill(x)[0].flatten(0, 1), target.flatten())
    for _ in range(60):
        opt.zero_grad(); loss(x).backward(); opt.step()
    return loss(x).item(), loss(y).item()
# buggy_training wrong: the bug is mended
def buggy_training(x, y):
    m = LanguageModel(LMConfig(tokenizer.vocab_size, n_layer=1))
    opt = torch.optim.AdamW(m.parameters(), lr=3e-3)
    for _ in range(60):
        opt.zero_grad(); m.prefill(x, y)[1].backward(); opt.step()
    return m.prefill(x, x)[1].item(), m.prefill(x, y)[1].item()
# buggy_training wrong: not trained
def buggy_training(x, y):
    m = LanguageModel(LMConfig(tokenizer.vocab_size, n_layer=1))
    return m.prefill(x, x)[1].item(), m.prefill(x, y)[1].item()
# buggy_training wrong: the other way round
def buggy_training(x, y):
    m = LanguageModel(LMConfig(tokenizer.vocab_size, n_layer=1))
    opt = torch.optim.AdamW(m.parameters(), lr=3e-3)
    for _ in range(60):
        opt.zero_grad(); m.prefill(x, x)[1].backward(); opt.step()
    return m.prefill(x, y)[1].item(), m.prefill(x, x)[1].item()
# buggy_training wrong: the buggy loss twice
def buggy_training(x, y):
    m = LanguageModel(LMConfig(tokenizer.vocab_size, n_layer=1))
    opt = torch.optim.AdamW(m.parameters(), lr=3e-3)
    for _ in range(60):
        opt.zero_grad(); m.prefill(x, x)[1].backward(); opt.step()
    return (m.prefill(x, x)[1].item(),)*2
# buggy_training wrong: gradients are never cleared, and no step is taken
def buggy_training(x, y):
    m = LanguageModel(LMConfig(tokenizer.vocab_size, n_layer=1))
    for _ in range(60): m.prefill(x, x)[1].backward()
    return m.prefill(x, x)[1].item(), m.prefill(x, y)[1].item()
# accumulate right: windows by their numbers, weights by their share
def accumulate(model, x, y, parts=4):
    n = len(x)//parts
    for i in range(0, len(x), n):
        model.prefill(x[i:i+n], y[i:i+n])[1].mul(n/len(x)).backward()
# accumulate wrong: the means are added
def accumulate(model, x, y, parts=4):
    for px, py in zip(x.chunk(parts), y.chunk(parts)): model.prefill(px, py)[1].backward()
# accumulate wrong: the whole batch at once
def accumulate(model, x, y, parts=4): model.prefill(x, y)[1].backward()
# accumulate wrong: always four parts
def accumulate(model, x, y, parts=4):
    for px, py in zip(x.chunk(4), y.chunk(4)): (model.prefill(px, py)[1]/4).backward()
# accumulate wrong: only the last part counts
def accumulate(model, x, y, parts=4):
    for px, py in zip(x.chunk(parts), y.chunk(parts)):
        model.zero_grad(); model.prefill(px, py)[1].backward()
# accumulate wrong: every part is the first
def accumulate(model, x, y, parts=4):
    for _ in range(parts): (model.prefill(x[:len(x)//parts], y[:len(x)//parts])[1]/parts).backward()
# accumulate wrong: questions and answers mixed up
def accumulate(model, x, y, parts=4):
    for px, py in zip(x.chunk(parts), y.chunk(parts)): (model.prefill(py, px)[1]/parts).backward()
