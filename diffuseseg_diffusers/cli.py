# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The command `diffuseseg`."""

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path


def _of(module: str) -> tuple[Callable, Callable]:
    """`add_arguments` and `main` of a module, which is imported when they are called."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        importlib.import_module(module, __package__).add_arguments(parser)

    def main(args: argparse.Namespace) -> int | None:
        return importlib.import_module(module, __package__).main(args)

    return add_arguments, main


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    from . import commands

    commands.add_model_arguments(parser)
    commands.add_data_arguments(parser, split="test")
    parser.add_argument("--batch_size", type=int, default=8, help="Images in a pass of the U-Net (default: 8).")
    parser.add_argument("--absent_as_zero", action="store_true", help="Absent classes count as 0, as in the paper.")
    parser.add_argument(
        "--count_ignored", action="store_true", help="Predictions on ignored pixels are wrong, as in the paper."
    )
    parser.add_argument("--num_examples", type=int, default=12, help="Images on the page of examples (default: 12).")
    parser.add_argument("--output_dir", type=Path, required=True, help="For metrics.json and examples.png.")
    parser.add_argument("--overwrite", action="store_true", help="Replace the output folder if there is one.")


def _evaluate(args: argparse.Namespace) -> None:
    from . import commands
    from .data import describe_dataset
    from .evaluation import evaluate_segmentation
    from .visualization import examples_page

    commands.check_output_folder(args.output_dir, args.overwrite)
    pipe = commands.load_pipeline(args.model, args.revision, args.device, args.dtype)
    head = _head(pipe)
    dataset = commands.load_data(
        args,
        ignore_index=head.config.ignore_index,
        label_names=pipe.label_names,
        num_classes=head.config.num_classes,
    )
    metrics, examples = evaluate_segmentation(
        pipe, dataset, args.batch_size, args.absent_as_zero, args.count_ignored, num_examples=args.num_examples
    )
    metrics["dataset"] = describe_dataset(args.dataset_name, args.dataset_config_name, args.split)
    with commands.output_folder(args.output_dir, args.overwrite) as folder:
        commands.write_json(folder / "metrics.json", metrics)
        if examples:
            page = examples_page(examples, pipe.label_names, pipe.palette, dataset.ignore_index)
            page.savefig(folder / "examples.png")
    print(commands.format_metrics(metrics))
    print(f"Written to {args.output_dir}.")


def _segment_arguments(parser: argparse.ArgumentParser) -> None:
    from . import commands

    parser.add_argument("images", nargs="+", type=Path, help="Pictures, or folders of them.")
    commands.add_model_arguments(parser)
    parser.add_argument("--batch_size", type=int, default=8, help="Images in a pass of the U-Net (default: 8).")
    parser.add_argument("--mask_size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="Default: each picture's.")
    parser.add_argument("--alpha", type=float, default=0.5, help="Opacity of the overlay, 0 to 1 (default: 0.5).")
    parser.add_argument("--output_dir", type=Path, required=True, help="For masks, overlays and segments.jsonl.")
    parser.add_argument("--overwrite", action="store_true", help="Write into a folder that holds something.")


def _segment(args: argparse.Namespace) -> int:
    import numpy as np
    import torch
    from tqdm.auto import tqdm

    from . import commands
    from .image_processor import mask_to_pil, open_image, overlay
    from .segmentation_head import image_uncertainty

    commands.check_output_folder(args.output_dir, args.overwrite)
    paths = _find_pictures(args.images)
    pipe = commands.load_pipeline(args.model, args.revision, args.device, args.dtype)
    _head(pipe)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    unreadable, taken = [], set()
    with (
        open(args.output_dir / "segments.jsonl", "w", encoding="utf-8") as lines,
        tqdm(total=len(paths), desc="Segmenting", unit="image") as bar,
    ):
        for start in range(0, len(paths), args.batch_size):
            batch = []
            for path in paths[start : start + args.batch_size]:
                try:
                    batch.append((path, open_image(path)))
                except (ValueError, OSError) as error:  # the others shall not wait for this one
                    unreadable.append(str(error))
                    bar.write(f"error: {error}", file=sys.stderr)
            output = pipe.segment([i for _, i in batch], args.batch_size, args.mask_size, output_type="np")
            for (path, image), mask, uncertainty in zip(batch, output.masks, output.uncertainty):
                name = _free_name(path.stem, taken)
                files = {"mask": f"{name}_mask.png", "overlay": f"{name}_overlay.png"}
                mask_to_pil(mask, pipe.palette).save(args.output_dir / files["mask"])
                shown = image if image.size == mask.shape[::-1] else image.resize(mask.shape[::-1])
                overlay(shown, mask, pipe.palette, args.alpha).save(args.output_dir / files["overlay"])
                share = np.bincount(mask.ravel(), minlength=len(pipe.label_names)) / mask.size
                line = {
                    "image": str(path),
                    **files,
                    "height": mask.shape[0],
                    "width": mask.shape[1],
                    "class_fractions": {n: round(float(f), 6) for n, f in zip(pipe.label_names, share)},
                    "uncertainty": round(image_uncertainty(torch.from_numpy(uncertainty)).item(), 6),
                }
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")
                lines.flush()
            bar.update(min(args.batch_size, len(paths) - start))
    print(f"{len(paths) - len(unreadable)} of {len(paths)} pictures segmented; the masks are in {args.output_dir}.")
    return 1 if unreadable else 0


def _export_onnx_arguments(parser: argparse.ArgumentParser) -> None:
    from . import student  # noqa: F401 (if the extra `train` is missing, that is said now)

    parser.add_argument("model", type=Path, metavar="FOLDER", help="What `train-student` left.")
    parser.add_argument("file", type=Path, metavar="FILE", help="ONNX file to write.")
    parser.add_argument("--overwrite", action="store_true", help="Replace the file if there is one.")


def _export_onnx(args: argparse.Namespace) -> None:
    from transformers import AutoModelForSemanticSegmentation

    from .student import StudentSegmenter, export_onnx, make_processor

    if args.file.exists() and not args.overwrite:
        raise FileExistsError(f"{args.file} exists and is kept; choose another name, or pass --overwrite.")
    if not (args.model / "config.json").is_file():
        raise ValueError(f"The folder {args.model} holds no student: it has no config.json.")
    model = AutoModelForSemanticSegmentation.from_pretrained(args.model)
    segmenter = StudentSegmenter(model, make_processor(str(args.model)))
    try:
        export_onnx(segmenter, args.file)
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; run `pip install diffuseseg-diffusers[onnx]`.") from error
    print(f"Written to {args.file}: pixels [N, 3, {segmenter.size[0]}, {segmenter.size[1]}] in [0, 1] to masks.")


def _push_arguments(parser: argparse.ArgumentParser) -> None:
    from . import hub  # noqa: F401 (if the extra `train` is missing, that is said now)

    parser.add_argument("folder", type=Path, metavar="FOLDER", help="With a pipeline, a student or a dataset.")
    parser.add_argument("repo_id", metavar="REPO", help="Repository on the Hub, user/name; made if it is not there.")
    parser.add_argument("--private", action="store_true", help="Make a new repository private.")
    parser.add_argument("--commit_message", help="(default: Upload pipeline, student or dataset)")
    parser.add_argument("--create_pr", action="store_true", help="As a pull request, to look at before it is merged.")
    parser.add_argument("--license", help="The Hub's identifier of the licence, such as cc-by-4.0 (default: unknown).")
    parser.add_argument(
        "--evaluation",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="What `diffuseseg evaluate` wrote, for the card of a pipeline.",
    )
    parser.add_argument(
        "--analysis", type=Path, metavar="DIR", help="What `diffuseseg analyze` wrote, for the card of a pipeline."
    )
    parser.add_argument(
        "--num_samples",
        type=int,
        default=8,
        help="Images to generate for the card of a pipeline; 0: none (default: 8).",
    )


def _push(args: argparse.Namespace) -> None:
    from .hub import push_folder

    evaluations = [json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in args.evaluation]
    url = push_folder(
        args.folder,
        args.repo_id,
        commit_message=args.commit_message,
        private=args.private or None,
        create_pr=args.create_pr,
        license=args.license,
        evaluations=evaluations,
        num_samples=args.num_samples,
        analysis=args.analysis,
    )
    print(f"Pushed: {url}")


def _head(pipe):
    if pipe.segmentation_head is None:
        raise ValueError("The model has no segmentation head yet; fit one with `diffuseseg fit`.")
    return pipe.segmentation_head


def _find_pictures(given: list[Path]) -> list[Path]:
    import PIL.Image

    suffixes = PIL.Image.registered_extensions()
    paths = []
    for path in given:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes)
            if not found:
                raise ValueError(f"The folder {path} has no pictures in it.")
            paths += found
        else:
            paths.append(path)
    return paths


def _free_name(stem: str, taken: set[str]) -> str:
    """The stem, numbered where pictures of several folders share it."""
    name, i = stem, 1
    while name in taken:
        i += 1
        name = f"{stem}-{i}"
    taken.add(name)
    return name


COMMANDS = {
    "demo": ("Show the whole idea on drawn faces.", *_of(".demo")),
    "train-ddpm": ("Train a diffusion model on unlabelled images.", *_of(".training.train_ddpm")),
    "fit": ("Fit a segmentation head on a few labelled images.", *_of(".training.train_segmentation_head")),
    "evaluate": ("Measure a fitted model on labelled images.", _evaluate_arguments, _evaluate),
    "segment": ("Segment pictures.", _segment_arguments, _segment),
    "analyze": ("Show which features tell the classes apart.", *_of(".training.analyze_features")),
    "generate": ("Generate a dataset of images with masks.", *_of(".training.generate_dataset")),
    "train-student": ("Train a fast network on images and masks.", *_of(".training.train_student")),
    "convert": ("Make a pipeline of a guided-diffusion checkpoint.", *_of(".training.convert_guided_diffusion")),
    "benchmark": ("Run a benchmark of the paper.", *_of(".training.run_benchmark")),
    "export-onnx": ("Write such a network as an ONNX file.", _export_onnx_arguments, _export_onnx),
    "push": ("Upload a pipeline, a student or a dataset to the Hub, with its card.", _push_arguments, _push),
}


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command `diffuseseg`."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="diffuseseg", description=importlib.import_module(__package__).__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (summary, add_arguments, _) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if argv[:1] == [name]:  # only the command at hand imports what it needs
            _or_say_what_to_install(add_arguments, command)
    args = parser.parse_args(argv)
    from .commands import run_command

    run_command(lambda: COMMANDS[args.command][2](args))


def _or_say_what_to_install(add_arguments, command) -> None:
    try:
        add_arguments(command)
    except ModuleNotFoundError as error:
        if error.name not in ("datasets", "evaluate", "matplotlib", "transformers"):
            raise
        sys.exit(f"error: {error.name} is not installed; run `pip install diffuseseg-diffusers[train]`.")


if __name__ == "__main__":
    main()
