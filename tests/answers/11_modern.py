# shifted right: by a product with complex numbers
def shifted(k, n, config):
    z = torch.complex(*k.chunk(2, -1))*torch.polar(torch.ones(()), -n*rope_speeds(config))
    return torch.cat([z.real, z.imag], -1)
# shifted wrong: turned forward
def shifted(k, n, config): return Rotary(config)(k, k, Fresh(torch.full((1, k.shape[2]), n), None))[1]
# shifted wrong: by places that grow
def shifted(k, n, config): return Rotary(config)(k, k, Fresh(-n*torch.arange(k.shape[2])[None], None))[1]
# shifted wrong: turned again, to where they should be
def shifted(k, n, config): return Rotary(config)(k, k, Fresh(torch.arange(k.shape[2])[None], None))[1]
# shifted wrong: nothing done
def shifted(k, n, config): return k
# shifted wrong: the rows are moved, not turned
def shifted(k, n, config): return k.roll(-n, 2)
# shifted wrong: both, queries and keys
def shifted(k, n, config): return Rotary(config)(k, k, Fresh(torch.full((1, k.shape[2]), -n), None))
# shifted wrong: one place less
def shifted(k, n, config): return Rotary(config)(k, k, Fresh(torch.full((1, k.shape[2]), 1-n), None))[1]
# shifted wrong: changes the keys in place
def shifted(k, n, config):
    k.copy_(Rotary(config)(k, k, Fresh(torch.full((1, k.shape[2]), -n), None))[1])
    return k
# shifted wrong: the first tokens are dropped
def shifted(k, n, config): return k[:, :, n:]
# shifted wrong: pairs of neighbours
def shifted(k, n, config):
    z = torch.view_as_complex(k.unflatten(-1, (-1, 2)))*torch.polar(torch.ones(()), -n*rope_speeds(config))
    return torch.view_as_real(z).flatten(-2)
# gated_width right: counted upwards
def gated_width(C, multiple):
    n = multiple
    while 3*n < 8*C: n += multiple
    return n
# gated_width wrong: rounded down
def gated_width(C, multiple): return 8*C//3//multiple*multiple
# gated_width wrong: always one more multiple
def gated_width(C, multiple): return (8*C//3//multiple + 1)*multiple
# gated_width wrong: no multiple
def gated_width(C, multiple): return -(-8*C//3)
# gated_width wrong: a broken number
def gated_width(C, multiple): return 8*C/3
# gated_width wrong: half of the width, as if there were no way down
def gated_width(C, multiple): return -(-2*C//multiple)*multiple
# gated_width wrong: the same width as the MLP
def gated_width(C, multiple): return -(-4*C//multiple)*multiple
# gated_width wrong: right for one shape
def gated_width(C, multiple): return 256
# gated_width wrong: rounded to the nearest multiple
def gated_width(C, multiple): return max(1, round(8*C/3/multiple))*multiple
# ReLU2 right: by a product
class ReLU2(MLP):
    def forward(self, x):
        up = self.up(x)
        return self.down(up*up*(up > 0))
# ReLU2 wrong: not squared
class ReLU2(MLP):
    def forward(self, x): return self.down(F.relu(self.up(x)))
# ReLU2 wrong: squared before the bend
class ReLU2(MLP):
    def forward(self, x): return self.down(F.relu(self.up(x)**2))
# ReLU2 wrong: squared at the end
class ReLU2(MLP):
    def forward(self, x): return self.down(F.relu(self.up(x)))**2
# ReLU2 wrong: the square of gelu
class ReLU2(MLP):
    def forward(self, x): return self.down(F.gelu(self.up(x))**2)
# ReLU2 wrong: without the way down
class ReLU2(MLP):
    def forward(self, x): return F.relu(self.up(x)).square()
# ReLU2 wrong: without the way up
class ReLU2(MLP):
    def forward(self, x): return self.down(F.relu(x).square())
# ReLU2 wrong: without constants
class ReLU2(MLP):
    def forward(self, x): return F.relu(x @ self.up.weight.T).square() @ self.down.weight.T
# ReLU2 wrong: a function
def ReLU2(x): return F.relu(x).square()
# diagnosis right: from lists
diagnosis = dict(zip('ABC', ['heads in another order', 'keys not turned', 'turned from 0 in each pass']))
# diagnosis wrong: two exchanged
diagnosis = dict(A='keys not turned', B='heads in another order', C='turned from 0 in each pass')
# diagnosis wrong: all turned round
diagnosis = dict(A='keys not turned', B='turned from 0 in each pass', C='heads in another order')
# diagnosis wrong: one for all
diagnosis = dict.fromkeys('ABC', 'keys not turned')
# diagnosis wrong: only one
diagnosis = dict(C='turned from 0 in each pass')
# diagnosis wrong: text
diagnosis = 'turned from 0 in each pass'
# diagnosis wrong: nothing
diagnosis = None
