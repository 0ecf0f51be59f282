"Other answers to the exercises of lesson 13; tests/test_notebooks.py gives them to the checks."

# most_off right: number by number
def most_off(x, scale):
    worst = 0.
    for n in x.tolist(): worst += scale/2*max(n, -n)
    return worst

# most_off wrong: a whole scale
def most_off(x, scale): return x.abs().sum().item()*scale

# most_off wrong: forgets that x may be negative
def most_off(x, scale): return x.sum().item()*scale/2

# most_off wrong: the largest number of x for all
def most_off(x, scale): return len(x)*x.abs().max().item()*scale/2

# most_off wrong: the error on average
def most_off(x, scale): return x.abs().sum().item()*scale/4

# most_off wrong: as if errors were independent
def most_off(x, scale): return x.square().sum().sqrt().item()*scale/2

# most_off wrong: a product
def most_off(x, scale): return x*scale/2

# most_off wrong: a constant
def most_off(x, scale): return 1.

# apart right: the near part through a mask, the far part as the rest
def apart(x, w, n):
    far = torch.zeros(w.shape[1], dtype=torch.bool)
    far[w.abs().amax(0).argsort(descending=True)[:n]] = True
    q, s = int8_rows(w.masked_fill(far, 0))
    return x @ (q*s[:, None]).T + x @ w.masked_fill(~far, 0).T

# apart wrong: rounds nothing
def apart(x, w, n): return x @ w.T

# apart wrong: rounds all
def apart(x, w, n):
    q, s = int8_rows(w)
    return x @ q.float().T*s

# apart wrong: rounds before it takes the columns out
def apart(x, w, n):
    q, s = int8_rows(w)
    far, q = w.abs().amax(0).topk(n).indices, q.float()
    q[:, far] = 0
    return x @ q.T*s + x[:, far] @ w[:, far].T

# apart wrong: forgets to add the far columns
def apart(x, w, n):
    near = w.clone()
    near[:, w.abs().amax(0).topk(n).indices] = 0
    q, s = int8_rows(near)
    return x @ q.float().T*s

# apart wrong: counts the far columns twice
def apart(x, w, n):
    far = w.abs().amax(0).topk(n).indices
    q, s = int8_rows(w)
    return x @ q.float().T*s + x[:, far] @ w[:, far].T

# apart wrong: the far rows
def apart(x, w, n):
    far, near = w.abs().amax(1).topk(n).indices, w.clone()
    near[far] = 0
    q, s = int8_rows(near)
    y = x @ q.float().T*s
    y[:, far] = x @ w[far].T
    return y

# apart wrong: one column, whatever n is
def apart(x, w, n):
    far, near = w.abs().amax(0).topk(1).indices, w.clone()
    near[:, far] = 0
    q, s = int8_rows(near)
    return x @ q.float().T*s + x[:, far] @ w[:, far].T

# apart wrong: the wrong shape
def apart(x, w, n): return (x @ w.T).T

# int4_groups right: group by group
def int4_groups(w, size):
    out = w.clone()
    for row in out:
        for start in range(0, len(row), size):
            part = row[start:start+size]
            if (most := part.abs().max()) > 0: part.copy_((part*7/most).round()*(most/7))
    return out

# int4_groups wrong: a scale a row
def int4_groups(w, size):
    scale = (w.abs().amax(1, True)/7).clamp(min=1e-9)
    return (w/scale).round()*scale

# int4_groups wrong: a group of zeros becomes nan
def int4_groups(w, size):
    groups = w.unflatten(1, (-1, size))
    scale = groups.abs().amax(-1, True)/7
    return ((groups/scale).round()*scale).flatten(1)

# int4_groups wrong: eight bits
def int4_groups(w, size):
    groups = w.unflatten(1, (-1, size))
    scale = (groups.abs().amax(-1, True)/127).clamp(min=1e-9)
    return ((groups/scale).round()*scale).flatten(1)

# int4_groups wrong: groups across the rows
def int4_groups(w, size):
    groups = w.T.reshape(-1, size)
    scale = (groups.abs().amax(-1, True)/7).clamp(min=1e-9)
    return ((groups/scale).round()*scale).view(w.shape[1], w.shape[0]).T

# int4_groups wrong: cuts off in place of rounding
def int4_groups(w, size):
    groups = w.unflatten(1, (-1, size))
    scale = (groups.abs().amax(-1, True)/7).clamp(min=1e-9)
    return ((groups/scale).trunc()*scale).flatten(1)

# int4_groups wrong: forgets to multiply by the scale
def int4_groups(w, size):
    groups = w.unflatten(1, (-1, size))
    scale = (groups.abs().amax(-1, True)/7).clamp(min=1e-9)
    return (groups/scale).round().flatten(1)

# int4_groups wrong: the largest of a group, with its sign left out
def int4_groups(w, size):
    groups = w.unflatten(1, (-1, size))
    scale = (groups.amax(-1, True)/7).clamp(min=1e-9)
    return ((groups/scale).round().clamp(-7, 7)*scale).flatten(1)

# int4_groups wrong: returns the groups
def int4_groups(w, size): return w.unflatten(1, (-1, size))
