"Other answers to the exercises of lesson 15; tests/test_notebooks.py gives them to the checks."

# loss_of_all right: window by window
def loss_of_all(means, counts):
    every = [m for m, n in zip(means, counts) for _ in range(n)]
    return sum(every)/len(every)

# loss_of_all wrong: the mean of the means
def loss_of_all(means, counts): return sum(means)/len(means)

# loss_of_all wrong: the sum
def loss_of_all(means, counts): return sum(m*n for m, n in zip(means, counts))

# loss_of_all wrong: divided by the number of processes
def loss_of_all(means, counts): return sum(m*n for m, n in zip(means, counts))/len(counts)

# loss_of_all wrong: the fewer windows, the more say
def loss_of_all(means, counts): return sum(m/n for m, n in zip(means, counts))/sum(1/n for n in counts)

# loss_of_all wrong: only the first
def loss_of_all(means, counts): return means[0]

# loss_of_all wrong: a tensor
def loss_of_all(means, counts): return torch.tensor(means).mean()

# ring_seconds right: message by message
def ring_seconds(n_bytes, size, latency, bandwidth):
    total = 0.
    for _ in range(2):
        for _ in range(size - 1): total += latency + (n_bytes/size)/bandwidth
    return total

# ring_seconds wrong: one half of it
def ring_seconds(n_bytes, size, latency, bandwidth):
    return (size - 1)*(latency + n_bytes/size/bandwidth)

# ring_seconds wrong: whole lists are sent
def ring_seconds(n_bytes, size, latency, bandwidth):
    return 2*(size - 1)*(latency + n_bytes/bandwidth)

# ring_seconds wrong: the latency is paid once
def ring_seconds(n_bytes, size, latency, bandwidth):
    return latency + 2*(size - 1)*n_bytes/size/bandwidth

# ring_seconds wrong: one step too many
def ring_seconds(n_bytes, size, latency, bandwidth):
    return 2*size*(latency + n_bytes/size/bandwidth)

# ring_seconds wrong: bytes times bandwidth
def ring_seconds(n_bytes, size, latency, bandwidth):
    return 2*(size - 1)*(latency + n_bytes/size*bandwidth)

# ring_seconds wrong: what all send together
def ring_seconds(n_bytes, size, latency, bandwidth):
    return size*2*(size - 1)*(latency + n_bytes/size/bandwidth)

# smallest_team right: by doubling, then by halving
def smallest_team(n_params, memory, stage):
    fits, high = lambda size: zero_bytes(n_params, size, stage) <= memory, 1
    while not fits(high):
        high *= 2
        if high > 2**60: return None
    low = high//2
    while high - low > 1:
        middle = (low + high)//2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high

# smallest_team wrong: as if all were shared out
def smallest_team(n_params, memory, stage): return max(1, -int(-zero_bytes(n_params, 1, stage)//memory))

# smallest_team wrong: one too many
def smallest_team(n_params, memory, stage):
    for size in range(1, 5000):
        if zero_bytes(n_params, size, stage) <= memory: return size + 1

# smallest_team wrong: only powers of two
def smallest_team(n_params, memory, stage):
    for k in range(30):
        if zero_bytes(n_params, 2**k, stage) <= memory: return 2**k

# smallest_team wrong: never more than eight
def smallest_team(n_params, memory, stage):
    for size in range(1, 9):
        if zero_bytes(n_params, size, stage) <= memory: return size

# smallest_team wrong: always the third stage
def smallest_team(n_params, memory, stage):
    size = 1
    while zero_bytes(n_params, size, 3) > memory: size += 1
    return size

# smallest_team wrong: no whole number
def smallest_team(n_params, memory, stage): return zero_bytes(n_params, 1, stage)/memory
