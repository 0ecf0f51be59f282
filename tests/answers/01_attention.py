"Other answers to the exercises of lesson 01; tests/test_notebooks.py feeds them to the checks."

# allowed_pairs right: row t allows t + 1 keys
def allowed_pairs(T): return sum(range(1, T+1))

# allowed_pairs right: half of the square, and half of the diagonal more
def allowed_pairs(T): return (T**2 + T)/2

# allowed_pairs wrong: all pairs, as without a mask
def allowed_pairs(T): return T*T

# allowed_pairs wrong: without the diagonal
def allowed_pairs(T): return T*(T-1)//2

# allowed_pairs wrong: half of the square
def allowed_pairs(T): return T*T/2

# allowed_pairs wrong: right for T = 3 alone
def allowed_pairs(T): return 6

# allowed_pairs wrong: a text
def allowed_pairs(T): return f'{T*(T+1)//2}'

# allowed_pairs wrong: the mask itself
def allowed_pairs(T): return torch.ones(T, T).tril()

# window_mask right: from the distance of two positions
def window_mask(T, W):
    distance = torch.arange(T)[:, None] - torch.arange(T)
    return (distance >= 0) & (distance < W)

# window_mask right: a loop over the rows
def window_mask(T, W):
    mask = torch.zeros(T, T, dtype=torch.bool)
    for t in range(T): mask[t, max(0, t-W+1):t+1] = True
    return mask

# window_mask wrong: W earlier positions and itself, one too many
def window_mask(T, W): return causal_mask(T) & ~causal_mask(T).tril(-W-1)

# window_mask wrong: without itself
def window_mask(T, W): return causal_mask(T).tril(-1) & ~causal_mask(T).tril(-W)

# window_mask wrong: a window to both sides
def window_mask(T, W): return torch.ones(T, T, dtype=torch.bool).triu(1-W).tril(W-1)

# window_mask wrong: the last W positions of the text, for every query
def window_mask(T, W): return causal_mask(T) & (torch.arange(T) >= T-W)

# window_mask wrong: the causal mask, right for W = T alone
def window_mask(T, W): return causal_mask(T)

# window_mask wrong: what shall be hidden in place of what may be seen
def window_mask(T, W): return ~(causal_mask(T) & ~causal_mask(T).tril(-W))

# window_mask wrong: numbers in place of bool
def window_mask(T, W): return (causal_mask(T) & ~causal_mask(T).tril(-W)).float()

# vowel_head right: consonants and spaces pushed down, vowels left alone
def vowel_head():
    W_q = torch.tensor([[1., 1], [1., 1], [1., 1], [0., 0]])
    W_k = torch.tensor([[0., 0], [-500., 0], [-500., 0], [0., 8]])
    return W_q, W_k

# vowel_head right: one channel for the score, one that stays empty
def vowel_head():
    W_q, W_k = torch.zeros(4, 2), torch.zeros(4, 2)
    W_q[:3, 1], W_k[0, 1], W_k[3, 1] = 5, 99, 1
    return [W_q, W_k]

# vowel_head wrong: the start of the word, as in the lesson
def vowel_head(): return W_q, W_k

# vowel_head wrong: a vowel wins over a few places only
def vowel_head():
    W_q = torch.tensor([[4., 4], [4., 4], [4., 4], [0., 0]])
    return W_q, torch.tensor([[6., 0], [0., 0], [0., 0], [0., 1]])

# vowel_head wrong: any vowel, not the latest
def vowel_head():
    W_q = torch.tensor([[4., 4], [4., 4], [4., 4], [0., 0]])
    return W_q, torch.tensor([[60., 0], [0., 0], [0., 0], [0., 0]])

# vowel_head wrong: the earliest vowel
def vowel_head():
    W_q = torch.tensor([[4., 4], [4., 4], [4., 4], [0., 0]])
    return W_q, torch.tensor([[60., 0], [0., 0], [0., 0], [0., -1]])

# vowel_head wrong: a space does not ask
def vowel_head():
    W_q = torch.tensor([[4., 4], [4., 4], [0., 0], [0., 0]])
    return W_q, torch.tensor([[60., 0], [0., 0], [0., 0], [0., 1]])

# vowel_head wrong: too soft between neighbours
def vowel_head():
    W_q = torch.tensor([[1., 1], [1., 1], [1., 1], [0., 0]])
    return W_q, torch.tensor([[60., 0], [0., 0], [0., 0], [0., 1]])

# vowel_head wrong: the matrices the other way round, as nn.Linear keeps them
def vowel_head():
    W_q = torch.tensor([[4., 4], [4., 4], [4., 4], [0., 0]])
    return W_q.T, torch.tensor([[60., 0], [0., 0], [0., 0], [0., 1]]).T

# vowel_head wrong: the query alone
def vowel_head(): return torch.ones(4, 2)

# streaming_attention right: the sum kept as a logarithm
def streaming_attention(pairs):
    total, mean = torch.tensor(float('-inf')), 0.
    for s, value in pairs:
        total = torch.logaddexp(total, s)
        mean = mean + (s-total).exp()*(value-mean)
    return mean

# streaming_attention wrong: no maximum, so that large scores overflow
def streaming_attention(pairs):
    z, a = 0., 0.
    for s, value in pairs: z, a = z + s.exp(), a + s.exp()*value
    return a/z

# streaming_attention wrong: the total is not scaled down when the maximum rises
def streaming_attention(pairs):
    m, z, a = torch.tensor(float('-inf')), 0., 0.
    for s, value in pairs:
        new = torch.maximum(m, s)
        m, z, a = new, z*(m-new).exp() + (s-new).exp(), a + (s-new).exp()*value
    return a/z

# streaming_attention wrong: the sum is not scaled down
def streaming_attention(pairs):
    m, z, a = torch.tensor(float('-inf')), 0., 0.
    for s, value in pairs:
        new = torch.maximum(m, s)
        m, z, a = new, z + (s-new).exp(), a*(m-new).exp() + (s-new).exp()*value
    return a/z

# streaming_attention wrong: not divided by the sum
def streaming_attention(pairs):
    m, a = torch.tensor(float('-inf')), 0.
    for s, value in pairs:
        new = torch.maximum(m, s)
        m, a = new, a*(m-new).exp() + (s-new).exp()*value
    return a

# streaming_attention wrong: the value of the best score alone
def streaming_attention(pairs): return max(pairs, key=lambda pair: pair[0])[1]

# streaming_attention wrong: the plain mean of the values
def streaming_attention(pairs): return torch.stack([value for _, value in pairs]).mean(0)

# streaming_attention wrong: the first score serves as the maximum for good
def streaming_attention(pairs):
    m, z, a = None, 0., 0.
    for s, value in pairs:
        m = s if m is None else m
        z, a = z + (s-m).exp(), a + (s-m).exp()*value
    return a/z

# streaming_attention wrong: numbers in a list
def streaming_attention(pairs):
    s, values = zip(*pairs)
    return (torch.stack(s).softmax(0) @ torch.stack(values)).tolist()
