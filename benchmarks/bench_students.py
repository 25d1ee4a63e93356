# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What do students get from few labels, and how fast are they beside the head that teaches them?

    python benchmarks/bench_students.py --task faces64 --work_dir out/students
    python benchmarks/bench_students.py --task faces64 --work_dir out/students --speed --student out/student

The labelled images are the first of the training split; images without labels are evenly spread. Arms: `head`, the
default recipe's, which teaches; `scratch`, the student's network on the labels alone; `distilled`, the same network,
half of what it sees being soft targets of images without labels; `generated`, likewise with the images of
`--generated`, a data set of `diffuseseg generate`; `finetuned`, the denoiser itself with an output for each class. All
networks see `--images` images with the same augmentation. `--speed` times head, student, its ONNX file and that in int8
in turn; the student has random weights, or is that in the folder `--student`, whose mean IoU is measured too.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from harness import SHIFTS, Result, Shifted, Task, arguments, fit, in_turn, mean_iou, ratio

from diffuseseg_diffusers import LabeledImages, fit_segmentation_head, load_pipeline
from diffuseseg_diffusers.datasets.unlabeled import load_unlabeled
from diffuseseg_diffusers.heads.ensemble import PixelClassifierEnsemble
from diffuseseg_diffusers.students.choosing import new_student
from diffuseseg_diffusers.students.export import OnnxStudent, export_onnx
from diffuseseg_diffusers.students.quantization import calibration_images
from diffuseseg_diffusers.students.setup import StudentData, make_optimizer, make_trainer
from diffuseseg_diffusers.students.targets import SoftTargets, WholeImages, compute_targets
from diffuseseg_diffusers.tasks.train_student import TrainStudentConfig
from diffuseseg_diffusers.training.train_student import train


ARMS = ["head", "scratch", "distilled", "generated", "finetuned"]
EPOCHS = 20


def main() -> None:
    options = dict(counts=[2, 5, 20], seeds=[0, 1, 2], arms=ARMS[:3], unlabeled=1000, images=8000, generated=None)
    args = arguments(__doc__, **options, work_dir="out/students", speed=False, student="", batch_size=16, rounds=5)
    task = Task(args.task)
    if args.speed:
        return speed(task, args)
    if args.task == "drawn":
        raise SystemExit("Drawn faces have no images without labels; choose another --task, or --speed.")
    columns = {"labels": ("labelled images", "int"), "arm": ("", "text"), "clean": ("clean", "percent")}
    columns |= {shift: (shift, "percent") for shift in SHIFTS}
    seen = f"networks have seen {args.images:,} images; {args.unlabeled:,} images without labels"
    about = f"Mean IoU in % on {len(task.test)} test images; {seen}."
    result = Result(args.name or f"students-{args.task}", columns, args, about)
    sets = {"clean": task.test} | {shift: Shifted(task.test, shift) for shift in SHIFTS}

    def measure(arm: str, own: LabeledImages, seed: int) -> dict[str, float]:
        model = teacher(task, args, own, seed) if arm == "head" else student(task, args, own, arm, seed)
        return {name: mean_iou(model, images) for name, images in sets.items()}

    for count in args.counts:
        own = task.train.select(range(count))
        for arm in args.arms:
            name = f"{count} {arm}"
            found = [result.cell(f"{name} {s}", lambda a=arm, o=own, s=s: measure(a, o, s)) for s in args.seeds]
            result.row(labels=count, arm=arm, **{k: [one[k] for one in found] for k in sets})
    result.show()


def teacher(task: Task, args: Any, own: LabeledImages, seed: int) -> Any:
    """The model with a head for these labels, kept in the working folder."""
    folder = Path(args.work_dir, f"head-{len(own)}-{seed}")
    pipe = task.pipe()
    if not (folder / "config.json").is_file():
        fit_segmentation_head(pipe, own, seed=seed).save_pretrained(folder)
    pipe.segmentation_head = PixelClassifierEnsemble.from_pretrained(folder)
    return pipe


