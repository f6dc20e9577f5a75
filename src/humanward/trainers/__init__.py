"""Supervised fine-tuning, reward models, PPO, DPO, and the one loop that runs them: step, log, checkpoint, resume."""

from __future__ import annotations

from .best_of_n import Best, best_of_n
from .dpo import DPOConfig, DPOTrainer
from .expert_iteration import ExpertIterationConfig
from .group import GroupTrainer
from .implicit import implicit_agreements, implicit_choices, implicit_rewards
from .loaded_reward import load_reward
from .online_dpo import OnlineDPOConfig
from .policy_gradient import GroupConfig
from .ppo import PPOTrainer
from .ppo_config import PPOConfig, PTXConfig
from .responses import respond
from .reward import RewardConfig, RewardTrainer, agreements, choices
from .reward_ensemble import EnsembleTrainer
from .rewards import GuardedScore, LabelerChoice, Reward, Score, ScoringConfig, TextReward, WeightedReward
from .run import Progress, Surroundings, Trainer, train
from .scoring import Episodes, Scores, score_episodes
from .sft import SFTConfig, SFTTrainer

__all__ = [
    "Best",
    "DPOConfig",
    "DPOTrainer",
    "EnsembleTrainer",
    "Episodes",
    "ExpertIterationConfig",
    "GroupConfig",
    "GroupTrainer",
    "GuardedScore",
    "LabelerChoice",
    "OnlineDPOConfig",
    "PPOConfig",
    "PPOTrainer",
    "PTXConfig",
    "Progress",
    "Reward",
    "RewardConfig",
    "RewardTrainer",
    "SFTConfig",
    "SFTTrainer",
    "Score",
    "Scores",
    "ScoringConfig",
    "Surroundings",
    "TextReward",
    "Trainer",
    "WeightedReward",
    "agreements",
    "best_of_n",
    "choices",
    "implicit_agreements",
    "implicit_choices",
    "implicit_rewards",
    "load_reward",
    "respond",
    "score_episodes",
    "train",
]
