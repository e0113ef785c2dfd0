"""From text to a small language model and back, in minutes on a laptop: `make demo`.

Pre-trains a tiny Ling-2.6 on the Python standard library, stops it half-way and goes on from its checkpoint, lets it
write, exports it to the Hugging Face format, reads that back, and compares it with n-gram models fitted on exactly
the tokens it has seen. Started again, it goes on where it was.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from matplotlib import pyplot as plt

from configs.demo import pretrain as pretrain_config
from launch.flags import run_program
from ling_jax import data, model
from ling_jax.checkpoint import load_hf, save_hf
from ling_jax.data.chat import Piece, encode_all
from ling_jax.rollout import Generator
from ling_jax.rollout.load import Loaded, load_model
from ling_jax.rollout.text import complete
from ling_jax.train.config import PretrainConfig, from_dict
from ling_jax.train.corpus import held_out_batches, prepare_corpus

WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "where the demo's files go")
PROMPTS = ("def ", "import ", "class ", "    return ")
FALL = 0.5  # nats under step 0
SMOOTHED = 10  # steps


def main() -> None:
    folder = Path(WORKDIR.value)
    begun = None if read_metrics(folder / "pretrain") else time.time()  # of a demo that goes on, no time is told
    config = from_dict(PretrainConfig, pretrain_config.get_config().to_dict())
    title(f"1. Pre-training into {folder / 'pretrain'}")
    train_with_a_stop(folder / "pretrain", config.train.steps // 2)
    loaded = load_model(folder / "pretrain")

    title("2. What it writes")
    for text in sample(loaded, PROMPTS, new_tokens=96):
        print("\n".join("  | " + line for line in text.splitlines()) + "\n")

    title(f"3. Export to {folder / 'hf'}, and back")
    print(round_trip(loaded, folder / "hf"))

    title("4. Against counting")
    results = report(config, folder / "pretrain", begun)
    (folder / "report.json").write_text(json.dumps(results, indent=1))
    draw_loss(read_metrics(folder / "pretrain"), results, folder / "loss.png")
    for name, value in results.items():
        print(f"  {name:<44} {value:.4g}" if isinstance(value, float) else f"  {name:<44} {value}")
    print(f"\nfiles: {folder}/loss.png, report.json, pretrain/ (checkpoints, metrics), hf/ (the exported model)")


def title(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def train_with_a_stop(workdir: Path, stop_at: int) -> None:
    """Runs the program of pre-training; ends it once with SIGTERM, and starts the same command again."""
    command = [sys.executable, "-m", "launch.pretrain", f"--config={pretrain_config.__file__}", f"--workdir={workdir}"]
    if len(read_metrics(workdir)) < stop_at:
        with subprocess.Popen(command) as program:
            while program.poll() is None and len(read_metrics(workdir)) < stop_at:
                time.sleep(0.2)
            program.send_signal(signal.SIGTERM)
        if program.returncode not in (0, 128 + signal.SIGTERM):
            sys.exit(program.returncode)
        title("The same command again")
    if code := subprocess.run(command).returncode:
        sys.exit(code)


def read_metrics(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def sample(loaded: Loaded, prompts, *, new_tokens: int) -> list[str]:
    """Texts that go on from prompts."""
    generator = Generator(loaded.params, loaded.config, loaded.end_ids)
    tokens = [ids for ids, _ in encode_all(loaded.tokenizer, [[Piece(prompt)] for prompt in prompts])]
    *_, answers = complete(generator, loaded.tokenizer, tokens, max_new_tokens=new_tokens, temperature=0.7)
    return [prompt + answer.text for prompt, answer in zip(prompts, answers, strict=True)]


def round_trip(loaded: Loaded, folder: Path) -> str:
    """Exports, reads back, and compares tensors and logits; raises where anything differs."""
    params, config = loaded.params, loaded.config
    shutil.rmtree(folder, ignore_errors=True)
    save_hf(params, config, folder)
    data.save_tokenizer(loaded.tokenizer, folder)
    back, back_config = load_hf(folder)
    forward = jax.jit(model.forward, static_argnums=2)
    tokens = np.arange(64, dtype=np.int32)[None] % config.vocab_size
    logits = [forward(p, tokens, c).logits for p, c in ((params, config), (back, back_config))]
    for array, other in zip(jax.tree.leaves((params, logits[0])), jax.tree.leaves((back, logits[1])), strict=True):
        np.testing.assert_array_equal(np.asarray(array), np.asarray(other))
    size = sum(file.stat().st_size for file in folder.iterdir())
    return f"{len(jax.tree.leaves(params))} arrays and the logits are bit-equal; {size / 1e6:.1f} MB"


def report(config: PretrainConfig, workdir: Path, begun: float | None) -> dict[str, float | int]:
    lines, train = read_metrics(workdir), config.train
    corpus = prepare_corpus(config.data, config.model, workdir)
    seen = (data.global_batch(corpus.train, step, train.batch_size) for step in range(train.steps))
    held_out = held_out_batches(corpus, train.batch_size, train.eval_batches)
    counted = data.ngram_losses(seen, held_out, config.model.vocab_size)
    held_out_loss = lines[-1]["held_out_loss"]
    losses = smoothed([line["main_loss"] for line in lines])
    fallen = [line["time"] for line, loss in zip(lines, losses, strict=True) if loss < losses[0] - FALL]
    times = {f"seconds until the loss fell by {FALL}": min(fallen, default=np.inf), "seconds in all": time.time()}
    speeds = [line for line in lines if "mfu" in line]
    return {
        "held-out loss, nats/token": held_out_loss,
        "unigram, on the tokens seen": counted["unigram"],
        "interpolated bigram, on the tokens seen": counted["bigram"],
        "under the bigram": counted["bigram"] - held_out_loss,
        "tokens seen": sum(line["tokens"] for line in lines),
        "tokens/s, median": float(np.median([line["tokens_per_second"] for line in speeds])),
        "MFU, median": float(np.median([line["mfu"] for line in speeds])),
        "tokens dropped by the experts": sum(line["drops"] for line in lines),
    } | {name: end - begun for name, end in times.items() if begun}


def smoothed(losses: list[float]) -> list[float]:
    """The mean of the last `SMOOTHED` steps; of step 0, its own loss."""
    return [float(np.mean(losses[max(0, i + 1 - SMOOTHED) : i + 1])) for i in range(len(losses))]


def draw_loss(lines: list[dict], results: dict, path: Path) -> None:
    steps, losses = [line["step"] for line in lines], [line["main_loss"] for line in lines]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8)
    axes.plot(steps, smoothed(losses), color="tab:blue", label=f"training, mean of {SMOOTHED} steps")
    evaluated = [line for line in lines if "held_out_loss" in line]
    axes.plot(
        [e["step"] for e in evaluated], [e["held_out_loss"] for e in evaluated], "o", color="tab:red", label="held out"
    )
    for name, style in (("unigram", ":"), ("interpolated bigram", "--")):
        axes.axhline(results[f"{name}, on the tokens seen"], color="gray", linestyle=style, label=f"{name}, held out")
    axes.set(xlabel="step", ylabel="nats per token", title="A tiny Ling-2.6 on the Python standard library")
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    run_program(main)