def soft(task: Task, args: Any, own: LabeledImages, arm: str) -> SoftTargets:
    """What the teacher of the first seed says of images without labels."""
    pipe = teacher(task, args, own, args.seeds[0])
    where = (args.generated,) if arm == "generated" else (str(task.data), "unlabeled")
    dataset, column = load_unlabeled(*where)
    dataset = dataset.select([i * len(dataset) // args.unlabeled for i in range(args.unlabeled)])
    folder = Path(args.work_dir, f"targets-{arm}-{len(own)}")
    return compute_targets(pipe, WholeImages(dataset, column, pipe.image_size, pipe.in_channels), folder)


def new(task: Task, arm: str) -> tuple[Any, str]:
    """A student that has learned nothing, and its kind."""
    first = task.train[0].image
    name = str(task.model) if arm == "finetuned" else "unet"
    return new_student(name, task.train.label_names, first.size[::-1], 1 if first.mode == "L" else 3)


def student(task: Task, args: Any, own: LabeledImages, arm: str, seed: int) -> Any:
    """A student after its training."""
    set_seed(seed)
    model, kind = new(task, arm)
    unlabeled = SoftTargets(soft(task, args, own, arm).paths) if arm in ("distilled", "generated") else None
    with tempfile.TemporaryDirectory() as folder:
        config = TrainStudentConfig(
            train_dataset_name=str(task.data),
            num_epochs=EPOCHS,
            images_per_epoch=args.images // EPOCHS,
            train_batch_size=8,
            dataloader_num_workers=0,
            seed=seed,
            output_dir=folder,
        )
        data, accelerator = StudentData(own, None, None, None, None), Accelerator(cpu=not torch.cuda.is_available())
        with make_trainer(config, accelerator, model, make_optimizer(config, model, kind), data, unlabeled) as trainer:
            train(config, trainer, model, data)
    return model


def speed(task: Task, args: Any) -> None:
    """Milliseconds an image, from the decoded image to the mask."""
    args.seeds = args.seeds[:1]
    pipe = fit(task.pipe(), task.train.select(range(2)), seed=0)
    folder = Path(args.student or Path(args.work_dir, "untrained"))
    if not args.student:
        new(task, "scratch")[0].save_pretrained(folder)
    whole: Any = load_pipeline(folder, device="cpu", dtype="float32")
    unlabeled = calibration_images(whole, *load_unlabeled(str(task.data), "unlabeled"))
    files = {name: Path(args.work_dir, f"{name}.onnx") for name in ("float32", "int8")}
    shares = [export_onnx(whole, file, unlabeled if name == "int8" else ()) for name, file in files.items()]
    sides = {"head of the default recipe": pipe, "student U-Net": load_pipeline(folder, dtype=pipe.unet.dtype)}
    sides |= {f"its ONNX file, {name}": OnnxStudent(file) for name, file in files.items()}
    columns = {"side": ("", "text")}
    for size in (1, args.batch_size):
        columns |= {f"ms_{size}": (f"ms an image, batches of {size}", "ms"), f"times_{size}": ("", "times")}
    about = f"From the decoded image to the mask, medians of {args.rounds} rounds in turn."
    if args.student:
        share = f"{shares[1]:.2%} of the pixels of unlabelled images"
        about += f" The file in int8 gives {share} the class of float32."
        columns |= {"mean_iou": (f"mean IoU on {len(task.test)} test images", "percent")}
    result = Result(args.name or f"student-speed-{args.task}", columns, args, about, pipe.unet.dtype)
    rows: dict[str, dict[str, Any]] = {name: {} for name in sides}
    for size in (1, args.batch_size):
        pictures = [task.test[i].image for i in range(size)]
        runs = {k: lambda m=m, p=pictures: m.segment(p, len(p), output_type="np") for k, m in sides.items()}
        seconds = in_turn(runs, args.rounds)
        for name in sides:
            rows[name][f"ms_{size}"] = [s / size for s in seconds[name]]
            rows[name][f"times_{size}"] = ratio(seconds, next(iter(sides)), name)
    for name, values in rows.items():
        if args.student and sides[name] is not pipe:
            values["mean_iou"] = mean_iou(sides[name], task.test)
        result.row(side=name, **values)
    result.show()


if __name__ == "__main__":
    main()
