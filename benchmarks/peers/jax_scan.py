"""JAX: the cells written with `jax.lax.scan` over torch's weights, compiled as a whole.

The input's products are taken out of the scan, as one would write it by hand. Training is the `vjp`
of the same function, compiled with it.
"""

from __future__ import annotations

import os
from typing import Any

from benchmarks.peers.peer import CallStep, Data, OptionalPeer, Step, ThreadsOnce, beyond, states
from benchmarks.workloads import PASSES, Case

_threads = ThreadsOnce("JAX")


class JaxScan(OptionalPeer):
    """Inference and training in float32 of every cell."""

    name = "JAX scan"
    packages = ("jax",)

    def missing(self, case: Case) -> str | None:
        return beyond(case, modes=PASSES, projected=True) or _threads.missing(case.threads)

    def build(self, case: Case, data: Data) -> Step:
        if _threads.claim(case.threads):
            os.environ["NPROC"] = str(case.threads)  # what XLA asks before it looks for cores
            os.environ["JAX_PLATFORMS"] = "cpu"
        import jax

        weights = {name: jax.numpy.asarray(value.numpy()) for name, value in data.weights.items()}
        inputs, grad_output = (
            jax.numpy.asarray(tensor.numpy()) for tensor in (data.input, data.grad_output)
        )
        initial = [jax.numpy.asarray(state.numpy()) for state in states(data)]

        def forward(weights: Any, inputs: Any) -> Any:
            return _layers(case, weights, inputs, initial)

        def train(weights: Any, inputs: Any) -> Any:
            output, gradients = jax.vjp(lambda *given: forward(*given)[0], weights, inputs)
            return output, *gradients(grad_output)

        function = jax.jit(forward if case.mode == "forward" else train)
        return CallStep(
            lambda: jax.block_until_ready(function(weights, inputs)),
            _named_forward if case.mode == "forward" else _named_train,
        )


def _layers(case: Case, weights: Any, inputs: Any, initial: list[Any]) -> Any:
    """All layers and directions: output, (hn,) or (hn, cn)."""
    import jax.numpy as jnp

    row, last = case.row, []
    for layer in range(row.layers):
        outputs = []
        for direction, suffix in enumerate(("", "_reverse")[: row.directions]):
            at = layer * row.directions + direction
            zeros = [jnp.zeros((row.B, width)) for width in (row.proj_size or row.H, row.H)]
            start = tuple(state[at] for state in initial)
            start = start or tuple(zeros[: len(case.facts.states)])
            named = {
                name.removesuffix(f"_l{layer}{suffix}"): weight
                for name, weight in weights.items()
                if name.endswith(f"_l{layer}{suffix}")
            }
            output, state = _walk(case.cell, named, inputs, start, reverse=bool(direction))
            outputs.append(output)
            last.append(state)
        inputs = jnp.concatenate(outputs, axis=-1)
    return inputs, tuple(jnp.stack(states) for states in zip(*last, strict=True))


def _walk(cell: str, weights: Any, inputs: Any, start: Any, *, reverse: bool) -> Any:
    """One direction of one layer: outputs [T, B, R], and the state after the last step."""
    import jax
    import jax.numpy as jnp

    def lstm(state: Any, x: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(x + h @ weights["weight_hh"].T + weights["bias_hh"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        if "weight_hr" in weights:
            h = h @ weights["weight_hr"].T
        return (h, c), h

    def gru(state: Any, x: Any) -> Any:
        (h,) = state
        from_h = h @ weights["weight_hh"].T + weights["bias_hh"]
        (xr, xz, xn), (hr, hz, hn) = (jnp.split(gates, 3, axis=-1) for gates in (x, from_h))
        r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
        n = jnp.tanh(xn + r * hn)
        h = (1 - z) * n + z * h
        return (h,), h

    def rnn(state: Any, x: Any) -> Any:
        (h,) = state
        h = jnp.tanh(x + h @ weights["weight_hh"].T + weights["bias_hh"])
        return (h,), h

    projected = inputs @ weights["weight_ih"].T + weights["bias_ih"]
    step = {"lstm": lstm, "gru": gru, "rnn": rnn}[cell]
    state, outputs = jax.lax.scan(step, start, projected, reverse=reverse)
    return outputs, state


def _named_forward(values: Any) -> dict[str, Any]:
    import numpy

    output, last = values
    named = {"output": output, **dict(zip(("hn", "cn"), last, strict=False))}
    return {name: numpy.asarray(value) for name, value in named.items()}


def _named_train(values: Any) -> dict[str, Any]:
    import numpy

    output, grad_weights, grad_input = values
    named = {"output": output, "grad of input": grad_input}
    named |= {f"grad of {name}": grad for name, grad in grad_weights.items()}
    return {name: numpy.asarray(value) for name, value in named.items()}


JAX_SCAN = JaxScan()
