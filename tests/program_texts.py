"""Programs of the compiled cells, written by hand: the kernels must give the same numbers."""

from __future__ import annotations

LSTM = """cell 1 lstm
gates i f g o
states h c
unit_weights
unit_init
step_inputs
define
return h c
stage
apart
joint i f g o
late
saved i f g o c_prev
needs nothing
forward
save0 = sigmoid p0
save1 = sigmoid p1
save2 = tanh p2
save3 = sigmoid p3
save4 = copy s1
t0 = mul save0 save2
s1 = fma save1 s1 t0
t0 = tanh s1
r = mul save3 t0
backward
t0 = mul save0 save2
t0 = fma save1 save4 t0
t0 = tanh t0
{restored}
t1 = mul dr save3
t2 = mul t1 t0
t1 = fnma t2 t0 t1
t1 = add ds1 t1
t2 = mul t1 save2
t3 = fnma save0 save0 save0
g0 = mul t2 t3
t2 = mul t1 save4
t3 = fnma save1 save1 save1
g1 = mul t2 t3
t2 = mul t1 save0
t3 = fnma save2 save2 #1.0
g2 = mul t2 t3
t2 = mul dr t0
t3 = fnma save3 save3 save3
g3 = mul t2 t3
ds1 = mul t1 save1
end
"""

GRU = """cell 1 gru
gates r z n
states h
unit_weights
unit_init
step_inputs
define
return h
stage
apart n
joint r z
late n
saved n' r z n
needs h_prev
forward
save0 = copy p0
save1 = sigmoid p1
save2 = sigmoid p2
t0 = fma save1 p0 x0
save3 = tanh t0
t0 = sub h save3
r = fma save2 t0 save3
backward
t0 = sub #1.0 save2
t0 = mul dr t0
t1 = fnma save3 save3 #1.0
g3 = mul t0 t1
g0 = mul g3 save1
t0 = mul g3 save0
t1 = fnma save1 save1 save1
g1 = mul t0 t1
t0 = sub h save3
t0 = mul dr t0
t1 = fnma save2 save2 save2
g2 = mul t0 t1
carry = mul dr save2
end
"""

GRU_RESET_BEFORE = """cell 1 gru_reset_before
gates r z n
states h
unit_weights
unit_init
step_inputs
define
return h
stage
apart
joint r z
late
saved r
needs h_prev
forward
save0 = sigmoid p0
k0 = sigmoid p1
r = mul save0 h
backward
t0 = mul dr h
t1 = fnma save0 save0 save0
g0 = mul t0 t1
carry = fma dr save0 carry
r = mul save0 h
stage
apart
joint n
late
saved z n
needs h_prev
forward
save1 = copy k0
save2 = tanh p0
t0 = sub h save2
r = fma k0 t0 save2
backward
t0 = sub h save2
t0 = mul dr t0
t1 = fnma save1 save1 save1
g1 = mul t0 t1
t0 = sub #1.0 save1
t0 = mul dr t0
t1 = fnma save2 save2 #1.0
g2 = mul t0 t1
carry = mul dr save1
end
"""

RNN_RELU = """cell 1 rnn_relu
gates h
states h
unit_weights
unit_init
step_inputs
define
return h
stage
apart
joint h
late
saved
needs h
forward
r = relu p0
backward
t0 = gt h #0.0
g0 = where t0 dr #0.0
end
"""


def program_of(cell: str, projected: bool = False) -> str:
    """The text of a compiled cell's program."""
    restored = "r = mul save3 t0\n" if projected else ""
    return {
        "lstm": LSTM.replace("{restored}\n", restored),
        "gru": GRU,
        "gru_reset_before": GRU_RESET_BEFORE,
        "rnn_relu": RNN_RELU,
    }[cell]
