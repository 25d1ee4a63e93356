# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains a fast segmentation network of `transformers` on images and masks: `diffuseseg train-student`.

    accelerate launch training/train_student.py --train_dataset_name SYNTHETIC --eval_dataset_name DATA --output_dir OUT

The weights that are kept are those that segment images best that were held out of the training data; the images to
measure on choose nothing. `--train_batch_size` is per process. The same command line goes on after the last whole
epoch.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from diffuseseg_diffusers import LabeledImages, evaluate_segmentation, load_labeled_images
from diffuseseg_diffusers.augmentation import IGNORED, augment
from diffuseseg_diffusers.commands import (
    check_output_folder,
    default_device,
    format_metrics,
    hardware,
    output_folder,
    run_command,
    write_json,
)
from diffuseseg_diffusers.data import describe_dataset
from diffuseseg_diffusers.hub import STUDENT_RECORD, add_hub_arguments, finish_push, prepare_push
from diffuseseg_diffusers.student import (
    DEFAULT_STUDENT,
    StudentSegmenter,
    epoch_order,
    make_processor,
    make_student,
    segmentation_loss,
)
from diffuseseg_diffusers.unlabeled_data import mixed_seed, to_pixels


CHECKPOINT = "checkpoint"
BEST = "best"
GENERATED = {"seed", "uncertainty"}  # columns of what `diffuseseg generate` makes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    for part, what in (
        ("train", "Images with masks to train on"),
        ("real", "More of them, mixed in at --real_fraction"),
        ("eval", "Images with masks to measure on"),
    ):
        required = part == "train"
        group.add_argument(f"--{part}_dataset_name", required=required, help=f"{what}: a local folder or a Hub name.")
        group.add_argument(f"--{part}_dataset_config_name", help="Configuration of that dataset.")
        default = "test" if part == "eval" else "train"
        group.add_argument(f"--{part}_split", default=default, help=f"Part of it (default: {default}).")
    group.add_argument("--real_fraction", type=float, default=0.2, help="Of the images that are seen (default: 0.2).")
    group.add_argument("--validation_fraction", type=float, default=0.1, help="Held out to choose by (default: 0.1).")
    group.add_argument("--resolution", type=int, nargs="+", help="Side, or height and width (default: as the images).")
    group.add_argument("--no_augmentation", action="store_true", help="Images as they are.")
    group.add_argument("--no_flip", action="store_true", help="Left and right mean something.")
    group.add_argument("--cache_dir", help="Where `datasets` keeps downloads.")
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", default=DEFAULT_STUDENT, help=f"Hub name, folder or JSON config (default: {DEFAULT_STUDENT})."
    )
    group.add_argument("--from_scratch", action="store_true", help="Fresh weights, though there are pretrained ones.")
    group = parser.add_argument_group("training")
    group.add_argument("--num_epochs", type=int, default=20, help="(default: 20)")
    group.add_argument("--images_per_epoch", type=int, help="(default: as many as there are, 1000 at least)")
    group.add_argument("--train_batch_size", type=int, default=16, help="Images per process and step (default: 16).")
    group.add_argument("--learning_rate", type=float, default=3e-4, help="Highest of AdamW (default: 3e-4).")
    group.add_argument("--weight_decay", type=float, default=0.01, help="(default: 0.01)")
    group.add_argument("--max_grad_norm", type=float, default=1.0, help="(default: 1)")
    group.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), help="(default: as Accelerate is set up)")
    group.add_argument("--dataloader_num_workers", type=int, default=2, help="Decode ahead (default: 2).")
    group.add_argument("--seed", type=int, default=0, help="Of weights, order and augmentation (default: 0).")
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", type=Path, required=True, help="For the model, a plain transformers folder.")
    group.add_argument("--overwrite", action="store_true", help="Replace what is in the output folder.")
    add_hub_arguments(parser)


