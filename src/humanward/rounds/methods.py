"""How a round tunes the policy: one small function per method, and the table of them.

A method that is added here needs its settings in ``LoopConfig``, its line in ``config.SECTIONS``, its name among those of
``LoopConfig.method``, and what it is called in a report (``report.sections.parts``) and on the command line (``cli.stages``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from humanward.models import Policy, ValueNetwork, members_of
from humanward.rounds.context import Context
from humanward.rounds.frozen import comparisons, write_accuracy
from humanward.rounds.stages import first_step, save
from humanward.trainers import DPOTrainer, GroupTrainer, PPOTrainer, Reward, Surroundings, Trainer, implicit_agreements, train
from humanward.trainers.questions import as_judged, without_dual

Method = Callable[[Context, int, Path], None]
"""Writes the policy of a round into a folder."""


class AgainstReward(Trainer, Protocol):
    """A trainer that is told by a reward how well it does; every round has a new reward model in it."""

    reward: Reward


def ppo(context: Context, round: int, output: Path) -> None:
    """PPO goes on against the round's reward model, up to the step at which the next round asks again."""
    config = context.config
    of_its_own = config.ppo.value_network == "reward_model"
    policy = context.policy_to_train(context.reference_folder, "ppo", value_head=not of_its_own)
    reference = context.policy_beside(policy, context.reference_folder)
    value_network = ValueNetwork.from_reward_model(members_of(context.reward_model(1, on=policy))[0]) if of_its_own else None
    trainer = PPOTrainer(
        policy, reference, context.reward(round, on=policy), [p.tokens for p in context.prompts("training")], config.ppo, task=context.task,
        seed=context.seed("ppo"), accelerator=context.accelerator, true_score=context.score, check=context.stop.check,
        value_network=None if value_network is None else context.optimized(value_network),
    )  # fmt: skip
    around = context.surroundings("ppo")
    make_up_for_lost_rounds(context, trainer, policy, around, round)
    train(trainer, around, stage="ppo", round=round, until=first_step(config, round + 1))
    save(context, policy, output)


def make_up_for_lost_rounds(context: Context, trainer: AgainstReward, policy: Policy, around: Surroundings, round: int) -> None:
    """Do again what no whole checkpoint holds of the rounds before, each against its own reward model, on the policy's trunk or its own."""
    assert around.checkpoints is not None
    config = context.config
    newest = around.checkpoints.latest(before=first_step(config, round + 1) + 1)
    reached = newest.step if newest is not None else 0
    this_rounds = trainer.reward
    # Their rows are in the log already.
    quietly = replace(around, log=None, alarms=None, tell=lambda _: None)
    for earlier in range(1, round):
        if reached < first_step(config, earlier + 1):
            trainer.reward = context.reward(earlier, on=policy)
            train(trainer, quietly, stage=config.method, round=earlier, until=first_step(config, earlier + 1))
    trainer.reward = this_rounds


def on_groups(context: Context, round: int, output: Path) -> None:
    """A method that samples several responses to each prompt goes on against the round's reward, up to where the next round asks again."""
    config = context.config
    policy = context.policy_to_train(context.reference_folder, config.method)
    reference = context.policy_beside(policy, context.reference_folder)
    trainer = GroupTrainer(
        policy, reference, context.reward(round, on=policy), [p.tokens for p in context.prompts("training")], config.tuning, config.method,
        task=context.task, seed=context.seed(config.method), accelerator=context.accelerator, true_score=context.score,
        check=context.stop.check,
    )  # fmt: skip
    around = context.surroundings(config.method)
    make_up_for_lost_rounds(context, trainer, policy, around, round)
    train(trainer, around, stage=config.method, round=round, until=first_step(config, round + 1))
    save(context, policy, output)


def dpo(context: Context, round: int, output: Path) -> None:
    """A training on labels, from the policy that wrote the round's responses."""
    settings = context.config.dpo
    parts = comparisons(context, round, only_new=settings.round_labels == "new")
    training, validation = (without_dual(part, settings.drop) for part in parts)
    policy = context.policy_to_train(context.tuned_from(round), "dpo")
    trainer = DPOTrainer(
        policy,
        context.held_to(round, policy),
        as_judged(training),
        settings,
        seed=context.seed("dpo", round),
        accelerator=context.accelerator,
    )
    train(trainer, context.surroundings(f"dpo-{round}"), stage="dpo", round=round)
    if context.accelerator.is_main_process:
        right = implicit_agreements(trainer.policy, context.held_to(round, policy), validation, trainer.objective)
        write_accuracy(output, round, right, validation, len(training))
    save(context, policy, output)


METHODS: dict[str, Method] = {
    "ppo": ppo, "dpo": dpo, "rloo": on_groups, "grpo": on_groups, "dr_grpo": on_groups, "reinforce": on_groups, "online_dpo": on_groups,
    "expert_iteration": on_groups,
}  # fmt: skip
