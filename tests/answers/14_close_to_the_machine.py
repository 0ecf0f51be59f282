# intensity_of right: counted for a matrix of some size
def intensity_of(R, itemsize):
    N, K = 30, 20
    return (2*N*K*R)/(N*K*itemsize)
# intensity_of wrong: a multiplication and an addition counted as one
def intensity_of(R, itemsize): return R/itemsize
# intensity_of wrong: each row reads the weights again
def intensity_of(R, itemsize): return 2/itemsize
# intensity_of wrong: bytes a FLOP
def intensity_of(R, itemsize): return itemsize/(2*R)
# intensity_of wrong: always four bytes
def intensity_of(R, itemsize): return R/2
# intensity_of wrong: text
def intensity_of(R, itemsize): return f'{2*R/itemsize} FLOPs a byte'
# intensity_of wrong: whole numbers only
def intensity_of(R, itemsize): return 2*R//itemsize
# tanh_of right: from two sigmoids
def tanh_of(x, sigmoid): return sigmoid(2*x) - sigmoid(-2*x)
# tanh_of wrong: the width forgotten
def tanh_of(x, sigmoid): return 2*sigmoid(x) - 1
# tanh_of wrong: the range forgotten
def tanh_of(x, sigmoid): return sigmoid(2*x)
# tanh_of wrong: from 0 to 2
def tanh_of(x, sigmoid): return 2*sigmoid(2*x)
# tanh_of wrong: does not ask
def tanh_of(x, sigmoid): return math.tanh(x)
# tanh_of wrong: upside down
def tanh_of(x, sigmoid): return 1 - 2*sigmoid(2*x)
# tanh_of wrong: right at 0 only
def tanh_of(x, sigmoid): return 0.*sigmoid(x)
# place_of right: by divmod
def place_of(p, table, size):
    page, inside = divmod(p, size)
    return size*table[page] + inside
# place_of wrong: as if the pages stood in order
def place_of(p, table, size): return p
# place_of wrong: the beginning of the page
def place_of(p, table, size): return table[p//size]*size
# place_of wrong: the page, as if it had one position
def place_of(p, table, size): return table[p//size] + p%size
# place_of wrong: page and place mixed up
def place_of(p, table, size): return table[p%len(table)]*size + p//size
# place_of wrong: one further
def place_of(p, table, size): return table[p//size]*size + p%size + 1
# place_of wrong: a float
def place_of(p, table, size): return float(table[p//size]*size + p%size)
# from_counter right: looks for the earliest each time
def from_counter(pieces, speeds):
    free = [0.]*len(speeds)
    last = 0.
    for _ in range(pieces):
        i = min(range(len(speeds)), key=lambda i: (free[i], -speeds[i]))
        free[i] += 1/speeds[i]
        last = max(last, free[i])
    return last
# from_counter wrong: shares given in advance
def from_counter(pieces, speeds): return max(pieces/len(speeds)/s for s in speeds)
# from_counter wrong: pieces without an end, as if they could be cut further
def from_counter(pieces, speeds): return pieces/sum(speeds)
# from_counter wrong: the fastest does all
def from_counter(pieces, speeds): return pieces/max(speeds)
# from_counter wrong: takes turns
def from_counter(pieces, speeds):
    free = [0.]*len(speeds)
    for i in range(pieces): free[i%len(speeds)] += 1/speeds[i%len(speeds)]
    return max(free)
# from_counter wrong: when the first is free, not when the last is done
def from_counter(pieces, speeds):
    free = [0.]*len(speeds)
    for _ in range(pieces):
        i = min(range(len(speeds)), key=lambda i: (free[i], -speeds[i]))
        free[i] += 1/speeds[i]
    return min(free)
# from_counter wrong: a count
def from_counter(pieces, speeds): return pieces