class Pairs(Dataset):
    """Images `[3, H, W]` uint8 and masks `[H, W]` int64 of several datasets, decoded when asked for."""

    def __init__(self, datasets: list[LabeledImages], size: tuple[int, int]):
        self.rows = [(d, i) for d in datasets for i in range(len(d))]
        self.size = size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        dataset, i = self.rows[index]
        row = dataset[i]
        mask = torch.from_numpy(row.mask).long()
        mask[mask == dataset.ignore_index] = IGNORED
        mask = torch.nn.functional.interpolate(mask[None, None].float(), self.size, mode="nearest-exact")[0, 0].long()
        return to_pixels(row.image.resize(self.size[::-1]), self.size, 3), mask


def main(args: argparse.Namespace) -> None:
    # 1. Data and model.
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=default_device().type == "cpu")
    if accelerator.is_main_process:
        prepare_push(args)
        if args.overwrite:
            shutil.rmtree(args.output_dir, ignore_errors=True)
        old = args.output_dir / f".{CHECKPOINT}.old"
        if old.is_dir() and not (args.output_dir / CHECKPOINT).is_dir():  # killed while one took the other's place
            old.rename(args.output_dir / CHECKPOINT)
        if not (args.output_dir / CHECKPOINT).is_dir():
            check_output_folder(args.output_dir, overwrite=False)
    accelerator.wait_for_everyone()
    train, validation = load_part(args, "train").split(args.validation_fraction, args.seed)
    others = {"num_classes": train.num_classes, "label_names": train.label_names}
    real = load_part(args, "real", **others) if args.real_dataset_name else None
    evaluation = load_part(args, "eval", **others) if args.eval_dataset_name else None
    size = tuple(args.resolution * 2 if len(args.resolution) == 1 else args.resolution) if args.resolution else None
    size = size or train[0].image.size[::-1]
    names = train.label_names or [f"class {i}" for i in range(train.num_classes)]
    set_seed(args.seed)
    model = make_student(args.model, names, args.from_scratch)
    start = model.name_or_path  # empty where weights are fresh
    processor = make_processor(args.model, size)
    segmenter = StudentSegmenter(model, processor)

    # 2. What trains it.
    pairs = Pairs([train, *([real] if real else [])], size)
    per_epoch = args.images_per_epoch or max(1000, len(train))
    batch = args.train_batch_size * accelerator.num_processes
    steps = max(1, per_epoch // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    total = steps * args.num_epochs
    rate_at = get_scheduler("cosine", optimizer, num_warmup_steps=total // 20, num_training_steps=total).lr_lambdas[
        0
    ]  # a function of the step alone
    prepared, optimizer = accelerator.prepare(model, optimizer)
    run = {"epoch": 0, "seconds": 0.0, "best": -1.0, "epochs": []}
    if (args.output_dir / CHECKPOINT).is_dir():
        accelerator.load_state(str(args.output_dir / CHECKPOINT))
        run = json.loads((args.output_dir / CHECKPOINT / "run.json").read_text(encoding="utf-8"))
        accelerator.print(f"Going on after epoch {run['epoch']}.")

    # 3. Epochs.
    for epoch in range(run["epoch"], args.num_epochs):
        began = time.perf_counter()
        # Everything random is a function of seed, epoch and process, so that a run goes on as if it had not stopped.
        epoch_seed = mixed_seed(args.seed, epoch)
        order = epoch_order(len(train), len(real or ()), args.real_fraction, steps * batch, epoch_seed)
        mine = order.reshape(steps, accelerator.num_processes, -1)[:, accelerator.process_index].ravel()
        shown = Subset(pairs, mine.tolist())
        loader = DataLoader(shown, args.train_batch_size, num_workers=args.dataloader_num_workers)
        own_seed = mixed_seed(args.seed, epoch, accelerator.process_index)
        generator = torch.Generator().manual_seed(own_seed)
        torch.manual_seed(own_seed)  # dropout
        prepared.train()
        losses = torch.zeros((), device=accelerator.device)
        show = {"desc": f"Epoch {epoch + 1} of {args.num_epochs}", "unit": "step"}
        for step, (images, masks) in enumerate(
            tqdm(loader, disable=not accelerator.is_main_process, leave=False, **show), epoch * steps
        ):
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * rate_at(step)
            images, masks = images.to(accelerator.device).float() / 255, masks.to(accelerator.device)
            if not args.no_augmentation:
                images, masks = augment(images, masks, generator, flip=not args.no_flip)
            with accelerator.autocast():
                logits = prepared(segmenter.normalize(images)).logits
            loss = segmentation_loss(logits, masks)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(prepared.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses += loss.detach()
        loss = float(losses) / steps
        if not loss < float("inf"):
            raise FloatingPointError(
                f"The loss is {loss} in epoch {epoch + 1}; the checkpoint of the last epoch is kept. Try a lower "
                f"--learning_rate, or --mixed_precision bf16 or no."
            )
        run["seconds"] += time.perf_counter() - began
        run["epoch"] = epoch + 1
        measured = {"epoch": epoch + 1, "loss": loss}
        for name, data in (("validation", validation), ("eval", evaluation)):
            if data is not None:
                measured[name] = evaluate_segmentation(segmenter, data, show_progress=False)[0]["mean_iou"]
        run["epochs"].append(measured)
        is_best = measured["validation"] > run["best"]
        run["best"] = max(run["best"], measured["validation"])
        if is_best and accelerator.is_main_process:
            with output_folder(args.output_dir / BEST, overwrite=True) as folder:
                model.save_pretrained(folder)
                processor.save_pretrained(folder)
        save_checkpoint(accelerator, args.output_dir / CHECKPOINT, run)
        accelerator.print(
            "  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in measured.items())
        )

    # 4. The best weights are what is left.
    if not accelerator.is_main_process:
        return
    for path in (args.output_dir / BEST).iterdir():
        shutil.copy(path, args.output_dir)
    model = AutoModelForSemanticSegmentation.from_pretrained(args.output_dir).to(accelerator.device)
    on_hub = start if start and not os.path.isdir(start) else None
    report = {
        "start": (on_hub or os.path.basename(os.path.abspath(start))) if start else "random",
        "model_on_hub": on_hub,
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_dataset": describe_part(args, "train"),
        "num_images": len(train),
        "synthetic": GENERATED <= set(train.dataset.column_names),
        "real_dataset": describe_part(args, "real") if real else None,
        "num_real_images": len(real or ()),
        "seconds": round(run["seconds"], 2),
        "hardware": hardware(accelerator.device),
        "num_processes": accelerator.num_processes,
        "validation_mean_iou": run["best"],
        "epochs": run["epochs"],
    }
    if evaluation is not None:
        segmenter = StudentSegmenter(model, AutoImageProcessor.from_pretrained(args.output_dir))
        report["evaluation"], _ = evaluate_segmentation(segmenter, evaluation)
        report["evaluation"]["dataset"] = describe_part(args, "eval")
        print(format_metrics(report["evaluation"]))
    write_json(args.output_dir / STUDENT_RECORD, report)
    shutil.rmtree(args.output_dir / BEST)
    shutil.rmtree(args.output_dir / CHECKPOINT)
    print(f"Trained in {run['seconds']:.0f} s; the model is in {args.output_dir}.")
    finish_push(args)


def part_of(args: argparse.Namespace, part: str) -> tuple[str, str | None, str]:
    return tuple(getattr(args, f"{part}_{x}") for x in ("dataset_name", "dataset_config_name", "split"))


def load_part(args: argparse.Namespace, part: str, **kwargs) -> LabeledImages:
    return load_labeled_images(*part_of(args, part), cache_dir=args.cache_dir, **kwargs)


def describe_part(args: argparse.Namespace, part: str) -> dict:
    return describe_dataset(*part_of(args, part))


def save_checkpoint(accelerator: Accelerator, folder: Path, run: dict) -> None:
    """Replaces the checkpoint by one of now; there is a whole one at any time."""
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    if accelerator.is_main_process:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    if accelerator.is_main_process:
        write_json(partial / "run.json", run)
        if folder.is_dir():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parsed = parser.parse_args()
    run_command(lambda: main(parsed))
