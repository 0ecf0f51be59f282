# steps_to_read right: step by step
def steps_to_read(prompt, writers, budget):
    steps = 0
    while prompt > 0: prompt, steps = prompt - (budget - writers), steps + 1
    return steps
# steps_to_read wrong: forgets the writers
def steps_to_read(prompt, writers, budget): return -(-prompt//budget)
# steps_to_read wrong: rounds down
def steps_to_read(prompt, writers, budget): return prompt//(budget - writers)
# steps_to_read wrong: always one step more
def steps_to_read(prompt, writers, budget): return prompt//(budget - writers) + 1
# steps_to_read wrong: a part of a step
def steps_to_read(prompt, writers, budget): return prompt/(budget - writers)
# steps_to_read wrong: the reader is counted among the writers
def steps_to_read(prompt, writers, budget): return -(-prompt//(budget - writers - 1))
# steps_to_read wrong: a constant
def steps_to_read(prompt, writers, budget): return 4
# steps_to_read wrong: fails
def steps_to_read(prompt, writers, budget): return range(0, prompt, budget - writers).size
# may_come_in right: case by case
def may_come_in(need, running, free):
    if running == 0: return need <= free
    left = free - need
    return left > running
# may_come_in wrong: no reserve
def may_come_in(need, running, free): return need <= free
# may_come_in wrong: forgets the newcomer
def may_come_in(need, running, free): return need + running <= free
# may_come_in wrong: a reserve of one page for all
def may_come_in(need, running, free): return need + (running > 0) <= free
# may_come_in wrong: wants a reserve even when nobody runs
def may_come_in(need, running, free): return need + running + 1 <= free
# may_come_in wrong: must leave one page more
def may_come_in(need, running, free): return need + (running + 1 if running else 0) < free
# may_come_in wrong: lets everybody in when nobody runs
def may_come_in(need, running, free): return not running or need + running + 1 <= free
# may_come_in wrong: always
def may_come_in(need, running, free): return True
# may_come_in wrong: a number
def may_come_in(need, running, free): return free - need - running
# my_policy right: two classes, and long ones wait for those who come up to 60 steps later
def my_policy(job): return job.at['arrived'][0] + (60 if job.request.max_new_tokens > 10 else 0)
# my_policy wrong: first come
def my_policy(job): return job.at['arrived'][0]
# my_policy wrong: short ones always first
def my_policy(job): return job.request.max_new_tokens
# my_policy wrong: who came last goes first
def my_policy(job): return -job.at['arrived'][0]
# my_policy wrong: age counts too much
def my_policy(job): return job.at['arrived'][0] + .2*job.request.max_new_tokens
# my_policy wrong: the longest first
def my_policy(job): return -job.request.max_new_tokens
# my_policy wrong: a constant
def my_policy(job): return 0
# my_policy wrong: no number
def my_policy(job): return None

# first_doubt right: step by step, with sorted logits
def first_doubt(logits, moved):
    for step, row in enumerate(logits.tolist()):
        second, first = sorted(row)[-2:]
        if first - moved < second + moved: return step

# first_doubt wrong: only one of the two moves
def first_doubt(logits, moved):
    best = logits.topk(2).values
    near = (best[:, 0] - best[:, 1] < moved).nonzero()
    return near[0].item() if len(near) else None

# first_doubt wrong: the closest step, not the first
def first_doubt(logits, moved):
    best = logits.topk(2).values
    gap = best[:, 0] - best[:, 1]
    return gap.argmin().item() if (gap < 2*moved).any() else None

# first_doubt wrong: always the first step
def first_doubt(logits, moved): return 0

# first_doubt wrong: never
def first_doubt(logits, moved): return

# first_doubt wrong: best and worst
def first_doubt(logits, moved):
    near = (logits.amax(1) - logits.amin(1) < 2*moved).nonzero()
    return near[0].item() if len(near) else None

# first_doubt wrong: counts from one
def first_doubt(logits, moved):
    best = logits.topk(2).values
    near = (best[:, 0] - best[:, 1] < 2*moved).nonzero()
    return near[0].item() + 1 if len(near) else None

# first_doubt wrong: a tensor
def first_doubt(logits, moved):
    best = logits.topk(2).values
    return (best[:, 0] - best[:, 1] < 2*moved).float().argmax()
