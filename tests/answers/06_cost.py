"Other answers to the exercises of lesson 06; tests/test_notebooks.py gives them to the checks."

# crossover right: solved, then moved to the exact place
def crossover(config, batch):
    cost = lambda past: config.pass_cost(1, past, batch, last_only=True)
    past = max(1, cost(1).weight_bytes//config.cache_bytes(batch, 1) - 3)
    while cost(past).cache_read > cost(past).weight_bytes: past -= 1
    while cost(past).cache_read <= cost(past).weight_bytes: past += 1
    return past

# crossover wrong: one too late
def crossover(config, batch):
    past = 1
    while (c := config.pass_cost(1, past, batch, last_only=True)).cache_read <= c.weight_bytes: past += 1
    return past + 1

# crossover wrong: forgets the batch
def crossover(config, batch):
    past = 1
    while (c := config.pass_cost(1, past, 1, last_only=True)).cache_read <= c.weight_bytes: past += 1
    return past

# crossover wrong: counts the parameters, of which the pass reads less
def crossover(config, batch): return 4*config.n_params//config.cache_bytes(batch, 1)

# crossover wrong: a constant
def crossover(config, batch): return 98

# crossover wrong: a float
def crossover(config, batch):
    return config.pass_cost(1, 1, batch, last_only=True).weight_bytes/config.cache_bytes(batch, 1)

# crossover wrong: the past of the cache before it weighs more
def crossover(config, batch):
    past = 1
    while (c := config.pass_cost(1, past, batch, last_only=True)).cache_read < c.weight_bytes: past += 1
    return past - 1

# int8_gain right: both times written out
def int8_gain(machine, config):
    factors = []
    for T, past in ((1, 64), (256, 0)):
        times = []
        for size in (4, 1):
            cost = config.pass_cost(T, past=past, last_only=True, itemsize=size)
            times.append(max(cost.flops/machine.flops, cost.n_bytes/machine.bandwidth))
        factors.append(times[0]/times[1])
    return factors

# int8_gain wrong: what is often said
def int8_gain(machine, config): return 4., 1.

# int8_gain wrong: four times for both
def int8_gain(machine, config): return 4., 4.

# int8_gain wrong: upside down
def int8_gain(machine, config):
    t = lambda T, past, size: machine.seconds(config.pass_cost(T, past, last_only=True, itemsize=size))
    return t(1, 64, 1)/t(1, 64, 4), t(256, 0, 1)/t(256, 0, 4)

# int8_gain wrong: bytes alone
def int8_gain(machine, config):
    b = lambda T, past, size: config.pass_cost(T, past, last_only=True, itemsize=size).n_bytes
    return b(1, 64, 4)/b(1, 64, 1), b(256, 0, 4)/b(256, 0, 1)

# int8_gain wrong: reading and arithmetic one after the other
def int8_gain(machine, config):
    def t(T, past, size):
        c = config.pass_cost(T, past, last_only=True, itemsize=size)
        return c.flops/machine.flops + c.n_bytes/machine.bandwidth
    return t(1, 64, 4)/t(1, 64, 1), t(256, 0, 4)/t(256, 0, 1)

# int8_gain wrong: arithmetic in int8 as well
def int8_gain(machine, config):
    t = lambda T, past, size: machine.seconds(config.pass_cost(T, past, last_only=True, itemsize=size))/(4 if size == 1 else 1)
    return t(1, 64, 4)/t(1, 64, 1), t(256, 0, 4)/t(256, 0, 1)

# int8_gain wrong: in the wrong order
def int8_gain(machine, config):
    t = lambda T, past, size: machine.seconds(config.pass_cost(T, past, last_only=True, itemsize=size))
    return t(256, 0, 4)/t(256, 0, 1), t(1, 64, 4)/t(1, 64, 1)

# int8_gain wrong: one number
def int8_gain(machine, config): return 4.

# latencies right: from the ends, and a loop
def latencies(asked, came):
    worst = 0.
    for i in range(1, len(came)): worst = max(worst, came[i] - came[i-1])
    return came[0] - asked, (came[-1] - came[0])/(len(came) - 1), worst

# latencies wrong: an average over all tokens
def latencies(asked, came):
    return came[0] - asked, (came[-1] - asked)/len(came), max(b - a for a, b in zip(came, came[1:]))

# latencies wrong: the time of day
def latencies(asked, came):
    gaps = [b - a for a, b in zip(came, came[1:])]
    return came[0], sum(gaps)/len(gaps), max(gaps)

# latencies wrong: one gap too many
def latencies(asked, came):
    gaps = [b - a for a, b in zip(came, came[1:])]
    return came[0] - asked, sum(gaps)/len(came), max(gaps)

# latencies wrong: the longest wait is the prompt's
def latencies(asked, came):
    waits = [b - a for a, b in zip([asked, *came], came)]
    return waits[0], sum(waits[1:])/(len(waits) - 1), max(waits)

# latencies wrong: the middle gap
def latencies(asked, came):
    gaps = sorted(b - a for a, b in zip(came, came[1:]))
    return came[0] - asked, gaps[len(gaps)//2], gaps[-1]

# latencies wrong: two numbers
def latencies(asked, came): return came[0] - asked, (came[-1] - came[0])/(len(came) - 1)

# most_tokens right: the bytes and operations written out
def most_tokens(config, machine, past):
    cost = config.pass_cost(1, past, last_only=True)
    reading = (cost.weight_bytes + cost.cache_read + cost.cache_written)/machine.bandwidth
    return min(1/reading, machine.flops/cost.flops)

# most_tokens wrong: the weights alone
def most_tokens(config, machine, past):
    cost = config.pass_cost(1, past, last_only=True)
    return 1/max(cost.weight_bytes/machine.bandwidth, cost.flops/machine.flops)

# most_tokens wrong: memory alone
def most_tokens(config, machine, past):
    return machine.bandwidth/config.pass_cost(1, past, last_only=True).n_bytes

# most_tokens wrong: one after the other, in place of the slower of the two
def most_tokens(config, machine, past):
    cost = config.pass_cost(1, past, last_only=True)
    return 1/(cost.n_bytes/machine.bandwidth + cost.flops/machine.flops)

# most_tokens wrong: reads the past again
def most_tokens(config, machine, past): return 1/machine.seconds(config.pass_cost(past, last_only=True))

# most_tokens wrong: the seconds of a token
def most_tokens(config, machine, past): return machine.seconds(config.pass_cost(1, past, last_only=True))

# most_tokens wrong: 2N operations, and nothing to read
def most_tokens(config, machine, past): return machine.flops/(2*config.n_params)

# most_tokens wrong: two bytes a number
def most_tokens(config, machine, past):
    return 1/machine.seconds(config.pass_cost(1, past, last_only=True, itemsize=2))

# most_tokens wrong: a constant
def most_tokens(config, machine, past): return 30.
