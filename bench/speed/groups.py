"""A whole step of RLOO, of GRPO and of online DPO, beside TRL's own trainers of the same release as the other rows."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from harness import Row, Step, import_trl
from ppo import left_padding
from workloads import PAD, forward_flop, language_model, words

from humanward.data import Task, TaskConfig
from humanward.models import Policy
from humanward.trainers import GroupConfig, GroupTrainer, OnlineDPOConfig

STEPS = 64
PEERS = {"rloo": ("trl", "RLOO"), "grpo": ("trl", "GRPO"), "online_dpo": ("trl.experimental.online_dpo", "OnlineDPO")}


def groups(
    shape: str, dtype: torch.dtype, device: str, *, method: Literal["rloo", "grpo", "online_dpo"], count: int = 16, K: int = 4,
    prompt: int = 64, response: int = 24,
) -> Row:  # fmt: skip
    """K responses of a fixed length to each of ``count`` prompts, a score that costs nothing, one update.

    All have the KL to a reference: RLOO in the reward, GRPO and online DPO in the loss. Prompts are of the six words of the tokenizer,
    since the peer takes texts; responses are of the whole vocabulary.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(2, 8, (count, prompt), generator=generator).tolist()
    kl_coef = 0.04

    def numbers(count: int) -> list[float]:
        return [float(n * 7 % 5) for n in range(count)]

    def ours() -> Step:
        policy, reference = (Policy(language_model(shape, seed=0, device=device).to(dtype), words()) for _ in range(2))
        size: dict[str, Any] = {"episodes": count * K * STEPS, "batch_size": count * K, "responses_per_prompt": K, "lr": 1e-6}
        config = OnlineDPOConfig(**size, beta=kl_coef) if method == "online_dpo" else GroupConfig(**size, kl_coef=kl_coef)
        task = Task(
            TaskConfig(
                prompt_length=prompt, response_length=response, prompt_start=None, prompt_end=None, truncate_token=None, temperature=1.0,
                suppress_special_tokens=False,
            ),
            words(),
        )  # fmt: skip

        def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
            return numbers(len(responses))

        trainer = GroupTrainer(policy, reference.requires_grad_(False).eval(), score, rows, config, method, task=task)
        steps = itertools.count()
        return lambda: trainer.step(next(steps))["kl"]

    module, name = PEERS[method]
    peer = partial(import_trl, f"{name}Config", f"{name}Trainer", module=module)

    def theirs(micro_batch: int) -> Step:
        import greenlet
        from accelerate.state import AcceleratorState
        from datasets import Dataset
        from transformers import GPT2LMHeadModel, TrainerCallback

        _, Config, Trainer = peer()
        AcceleratorState._reset_state()
        own: dict[str, Any]
        if method == "online_dpo":  # its batches are of prompts
            own = {"per_device_train_batch_size": micro_batch // K, "max_new_tokens": response}
        else:
            own = {"per_device_train_batch_size": micro_batch, "num_generations": K, "max_completion_length": response}
            own |= {"shuffle_dataset": False} | ({} if method == "rloo" else {"loss_type": "grpo", "num_iterations": 1})
        arguments = Config(
            output_dir=tempfile.gettempdir() + "/humanward-bench", gradient_accumulation_steps=count * K // micro_batch, temperature=1.0,
            learning_rate=1e-6, lr_scheduler_type="constant", beta=kl_coef, max_steps=STEPS, report_to="none", use_cpu=device == "cpu",
            bf16=dtype == torch.bfloat16, gradient_checkpointing=False, save_strategy="no", logging_strategy="no", disable_tqdm=True, **own,
        )  # fmt: skip
        back = greenlet.getcurrent()

        class Pause(TrainerCallback):
            """Gives the word back to the harness after each step."""

            def on_step_end(self, *_: Any, **__: Any) -> None:
                back.switch(0.0)

        def score(completions: Sequence[str], **_: Any) -> list[float]:
            return numbers(len(completions))

        tokenizer = left_padding(words())
        data = Dataset.from_list([{"prompt": " ".join(tokenizer.convert_ids_to_tokens(row))} for row in rows] * STEPS)
        with tempfile.TemporaryDirectory() as folder:  # the peer loads its reference from where the policy came from
            language_model(shape, seed=0, device="cpu").save_pretrained(folder)
            policy = GPT2LMHeadModel.from_pretrained(folder).to(device)
            policy.generation_config.eos_token_id, policy.generation_config.pad_token_id = None, PAD
            trainer = Trainer(model=policy, args=arguments, reward_funcs=score, train_dataset=data, processing_class=tokenizer)
        if trainer.ref_model is None:
            raise SystemExit("the peer has no reference: this would compare different things")
        trainer.callback_handler.callbacks = [Pause()]
        training = greenlet.greenlet(trainer.train)
        return lambda: float(training.switch())

    # Sampling, the reference, and an update: forward and twice as much backward.
    forward = forward_flop(shape, [(prompt, [response] * K)] * count, head=True)
    work = f"{name}, {count} prompts of {prompt} tokens with {K} responses of {response}, one update"
    # That of online DPO samples a micro-batch at a time, the others a whole batch.
    sizes = [8, 16, 32] if method == "online_dpo" and count * K >= 32 else [8, 16]
    return Row(
        ours, theirs, f"TRL {name}Trainer", sizes, 5 * forward, count * (prompt + K * response), work, agree=None, peer_imports=peer,
        update_flop=3 * forward,
    )  # fmt: skip
