"""One training, by transformers' Trainer: a whole encoder, or its biases alone (BitFit)."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wspace.errors import WspaceError
from wspace.lab.data import Task, with_train_rows
from wspace.lab.encoders import Classifier, Encoded, Encoder
from wspace.lab.settings import Training


class TrainingError(WspaceError):
    """A training that cannot start, or a model folder that belongs to another experiment."""


@dataclass(frozen=True)
class Trained:
    """What a training left: scores of the model with its own head, and its course."""

    status: str  # done, or failed: why
    steps: int
    rows: int
    validation: dict[str, float]  # loss, accuracy
    test: dict[str, float]
    base_rate: float
    losses: list[list[float]]  # step, training loss
    seconds: float


def train(
    model: Classifier,
    encoder: Encoder,
    task: Task,
    training: Training,
    seed: int,
    *,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train a classifier in place on a task; ``seed`` orders the data.

    ``bitfit`` trains the encoder's biases and the head alone. Stops early by validation accuracy
    if ``patience`` is set; the weights are those of the last step. A loss that is not finite stops
    the training and makes its status ``failed``. ``folder``: where checkpoints go, if the settings
    ask for any.
    """
    from transformers import DataCollatorWithPadding, EarlyStoppingCallback, Trainer

    started = time.perf_counter()
    task = with_train_rows(task, training.rows, seed)
    rows = encoder.encode(task.train, task.max_length)
    held = encoder.encode(task.validation, task.max_length)
    ordered = [held.rows[i] for i in held.order]  # by length: less padding
    if training.method == "bitfit":
        for name, parameter in model.encoder.named_parameters():
            parameter.requires_grad_("bias" in name)
    watch = _watch(progress)
    with tempfile.TemporaryDirectory(prefix="wspace-") as scratch:
        arguments = _arguments(encoder, training, seed, folder or Path(scratch))
        callbacks: list[Any] = [watch]
        if training.patience is not None:
            callbacks.append(EarlyStoppingCallback(training.patience, training.min_gain))
        trainer = Trainer(
            model=model,
            args=arguments,
            data_collator=DataCollatorWithPadding(encoder.tokenizer),
            train_dataset=rows.rows,  # type: ignore[arg-type]  # a list is a dataset
            eval_dataset=ordered if training.patience is not None else None,  # type: ignore[arg-type]
            compute_metrics=_accuracy,
            callbacks=callbacks,
            optimizers=(_optimizer(model, training), None),
        )
        _quiet(trainer)
        last = _last_checkpoint(folder) if training.checkpoint_steps else None
        trainer.train(resume_from_checkpoint=last)
    model.zero_grad(set_to_none=True)
    scores = {
        "validation": score(model, encoder, held),
        "test": score(model, encoder, encoder.encode(task.test, task.max_length)),
    }
    losses = [
        [entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry
    ]
    numbers = [*(loss for _, loss in losses), *(s["loss"] for s in scores.values())]
    finite = all(math.isfinite(number) for number in numbers)
    return Trained(
        status="done" if finite else "failed: the loss is not finite",
        steps=trainer.state.global_step,
        rows=len(rows),
        base_rate=task.base_rate,
        losses=losses,
        seconds=time.perf_counter() - started,
        **scores,
    )


def score(model: Classifier, encoder: Encoder, encoded: Encoded) -> dict[str, float]:
    """Mean cross-entropy and accuracy of a model with its own head."""
    head = model.classifier.eval()
    features = torch.from_numpy(encoder.features(model.encoder, encoded))
    with torch.inference_mode():
        logits = head(features.to(encoder.device)).cpu().double()
        labels = torch.from_numpy(encoded.labels)
        loss = torch.nn.functional.cross_entropy(logits, labels).item()
        return {"loss": loss, "accuracy": (logits.argmax(1) == labels).double().mean().item()}


def bitfit(
    encoder: Encoder,
    start_state: Mapping[str, torch.Tensor],
    task: Task,
    training: Training,
    seed: int,
    *,
    head: str = "linear",
    progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train biases and a new head from given weights, all in memory.

    Source: BitFit, arXiv 2106.10199; from a centroid, the paper's section 7.
    """
    model = encoder.fresh(
        seed, len(task.labels), head=head, dropout=training.dropout, state=start_state
    )
    return train(model, encoder, task, replace(training, method="bitfit"), seed, progress=progress)


def planned_steps(task: Task, training: Training) -> int:
    """Optimizer steps if nothing stops it early."""
    if training.steps is not None:
        return training.steps
    rows = min(len(task.train), training.rows or len(task.train))
    return math.ceil(training.epochs * math.ceil(rows / training.batch))


def _arguments(encoder: Encoder, training: Training, seed: int, folder: Path) -> Any:
    from transformers import TrainingArguments

    if training.batch % training.accumulate:
        raise TrainingError(f"batch {training.batch} is no multiple of {training.accumulate}")
    early = training.patience is not None
    saves = training.checkpoint_steps
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=training.batch // training.accumulate,
        per_device_eval_batch_size=256,
        gradient_accumulation_steps=training.accumulate,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup,
        num_train_epochs=training.epochs,
        max_steps=training.steps or -1,
        logging_steps=10,
        logging_nan_inf_filter=False,
        eval_strategy="epoch" if early else "no",
        metric_for_best_model="accuracy" if early else None,
        save_strategy="steps" if saves else "no",
        save_steps=saves or 500,
        save_total_limit=1,
        seed=seed,
        data_seed=seed,
        bf16=encoder.bf16,
        use_cpu=encoder.device.type == "cpu",
        disable_tqdm=True,
        dataloader_pin_memory=encoder.device.type == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
    )


def _optimizer(model: Classifier, training: Training) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in model.encoder.parameters() if p.requires_grad]},
        {
            "params": list(model.classifier.parameters()),
            "lr": training.head_learning_rate or training.learning_rate,
        },
    ]
    return torch.optim.AdamW(
        groups, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )


def _watch(progress: Callable[[int, int], None] | None) -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Says where the training is, and ends one whose loss is not finite."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if progress:
                progress(state.global_step, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            loss = kwargs.get("logs", {}).get("loss", 0.0)
            if not math.isfinite(loss):
                control.should_training_stop = True

    return Watch()


def _quiet(trainer: Any) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)  # it prints every log line


def _last_checkpoint(folder: Path | None) -> str | None:
    from transformers.trainer_utils import get_last_checkpoint

    return get_last_checkpoint(str(folder)) if folder and folder.is_dir() else None


def _accuracy(predictions: Any) -> dict[str, float]:
    found: Sequence[int] = np.argmax(predictions.predictions, axis=-1)
    return {"accuracy": float(np.mean(found == predictions.label_ids))}
