"""Looking into a recurrent network: its gates and states at every step, and its gradients.

    trace(module, input)                  every gate and state of every layer, direction and step
    gradient_flow(module, input, loss)    how much of the loss reaches the state of every step
    plot_gates(trace)                     a layer's gates as pictures, units by steps
    plot_gradient_flow(flow)              the norms of those gradients over the steps
    write_report(path, trace, flow)       both as one HTML file, with values where you point

Gates and states are the kernels' own, gradients those of the plain PyTorch reference. The plots
need matplotlib; the report needs nothing, to write it or to open it.
"""

from __future__ import annotations

from fusedrnn.inspect.plots import plot_gates, plot_gradient_flow
from fusedrnn.inspect.report import write_report
from fusedrnn.inspect.tracing import GradientFlow, Trace, gradient_flow, trace

__all__ = [
    "GradientFlow",
    "Trace",
    "gradient_flow",
    "plot_gates",
    "plot_gradient_flow",
    "trace",
    "write_report",
]


def __dir__() -> list[str]:
    return __all__
