"""Recurrent PPO on a task that needs memory: which way to turn was said many steps ago.

A T-maze (Bakker, "Reinforcement learning with long short-term memory", 2001). At its first step an
agent sees a cue, left or right. Then it walks along a corridor, 8 to 12 steps long and all the same
to look at. At the junction it has to turn the way that the cue said. Without memory half of the
turns are right.

                                           left
        cue . . . . . . . . . . junction <
                                           right

Many mazes run side by side, and one that ends begins anew at once. So episodes end anywhere in a
rollout, and two lines take care of that:

    stream.reset(starts)                      in acting, each step a call of fusedrnn.Streaming
    memory(x, first_state, reset=starts)      in learning, the whole rollout in one call

Nothing is split at the ends of episodes, and nothing is padded. Both compute the same numbers: the
run prints the largest difference that their log-probabilities ever had.

    python examples/rl_memory.py
    python examples/rl_memory.py --cell gru --seed 3
    python examples/rl_memory.py --no-memory              the state is zeroed at every step

Ends with exit status 1, and says why, if a run of the default length did not learn the task, or if
acting and learning did not compute the same.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn.functional import mse_loss
from tqdm import tqdm

import fusedrnn
from training import CELLS, add_machine, parse, positive, where

SHORTEST, LONGEST = 8, 12  # corridors
FORWARD, LEFT, RIGHT = range(3)
FEATURES = 2  # the cue, and whether this is the junction

ITERATIONS = 150
STEPS = 64  # of a rollout
HIDDEN_SIZE = 32
LEARNING_RATE = 3e-3
EPOCHS, PARTS = 4, 4  # how often a rollout is learned from, and in how many parts
DISCOUNT, TRACE = 0.99, 0.95  # gamma and lambda of the advantages
CLIP, ENTROPY, VALUE, LARGEST_GRADIENT = 0.2, 0.01, 0.5, 0.5

JUDGED = 1000  # the last episodes
REQUIRED_SUCCESS = 0.95
CHANCE = (0.4, 0.6)
ALLOWED_DIFFERENCE = 1e-4  # of log-probabilities in float32

State = Tensor | tuple[Tensor, ...]


class Mazes:
    """Some T-mazes side by side, all values [B]. One that ends begins anew at once."""

    def __init__(self, count: int, device: str) -> None:
        zeros = torch.zeros(count, dtype=torch.int64, device=device)
        self.cue, self.length, self.position, self.steps = (zeros.clone() for _ in range(4))
        self._begin(zeros == 0)

    def _begin(self, where: Tensor) -> None:
        """Draws a cue, -1 for left and 1 for right, and a length."""
        cue = 2 * torch.randint_like(self.cue, 2) - 1
        length = torch.randint_like(self.length, SHORTEST, LONGEST + 1)
        self.cue = torch.where(where, cue, self.cue)
        self.length = torch.where(where, length, self.length)
        self.position = self.position.masked_fill(where, 0)
        self.steps = self.steps.masked_fill(where, 0)

    def observe(self) -> Tensor:
        """What the agents see, [B, FEATURES]."""
        cue = self.cue * (self.steps == 0)
        return torch.stack([cue, self.position == self.length], 1).float()

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rewards, which episodes are done, and which of these ended with the right turn."""
        forward, at_junction = actions == FORWARD, self.position == self.length
        turned = at_junction & ~forward
        solved = turned & ((actions == RIGHT) == (self.cue == 1))
        bumped = forward == at_junction  # into a wall of the corridor, or into that of the junction
        self.position = self.position + (forward & ~at_junction)
        self.steps = self.steps + 1
        done = turned | (self.steps == 2 * LONGEST)
        self._begin(done)
        return solved.float() - 0.1 * bumped.float(), done, solved


