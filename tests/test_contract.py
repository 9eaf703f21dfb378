"""What makes the modules drop-in: everything but the numbers."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import re
import warnings

import pytest
import torch
from conftest import MODULE_FACTS, TORCH_MODULES
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import fusedrnn

LAYERS = TORCH_MODULES
STEPS = [f"{name}Cell" for name in LAYERS]
EXTRAS = (
    "checkpoint input_dropout output_dropout recurrent_dropout zoneout weight_dropout dropout_mask "
    "residual learn_initial_state states_batch_first init"
).split()
OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "batch_first": True},
    {"num_layers": 3, "dropout": 0.5},
]


def both(name: str, *args: object, seed: int = 0, **options: object) -> tuple[nn.Module, nn.Module]:
    modules = []
    for package in (fusedrnn, nn):
        torch.manual_seed(seed)
        modules.append(getattr(package, name)(*args, **options))
    return modules[0], modules[1]


@pytest.mark.parametrize("name", [*LAYERS, *STEPS])
def test_signature(name: str) -> None:
    """Torch's documented arguments, in its order, with its defaults; ours by keyword only."""
    every = inspect.signature(getattr(fusedrnn, name).__init__).parameters
    ours = {n: p for n, p in every.items() if p.kind is not p.KEYWORD_ONLY}
    own = {"GRU": ["reset_after"], "GRUCell": ["reset_after"], "LSTM": ["forget_bias"]}
    added = [*EXTRAS] * (name in LAYERS) + own.get(name, [])
    assert [n for n in every if n not in ours] == added
    documented = {
        "RNN": "input_size hidden_size num_layers nonlinearity bias batch_first dropout "
        "bidirectional device dtype",
        "LSTM": "input_size hidden_size num_layers bias batch_first dropout bidirectional "
        "proj_size device dtype",
        "GRU": "input_size hidden_size num_layers bias batch_first dropout bidirectional "
        "device dtype",
        "RNNCell": "input_size hidden_size bias nonlinearity device dtype",
        "LSTMCell": "input_size hidden_size bias device dtype",
        "GRUCell": "input_size hidden_size bias device dtype",
    }[name].split()
    assert [p for p in ours if p not in ("self", "unsupported")] == documented
    defaults = {n: p.default for n, p in ours.items() if p.default is not p.empty}
    known = {"num_layers": 1, "nonlinearity": "tanh", "bias": True, "batch_first": False,
             "dropout": 0.0, "bidirectional": False, "proj_size": 0, "device": None,
             "dtype": None}  # fmt: skip
    assert defaults == {n: known[n] for n in defaults}


@pytest.mark.parametrize("name", [*LAYERS, *STEPS])
def test_help_names_every_argument(name: str) -> None:
    cls = getattr(fusedrnn, name)
    parts = inspect.cleandoc(cls.__doc__).split("\n\n")
    (described,) = (part for part in parts if part.startswith("Args:"))
    entries = re.findall(r"^    (\w[\w, ]*): ", described, re.MULTILINE)
    parameters = inspect.signature(cls).parameters.values()
    named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    assert ", ".join(entries).split(", ") == named
    (calls,) = (part for part in parts if part.startswith("**Calls.**"))
    assert "`input`, [" in calls and "`hx`, " in calls
    assert name.endswith("Cell") or any(
        p.startswith("**Lengths.**") and "`lengths`" in p for p in parts
    )
    assert sum(part.startswith("Raises:") for part in parts) == 1
    assert parts[-1].lstrip().startswith(">>>") or name.endswith("Cell")
    if name == "LSTM":  # its own sections stay whole
        at = next(i for i, part in enumerate(parts) if part.startswith("**Checkpoints.**"))
        assert parts[at + 1].startswith("k near the square root of T")
    states = MODULE_FACTS[name.removesuffix("Cell")].states
    assert ("pair" in calls) == (len(states) == 2)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_parameters_and_attributes(name: str, options: dict) -> None:
    ours, theirs = both(name, 5, 6, **options)
    assert repr(ours) == repr(theirs)
    assert ours.mode == theirs.mode
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [len(w) for w in ours.all_weights] == [len(w) for w in theirs.all_weights]
    assert len(ours._flat_weights) == len(theirs._flat_weights)
    assert ours._flat_weights_names == theirs._flat_weights_names
    assert ours._flat_weights[1] is ours.weight_hh_l0
    ours.flatten_parameters()
    for attribute in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
                      "bidirectional", "proj_size"):  # fmt: skip
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict(), assign=True)
    x = torch.randn(3, 4, 5)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_copies(name: str) -> None:
    module, _ = both(name, 5, 6, bidirectional=True)
    x = torch.randn(3, 4, 5)
    expected = module(x)[0]
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(buffer, weights_only=False),
    ):
        assert type(other) is type(module)
        assert torch.equal(other(x)[0], expected)
        assert other.weight_hh_l0 is not module.weight_hh_l0
        assert other._flat_weights[1] is other.weight_hh_l0


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
def test_layout(name: str, batch_first: bool) -> None:
    ours, theirs = both(name, 5, 6, num_layers=2, batch_first=batch_first)
    for x in (torch.randn(3, 4, 5), torch.randn(7, 5)):
        a, b = ours(x)[0], theirs(x)[0]
        assert a.shape == b.shape and a.stride() == b.stride()
    packed = pack_sequence([torch.randn(n, 5) for n in (2, 4, 1)], enforce_sorted=False)
    a, b = ours(packed)[0], theirs(packed)[0]
    assert isinstance(a, PackedSequence)
    assert torch.equal(a.batch_sizes, b.batch_sizes)
    assert torch.equal(a.sorted_indices, b.sorted_indices)
    assert torch.equal(a.unsorted_indices, b.unsorted_indices)


