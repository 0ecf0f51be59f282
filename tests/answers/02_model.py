"Other answers to the exercises of lesson 02; tests/test_notebooks.py feeds them to the checks."

# merged right: what the two maps do to zero and to each channel by itself
def merged(mlp):
    two = lambda x: mlp.down(mlp.up(x))
    b = two(torch.zeros(1, mlp.up.in_features))
    return (two(torch.eye(mlp.up.in_features)) - b).T, b[0]

# merged wrong: the matrix the other way round
def merged(mlp):
    W = mlp.down.weight @ mlp.up.weight
    return W.T, mlp.down.weight @ mlp.up.bias + mlp.down.bias

# merged wrong: the order of the two maps swapped
def merged(mlp): return mlp.up.weight @ mlp.down.weight, mlp.down.bias

# merged wrong: the constant of `up` is lost
def merged(mlp): return mlp.down.weight @ mlp.up.weight, mlp.down.bias

# merged wrong: the constant of `up` is added as it stands
def merged(mlp):
    return mlp.down.weight @ mlp.up.weight, mlp.up.bias[:len(mlp.down.bias)] + mlp.down.bias

# merged wrong: with the bend in it
def merged(mlp):
    two = lambda x: mlp(x)
    b = two(torch.zeros(1, mlp.up.in_features))
    return (two(torch.eye(mlp.up.in_features)) - b).T, b[0]

# merged wrong: a module in place of its numbers
def merged(mlp): return nn.Linear(mlp.up.in_features, mlp.up.in_features)

# merged wrong: the matrix alone
def merged(mlp): return (mlp.down.weight @ mlp.up.weight,)

# shares right: one part after the other
def shares(model, steps, token):
    row, spread = model.tok_emb.weight[token], (steps[-1][2].var(unbiased=False) + model.config.norm_eps).sqrt()
    return torch.stack([((wrote - wrote.mean()) * row).sum()/spread for _, wrote, _ in steps])

# shares right: the mean taken from the row of the token
def shares(model, steps, token):
    row = model.tok_emb.weight[token]
    spread = F.layer_norm(steps[-1][2], steps[-1][2].shape).std() / steps[-1][2].std()
    return torch.stack([wrote @ (row - row.mean())*spread for _, wrote, _ in steps])

# shares wrong: each part is normalised by itself
def shares(model, steps, token):
    return torch.stack([model.norm(wrote) @ model.tok_emb.weight[token] for _, wrote, _ in steps]).detach()

# shares wrong: no norm at all
def shares(model, steps, token):
    return torch.stack([wrote for _, wrote, _ in steps]) @ model.tok_emb.weight[token]

# shares wrong: the spread is not divided out
def shares(model, steps, token):
    wrote = torch.stack([wrote for _, wrote, _ in steps])
    return (wrote - wrote.mean(-1, keepdim=True)) @ model.tok_emb.weight[token]

# shares wrong: the logit after each step in place of what the step added
def shares(model, steps, token):
    return model.norm(torch.stack([x for _, _, x in steps])) @ model.tok_emb.weight[token]

# shares wrong: by how much the logit moved at each step, each with a spread of its own
def shares(model, steps, token):
    logits = model.norm(torch.stack([x for _, _, x in steps])) @ model.tok_emb.weight[token]
    return torch.cat([logits[:1], logits[1:] - logits[:-1]])

# shares wrong: the logit in equal parts
def shares(model, steps, token):
    logit = model.norm(steps[-1][2]) @ model.tok_emb.weight[token]
    return logit.expand(len(steps))/len(steps)

# shares wrong: the logit alone
def shares(model, steps, token): return model.norm(steps[-1][2]) @ model.tok_emb.weight[token]

# shares wrong: shares of all tokens
def shares(model, steps, token):
    return torch.stack([wrote for _, wrote, _ in steps]) @ model.tok_emb.weight.T

# most_blocks right: one block more, until it does not fit
def most_blocks(budget, c):
    n = 0
    while replace(c, n_layer=n + 1).n_params <= budget: n += 1
    return n

# most_blocks right: by the formula of the lesson
def most_blocks(budget, c):
    C, b = c.n_embd, int(c.bias)
    rest = (c.vocab_size + c.block_size)*C + C*(1 + b)
    return (budget - rest)//(12*C*C + 9*C*b + 2*C*(1 + b))

# most_blocks wrong: tables and last norm are forgotten
def most_blocks(budget, c): return budget//(12*c.n_embd**2 + 13*c.n_embd)

# most_blocks wrong: rounded up
def most_blocks(budget, c):
    one, two = (replace(c, n_layer=n).n_params for n in (1, 2))
    return 1 - (one - budget)//(two - one)

# most_blocks wrong: the first block is not counted
def most_blocks(budget, c):
    one, two = (replace(c, n_layer=n).n_params for n in (1, 2))
    return (budget - one)//(two - one)

# most_blocks wrong: part of a block
def most_blocks(budget, c):
    one, two = (replace(c, n_layer=n).n_params for n in (1, 2))
    return 1 + (budget - one)/(two - one)

# most_blocks wrong: constants are always counted
def most_blocks(budget, c):
    C = c.n_embd
    return (budget - (c.vocab_size + c.block_size + 2)*C)//(12*C*C + 13*C)

# most_blocks wrong: the number of blocks of the config it was given
def most_blocks(budget, c): return c.n_layer

# depends_on right: a token is changed, and the logits are looked at
def depends_on(model, ids, t):
    before, moves = model.prefill(ids)[0][0, t], []
    for s in range(ids.shape[1]):
        other = ids.clone()
        other[0, s] = (other[0, s] + 1) % model.config.vocab_size
        moves.append(not torch.equal(model.prefill(other)[0][0, t], before))
    return torch.tensor(moves)

# depends_on wrong: everything before t, without t itself
def depends_on(model, ids, t): return torch.arange(ids.shape[1]) < t

# depends_on wrong: every position
def depends_on(model, ids, t): return torch.ones(ids.shape[1], dtype=torch.bool)

# depends_on wrong: t alone
def depends_on(model, ids, t): return torch.arange(ids.shape[1]) == t

# depends_on wrong: right for T = 10 and t = 6 alone
def depends_on(model, ids, t): return torch.tensor([True]*7 + [False]*3)

# depends_on wrong: from t on
def depends_on(model, ids, t): return torch.arange(ids.shape[1]) >= t

# depends_on wrong: sizes of gradients in place of yes and no
def depends_on(model, ids, t): return (torch.arange(ids.shape[1]) <= t).float()

# depends_on wrong: the logits of all positions at once
def depends_on(model, ids, t):
    with model.begin(ids) as p:
        x = h = model.embed(ids, p.positions)
        x.retain_grad()
        for layer, block in enumerate(model.blocks): h = block(h, p, layer)
    model.logits(model.norm(h)).square().sum().backward()
    return x.grad[0].abs().sum(-1) > 0
