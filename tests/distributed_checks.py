"""What two processes find out together; test_distributed.py starts them and reads their answers.

    torchrun --nproc-per-node=2 tests/distributed_checks.py FOLDER

Every check trains a network twice: the whole batch with torch.nn in each process by itself, and
its share of the batch with fusedrnn, wrapped for parallel training. Losses and parameters have to
be equal. `CHECKS` has them by name; FOLDER/rank-N.json tells of each what was wrong with it.
Comparisons come after the last exchange between the processes, so that none waits for one that
failed.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import fusedrnn
from fusedrnn.modules import weights_of
from fusedrnn.testing.oracles import TORCH_MODULES

T, B, I, H = 5, 8, 3, 4  # noqa: E741
LENGTHS = torch.tensor([5, 3, 4, 2, 5, 1, 2, 3])
LAYERS = tuple(TORCH_MODULES)
STEPS = 3
CHECKS: dict[str, Callable[[], None]] = {}


class Network(nn.Module):
    """A bidirectional stack of two layers and a head; perhaps a layer more that nobody uses."""

    def __init__(
        self,
        package: object,
        name: str,
        idle: bool = False,
        recompute: bool = False,
        **options: int,
    ) -> None:
        super().__init__()
        torch.manual_seed(1)
        options = {"num_layers": 2, "bidirectional": True} | options
        self.rnn = getattr(package, name)(I, H, **options)
        self.head = nn.Linear(2 * H, 1)
        self.idle = getattr(package, name)(I, H) if idle else None
        self.recompute = recompute

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """[T, B, I] -> [T, B, 1], or [N, 1] of a packed batch."""
        if lengths is None:
            y = checkpoint(self.rnn, x, use_reentrant=False) if self.recompute else self.rnn(x)
            return self.head(y[0])
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return self.head(self.rnn(packed)[0].data)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, target = (torch.randn(T, B, n, generator=generator, dtype=torch.float64) for n in (I, 1))
    return x, target


def loss_of(network: nn.Module, part: slice, packed: bool, share: int) -> Tensor:
    """What `part` of the batch contributes to the mean over all, times `share`."""
    x, target = batch()
    x, target = x[:, part], target[:, part]
    count = T * B
    lengths = None
    if packed:
        lengths, count = LENGTHS[part], int(LENGTHS.sum())
        target = pack_padded_sequence(target, lengths, enforce_sorted=False).data
    return share * (network(x, lengths) - target).square().sum() / count


def parts(pieces: int) -> list[slice]:
    """This process's part of the batch, in so many pieces."""
    size = B // dist.get_world_size() // pieces
    first = dist.get_rank() * size * pieces
    return [slice(first + i * size, first + (i + 1) * size) for i in range(pieces)]


def train(
    network: nn.Module, pieces: list[slice], packed: bool, share: int
) -> tuple[list[Tensor], torch.optim.Optimizer]:
    """A few steps, the gradients of the pieces added up before each; the losses."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for i, piece in enumerate(pieces):
            last = i == len(pieces) - 1
            if isinstance(network, FSDPModule):
                network.set_requires_gradient_sync(last)
            wait = isinstance(network, DistributedDataParallel) and not last
            with network.no_sync() if wait else nullcontext():
                loss = loss_of(network, piece, packed, share)
                loss.backward()
            total += loss.detach()
        optimizer.step()
        losses.append(total)
    return losses, optimizer


def expected(name: str, packed: bool, **options: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    alone = Network(nn, name, **options).double()
    losses, _ = train(alone, [slice(0, B)], packed, 1)
    return losses, alone.state_dict()


def compare(
    name: str, network: nn.Module, pieces: int = 1, packed: bool = False, **options: int
) -> None:
    """Trains `network`, which is wrapped, and holds it to one process on the whole batch."""
    share = dist.get_world_size()
    losses, optimizer = train(network, parts(pieces), packed, share)
    for loss in losses:
        dist.all_reduce(loss)
        loss /= share
    whole = StateDictOptions(full_state_dict=True)
    found, momenta = get_state_dict(network, optimizer, options=whole)

    wanted, parameters = expected(name, packed, **options)
    assert_close(losses, wanted, rtol=1e-11, atol=1e-13)
    assert wanted[0] != wanted[-1]
    if dist.get_rank() == 0 or isinstance(network, DistributedDataParallel):
        assert list(found) == list(parameters)
        assert_close(dict(found), dict(parameters), rtol=1e-11, atol=1e-13)
        assert momenta["state"]


def ddp(network: nn.Module, **options: bool) -> DistributedDataParallel:
    return DistributedDataParallel(network.double(), **options)


def fsdp(network: Network, **options: object) -> nn.Module:
    """The layers one unit, the rest another, as users do."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(network.rnn, mesh=mesh, **options)
    return fully_shard(network.double(), mesh=mesh, **options)


WRAPPERS = {"ddp": ddp, "fsdp": fsdp}