class Agent(nn.Module):
    """What is seen -> linear -> memory -> scores of the actions, and the return to expect."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.eye = nn.Sequential(nn.Linear(FEATURES, HIDDEN_SIZE), nn.Tanh())
        self.memory = getattr(fusedrnn, CELLS[cell])(HIDDEN_SIZE, HIDDEN_SIZE)
        self.actor = nn.Linear(HIDDEN_SIZE, 3)
        self.critic = nn.Linear(HIDDEN_SIZE, 1)

    def judge(self, remembered: Tensor) -> tuple[Categorical, Tensor]:
        """The choice among the actions, and the return to expect."""
        return Categorical(logits=self.actor(remembered)), self.critic(remembered).squeeze(-1)

    def forward(self, seen: Tensor, first: State, starts: Tensor) -> tuple[Categorical, Tensor]:
        """As `judge`, for all steps [T, B] of a rollout; episodes begin at the marked ones."""
        remembered, _ = self.memory(self.eye(seen), first, reset=starts)
        return self.judge(remembered)


@dataclass
class Rollout:
    """What some mazes saw, did and got: [T, B] each, `seen` [T, B, FEATURES].

    `starts` marks the first steps of episodes, `first` is the state before the first step of all.
    """

    first: State
    seen: Tensor
    starts: Tensor
    actions: Tensor
    log_probabilities: Tensor
    advantages: Tensor
    returns: Tensor

    def part(self, mazes: Tensor) -> Rollout:
        """Some of the mazes, all of their steps."""
        first, *steps = (getattr(self, each.name) for each in fields(self))
        if isinstance(first, Tensor):
            first = first[:, mazes]
        else:
            first = tuple(state[:, mazes] for state in first)
        return Rollout(first, *(values[:, mazes] for values in steps))


@dataclass
class Training:
    """An agent, its mazes, and what was noted on the way."""

    agent: Agent
    mazes: Mazes
    no_memory: bool
    episodes: int = 0
    last: deque[float] = field(default_factory=lambda: deque(maxlen=JUDGED))  # 1 for a right turn
    difference: float = 0.0  # the largest, of log-probabilities in acting and in learning

    def __post_init__(self) -> None:
        count = len(self.mazes.cue)
        self.optimizer = torch.optim.Adam(self.agent.parameters(), lr=LEARNING_RATE)
        # The stream sees that this optimizer has changed the weights. One with fused=True changes
        # them without torch counting it, and would need `stream.refresh()`.
        self.stream = fusedrnn.Streaming(self.agent.memory, batch_size=count)
        self.begins = torch.ones_like(self.mazes.cue, dtype=torch.bool)

    @property
    def success(self) -> float:
        return sum(self.last) / max(1, len(self.last))

    @torch.no_grad()
    def act(self) -> Rollout:
        """STEPS steps in all mazes, each step one call of the stream."""
        agent, stream, mazes = self.agent, self.stream, self.mazes
        first, noted = stream.state, []
        for _ in range(STEPS):
            seen, starts = mazes.observe(), self.begins
            stream.reset(starts)
            choice, value = agent.judge(stream(agent.eye(seen)))
            action = choice.sample()
            reward, done, solved = mazes.step(action)
            noted.append(
                (seen, starts, action, choice.log_prob(action), value, reward, done, solved)
            )
            self.begins = torch.ones_like(done) if self.no_memory else done
        seen, starts, actions, chances, values, rewards, dones, solved = (
            torch.stack(each) for each in zip(*noted, strict=True)
        )
        self.last += solved[dones].float().tolist()  # in order of time
        self.episodes += int(dones.sum())

        # The value of what comes next, for which the state must not move on.
        state = stream.state
        stream.reset(self.begins)
        _, after = agent.judge(stream(agent.eye(mazes.observe())))
        stream.state = state
        advantages = generalized_advantages(rewards, dones, values, after)
        return Rollout(first, seen, starts, actions, chances, advantages, advantages + values)

    def learn(self, rollout: Rollout) -> None:
        """PPO: some epochs over the rollout, in parts that are whole mazes."""
        acted = True  # with these weights
        for _ in range(EPOCHS):
            order = torch.randperm(len(self.mazes.cue), device=rollout.seen.device)
            for mazes in order.chunk(PARTS):
                part = rollout.part(mazes)
                choice, values = self.agent(part.seen, part.first, part.starts)
                change = choice.log_prob(part.actions) - part.log_probabilities
                if acted:
                    self.difference = max(self.difference, change.abs().max().item())
                    acted = False
                loss = policy_loss(change, part.advantages) - ENTROPY * choice.entropy().mean()
                loss = loss + VALUE * mse_loss(values, part.returns)
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.agent.parameters(), LARGEST_GRADIENT)
                self.optimizer.step()


def generalized_advantages(rewards: Tensor, dones: Tensor, values: Tensor, after: Tensor) -> Tensor:
    """How much better each step was than expected (GAE); nothing passes the end of an episode."""
    advantages, trace = torch.empty_like(values), torch.zeros_like(after)
    for step in reversed(range(len(rewards))):
        goes_on = (~dones[step]).float()
        error = rewards[step] + DISCOUNT * goes_on * after - values[step]
        trace = error + DISCOUNT * TRACE * goes_on * trace
        advantages[step], after = trace, values[step]
    return advantages


def policy_loss(change: Tensor, advantages: Tensor) -> Tensor:
    """PPO's clipped objective, `change` that of the log-probability of what was done."""
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    ratio = change.exp()
    clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
    return -torch.minimum(ratio * advantages, clipped * advantages).mean()


