# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Runs a benchmark of Baranchuk et al. (ICLR 2022) and prints its result beside the paper's: `diffuseseg benchmark`."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..jobs.config import option
from ..jobs.contents import contents_of
from ..jobs.errors import UserError
from ..jobs.files import output_folder, write_json
from ..jobs.run import Results, check_run, open_run
from . import run_task
from .generate import GenerateConfig
from .options import DTYPES, RECIPES, FitsHeads, WritesFolder
from .train_student import TrainStudentConfig


if TYPE_CHECKING:
    from ..paper.published_benchmarks import Benchmark

COMMAND = "benchmark"
BENCHMARKS = {path.stem: path for path in sorted(Path(__file__).parents[1].glob("paper/benchmarks/*.json"))}
RESULTS = "results.jsonl"
METHODS = {"ddpm": "DDPM", "dataset_ddpm": "DatasetDDPM"}  # and their names in the paper's table
OWNED = (RESULTS, "model/*", *(f"{method}*.json" for method in METHODS))
OWNED += tuple(
    f"{method}*-seed[0-9]*/{part}"
    for method in METHODS
    for part in ("metrics.json", "examples.png", "segmentation_head/*", "labeler/*", "synthetic/*", "student/*")
)
_named = partial(option, influence=False, why="files and results have it in their names")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(FitsHeads, WritesFolder):
    """Run a benchmark of the paper."""

    benchmark: str = option(
        help=f"One of {', '.join(BENCHMARKS)}, or a file such as those of paper/benchmarks.",
        positional=True,
        reads=True,
    )
    data: Path = option(help="Folder of the published archive, with real/train, real/test and ddpm in it.", reads=True)
    checkpoint: Path = option(help="Checkpoint of guided-diffusion, .pt or .safetensors.", reads=True)
    method: str = _named("ddpm", "Row of the paper's table.", choices=tuple(METHODS))
    num_seeds: int = _named(1, "Number of runs, with seeds 0, 1, …", minimum=1)
    recipe: str = option("paper", "Training procedure.", choices=RECIPES)
    num_samples: int | None = _named(
        None, "Number of images that dataset_ddpm generates (default: 50,000, as published).", minimum=1
    )
    num_inference_steps: int | None = _named(
        None, "Number of DDIM steps for them (default: DDPM with 1,000).", minimum=1
    )
    device: str | None = option(None, "Device to run on, such as cuda:1 (default: a GPU if there is one).")
    dtype: str = option("auto", "Precision of the U-Net.", choices=DTYPES)

    @property
    def name(self) -> str:
        """What results and folders are called, without the seed."""
        return "-".join([self.method, *(str(n) for n in (self.num_samples, self.num_inference_steps) if n)])

    @property
    def model_folder(self) -> Path:
        """Where the converted model is."""
        return self.output_dir / "model"


def benchmark(config: BenchmarkConfig) -> dict:
    """Fits, measures and compares with the paper; the same configuration resumes after the last whole seed.

    Returns:
        `dict`: `benchmark`, `method`, `mean_iou` of each run in percent, their `mean` and `std`.

    Raises:
        UserError: Data or checkpoint are missing, or the paper has no result of the method.

    Examples:
        >>> from diffuseseg_diffusers import BenchmarkConfig, benchmark
        >>> where = dict(data="datasets/horse_21", checkpoint="lsun_horse.pt", output_dir="out/horse_21")
        >>> benchmark(BenchmarkConfig(benchmark="horse_21", **where))["mean"]
    """
    from ..paper.published_benchmarks import compare_with_published, load_benchmark_images, read_benchmark

    # 1. The inputs, and only then the folder.
    path = BENCHMARKS.get(config.benchmark, Path(config.benchmark))
    if not path.is_file():
        raise UserError(
            f"There is no benchmark {config.benchmark}; there are {', '.join(BENCHMARKS)}, or give a JSON file."
        )
    spec = read_benchmark(path)
    if config.method == "dataset_ddpm" and spec.dataset_ddpm is None:
        raise UserError(f"The paper has no DatasetDDPM for {spec.title}; use --method ddpm.")
    check_run(config, COMMAND)
    test = load_benchmark_images(spec, config.data / "real" / "test", spec.test_images)
    folder = config.data / "ddpm" if config.method == "dataset_ddpm" else config.data / "real" / "train"
    train = load_benchmark_images(spec, folder, spec.train_images)
    is_new = config.overwrite or not config.model_folder.is_dir()
    converted = converted_checkpoint(config, spec) if is_new else None
    reads = {name: contents_of([getattr(config, name)]) for name in ("data", "checkpoint")}
    open_run(config, COMMAND, {"benchmark": asdict(spec), **reads}, OWNED)
    results = Results(config.output_dir / RESULTS, {"benchmark": spec.title})
    if converted is not None:
        with output_folder(config.model_folder, overwrite=False, command=COMMAND) as new:
            converted.save_pretrained(new)

    # 2. A model for each seed, measured.
    run = partial(run_seed, config, spec, train, test)
    found = [results.get(f"{config.name} {seed}", partial(run, seed)) for seed in range(config.num_seeds)]

    # 3. Beside the paper.
    percent = [100 * metrics["mean_iou"] for metrics in found]
    table, report = compare_with_published(spec, METHODS[config.method], percent)
    print(f"\n{table}")
    write_json(config.output_dir / f"{config.name}.json", report)
    return report


