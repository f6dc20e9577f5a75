"""What each stage of the loop does, from the run folder into a temporary folder that becomes its output when all is well."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from humanward.data import iter_texts, text_windows
from humanward.data.batches import epoch_order, index_order
from humanward.data.demonstrations import Demonstration, demonstrations
from humanward.errors import UserError
from humanward.feedback import Snapshot, answer_questions
from humanward.feedback.kinds import to_comparisons
from humanward.maths.schedules import labels_required
from humanward.models import Policy, base_of, check_compiler, check_lora, resolve
from humanward.records import Comparison, Prompt, Question, Response, read_jsonl, write_jsonl
from humanward.records.nouns import Split, question_id
from humanward.rounds.assessment import assess
from humanward.rounds.choosing import Candidate, candidates_of_round, choose
from humanward.rounds.config import LoopConfig
from humanward.rounds.context import Context, check_settings, weights_hash
from humanward.rounds.frozen import VALIDATION, chosen_responses, comparisons
from humanward.rounds.people import ask_people, gold_questions, instructions, patiently
from humanward.storage import write_json
from humanward.trainers import SFTConfig, SFTTrainer, train
from humanward.trainers.ptx import pretraining_texts
from humanward.trainers.questions import without_dual
from humanward.trainers.scoring import truncated
from humanward.trainers.task_check import check_task

QUESTIONS_AT_ONCE = 256


def check_inputs(context: Context) -> None:
    """Read all that a run is given, before anything is written. Raises UserError with the first fault."""
    config = context.config
    check_settings(config)
    if config.lora is not None:
        check_lora(config.lora)
        refuse_adapter_of_adapter(config)
    if config.compile:
        check_compiler(context.accelerator.device)
    _ = context.score, context.score_terms
    _ = context.source_prompts
    if config.sft is not None:
        for _ in supervised_rows(context):
            context.stop.check()
    if config.method == "ppo" and config.ppo.ptx is not None:
        pretraining_texts(config.ppo.ptx, context.task)
    if config.labeler.startswith("labels:"):
        check_given_labels(context)
    elif config.dpo.drop:
        raise UserError("dpo.drop: only labels from a file can say which responses are safe; leave it out, or set labeler=labels:FILE")
    if config.labeler == "people":
        instructions(config.labels.instructions)
        gold_questions(context)
    if config.self_test:
        check_task(context.policy(config.model), context.task, context.source_prompts)
    context.stop.check()


def check_given_labels(context: Context) -> None:
    """Raises UserError where nothing can be learnt from the labels, or their own prompts leave none to train on or to evaluate."""
    config, (questions, labels) = context.config, context.given_labels
    if config.method == "dpo" and any(question.kind == "rating" for question in questions):
        raise UserError(
            "method dpo learns nothing from ratings, whose scale their file does not tell: write FILE?kind=binary&middle=NUMBER, which "
            "reads those above the middle as liked, those below as not"
        )
    if not without_dual(to_comparisons(questions, labels), config.dpo.drop):
        raise UserError("dpo.drop leaves no label; drop less")
    held_out = {q.prompt.tokens for q in questions if q.split == "validation"}
    training = {q.prompt.tokens for q in questions} - held_out
    if config.prompts == "labels" and not held_out:
        raise UserError(
            f"none of the {len(training)} prompts of the labels is held out for the evaluation; raise labels.validation_share above "
            f"{1 / len(training):.2g}, or take prompts from elsewhere"
        )
    if config.prompts == "labels" and not training:
        raise UserError("all prompts of the labels are held out (`split` in their file), and none is left to train on; give more labels")


def refuse_adapter_of_adapter(config: LoopConfig) -> None:
    """Raises UserError where the adapter to be written would be one on a model that is no folder of its own."""
    assert config.lora is not None
    if config.lora.save == "adapter" and config.sft is None and base_of(resolve(config.model)) is not None:
        raise UserError(
            f"lora.save: adapter: {config.model} is an adapter itself, so that nothing could load one on it; set lora.save=merged"
        )


def prepare_prompts(context: Context, round: int, output: Path) -> None:
    """Set some of the source's prompts aside, by lot, that no training sees."""
    unique, wanted = context.source_prompts, context.config.evaluation.prompts
    shuffled = [unique[i] for i in epoch_order(context.seed("prompt split"), 0, len(unique))]
    fresh, others = shuffled[:wanted], shuffled[wanted:]
    if context.config.prompts == "labels":  # those of the held-out labels
        held_out = {q.prompt.tokens for q in context.given_labels[0] if q.split == "validation"}
        fresh = [p for p in shuffled if p.tokens in held_out][:wanted]
        others = [p for p in shuffled if p.tokens not in held_out]
    write_jsonl(output / "evaluation.jsonl", (prompt.to_json() for prompt in fresh))
    write_jsonl(output / "training.jsonl", (prompt.to_json() for prompt in others))


