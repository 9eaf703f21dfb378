"""Keras on TensorFlow: its LSTM, GRU and SimpleRNN layers, compiled by XLA as a whole.

Keras has the batch first, and is given its data that way. Its weights are torch's, transposed:

    LSTM  torch i f g o    Keras i f c o, one bias: the sum of torch's
    GRU   torch r z n      Keras z r h, two biases in `bias` [2, 3H] (`reset_after`)
    RNN                    one bias: the sum of torch's

A reverse direction is a layer that goes backwards, whose output is then turned around.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.peer import (
    CallStep,
    Data,
    OptionalPeer,
    Step,
    ThreadsOnce,
    beyond,
    stacked,
    states,
    with_gates,
)
from benchmarks.workloads import Case

CLASSES = {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN"}
ORDER = {"lstm": (0, 1, 2, 3), "gru": (1, 0, 2), "rnn": (0,)}

_threads = ThreadsOnce("TensorFlow")


class KerasXla(OptionalPeer):
    """Inference in float32 of every cell; training of the LSTM of one layer and direction."""

    name = "Keras XLA"
    packages = ("keras", "tensorflow")

    def missing(self, case: Case) -> str | None:
        row = case.row
        if why := beyond(case, modes=("forward", "train")) or _threads.missing(case.threads):
            return why
        if case.mode == "train" and (case.cell != "lstm" or row.layers * row.directions > 1):
            return "is trained here on the LSTM of one layer and direction"
        return None

    def build(self, case: Case, data: Data) -> Step:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        os.environ["KERAS_BACKEND"] = "tensorflow"
        import tensorflow

        if _threads.claim(case.threads):
            tensorflow.config.threading.set_intra_op_parallelism_threads(case.threads)
            tensorflow.config.threading.set_inter_op_parallelism_threads(1)
        layers = _built(case, data)
        inputs = tensorflow.constant(data.input.transpose(0, 1).numpy())
        initial = [tensorflow.constant(state.numpy()) for state in states(data)]

        def forward(inputs: Any) -> Any:
            last = []
            for layer, directions in enumerate(layers):
                outputs = []
                for direction, module in enumerate(directions):
                    at = layer * len(directions) + direction
                    given = [state[at] for state in initial] or None
                    output, *state = module(inputs, initial_state=given)
                    outputs.append(tensorflow.reverse(output, [1]) if direction else output)
                    last.append(state)
                inputs = tensorflow.concat(outputs, -1)
            return inputs, [tensorflow.stack(of_all) for of_all in zip(*last, strict=True)]

        if case.mode == "forward":
            function = tensorflow.function(forward, jit_compile=True)
            return CallStep(lambda: function(inputs), _named_forward)
        grad_output = tensorflow.constant(data.grad_output.transpose(0, 1).numpy())
        variables = [variable.value for variable in layers[0][0].trainable_variables]

        def train(inputs: Any) -> Any:
            with tensorflow.GradientTape() as tape:
                tape.watch(inputs)
                output, _ = forward(inputs)
            return output, tape.gradient(output, [inputs, *variables], grad_output)

        function = tensorflow.function(train, jit_compile=True)
        return CallStep(lambda: function(inputs), _named_lstm_train)


def _built(case: Case, data: Data) -> list[list[Any]]:
    """Keras layers by layer and direction, with the case's weights."""
    import keras

    row, built = case.row, []
    options: dict[str, Any] = {"reset_after": True} if case.cell == "gru" else {}
    if case.cell != "rnn":
        options["use_cudnn"] = False
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = [stacked(row, data, name) for name in names]
    for layer in range(row.layers):
        built.append([])
        for direction in range(row.directions):
            module = getattr(keras.layers, CLASSES[case.cell])(
                row.H, return_sequences=True, return_state=True, go_backwards=bool(direction),
                **options,
            )  # fmt: skip
            w_ih, w_hh, b_ih, b_hh = (
                with_gates(of_layers[layer][direction], ORDER[case.cell]) for of_layers in weights
            )
            module.build((row.B, row.T, w_ih.shape[1]))
            bias = torch.stack([b_ih, b_hh]) if case.cell == "gru" else b_ih + b_hh
            module.set_weights([_array(w_ih.T), _array(w_hh.T), _array(bias)])
            built[-1].append(module)
    return built


def _array(tensor: Tensor) -> Any:
    return tensor.contiguous().numpy()


def _named_forward(values: Any) -> dict[str, Any]:
    output, last = values
    named = {name: state.numpy() for name, state in zip(("hn", "cn"), last, strict=False)}
    return {"output": output.numpy().swapaxes(0, 1), **named}


def _named_lstm_train(values: Any) -> dict[str, Any]:
    output, (grad_input, grad_kernel, grad_recurrent, grad_bias) = values
    return {
        "output": output.numpy().swapaxes(0, 1),
        "grad of input": grad_input.numpy().swapaxes(0, 1),
        "grad of weight_ih_l0": grad_kernel.numpy().T,
        "grad of weight_hh_l0": grad_recurrent.numpy().T,
        "grad of bias_ih_l0": grad_bias.numpy(),
        "grad of bias_hh_l0": grad_bias.numpy(),
    }


KERAS_XLA = KerasXla()