@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_of_none(name: str, device: torch.device) -> None:
    for module in both(name, 5, 6, bidirectional=True, device=device):
        x = torch.randn(3, 0, 5, device=device, requires_grad=True)
        output, final = module(x)
        assert output.shape == (3, 0, 12)
        assert (final[0] if len(MODULE_FACTS[name].states) > 1 else final).shape == (2, 0, 6)
        output.sum().backward()
        assert x.grad.shape == x.shape
        assert all(p.grad is None or not p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_draws_torch_s_numbers(name: str) -> None:
    ours, theirs = both(name, 5, 6, num_layers=3, dropout=0.4)
    x = torch.randn(7, 4, 5)
    results = []
    for module in (ours, theirs):
        torch.manual_seed(11)
        results.append(module(x)[0])
    torch.testing.assert_close(*results)
    assert not torch.equal(ours(x)[0], ours(x)[0])
    ours.eval()
    assert torch.equal(ours(x)[0], ours(x)[0])


def test_dropout_of_one_layer_warns_as_torch_does() -> None:
    found = []
    for package in (fusedrnn, nn):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            package.GRU(5, 6, dropout=0.5)
        found.append([(w.category, str(w.message)) for w in caught])
    assert found[0] == found[1] != []


@pytest.mark.parametrize("name", LAYERS)
def test_parametrizations_and_pruning(name: str) -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    for change in (
        lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
        lambda m: parametrizations.spectral_norm(m, "weight_ih_l0"),
        lambda m: prune.l1_unstructured(m, "weight_hh_l0", 0.5),
    ):
        results = []
        for module in both(name, 5, 6, dtype=torch.float64):
            torch.manual_seed(5)
            change(module.eval())  # in training, each look at a spectral norm refines it
            output = module(x)[0]
            output.sum().backward()
            grads = [p.grad for p in module.parameters()]
            assert all(g is not None for g in grads)
            results.append([output.detach(), *grads])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", LAYERS)
def test_a_call_reads_a_parametrized_weight_once(name: str) -> None:
    """torch.nn does four times, as docs/migration.md says: spectral norm in training shows it."""
    reads = []
    for module in both(name, 5, 6):
        change = parametrizations.spectral_norm(module, "weight_hh_l0")
        count: list[bool] = []
        norm = change.parametrizations["weight_hh_l0"][0]
        norm.register_forward_hook(lambda *_, count=count: count.append(True))
        module(torch.randn(3, 4, 5))
        reads.append(len(count))
    assert reads == [1, 4]


@pytest.mark.parametrize("name", LAYERS)
def test_old_spectral_norm_in_training(name: str) -> None:
    outputs = []
    for module in both(name, 5, 6, dtype=torch.float64):
        torch.manual_seed(5)
        nn.utils.spectral_norm(module, "weight_hh_l0")
        x = torch.ones(3, 4, 5, dtype=torch.float64)
        outputs.append([module(x)[0] for _ in range(3)])
    torch.testing.assert_close(*outputs)


def changed_in_place(module: nn.Module, form: str) -> bool:
    """Whether backward accepts an output, packed or not, that was multiplied in place."""
    x = torch.randn(4, 3, 5, dtype=module.weight_ih_l0.dtype)
    output, states = module(pack_padded_sequence(x, [4, 3, 1]) if form == "packed" else x)
    hn = states[0] if isinstance(states, tuple) else states
    hn.mul_(2)  # states may be changed by everyone
    output = output.data if form == "packed" else output
    output.mul_(2)
    try:
        (output.sum() + hn.sum()).backward()
    except RuntimeError as error:
        assert "inplace operation" in str(error)
        return False
    return True


FORMS = [(name, form) for name in LAYERS for form in ("plain", "bidirectional", "packed")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name, form", [*FORMS, ("LSTM", "projected")])
def test_output_changed_in_place(name: str, form: str, dtype: torch.dtype) -> None:
    """Refused with every one of ours, and with those of torch.nn that docs/migration.md names."""
    options = {"bidirectional": {"bidirectional": True}, "projected": {"proj_size": 2}}
    ours, theirs = both(name, 5, 6, dtype=dtype, **options.get(form, {}))
    assert not changed_in_place(ours, form)
    onednn = name == "LSTM" and form == "plain" and dtype in (torch.float32, torch.bfloat16)
    if "AVX512" in torch.backends.cpu.get_cpu_capability() or dtype != torch.bfloat16:
        assert changed_in_place(theirs, form) is not onednn


@pytest.mark.parametrize("name", LAYERS)
def test_shared_and_replaced_weights(name: str) -> None:
    ours, theirs = both(name, 6, 6, num_layers=2)
    for module in (ours, theirs):
        module.weight_ih_l1 = module.weight_ih_l0  # tied
        module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach() * 2)  # another object
        module.bias_hh_l1.requires_grad_(False)  # frozen
        module(torch.ones(3, 2, 6))[0].sum().backward()
    assert ours.bias_hh_l1.grad is None
    for (name_a, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=name_a)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_gives_torch_s_dtypes(dtype: torch.dtype) -> None:
    for name in LAYERS:
        ours, theirs = both(name, 5, 6)
        x = torch.randn(3, 4, 5)
        with torch.autocast("cpu", dtype), torch.no_grad():
            try:
                expected = theirs(x)[0]
            except RuntimeError:
                continue  # oneDNN has no fp16 here
            found = ours(x)[0]
        assert found.dtype == expected.dtype, name
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


def infos() -> list:
    try:
        from torch.testing._internal import common_modules
    except ImportError:  # without expecttest; test_module_inputs_are_there fails then
        return []
    wanted = {getattr(nn, name) for name in [*LAYERS, *STEPS]}
    return [info for info in common_modules.module_db if info.module_cls in wanted]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("info", infos(), ids=lambda info: info.name)
def test_torch_s_own_module_inputs(info, training: bool) -> None:
    """The inputs that torch tests its own modules with, run through ours and theirs."""
    inputs = info.module_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=True, training=training
    )
    assert inputs
    for given in inputs:
        constructed, called = given.constructor_input, given.forward_input
        if called is None:
            continue
        ours, theirs = both(
            info.module_cls.__name__, *constructed.args,
            **({"dtype": torch.float64} | constructed.kwargs),
        )  # fmt: skip
        ours.train(training), theirs.train(training)
        torch.manual_seed(1)
        found = ours(*called.args, **called.kwargs)
        torch.manual_seed(1)
        expected = theirs(*called.args, **called.kwargs)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_module_inputs_are_there() -> None:
    assert len(infos()) >= 6


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"proj_size": 3}], ids=str)
def test_a_class_made_from_facts_only(options: dict) -> None:
    """What layers of a cell that torch does not have are made by, held to a cell that it has."""

    class Own(fusedrnn.modules._Recurrent):
        cell = "lstm"

    made = []
    for cls in (fusedrnn.LSTM, Own):
        torch.manual_seed(0)
        made.append(cls(5, 6, num_layers=2, bidirectional=True, **options))
    theirs, own = (module.state_dict() for module in made)
    assert list(own) == list(theirs)
    for name, weight in own.items():
        assert torch.equal(weight, theirs[name]), name
    assert own.keys() == dict(made[1].named_parameters()).keys()
    x = torch.randn(4, 3, 5)
    torch.testing.assert_close(made[1](x), made[0](x), rtol=0, atol=0)
    for wrong, error in (({"hidden_size": 0}, ValueError), ({"bias": 1}, TypeError),
                         ({"proj_size": 6}, ValueError), ({"dropout": 2}, ValueError)):  # fmt: skip
        with pytest.raises(error):
            Own(**{"input_size": 5, "hidden_size": 6, **wrong})
    Own.cell = "gru"
    with pytest.raises(ValueError, match="proj_size: expected 0 for Own, got 3"):
        Own(5, 6, proj_size=3)
