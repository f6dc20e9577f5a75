"""The settings of PPO: the released code of Ziegler et al. 2019 by default, and what the field has added or left out since."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from humanward.config import Config

Share = Annotated[float, Field(ge=0, le=1)]


class PTXConfig(Config):
    """A pretraining mix: the gradient of plain text beside that of PPO (PPO-ptx, Ouyang et al. 2022, eq. 2)."""

    texts: str
    """What the model shall not forget: a file, a folder or a data set of plain texts."""
    coef: PositiveFloat = 27.8
    """Gamma: weight of the texts' negative log-likelihood, nats per token."""
    texts_per_episode: PositiveInt = 8
    """Pieces of text for each episode of a minibatch."""
    length: Annotated[int, Field(ge=2)] = 256
    """Longest piece of a text, tokens."""


class PPOConfig(Config):
    """PPO against a learned reward (Ziegler et al. 2019, section 2.2)."""

    episodes: PositiveInt = 1_000_000
    """Sampled responses over the whole training; the last batch is a whole one, as in the 2019 code."""
    batch_size: PositiveInt = 512
    """Episodes per step, over all processes."""
    minibatches: PositiveInt = 1
    """Updates that one pass over a step's episodes is divided into."""
    ppo_epochs: PositiveInt = 4
    """Passes over a step's episodes."""
    micro_batch_tokens: PositiveInt | None = None
    """Tokens per forward, in whole episodes, like lengths together. Changes memory and speed, never the result.
    null: 384 to 1536 on a CPU, fewer for wider models; 16384 on a GPU."""
    lr: PositiveFloat = 1e-5
    """Learning rate at the start."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """``linear``: to 0 over the training, as the 2019 code. A step's updates have one rate."""
    value_lr: PositiveFloat | None = None
    """Learning rate of the value head or network at the start; null: ``lr``."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which a cosine or constant learning rate rises."""
    adam_eps: PositiveFloat = 1e-5
    """Adam's epsilon."""
    adam_eps_hat: bool = False
    """Epsilon outside the bias correction, as in TensorFlow's Adam."""
    max_grad_norm: PositiveFloat | None = None
    """Clip the gradient's norm; null: do not (2019)."""
    kl_coef: NonNegativeFloat = 0.15
    """Weight of the KL to the reference, score units per nat; the start value where a KL target is set."""
    kl_target: PositiveFloat | None = 6.0
    """Nats per response, not per token: the KL, summed over a response's tokens, that the adaptive controller steers to. null: ``kl_coef``
    stays."""
    kl_target_per_token: PositiveFloat | None = None
    """Nats per token: the same target for responses of different lengths, in place of ``kl_target``; null: no such target."""
    kl_horizon: PositiveInt = 10_000
    """Episodes over which the controller could change the coefficient by its clip."""
    kl_clip: PositiveFloat = 0.2
    """Largest relative error of the KL that the controller acts on."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the KL to the reference is paid: ``reward``, on every token, so that advantages see it (2019); ``loss``, as a term of it, where
    ``kl_coef`` keeps its unit only if neither rewards nor advantages are whitened."""
    kl_estimator: Literal["k1", "k2", "k3", "full"] = "k1"
    """How the KL that is paid is told from the sampled token: the log-ratio (k1, 2019), half its square (k2), exp(-k1) - 1 + k1 (k3), or
    over the whole vocabulary (``full``), for another forward of the policy and the states of the reference in memory. In the reward, k1
    alone pulls as the KL does; k2 and k3 hardly pull near the reference, and ``full`` only through later tokens."""
    reference_ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Let the reference follow: after each step it is so much of itself and for the rest the policy, for example 0.999 (Xu et al. 2024).
    What is paid and logged as KL is then that to the moving reference. null: it stays."""
    gamma: Share = 1.0
    """Discount per token."""
    gae_lambda: Share = 0.95
    """Generalised advantage estimation: 0 trusts the values, 1 the returns."""
    surrogate: Literal["clip", "rollback", "trust_region", "trust_region_rollback", "ratio"] = "clip"
    """What limits an update: the ratio's clip (2017), its rollback (PPO-RB), the KL of each state (TR-PPO), both (TR-PPO-RB), or nothing
    but what ``old_kl_coef`` and ``stop_kl`` do (``ratio``). Wang et al. 2019. The KL of a state is that over the whole vocabulary, for
    another forward of the policy and its states in memory."""
    clip_range: PositiveFloat = 0.2
    """How far a probability ratio may leave 1 before its gradient stops, or rolls back; beyond it, a ratio is logged as out of range."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Largest ratio that counts where the advantage is negative, usually 3 (Ye et al. 2020); null: any."""
    rollback_slope: PositiveFloat = 0.3
    """How strongly a rollback pulls; 0.05 with ``trust_region_rollback`` (Wang et al. 2019)."""
    trust_region_kl: PositiveFloat = 0.025
    """KL from the policy that sampled at which a state has left the trust region, nats; 0.03 with ``trust_region_rollback``."""
    old_kl_coef: NonNegativeFloat = 0.0
    """Weight of a penalty on the KL from the policy that sampled, in the loss (Schulman et al. 2017, section 4); the start value where
    ``old_kl_target`` is set. 0: none."""
    old_kl_target: PositiveFloat | None = None
    """KL of a step, nats per token, for which ``old_kl_coef`` is doubled or halved when it is missed by half; null: it stays."""
    stop_kl: PositiveFloat | None = None
    """KL from the policy that sampled, nats per token, at which the rest of a step's updates is left out; null: never."""
    entropy_coef: NonNegativeFloat = 0.0
    """Weight of an entropy bonus, score units per nat. 0: none (2019)."""
    value_clip_range: PositiveFloat | None = 0.2
    """How far a value may move from its old self before its gradient stops; null: any way."""
    value_coef: NonNegativeFloat = 0.1
    """Weight of the value loss."""
    value_network: Literal["policy", "reward_model"] = "policy"
    """Who gives the values. ``policy``: a head on the policy's trunk (2019). ``reward_model``: a network of its own that begins as the
    first reward model (Stiennon et al. 2020), for twice the time of an update."""
    score_clip: PositiveFloat | None = None
    """Scores are held between plus and minus this before they become rewards; null: they are not."""
    whiten_rewards: bool = True
    """Rewards to unit variance, their mean kept."""
    whiten_advantages: bool = True
    """Advantages to unit variance and mean 0."""
    whiten_over: Literal["minibatch", "batch"] = "minibatch"
    """What is whitened together: the episodes of an update, anew in every pass (2019), or all of a step."""
    ptx: PTXConfig | None = None
    """A pretraining mix (Ouyang et al. 2022); null: none."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout of the policy. Off, or the ratio would not start at 1 (2019)."""

    @property
    def steps(self) -> int:
        return math.ceil(self.episodes / self.batch_size)

    @model_validator(mode="after")
    def _batches_divide(self) -> PPOConfig:
        if self.batch_size % self.minibatches:
            raise ValueError(f"batch_size {self.batch_size} cannot be divided into {self.minibatches} minibatches; choose a divisor")
        if self.episodes < self.batch_size:
            raise ValueError(f"episodes {self.episodes} is less than one batch of {self.batch_size}; raise it or lower batch_size")
        together = self.batch_size if self.whiten_over == "batch" else self.batch_size // self.minibatches
        if self.whiten_rewards and together < 8:
            # lm-human-preferences asks for 8 rows where rewards are whitened: the deviation of fewer says little.
            raise ValueError(f"whiten_rewards needs minibatches of 8 episodes or more, not {together}")
        return self

    @model_validator(mode="after")
    def _terms_agree(self) -> PPOConfig:
        """What contradicts itself, and what to do."""
        c = self
        targets = c.kl_target is not None or c.kl_target_per_token is not None
        several = c.ppo_epochs * c.minibatches > 1
        largest = c.kl_clip * c.batch_size
        for contradicts, text in (
            (
                None not in (c.kl_target, c.kl_target_per_token),
                "kl_target (per response) and kl_target_per_token are both set; set one of them to null",
            ),
            (targets and c.kl_coef == 0, "kl_target needs a kl_coef above 0 to start from, since the controller multiplies it"),
            (
                targets and largest >= c.kl_horizon,
                f"kl_horizon {c.kl_horizon} lets a step take kl_coef to 0 or below; raise it above kl_clip * batch_size, {largest:g}",
            ),
            (
                c.old_kl_target is not None and c.old_kl_coef == 0,
                "old_kl_target needs an old_kl_coef above 0 to start from, since it is doubled and halved",
            ),
            (
                c.kl_in == "loss" and c.kl_estimator == "k1",
                "kl_estimator k1 has no gradient in the loss, on average; use k2, k3 or full, or set kl_in to reward",
            ),
            (
                c.surrogate == "ratio" and several and c.old_kl_coef == 0 and c.stop_kl is None,
                "surrogate ratio has no limit of its own; set old_kl_coef or stop_kl, or use surrogate clip",
            ),
            (
                c.surrogate.startswith("trust_region") and c.dropout > 0,
                "dropout makes the ratio of a token random, which a trust region cannot tell from a step; set dropout to 0",
            ),
            (
                c.warmup_steps > 0 and c.lr_schedule == "linear",
                "warmup_steps is for a cosine or constant learning rate, a linear one falls from the start; set lr_schedule",
            ),
        ):
            if contradicts:
                raise ValueError(text)
        return self