def converted_checkpoint(config: BenchmarkConfig, spec: "Benchmark") -> Any:
    """The checkpoint as a pipeline."""
    from diffusers import DDPMPipeline

    from ..paper.guided_diffusion import PRESETS, Flags, convert_checkpoint, read_checkpoint

    if not config.checkpoint.is_file():
        raise UserError(f"There is no file {config.checkpoint}; {spec.checkpoint} is at {spec.checkpoint_url}.")
    flags = PRESETS[spec.preset] if spec.preset else Flags.parse(spec.flags)
    return DDPMPipeline(*convert_checkpoint(read_checkpoint(config.checkpoint), flags))


def run_seed(config: BenchmarkConfig, spec: "Benchmark", train: Any, test: Any, seed: int) -> dict:
    """Fits with a seed, measures, and returns the metrics."""
    from ..evaluation.evaluate import evaluate_segmentation, format_metrics
    from ..figures.pages import examples_page

    folder = config.output_dir / f"{config.name}-seed{seed}"
    folder.mkdir(exist_ok=True)
    if config.method == "ddpm":  # a head on real images
        fitted = fitted_pipeline(config, spec, train, seed)
        fitted.segmentation_head.save_pretrained(folder / "segmentation_head")
    else:
        fitted = dataset_ddpm(config, spec, train, seed, folder)
    # As published: absent classes count as 0, and what is predicted where there is no label is wrong.
    metrics, examples = evaluate_segmentation(
        fitted, test, config.batch_size, absent_as_zero=True, count_ignored=True, num_examples=12
    )
    if config.method == "ddpm":  # a student has no uncertainty to show
        page = examples_page(examples, spec.label_names, spec.palette, spec.ignore_index)
        page.savefig(folder / "examples.png")
    write_json(folder / "metrics.json", metrics)
    print(format_metrics(metrics))
    return metrics


def dataset_ddpm(config: BenchmarkConfig, spec: "Benchmark", train: Any, seed: int, folder: Path) -> Any:
    """A head on generated images, a dataset generated and labelled with it, and a student of that."""
    from ..jobs.hardware import find_device
    from ..pipelines.pixel import DiffuseSegPipeline
    from ..students.student import StudentSegmenter

    own, labeler, student = spec.dataset_ddpm, folder / "labeler", folder / "student"
    if not labeler.is_dir():
        whole = DiffuseSegPipeline.from_pretrained(config.model_folder, segmentation_head=None)
        whole.segmentation_head = fitted_pipeline(config, spec, train, seed).segmentation_head
        with output_folder(labeler, overwrite=False, command=COMMAND) as new:
            whole.save_pretrained(new)
    steps, device = config.num_inference_steps, find_device(config.device)
    run_task(
        GenerateConfig(
            model=str(labeler),
            num_samples=config.num_samples or own["num_samples"],
            scheduler="ddim" if steps else own["scheduler"],
            num_inference_steps=steps or own["num_inference_steps"],
            drop_uncertain=own["drop_uncertain"],
            seed=seed,
            batch_size=config.batch_size or 4,
            device=str(device),
            dtype=config.dtype,
            output_dir=folder / "synthetic",
        )
    )
    run_task(
        TrainStudentConfig(
            train_dataset_name=str(folder / "synthetic"),
            model=own["student"],
            from_scratch=True,
            no_augmentation=True,
            **{name: own[name] for name in ("num_epochs", "train_batch_size", "learning_rate")},
            seed=seed,
            output_dir=student,
        )
    )
    return StudentSegmenter.from_pretrained(student).to(device)


def fitted_pipeline(config: BenchmarkConfig, spec: "Benchmark", train: Any, seed: int) -> Any:
    """The model with a head that is fitted on the training images."""
    from ..heads.fit import fit_segmentation_head
    from ..heads.recipes import RECIPES
    from ..pipelines.loading import load_pipeline

    pipe: Any = load_pipeline(str(config.model_folder), device=config.device, dtype=config.dtype)
    pipe.segmentation_head = fit_segmentation_head(
        pipe,
        train,
        spec.blocks,
        spec.timesteps,
        clean=False,  # as published, whatever the recipe
        num_members=spec.num_members,
        recipe=replace(RECIPES["paper"], batch_size=spec.batch_size) if config.recipe == "paper" else config.recipe,
        palette=spec.palette,
        seed=seed,
        batch_size=config.batch_size,
        cache_dir=config.activation_dir,
    )
    return pipe
