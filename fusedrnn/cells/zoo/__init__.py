"""Published recurrent cells, each written in a few lines of PyTorch, as a user would write his own.

    rnn = fusedrnn.Recurrent(zoo.mgu, input_size, hidden_size)
    rnn = fusedrnn.Recurrent(zoo.lem(dt=0.5), input_size, hidden_size)

A cell that has numbers or functions to choose is a function that returns the cell. What a cell has
of its paper and what not, its docstring says; how they were checked, tests/test_zoo.py.
"""

from __future__ import annotations

from fusedrnn.cells.written import WrittenCell
from fusedrnn.cells.zoo.activations import ACTIVATIONS
from fusedrnn.cells.zoo.highway import (
    atr,
    cfn,
    janet,
    light_ru,
    ligru,
    minimal_rnn,
    rhn,
    star,
    ugrnn,
)
from fusedrnn.cells.zoo.memory import (
    cifg,
    lstm,
    lstm_without_forget_gate,
    mi_lstm,
    multiplicative_lstm,
    nas,
    peephole_lstm,
    ran,
    slstm,
)
from fusedrnn.cells.zoo.reset import (
    gru,
    gru_reset_before,
    mgu,
    mgu1,
    mgu3,
    mgu_reset_before,
    mi_gru,
    mut1,
    mut2,
    nbrc,
    sgu,
)
from fusedrnn.cells.zoo.simple import (
    antisymmetric_rnn,
    cornn,
    fast_grnn,
    fast_rnn,
    gated_antisymmetric_rnn,
    leaky_rnn,
    lem,
    mi_rnn,
    rnn,
    scrn,
)
from fusedrnn.cells.zoo.timed import cfc, ct_rnn, gru_d, ltc, phased_lstm, t_lstm

ZOO: dict[str, WrittenCell] = {
    made.name: made
    for made in (
        # With a memory beside the output.
        lstm(),
        peephole_lstm,
        cifg,
        lstm_without_forget_gate,
        multiplicative_lstm,
        mi_lstm,
        slstm,
        nas,
        ran,
        # With a gate that decides what of the state the candidate sees.
        gru(),
        gru_reset_before,
        mgu,
        mgu_reset_before,
        mgu1,
        mgu3,
        mi_gru,
        mut1,
        mut2,
        nbrc,
        sgu,
        # With a gate that decides what of the state goes on.
        janet(),
        ligru,
        ugrnn,
        light_ru,
        star,
        minimal_rnn,
        rhn,
        atr,
        cfn,
        # Without gates that see the state, and steps of differential equations.
        rnn(),
        leaky_rnn(leak=0.5),
        mi_rnn,
        fast_rnn,
        fast_grnn,
        scrn(),
        antisymmetric_rnn(),
        gated_antisymmetric_rnn(),
        cornn(),
        lem(),
        # With step inputs.
        gru_d,
        t_lstm,
        phased_lstm,
        ct_rnn,
        ltc,
        cfc,
    )
}
"""Every cell by its name, in the order of the documentation, with its default options."""

__all__ = [
    "ACTIVATIONS",
    "ZOO",
    "antisymmetric_rnn",
    "atr",
    "cfc",
    "cfn",
    "cifg",
    "cornn",
    "ct_rnn",
    "fast_grnn",
    "fast_rnn",
    "gated_antisymmetric_rnn",
    "gru",
    "gru_d",
    "gru_reset_before",
    "janet",
    "leaky_rnn",
    "lem",
    "light_ru",
    "ligru",
    "lstm",
    "lstm_without_forget_gate",
    "ltc",
    "mgu",
    "mgu1",
    "mgu3",
    "mgu_reset_before",
    "mi_gru",
    "mi_lstm",
    "mi_rnn",
    "minimal_rnn",
    "multiplicative_lstm",
    "mut1",
    "mut2",
    "nas",
    "nbrc",
    "peephole_lstm",
    "phased_lstm",
    "ran",
    "rhn",
    "rnn",
    "scrn",
    "sgu",
    "slstm",
    "star",
    "t_lstm",
    "ugrnn",
]
