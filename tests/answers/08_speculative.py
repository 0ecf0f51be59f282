# diagnosis right: from lists
diagnosis = dict(zip('ABCD', ['keeps a wrong guess', 'keeps what comes behind', 'corrects at the wrong place',
                              'refuses nothing']))
# diagnosis wrong: two exchanged
diagnosis = dict(A='keeps a wrong guess', B='corrects at the wrong place', C='keeps what comes behind',
                 D='refuses nothing')
# diagnosis wrong: one for all
diagnosis = dict.fromkeys('ABCD', 'refuses nothing')
# diagnosis wrong: only three
diagnosis = dict(A='keeps a wrong guess', B='keeps what comes behind', C='corrects at the wrong place')
# diagnosis wrong: a list
diagnosis = ['keeps a wrong guess', 'keeps what comes behind', 'corrects at the wrong place', 'refuses nothing']
# diagnosis wrong: nothing
diagnosis = None
# diagnosis wrong: first and last exchanged
diagnosis = dict(A='refuses nothing', B='keeps what comes behind', C='corrects at the wrong place',
                 D='keeps a wrong guess')
# kept_share right: as one minus half of the distance
def kept_share(p, q): return float(1 - (p - q).abs().sum()/2)
# kept_share wrong: the overlap of equal draws
def kept_share(p, q): return (p*q).sum().item()
# kept_share wrong: the mean of the ratios
def kept_share(p, q): return (p/q).clamp(max=1).mean().item()
# kept_share wrong: the residual
def kept_share(p, q): return (p - q).clamp(min=0).sum().item()
# kept_share wrong: one for each token
def kept_share(p, q): return torch.minimum(p, q).tolist()
# kept_share wrong: only the drafter's best token
def kept_share(p, q): return min(1., (p[q.argmax()]/q.argmax().clamp(min=1)).item())
# kept_share wrong: the larger of the two
def kept_share(p, q): return torch.maximum(p, q).sum().item()
# kept_share wrong: the lesson's example
def kept_share(p, q): return .6
# best_k right: step by step
def best_k(a, price):
    best, most, tokens = 0, 0, 0
    for k in range(17):
        tokens += a**k
        if tokens/price(k) > most: best, most = k, tokens/price(k)
    return best
# best_k wrong: the most tokens, whatever they cost
def best_k(a, price): return max(range(17), key=lambda k: sum(a**i for i in range(k+1)))
# best_k wrong: forgets the model's own token
def best_k(a, price): return max(range(17), key=lambda k: sum(a**i for i in range(1, k+1))/price(k))
# best_k wrong: as if all guesses were right
def best_k(a, price): return max(range(17), key=lambda k: (k+1)/price(k))
# best_k wrong: a difference in place of a ratio
def best_k(a, price): return max(range(17), key=lambda k: sum(a**i for i in range(k+1)) - price(k))
# best_k wrong: the rate, not the k
def best_k(a, price): return max(sum(a**i for i in range(k+1))/price(k) for k in range(17))
# best_k wrong: never no guess
def best_k(a, price): return max(range(1, 17), key=lambda k: sum(a**i for i in range(k+1))/price(k))
# best_k wrong: never 16
def best_k(a, price): return max(range(16), key=lambda k: sum(a**i for i in range(k+1))/price(k))
# best_k wrong: the closed form alone, which fails at a = 1
def best_k(a, price): return max(range(17), key=lambda k: (1 - a**(k+1))/(1 - a)/price(k))
# best_k wrong: always seven
def best_k(a, price): return 7

# passes_needed right: token by token, the text in one list
def passes_needed(prompt, answer, drafter):
    text, passes = [*prompt], 0
    while (left := len(prompt) + len(answer) - len(text)) > 0:
        true = answer[-left:]
        guesses = drafter.draft([*text], left - 1)[0]
        while guesses and true[:1] == guesses[:1]: text.append(true.pop(0)); guesses.pop(0)
        text, passes = text + true[:1], passes + 1
    return passes

# passes_needed wrong: a pass for each token
def passes_needed(prompt, answer, drafter): return len(answer)

# passes_needed wrong: the drafter does not see the answer so far
def passes_needed(prompt, answer, drafter):
    passes, done = 0, 0
    while done < len(answer):
        guesses, _ = drafter.draft(prompt, len(answer) - done - 1)
        done, passes = done + len(stands(guesses, answer[done:done+len(guesses)+1])), passes + 1
    return passes

# passes_needed wrong: without the token of the model's own
def passes_needed(prompt, answer, drafter):
    passes, done = 0, 0
    while done < len(answer):
        guesses, _ = drafter.draft(prompt + answer[:done], len(answer) - done - 1)
        right = len(stands(guesses, answer[done:done+len(guesses)+1])) - 1
        done, passes = done + max(right, 1), passes + 1
    return passes

# passes_needed wrong: every guess stands
def passes_needed(prompt, answer, drafter):
    passes, done = 0, 0
    while done < len(answer):
        done += len(drafter.draft(prompt + answer[:done], len(answer) - done - 1)[0]) + 1
        passes += 1
    return passes

# passes_needed wrong: guesses that agree count behind a wrong one, too
def passes_needed(prompt, answer, drafter):
    passes, done = 0, 0
    while done < len(answer):
        guesses, _ = drafter.draft(prompt + answer[:done], len(answer) - done - 1)
        done += sum(a == b for a, b in zip(guesses, answer[done:])) + 1
        passes += 1
    return passes

# passes_needed wrong: one pass too many, for the prompt
def passes_needed(prompt, answer, drafter):
    passes, done = 1, 0
    while done < len(answer):
        guesses, _ = drafter.draft(prompt + answer[:done], len(answer) - done - 1)
        done, passes = done + len(stands(guesses, answer[done:done+len(guesses)+1])), passes + 1
    return passes

# passes_needed wrong: a float
def passes_needed(prompt, answer, drafter): return len(answer)/2
