# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains a fast segmentation network on images, masks and soft targets of a fitted model: `diffuseseg train-student`.

    accelerate launch training/train_student.py --teacher MODEL --unlabeled_dataset_name IMAGES \\
        --train_dataset_name DATA --eval_dataset_name DATA --output_dir OUT

With a teacher, the student learns from its probabilities for images without labels too, and the last weights are kept.
Without one, the weights are kept that segment images best that were held out of the training data. The images to
measure on choose nothing. `--train_batch_size` is per process. The same command line resumes after the last whole
epoch.
"""

from typing import Any

import torch
from accelerate import Accelerator

from diffuseseg_diffusers.datasets.augmentation import augment
from diffuseseg_diffusers.hub.files import STUDENT_FILES, STUDENT_RECORD
from diffuseseg_diffusers.hub.push import finish_push, prepare_push
from diffuseseg_diffusers.jobs.command_line import run_script
from diffuseseg_diffusers.jobs.files import read_json, remove_matching, write_json
from diffuseseg_diffusers.jobs.hardware import default_device, report_processes
from diffuseseg_diffusers.jobs.run import check_run, open_run
from diffuseseg_diffusers.students.objective import segmentation_loss
from diffuseseg_diffusers.students.report import describe_training, finish_student, keep_epoch
from diffuseseg_diffusers.students.setup import (
    StudentData,
    load_student_data,
    load_teacher,
    make_optimizer,
    make_segmenter,
    make_trainer,
    student_contents,
    targets_settings,
    unlabeled_images,
)
from diffuseseg_diffusers.students.student import Student
from diffuseseg_diffusers.students.targets import IN_TARGETS, TARGETS, claim_targets, compute_targets, distillation_loss
from diffuseseg_diffusers.tasks.train_student import TrainStudentConfig
from diffuseseg_diffusers.trainer.checkpoints import BEST, CHECKPOINT_FILES, checkpoints, remove_checkpoints
from diffuseseg_diffusers.trainer.log import LOG_FILE
from diffuseseg_diffusers.trainer.loop import Trainer


COMMAND = "train-student"
OWNED = (*CHECKPOINT_FILES, *STUDENT_FILES, STUDENT_RECORD, LOG_FILE, *(f"{TARGETS}/{name}" for name in IN_TARGETS))


def train_student(config: TrainStudentConfig) -> dict[str, Any]:
    """Trains a student, or resumes its training after the last whole epoch.

    Returns:
        `dict`: What `student_training.json` in the output folder holds; `load_pipeline` loads the folder.

    Raises:
        UserError: The images, the models or the folder cannot be used.
        NotFiniteError: The loss is not finite; the last checkpoint is kept.
        StoppedError: SIGTERM or Ctrl-C ended the run; the same call resumes.

    Examples:
        >>> from diffuseseg_diffusers import TrainStudentConfig, train_student
        >>> config = TrainStudentConfig(train_dataset_name="DATA", eval_dataset_name="DATA", output_dir="out/student")
        >>> report = train_student(config)
        >>> report["evaluation"]
    """
    # 1. Data and models, and only then the folder.
    check_run(config, COMMAND)
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=default_device().type == "cpu")
    report_processes(accelerator)
    teacher = load_teacher(config, accelerator.device)
    data = load_student_data(config, teacher)
    student, kind, start = make_segmenter(config, data, teacher)
    optimizer = make_optimizer(config, student, kind)
    folder, report_path = config.output_dir, config.output_dir / STUDENT_RECORD
    if accelerator.is_main_process:
        prepare_push(config)
        if teacher is not None and config.targets_dir:
            claim_targets(config.targets_dir, targets_settings(config, data, teacher, student))
        reads = student_contents(config, data, teacher)
        reads |= {"precision": accelerator.mixed_precision, "num_processes": accelerator.num_processes}
        open_run(config, COMMAND, reads, OWNED)
    accelerator.wait_for_everyone()

    # 2. Epochs, each with a checkpoint in the end; the best weights are what is left.
    if report_path.is_file():
        accelerator.print(f"{folder} is complete.")
    else:
        images, kept = unlabeled_images(config, data, student), config.targets_dir or folder / TARGETS
        unlabeled = None if images is None else compute_targets(teacher, images, kept)
        del teacher  # its memory is the student's from here on
        trainer = make_trainer(config, accelerator, student, optimizer, data, unlabeled)
        if found := checkpoints(folder):
            trainer.resume(found[-1])
        with trainer:
            train(config, trainer, student, data)
            if accelerator.is_main_process:
                report = describe_training(config, student, data, trainer.state, start, len(unlabeled or ()))
                report |= finish_student(folder, checkpoints(folder)[-1] / BEST, accelerator, data, unlabeled)
                write_json(report_path, report)  # last: the run is complete
                print(f"Trained in {trainer.state['seconds']:.0f} s; the model is in {folder}.")
    if accelerator.is_main_process:
        remove_checkpoints(folder)
        if (folder / TARGETS).is_dir():
            remove_matching(folder / TARGETS, IN_TARGETS)
        finish_push(config)
    return read_json(report_path)


def train(config: TrainStudentConfig, trainer: Trainer, student: Student, data: StudentData) -> None:
    """The training loop: augmented images, logits, cross-entropy with masks or soft targets."""
    accelerator, stream = trainer.accelerator, trainer.stream
    total = torch.zeros((), device=accelerator.device)
    student.model.train()
    for (images, masks, generator), _ in trainer.batches():
        with accelerator.accumulate(trainer.model):
            images, masks = images.to(accelerator.device).float() / 255, masks.to(accelerator.device)
            if not config.no_augmentation:
                images, masks = augment(images, masks, generator, flip=not config.no_flip)
            with accelerator.autocast():
                logits = student.logits(images, trainer.model)  # [N,num_classes,h,w]
            loss = distillation_loss(logits, masks) if stream.soft else segmentation_loss(logits, masks)
            accelerator.backward(loss)
            trainer.step(loss)
        total += loss.detach()
        if trainer.at(stream.steps):
            keep_epoch(trainer, student, data, float(total) / stream.steps)
            total.zero_()
            student.model.train()
    trainer.check_stopped()


if __name__ == "__main__":
    run_script(TrainStudentConfig, train_student)