def supervise(context: Context, round: int, output: Path) -> None:
    """Fine-tune the given model on texts; what comes out is the reference of everything that follows."""
    settings = context.config.sft
    assert settings is not None
    policy = context.policy_to_train(context.config.model, "sft")
    rows = list(supervised_rows(context))
    trainer = SFTTrainer(policy, rows, settings, seed=context.seed("sft"), accelerator=context.accelerator)
    train(trainer, context.surroundings("sft"), stage="sft")
    save(context, policy, output, merged=True)


def supervised_rows(context: Context) -> Iterator[Demonstration]:
    """Demonstrations where the texts have responses, else windows of plain text."""
    settings = context.config.sft
    assert settings is not None
    assert settings.texts is not None
    texts = list(iter_texts(settings.texts))
    with_answers = any(text.response is not None for text in texts)
    return demonstrations(context.task, texts) if with_answers else text_windows(context.task, texts, settings.max_length)


def questions_of_round(context: Context, round: int) -> int:
    """New questions to ask before the tuning goes on in this round: the schedule's, less those asked before."""
    labels = context.config.labels
    required = [labels_required(*progress_before(context.config, r), labels.initial, labels.total) for r in (round - 1, round)]
    return required[1] - (required[0] if round > 1 else 0)


def progress_before(config: LoopConfig, round: int) -> tuple[int, int]:
    """How much of the tuning is done before a round, of how much: episodes, or rounds where each is a training of its own."""
    if config.steps is None:
        return round - 1, config.labels.rounds
    return first_step(config, round) * config.tuning.batch_size, config.tuning.episodes


def first_step(config: LoopConfig, round: int) -> int:
    """The step at which a round of the one training begins; the rounds share the steps evenly."""
    assert config.steps is not None
    return config.steps * (round - 1) // config.labels.rounds


def ask(context: Context, round: int, output: Path) -> None:
    """Sample K responses to the round's prompts; validation questions have half theirs from the reference, half from the policy."""
    config = context.config
    count = questions_of_round(context, round)
    if config.labeler.startswith("labels:"):
        questions, _ = context.given_labels
        write_jsonl(output / "questions.jsonl", (q.to_json() for q in questions))
        return
    prompts = context.prompts("training")
    wanted, *before = (candidates_of_round(context, r, questions_of_round(context, r)) for r in range(round, 0, -1))
    chosen = [prompts[i] for i in index_order(context.seed("question prompts"), sum(before), wanted, len(prompts))]
    policy = context.policy(context.policy_before(round))
    reference = policy if round == 1 else context.policy(context.reference_folder)
    validation = int(count * config.labels.validation_share)
    overlap = int(count * config.labels.overlap_share)
    candidates: list[Candidate] = []
    for start in range(0, wanted, QUESTIONS_AT_ONCE):
        context.cord.hold()
        part = chosen[start : start + QUESTIONS_AT_ONCE]
        splits: list[Split] = ["validation" if start + i < validation else "train" for i in range(len(part))]
        responses = question_responses(context, policy, reference, part, splits, round, start)
        candidates += map(Candidate, part, responses)
        context.progress("sample", len(candidates), wanted, {})
    asked = [(candidate, 1.0) for candidate in candidates[:validation]]
    asked += choose(context, round, candidates[validation:], count - validation)
    questions: list[Question] = []
    for place, ((prompt, row), propensity) in enumerate(asked):
        # Overlapping questions are counted from the end, so that validation and overlap meet only where both are large.
        several = config.labels.overlap_labels if place >= count - overlap else 1
        kind = config.labels.kind
        split: Split = "validation" if place < validation else "train"
        name = question_id(prompt, row, kind=kind, round=round)
        questions.append(Question(name, prompt, row, kind, round, split, several, propensity=propensity))
    write_jsonl(output / "questions.jsonl", (q.to_json() for q in {q.id: q for q in questions}.values()))


