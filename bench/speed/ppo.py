"""A whole step of PPO, beside TRL's PPOTrainer, whose last release with it is 1.12.0."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import Row, Step
from workloads import EOS, PAD, SHAPES, forward_flop, language_model, prompts, scorer, words

from humanward.data import Task, TaskConfig
from humanward.models import Policy, RewardModel, ValueNetwork
from humanward.trainers import PPOConfig, PPOTrainer

FOLDER = Path(os.environ.get("TRL_1_12", Path(__file__).parents[2] / ".venv/trl-1.12.0"))
"""Where TRL 1.12.0 lies."""
INSTALL = "pip install --no-deps --target FOLDER trl==1.12.0"
EPOCHS, STEPS = 4, 64
LR = 1e-9
"""Moves nothing, so that responses stay as long as they are on both sides: at 1e-6 a policy that ends at random learns to end early."""
END_RATE = 1 / 30


def ppo(
    shape: str, dtype: torch.dtype, device: str, *, count: int = 64, prompt: int = 64, response: int = 24, ragged: bool = False,
    one_trunk: bool = False,
) -> Row:  # fmt: skip
    """Sample ``count`` episodes, score them with a reward model, four epochs of one update each.

    Args:
        ragged: prompts of an eighth of ``prompt`` to all of it, responses that end after any token with probability ``END_RATE``.
        one_trunk: our values from a head on the policy's trunk; the peer always has a value network of its own.
    """
    end_rate = END_RATE if ragged else 0.0
    vocabulary = SHAPES[shape]["vocab_size"]
    rows = prompts(count, prompt, vocabulary, ragged=ragged)

    def policy_model(seed: int) -> Any:
        return language_model(shape, seed=seed, device=device, end_rate=end_rate)

    def ours() -> Step:
        policy = Policy(policy_model(0).to(dtype), words(), value_head=one_trunk)
        value_network = None if one_trunk else ValueNetwork(language_model(shape, seed=2, device=device).to(dtype))
        reward = RewardModel(language_model(shape, seed=3, device=device).to(dtype), words())
        config = PPOConfig(
            episodes=count * STEPS, batch_size=count, ppo_epochs=EPOCHS, lr=LR, lr_schedule="constant", kl_target=None, kl_coef=0.05,
            whiten_rewards=False,
        )  # fmt: skip
        task = Task(
            TaskConfig(
                prompt_length=prompt, response_length=response, prompt_start=None, prompt_end=None, truncate_token=None, temperature=1.0,
                stop_at_eos=ragged, suppress_special_tokens=False,
            ),
            words(),
        )  # fmt: skip
        trainer = PPOTrainer(
            policy, Policy(policy_model(0).to(dtype), words()).requires_grad_(False).eval(), reward.requires_grad_(False), rows, config,
            task=task, value_network=value_network,
        )  # fmt: skip
        numbers = itertools.count()

        return lambda: trainer.step(next(numbers))["kl"]

    def theirs(micro_batch: int) -> Step:
        import greenlet
        from accelerate.state import AcceleratorState
        from datasets import Dataset
        from transformers import TrainerCallback

        Config, Trainer = trl_1_12()
        # careful: this release leaves the number type to the environment, which its own bf16=True does not set in transformers 5, and all
        # of Accelerate shares the first one's.
        AcceleratorState._reset_state()
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if dtype == torch.bfloat16 else "no"
        arguments = Config(
            output_dir=tempfile.gettempdir() + "/humanward-bench", per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=count // micro_batch, num_mini_batches=1, num_ppo_epochs=EPOCHS, total_episodes=count * STEPS,
            response_length=response, temperature=1.0, learning_rate=LR, kl_coef=0.05, report_to="none", use_cpu=device == "cpu",
            bf16=dtype == torch.bfloat16, gradient_checkpointing=False, num_sample_generations=0, save_strategy="no", logging_strategy="no",
            stop_token="eos" if ragged else None, local_rollout_forward_batch_size=min(count, 64), disable_tqdm=True, eval_strategy="no",
        )  # fmt: skip
        back = greenlet.getcurrent()

        class Pause(TrainerCallback):
            """Gives the word back to the harness after each step."""

            def on_step_end(self, *_: Any, **__: Any) -> None:
                back.switch(0.0)

            def on_log(self, *_: Any, **__: Any) -> None:
                """Nothing is printed."""

        policy = policy_model(0)
        policy.generation_config.eos_token_id = EOS if ragged else None
        policy.generation_config.pad_token_id = PAD
        data = Dataset.from_list([{"input_ids": r} for r in rows])
        trainer = Trainer(
            args=arguments, processing_class=left_padding(words()), model=policy, ref_model=policy_model(0),
            reward_model=scorer(shape, seed=3, device=device), value_model=scorer(shape, seed=2, device=device), train_dataset=data,
            eval_dataset=data, callbacks=[Pause()],
        )  # fmt: skip
        del os.environ["ACCELERATE_MIXED_PRECISION"]
        trainer.callback_handler.callbacks = [c for c in trainer.callback_handler.callbacks if isinstance(c, Pause)]
        training = greenlet.greenlet(trainer.train)
        return lambda: float(training.switch())

    # Of a geometric distribution that is cut off at the longest.
    mean = round((1 - (1 - END_RATE) ** response) / END_RATE) if ragged else response
    one = forward_flop(shape, [(len(p), [mean]) for p in rows], head=True)
    body = forward_flop(shape, [(len(p), [mean]) for p in rows], head=False)
    # Sampling, reference, each epoch forward and twice as much backward; the same for values, and one forward of the reward model.
    update_flop = 3 * EPOCHS * (one if one_trunk else one + body)
    flop = update_flop + one * 2 + body * (1 if one_trunk else 2)
    kind = "ragged, up to " if ragged else ""
    values = "policy and value on one trunk, the peer's on two" if one_trunk else "a value network of its own"
    work = f"PPO, {count} episodes, {kind}{prompt} + {response} tokens, {EPOCHS} epochs, {values}"
    micro = [n for n in ((1, 2, 4, 8) if ragged else (8, 16, 32)) if n <= count]
    return Row(
        ours, theirs, "TRL 1.12.0 PPOTrainer", micro, flop, sum(map(len, rows)) + count * mean, work, agree=None, peer_imports=imports,
        update_flop=update_flop,
    )  # fmt: skip


def imports() -> object:
    import datasets

    return datasets.Dataset, trl_1_12()


def left_padding(tokenizer: Any) -> Any:
    tokenizer.padding_side = "left"
    return tokenizer


def trl_1_12() -> tuple[Any, Any]:
    """Its configuration and trainer; the one process of this row has no other TRL.

    Raises:
        SystemExit: it is not there.
    """
    if not (FOLDER / "trl").is_dir():
        raise SystemExit(f"{FOLDER}: TRL 1.12.0 is not there; run `make bench`, or set TRL_1_12 to where it was put by: {INSTALL}")
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    sys.path.insert(0, str(FOLDER))
    import trl
    from trl.experimental.ppo import PPOConfig as Config
    from trl.experimental.ppo import PPOTrainer as Trainer

    if trl.__version__ != "1.12.0":
        raise SystemExit(f"TRL {trl.__version__} was imported where 1.12.0 was expected")
    return Config, Trainer