def of_every_layer(
    wrapper: str, name: str, packed: bool = False, pieces: int = 1, **options: int
) -> Callable[[], None]:
    def check() -> None:
        network = WRAPPERS[wrapper](Network(fusedrnn, name, **options))
        compare(name, network, pieces=pieces, packed=packed)

    return check


for _wrapper in WRAPPERS:
    for _name in LAYERS:
        CHECKS[f"{_wrapper} {_name}"] = of_every_layer(_wrapper, _name)
        CHECKS[f"{_wrapper} {_name} packed"] = of_every_layer(_wrapper, _name, packed=True)
    CHECKS[f"{_wrapper} accumulation"] = of_every_layer(_wrapper, "LSTM", pieces=2)
    CHECKS[f"{_wrapper} steps recomputed"] = of_every_layer(_wrapper, "GRU", checkpoint=2)
    CHECKS[f"{_wrapper} block recomputed"] = of_every_layer(_wrapper, "LSTM", recompute=True)


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__.replace("_", " ")] = function
    return function


@check
def ddp_unused_parameters() -> None:
    network = ddp(Network(fusedrnn, "LSTM", idle=True), find_unused_parameters=True)
    compare("LSTM", network, idle=True)


@check
def ddp_gradients_in_buckets() -> None:
    network = ddp(Network(fusedrnn, "GRU"), gradient_as_bucket_view=True, static_graph=True)
    compare("GRU", network)


@check
def fsdp_unused_parameters() -> None:
    compare("LSTM", fsdp(Network(fusedrnn, "LSTM", idle=True)), idle=True)


@check
def fsdp_kept_between_forward_and_backward() -> None:
    compare("RNN", fsdp(Network(fusedrnn, "RNN"), reshard_after_forward=False))


@check
def fsdp_of_replaced_modules() -> None:
    network = Network(nn, "GRU")
    assert fusedrnn.replace(network).replaced == ["rnn"]
    compare("GRU", fsdp(network))


@check
def fsdp_parameters_change_places() -> None:
    """Between calls a module owns its shards; within a call it sees whole plain tensors."""
    for name in LAYERS:
        network = fsdp(Network(fusedrnn, name))
        rnn = network.rnn
        seen: list[list[Tensor]] = []
        rnn.register_forward_pre_hook(
            lambda module, _, seen=seen: seen.append([*weights_of(module), *module._flat_weights])
        )
        loss_of(network, parts(1)[0], False, 1).backward()
        between = [*weights_of(rnn), *rnn._flat_weights]

        assert isinstance(rnn, FSDPModule) and isinstance(rnn, getattr(fusedrnn, name))
        assert all(isinstance(weight, DTensor) for weight in between)
        assert len(seen) == 1 and not any(isinstance(weight, DTensor) for weight in seen[0])
        assert [w.shape for w in seen[0]] == [w.shape for w in between]
        assert all(isinstance(weight.grad, DTensor) for weight in weights_of(rnn))


@check
def fsdp_mixed_precision() -> None:
    """Computed in bfloat16; parameters and their gradients stay float32."""
    for name in LAYERS:
        torch.manual_seed(1)
        ours = getattr(fusedrnn, name)(I, H, num_layers=2, bidirectional=True)
        alone = getattr(fusedrnn, name)(I, H, num_layers=2, bidirectional=True)
        alone.load_state_dict(ours.state_dict())
        alone.bfloat16()
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        fully_shard(ours, mesh=mesh, mp_policy=policy)
        x = batch()[0].float()[:, parts(1)[0]]
        output = ours(x)[0]
        output.float().square().sum().backward()
        sequences = [x[:length, 0].bfloat16() for length in (5, 3)]
        packed = ours(pack_sequence(sequences))[0].data
        packed.float().sum().backward()
        found = [p.grad.full_tensor() for p in ours.parameters()]

        wanted = alone(x.bfloat16())[0]
        wanted.float().square().sum().backward()
        wanted_packed = alone(pack_sequence(sequences))[0].data
        first = [p.grad.float() for p in alone.parameters()]
        alone.zero_grad()
        wanted_packed.float().sum().backward()
        gradients = [a + p.grad.float() for a, p in zip(first, alone.parameters(), strict=True)]
        for gradient in gradients:
            dist.all_reduce(gradient)
        assert output.dtype == packed.dtype == torch.bfloat16
        assert torch.equal(output, wanted) and torch.equal(packed, wanted_packed)
        assert {p.dtype for p in ours.parameters()} == {torch.float32}
        means = [gradient / dist.get_world_size() for gradient in gradients]
        assert_close(found, means, rtol=1e-5, atol=1e-6)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    wrong: dict[str, str] = {}
    for name, function in CHECKS.items():
        try:
            function()
            wrong[name] = ""
        except Exception:
            wrong[name] = traceback.format_exc()
    (folder / f"rank-{dist.get_rank()}.json").write_text(json.dumps(wrong))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