def question_responses(
    context: Context, policy: Policy, reference: Policy, prompts: Sequence[Prompt], splits: Sequence[str], round: int, start: int
) -> list[tuple[Response, ...]]:
    """K truncated responses per prompt."""
    K = context.config.labels.responses_per_question
    temperature = context.config.labels.initial_temperature if round == 1 else None
    # Of questions with one response, every other one is the reference's.
    from_reference = [(K // 2 or (start + i) % 2) if split == "validation" else 0 for i, split in enumerate(splits)]
    rows: list[list[Response]] = [[] for _ in prompts]
    shares = [(policy, "policy", [K - count for count in from_reference]), (reference, "reference", from_reference)]
    for model, source, counts in shares:
        name = weights_hash(model) if any(counts) else ""
        for k in sorted(set(counts) - {0}):
            where = [i for i, n in enumerate(counts) if n == k]
            asked = [prompts[i] for i in where]
            _, _, samples = context.sample(model, asked, f"questions {source} {k}", round, start, num_responses=k, temperature=temperature)
            flat, flat_mask = samples.responses.flatten(0, 1), samples.response_mask.flatten(0, 1)
            mask, _ = truncated(context.task, flat, flat_mask)
            records = context.responses(flat, mask, model, source if round > 1 or source == "reference" else "policy", name, temperature)
            for number, i in enumerate(where):
                rows[i] += records[number * k : (number + 1) * k]
    return [tuple(row) for row in rows]


def collect(context: Context, round: int, output: Path) -> None:
    """Put the round's questions to the labelers through the store and freeze all labels so far."""
    path = context.path / f"rounds/{round}/questions/questions.jsonl"
    questions = [Question.from_json(row, f"{path}:{line}") for line, row in read_jsonl(path)]
    if context.config.labeler.startswith("labels:"):
        given, labels = context.given_labels
        Snapshot.of(given, labels).save(output / "snapshot.jsonl")
        return
    if context.config.labeler == "people":
        ask_people(context, round, questions)
        patiently(context, lambda store: store.snapshot(round)).save(output / "snapshot.jsonl")
        return
    wanted = sum(q.overlap for q in questions)
    done = 0

    def on_answer(_: object) -> None:
        nonlocal done
        done += 1
        context.progress("label", done, wanted, {})

    for start in range(0, len(questions), context.config.labels.outstanding):
        context.store.add_questions(questions[start : start + context.config.labels.outstanding])
        answer_questions(context.store, context.labelers, on_answer, lambda: context.stop.requested)
        context.stop.check()
    context.store.snapshot(round).save(output / "snapshot.jsonl")


def baseline(context: Context, round: int, output: Path) -> None:
    """Ziegler's supervised baseline: maximum likelihood of the responses that the labelers chose."""
    settings = context.config.baseline_sft
    assert settings is not None
    training, validation = comparisons(context, context.config.labels.rounds)
    supervise_on_chosen(context, "baseline_sft", settings, training + validation, output)


def chosen_first(context: Context, round: int, output: Path) -> None:
    """Where a direct method begins, and is held to, if no model was fine-tuned on such texts before."""
    settings = context.config.dpo.sft_first
    assert settings is not None
    training, _ = comparisons(context, 1)
    supervise_on_chosen(context, "chosen_sft", settings, without_dual(training, context.config.dpo.drop), output)


def supervise_on_chosen(context: Context, stage: str, settings: SFTConfig, labels: Sequence[Comparison], output: Path) -> None:
    """Maximum likelihood of the chosen responses, from the reference on."""
    chosen = chosen_responses(labels)
    rows = [Demonstration(prompt.tokens, response.tokens, prompt.id) for prompt, response in chosen if response.tokens]
    policy = context.policy_to_train(context.reference_folder, stage)
    trainer = SFTTrainer(policy, rows, settings, seed=context.seed(stage), accelerator=context.accelerator)
    train(trainer, context.surroundings(stage), stage=stage)
    save(context, policy, output)


def export(context: Context, round: int, output: Path) -> None:
    """The tuned policy as an ordinary Hugging Face folder; with ``lora.save: adapter`` as a peft folder."""
    lora = context.config.lora
    last = context.path / f"rounds/{context.config.labels.rounds}/policy"
    if lora is not None and lora.save == "merged":
        context.policy(last).save(output)
        return
    for file in sorted(last.iterdir()):
        if file.name not in ("manifest.json", "value_head.safetensors", VALIDATION):
            shutil.copyfile(file, output / file.name)


def evaluate(context: Context, round: int, output: Path) -> None:
    """Compare on fresh prompts; write results.json and samples.jsonl."""
    results, samples = assess(context)
    write_json(output / "results.json", results)
    write_jsonl(output / "samples.jsonl", samples)


def save(context: Context, policy: Policy, output: Path, *, merged: bool = False) -> None:
    """From the main process only. An adapter is kept as one, unless it is ``merged``."""
    if context.accelerator.is_main_process:
        policy.save(output, merged=merged)
