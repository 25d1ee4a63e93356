# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Distils the features of a denoiser into one pass on clean images, without labels: `diffuseseg distil-features`.

    accelerate launch training/distil_features.py --model MODEL --unlabeled_dataset_name IMAGES --random_flip \\
        --output_dir OUT

The same command line resumes a run that was cut off. `fit --model OUT` fits a head on the result.
"""

from typing import Any

from diffuseseg_diffusers.diffusion.distillation import (
    CleanPass,
    describe_errors,
    describe_teacher,
    freeze_unread,
    merge_adapters,
    owned_files,
    reader,
    teacher_features,
    with_clean_copy,
    with_denoiser,
)
from diffuseseg_diffusers.diffusion.objective import draw_step, to_model_range
from diffuseseg_diffusers.diffusion.run import (
    SUMMARY,
    averaged_copy,
    begin,
    describe_end,
    describe_plan,
    make_trainer,
    open_folder,
    summary,
)
from diffuseseg_diffusers.diffusion.setup import TrainingImages, load_images, make_images
from diffuseseg_diffusers.jobs.command_line import run_script
from diffuseseg_diffusers.jobs.files import read_json, write_json
from diffuseseg_diffusers.jobs.seeds import mixed_seed, mixed_seed_32
from diffuseseg_diffusers.pipelines.loading import load_pipeline
from diffuseseg_diffusers.tasks.distil_features import DistilFeaturesConfig
from diffuseseg_diffusers.trainer.checkpoints import save_pipeline
from diffuseseg_diffusers.trainer.loop import SYNC_STEPS, Trainer


COMMAND = "distil-features"


def distil_features(config: DistilFeaturesConfig) -> dict[str, Any]:
    """Distils the features of a denoiser into a copy that sees clean images, or resumes that.

    Returns:
        `dict`: What `training_state.json` in the output folder holds. The folder is a pipeline of diffusers whose
        schedule has one timestep and no noise; it segments, and cannot generate.

    Raises:
        UserError: The images, the model or the folder cannot be used.
        NotFiniteError: The loss is not finite; the last checkpoint is kept.
        StoppedError: SIGTERM or Ctrl-C ended the run; the step is saved, and the same call resumes.

    Examples:
        >>> from diffuseseg_diffusers import DistilFeaturesConfig, distil_features
        >>> config = DistilFeaturesConfig(model="MODEL", dataset_name="DATA", output_dir="out/distilled")
        >>> distil_features(config)["errors"]
    """
    # 1. The images, still encoded, the model, and a copy of it that sees no noise.
    accelerator = begin(config, COMMAND)
    dataset, column = load_images(config)
    where = {"revision": config.revision, "cache_dir": config.cache_dir}
    pipe: Any = load_pipeline(config.model, device=accelerator.device, dtype="float32", **where)
    teacher = teacher_features(config, pipe)
    accelerator.print(f"Distilled are {describe_teacher(teacher)}.")
    images = make_images(config, dataset, column, (teacher.in_channels, *teacher.size), pipe.channels)
    copied = with_clean_copy(pipe, config.rank, config.seed)
    clean = CleanPass(copied, teacher, images.train_sample, mirror=config.random_flip)
    clean.denoiser.training_identity = {
        "teacher": describe_teacher(teacher),
        "rank": config.rank,
        "mirror": config.random_flip,
    }
    freeze_unread(clean)

    # 2. Training, from where it was cut off, and what it leaves behind.
    trainer = make_trainer(config, accelerator, clean.denoiser, images, around=clean)
    if open_folder(config, COMMAND, trainer, dataset, column, owned_files(pipe)):  # complete
        trainer.end()
        return read_json(config.output_dir / SUMMARY)
    with trainer:
        if trainer.state["step"] == 0:
            trainer.state["errors_before"] = clean.measure(clean.student, images.validation, accelerator)
        train(config, trainer, clean, images)
        adapted = config.rank is not None
        trained = merge_adapters(clean.denoiser) if adapted else averaged_copy(clean.denoiser, trainer.ema)
        distilled = with_denoiser(pipe, trained)
        errors = clean.measure(reader(distilled, teacher), images.validation, accelerator)
        found = summary(config, trainer) | {"errors": errors, "blocks": list(teacher.blocks)}
        if accelerator.is_main_process:
            save_pipeline(config.output_dir, distilled)
            write_json(config.output_dir / SUMMARY, found)  # last: the run is complete
            print(describe_end(config, trainer))
            print(describe_errors(clean, found))
            resolution = f" --resolution {teacher.size[0]} {teacher.size[1]}" if config.size else ""
            print(
                f"Next: `diffuseseg fit --model {config.output_dir} --dataset_name DATA{resolution} --output_dir OUT`."
            )
    return found


def train(config: DistilFeaturesConfig, trainer: Trainer, clean: CleanPass, images: TrainingImages) -> None:
    """The training loop. The noise of a batch depends on the seed and its place in the stream of images alone."""
    accelerator, device = trainer.accelerator, trainer.accelerator.device
    batch_size, process = config.train_batch_size, accelerator.process_index
    drawn = (batch_size * accelerator.num_processes, slice(batch_size * process, batch_size * (process + 1)))
    told = False
    for pixels, position in trainer.batches():
        with accelerator.accumulate(trainer.model):
            _, _, flips = draw_step(config.seed, position, *drawn, (1, 1, 1), 1, device)
            inputs = to_model_range(pixels, device, flips if config.random_flip else None)  # [B,C,H,W] in [-1, 1]
            # One of the two at random, whose mean is that of both: half the passes.
            mirrored = config.random_flip and bool(mixed_seed(config.seed, position, 7) % 2)
            with accelerator.autocast():
                first = position + batch_size * process
                rows = range(first, first + len(inputs))
                targets = clean.targets(inputs, [mixed_seed_32(config.seed, row, 8) for row in rows], mirrored)
            loss = trainer.model(inputs, targets).mean()
            accelerator.backward(loss)
            trainer.step(loss)
        if not told and trainer.at(SYNC_STEPS):
            told = True
            accelerator.print("\n" + describe_plan(config, trainer, images))
        if trainer.due(config.validation_steps):
            errors = clean.measure(clean.student, images.validation, accelerator)
            trainer.log.write(trainer.state["step"], held_out_error=sum(errors) / len(errors))
    trainer.check_stopped()


if __name__ == "__main__":
    run_script(DistilFeaturesConfig, distil_features)
