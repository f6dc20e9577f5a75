"""What was asked: the run in plain words, and its settings."""

from __future__ import annotations

from humanward.report.reading import Run, flat
from humanward.report.sections.parts import DIRECT, SHORT_NAMES, Table, tuned_by
from humanward.report.sections.records import labels_table
from humanward.report.text import clipped, decimal, without_secrets

# The settings that decide the result, in the order in which a reader asks for them.
IMPORTANT = {
    "model": "language model tuned; also the reference",
    "prompts": "where prompts come from",
    "labeler": "who says which response is better",
    "seed": "seed of the whole run",
    "method": "how the policy was tuned",
    "labels.total": "labels due by the end of the tuning",
    "labels.initial": "labels before the tuning began",
    "labels.rounds": "rounds of labels and tuning",
    "labels.responses_per_question": "responses shown per question",
    "task.prompt_length": "tokens of a prompt, at most",
    "task.response_length": "tokens of a response",
    "task.temperature": "sampling temperature",
    "task.truncate_token": "a response ends at this mark",
    "task.truncate_after": "but not before this token",
    "task.missing_truncation_score": "score of a response without the mark",
    "reward.lr": "learning rate of the reward model",
    "reward.batch_size": "questions per reward-model update",
    "ppo.episodes": "responses sampled in PPO",
    "ppo.batch_size": "responses per PPO batch",
    "ppo.ppo_epochs": "passes over a batch",
    "ppo.lr": "learning rate of PPO",
    "ppo.kl_coef": "weight of the KL penalty (at the start)",
    "ppo.kl_target": "KL aimed at, nats per response",
    "ppo.kl_target_per_token": "KL aimed at, nats per token",
    "ppo.clip_range": "clip range of the policy ratio",
    "dpo.loss": "what DPO minimised",
    "dpo.beta": "pull toward the reference, score units per nat",
    "dpo.round_reference": "which policy a round was held to",
    "dpo.lr": "learning rate of DPO",
    "dpo.batch_size": "questions per DPO update",
    "dpo.epochs": "passes over the labels",
    "group.episodes": "responses sampled",
    "group.batch_size": "responses per step",
    "group.responses_per_prompt": "responses to each prompt",
    "group.lr": "learning rate",
    "group.kl_coef": "weight of the KL; null is the method’s own",
    "online_dpo.episodes": "responses sampled",
    "online_dpo.batch_size": "responses per step",
    "online_dpo.responses_per_prompt": "responses to each prompt",
    "online_dpo.lr": "learning rate",
    "online_dpo.beta": "pull toward the reference, score units per nat",
    "expert_iteration.episodes": "responses sampled",
    "expert_iteration.batch_size": "responses per step",
    "expert_iteration.responses_per_prompt": "responses to each prompt",
    "expert_iteration.keep": "of which so many were kept",
    "expert_iteration.lr": "learning rate",
    "evaluation.prompts": "fresh prompts for evaluation",
}
SAID = {
    "best_of_k": "said which one is best",
    "pair": "said which of the two is better",
    "ranking": "put them in order",
    "soft": "said how likely each is to be the best",
    "rating": "rated it from 1 to 9",
    "difference": "said how much better one is than the other",
}
"""What a labeler did, by the kind of label."""


def labeler_words(run: Run) -> tuple[str, bool]:
    """Who labels, in words, and whether that is a program with a known score."""
    value = run.results.get("labeler", run.config.get("labeler"))
    name = str(value.get("name", value)) if isinstance(value, dict) else str(value or "")
    if not name:
        return "a labeler that is not recorded", False
    if name == "people":
        return "people", False
    return (f"the known score “{name.removeprefix('score:')}”", True) if name.startswith("score:") else (f"the labeler “{name}”", False)


def asked(run: Run) -> list[str]:
    """The run in plain words: one paragraph of sentences, each only as far as the settings are known."""
    settings = flat(run.config)
    if not settings:
        return []
    labeler, known_score = labeler_words(run)
    responses = settings.get("labels.responses_per_question", "several")
    wrote = f"{'one response' if responses == '1' else f'{responses} responses'} to each of many prompts"
    said = SAID.get(settings.get("labels.kind", ""), SAID["best_of_k"])
    sentences = [f"Make the language model {settings.get('model', '(not recorded)')} write what {labeler} prefers."]
    given, rounds = labels_table(run)[0], settings.get("labels.rounds")
    total = settings.get("labels.total") if given is None else str(given)
    ask = f"The model wrote {wrote}, and the labeler {said}"
    if settings.get("labeler", "").startswith("labels:"):
        ask, rounds = "The labels had been given before, of responses that were there", "1"
    sentences.append(f"{ask}: {_counted(total)} labels in {_rounds(rounds)}." if total else f"{ask}.")
    sentences.append(_tuning(tuned_by(run), settings))
    if labeler == "people":
        sentences[1] = sentences[1].replace("and the labeler ", "and people, without knowing who wrote what, ")
        sentences[0] = sentences[0].replace("what people prefers", "what people prefer")
    if known_score:
        sentences.append("The labeler is a program with a known score, not a person: the result can be checked against the truth.")
    return sentences


def _tuning(method: str, settings: dict[str, str]) -> str:
    name = SHORT_NAMES.get(method, method)
    if method in DIRECT:
        before = settings.get("dpo.round_reference") == "before" and settings.get("labels.rounds") != "1"
        where = "the policy that wrote them" if before else "the model it started as"
        return f"{name} raised the odds of the chosen responses over the others, without a reward model, and held the policy to {where}."
    terms = {key.removeprefix("scoring.terms.") for key in settings if key.startswith("scoring.terms.")} or {"model"}
    score, it = "A reward model learned to predict those answers, and", "its score"
    if "model" not in terms:
        score, it = "The score was a given one, not learned from them;", "it"
    held = "penalised for"
    for setting, unit in (("kl_target", "response"), ("kl_target_per_token", "token")):
        if (target := settings.get(f"{method}.{setting}", "none")) != "none":
            held = f"held near {decimal(_as_number(target))} nats per {unit} of"
    free = method == "expert_iteration" or (method == "dr_grpo" and not _as_number(settings.get("group.kl_coef", "0")))
    if free:
        return f"{score} {name} tuned the policy to raise {it}; nothing but the number of steps held it to the model it started as."
    return f"{score} {name} tuned the policy to raise {it}, {held} KL divergence from the model it started as."


def _counted(text: str) -> str:
    value = _as_number(text)
    return decimal(value, 9) if value is not None else text


def _as_number(text: str) -> float | None:
    try:
        return float(text.replace("_", ""))
    except ValueError:
        return None


def _rounds(text: str | None) -> str:
    return "one round" if text == "1" else f"{text} rounds" if text else "one or more rounds"


def settings_tables(run: Run) -> tuple[Table, Table]:
    """The important settings with their meaning, and all of them."""
    settings = {key: without_secrets(key, clipped(value, 300)) for key, value in flat(run.config).items()}
    important = [[key, settings[key], meaning] for key, meaning in IMPORTANT.items() if key in settings]
    return Table(["setting", "value", "meaning"], important), Table(["setting", "value"], [[k, v] for k, v in settings.items()])
