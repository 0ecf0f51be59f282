# packed_bytes right: the package's own table
def packed_bytes(n, kind):
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return n//block*size

# packed_bytes wrong: no room for the scales
def packed_bytes(n, kind): return int(n*{'F32': 4, 'F16': 2, 'Q8_0': 1, 'Q4_0': .5, 'Q4_1': .5}[kind])

# packed_bytes wrong: one scale for all of them
def packed_bytes(n, kind):
    return {'F32': 4*n, 'F16': 2*n, 'Q8_0': n + 2, 'Q4_0': n//2 + 2, 'Q4_1': n//2 + 4}[kind]

# packed_bytes wrong: scales of 32 bits
def packed_bytes(n, kind):
    return n//32*{'F32': 128, 'F16': 64, 'Q8_0': 36, 'Q4_0': 20, 'Q4_1': 24}[kind]

# packed_bytes wrong: bits in place of bytes
def packed_bytes(n, kind):
    return 8*n//32*{'F32': 128, 'F16': 64, 'Q8_0': 34, 'Q4_0': 18, 'Q4_1': 20}[kind]

# packed_bytes wrong: Q4_1 as Q4_0
def packed_bytes(n, kind):
    return n//32*{'F32': 128, 'F16': 64, 'Q8_0': 34, 'Q4_0': 18, 'Q4_1': 18}[kind]

# packed_bytes wrong: a float
def packed_bytes(n, kind):
    return n/32*{'F32': 128, 'F16': 64, 'Q8_0': 34, 'Q4_0': 18, 'Q4_1': 20}[kind]

# unpacked right: block by block
def unpacked(b):
    rows = [np.frombuffer(r[:2].tobytes(), np.float16)[0].astype(np.float32)
            * np.frombuffer(r[2:].tobytes(), np.int8).astype(np.float32) for r in b]
    return np.concatenate(rows)

# unpacked wrong: bytes without a sign
def unpacked(b):
    return (b[:, :2].copy().view(np.float16).astype(np.float32)*b[:, 2:]).reshape(-1)

# unpacked wrong: the scale of the first block for all
def unpacked(b):
    scale = b[0, :2].copy().view(np.float16).astype(np.float32)
    return (scale*b[:, 2:].copy().view(np.int8)).reshape(-1)

# unpacked wrong: not in one row
def unpacked(b):
    return b[:, :2].copy().view(np.float16).astype(np.float32)*b[:, 2:].copy().view(np.int8)

# unpacked wrong: the scale forgotten
def unpacked(b): return b[:, 2:].copy().view(np.int8).astype(np.float32).reshape(-1)

# unpacked wrong: the scale taken from the end of a block
def unpacked(b):
    return (b[:, 32:].copy().view(np.float16).astype(np.float32)*b[:, :32].copy().view(np.int8)).reshape(-1)

# unpacked wrong: divided by the scale
def unpacked(b):
    scales = b[:, :2].copy().view(np.float16).astype(np.float32)
    return (b[:, 2:].copy().view(np.int8)/scales).reshape(-1)

# diagnose right: by the weights alone
def diagnose(right, wrong):
    for a, b in zip(right.blocks, wrong.blocks):
        if not torch.equal(a.attention.qkv.weight, b.attention.qkv.weight): return 'pairs'
        if not torch.equal(a.mlp.up.weight, b.mlp.up.weight): return 'gates'
    return 'scale'

# diagnose wrong: always the same
def diagnose(right, wrong): return 'pairs'

# diagnose wrong: the law finds none of these
def diagnose(right, wrong):
    return 'scale' if phase_invariant(wrong, torch.randint(50, (1, 8)), 4) else 'pairs'

# diagnose wrong: the last block alone, where all are off
def diagnose(right, wrong):
    x = torch.randint(50, (1, 8))
    off = (streams(wrong, x) - streams(right, x)).abs().amax(-1) > 1e-3
    return 'gates' if off[-1, 0] else 'pairs'

# diagnose wrong: two illnesses change places
def diagnose(right, wrong):
    x = torch.randint(50, (1, 8))
    off = (streams(wrong, x) - streams(right, x)).abs().amax(-1) > 1e-3
    return 'pairs' if off[0, 0] else 'gates' if off[0].any() else 'scale'

# diagnose wrong: not a word of the three
def diagnose(right, wrong): return 0

# diagnose wrong: one token cannot tell an order from none
def diagnose(right, wrong):
    x = torch.randint(50, (1, 1))
    off = (streams(wrong, x) - streams(right, x)).abs().amax(-1) > 1e-3
    return 'gates' if off[0].any() else 'scale'