def faults_of(training: Training, whole: bool) -> list[str]:
    """What is wrong with a run; a shorter one need not have learned."""
    faults = []
    if not training.difference <= ALLOWED_DIFFERENCE:  # so written that NaN fails
        faults.append(f"acting and learning differ by {training.difference:.1e}")
    success, (least, most) = training.success, CHANCE
    if training.no_memory and len(training.last) == JUDGED and success > most:
        faults.append(f"success rate {success:.3f} without memory: the cue must leak")
    if whole and training.no_memory and success < least:
        faults.append(f"success rate {success:.3f} without memory is below chance")
    if whole and not training.no_memory and success < REQUIRED_SUCCESS:
        faults.append(f"success rate {success:.3f} is below {REQUIRED_SUCCESS}")
    return faults


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Recurrent PPO in T-mazes, with fusedrnn.")
    shown = {"help": "default: %(default)s"}
    parser.add_argument("--cell", choices=CELLS, default="lstm", **shown)
    parser.add_argument("--no-memory", action="store_true", help="zero the state at every step")
    parser.add_argument("--iterations", type=positive, default=ITERATIONS,
                        help=f"rollouts of {STEPS} steps; default: %(default)s")  # fmt: skip
    parser.add_argument("--environments", type=positive, default=64, **shown)
    # A network of this size is no faster on more threads, and slower where others want them, too.
    add_machine(parser, threads=1)
    options = parse(parser)
    if options.environments < PARTS:
        parser.error(f"--environments: expected {PARTS} or more, got {options.environments}")
    return options


def main() -> int:
    options = arguments()
    agent = Agent(options.cell).to(options.device)
    training = Training(agent, Mazes(options.environments, options.device), options.no_memory)
    setting = f"{options.cell.upper()} of {HIDDEN_SIZE} units"
    setting += ", zeroed at every step" if options.no_memory else ""
    print(f"{options.environments} T-mazes with corridors of {SHORTEST} to {LONGEST} steps")
    print(
        f"{setting}, {where(options)}, torch {torch.__version__}, fusedrnn {fusedrnn.__version__}"
    )

    start = time.perf_counter()
    with tqdm(total=options.iterations, unit="rollout", mininterval=0.5) as progress:
        for _ in range(options.iterations):
            training.learn(training.act())
            now = {"episodes": training.episodes, "success": f"{training.success:.1%}"}
            progress.set_postfix(now, refresh=False)
            progress.update()
    seconds = time.perf_counter() - start

    print()
    for label, value in (
        ("episodes", f"{training.episodes}"),
        (f"success rate of the last {len(training.last)}", f"{training.success:.3f}"),
        ("acting and learning differ by at most", f"{training.difference:.1e}"),
        ("seconds", f"{seconds:.1f}"),
    ):
        print(f"{label:40}{value:>10}")
    faults = faults_of(training, options.iterations >= ITERATIONS)
    for fault in faults:
        print(f"FAILED: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
