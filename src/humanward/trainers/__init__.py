"""Supervised fine-tuning, reward models, PPO, DPO, and the one loop that runs them: step, log, checkpoint, resume."""

from __future__ import annotations

from .dpo import DPOConfig, DPOTrainer
from .implicit import implicit_choices
from .loaded_reward import load_reward
from .ppo import PPOTrainer
from .ppo_config import PPOConfig, PTXConfig
from .responses import respond
from .reward import RewardConfig, RewardTrainer, agreements, choices
from .reward_ensemble import EnsembleTrainer
from .run import Progress, Surroundings, Trainer, train
from .scoring import Episodes, Score, Scores, TextReward, score_episodes
from .sft import SFTConfig, SFTTrainer

__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "EnsembleTrainer",
    "Episodes",
    "PPOConfig",
    "PPOTrainer",
    "PTXConfig",
    "Progress",
    "RewardConfig",
    "RewardTrainer",
    "SFTConfig",
    "SFTTrainer",
    "Score",
    "Scores",
    "Surroundings",
    "TextReward",
    "Trainer",
    "agreements",
    "choices",
    "implicit_choices",
    "load_reward",
    "respond",
    "score_episodes",
    "train",
]
