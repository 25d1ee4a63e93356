# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Shows which features of a diffusion model tell classes apart: `diffuseseg analyze`.

    python training/analyze_features.py --model MODEL --dataset_name DATA --study blocks-timesteps --output_dir OUT

Each study leaves its results as JSON and CSV, and its figures as PNG and SVG. The same command line goes on where a
study was cut off.
"""

import argparse
import csv
import importlib.util
import shutil
import warnings
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from diffuseseg_diffusers import DiffuseSegPipeline, LabeledImages, evaluate_segmentation
from diffuseseg_diffusers.arguments import add_cache_argument, add_model_arguments
from diffuseseg_diffusers.data.arguments import add_data_arguments, load_data
from diffuseseg_diffusers.features.pixel_unet import PAPER_TIMESTEPS, DecoderFeatureExtractor, num_decoder_blocks
from diffuseseg_diffusers.figures.curves import block_curves, block_heat_map, corruption_curves, label_curves
from diffuseseg_diffusers.figures.pages import cluster_page
from diffuseseg_diffusers.heads.cross_validation import (
    classes_of,
    cross_validated,
    fit_groups,
    folds_of,
    missing_classes,
    others,
    score,
)
from diffuseseg_diffusers.heads.extraction import extract_activations
from diffuseseg_diffusers.heads.fit import fit_segmentation_head
from diffuseseg_diffusers.heads.recipes import RECIPES, default_blocks
from diffuseseg_diffusers.heads.selection import study_timesteps
from diffuseseg_diffusers.heads.table import ActivationTable
from diffuseseg_diffusers.hub.loading import load_pipeline
from diffuseseg_diffusers.runs.command import run_command
from diffuseseg_diffusers.runs.errors import UserError
from diffuseseg_diffusers.runs.files import check_output_folder, write_json
from diffuseseg_diffusers.runs.resuming import Results, fingerprint
from diffuseseg_diffusers.studies.clusters import cluster_maps, matched
from diffuseseg_diffusers.studies.corruptions import Corrupted, corruption_names
from diffuseseg_diffusers.studies.labels import class_sizes, label_efficiency
from diffuseseg_diffusers.studies.noise import NOISES, NoiseVariant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_data_arguments(parser, split="train")
    add_cache_argument(parser)
    group = parser.add_argument_group("study")
    group.add_argument("--study", nargs="+", choices=list(STUDIES), default=["blocks-timesteps"], help="What to find.")
    group.add_argument(
        "--test_split", default="test", help="For labels and corruptions, to measure on (default: test)."
    )
    group.add_argument("--folds", type=int, default=5, help="Of the cross-validations (default: 5).")
    group.add_argument("--blocks", type=int, nargs="+", help="Decoder blocks (default: all; the paper's for the rest).")
    group.add_argument(
        "--timesteps", type=int, nargs="+", help="Diffusion timesteps (default: ten, the paper's three for the rest)."
    )
    group.add_argument("--num_clusters", type=int, default=5, help="k of the clusters (default: 5).")
    group.add_argument("--num_images", type=int, default=3, help="Images that are clustered (default: 3).")
    group.add_argument("--counts", type=int, nargs="+", default=[1, 2, 5, 10, 20], help="Numbers of labelled images.")
    group.add_argument("--draws", type=int, default=5, help="Of labelled images, and of averaged noise (default: 5).")
    group.add_argument("--seed", type=int, default=0, help="Of noise, folds, draws and classifiers (default: 0).")
    group.add_argument("--batch_size", type=int, default=4, help="Images in a pass of the U-Net (default: 4).")
    group.add_argument("--activation_dir", help="Keep activations in a temporary file here, not in memory.")
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", type=Path, required=True, help="For tables and figures.")
    group.add_argument("--overwrite", action="store_true", help="Replace what is in the output folder.")


class Study:
    """What all studies share: model, data, settings, and results that are kept."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.pipe = load_pipeline(args.model, args.revision, args.device, args.dtype)
        self.dataset = load_data(args)
        self.classes = classes_of(self.dataset)
        self.settings = {
            "weights": fingerprint(self.pipe.unet),
            "dtype": str(self.pipe.unet.dtype).removeprefix("torch."),
            "dataset": args.dataset_name,
            "config": args.dataset_config_name,
            "split": args.split,
            "seed": args.seed,
        }
        unet, scheduler = self.pipe.unet, self.pipe.scheduler
        self.all_blocks = args.blocks or list(range(num_decoder_blocks(unet)))
        self.all_timesteps = args.timesteps or study_timesteps(scheduler.config.num_train_timesteps)
        self.blocks = args.blocks or list(default_blocks(unet, RECIPES["paper"]))
        self.timesteps = args.timesteps or list(PAPER_TIMESTEPS)

    def cells(self, name: str, **settings) -> Results:
        return Results(self.args.output_dir / f"{name}.jsonl", self.settings | settings)

    def extractor(self, blocks: list[int], timesteps: list[int]) -> DecoderFeatureExtractor:
        return DecoderFeatureExtractor(
            self.pipe.unet, self.pipe.scheduler, blocks, timesteps, noise_seed=self.args.seed
        )

    def table(self, extractor: DecoderFeatureExtractor, dataset: LabeledImages | None = None) -> ActivationTable:
        args = self.args
        table = extract_activations(
            extractor,
            dataset or self.dataset,
            seed=args.seed,
            batch_size=args.batch_size,
            cache_dir=args.activation_dir,
        )
        return table.to(self.pipe.unet.device)

    def folds(self, labels: torch.Tensor) -> list[list[int]]:
        folds = folds_of(len(self.dataset), self.args.folds, self.args.seed)
        for what in missing_classes(labels, others(folds), self.classes):
            print(what)
        return folds

    def write(self, name: str, rows: list[dict], figures: dict) -> None:
        """The results of a study: `NAME.json`, `NAME.csv`, and each figure as PNG and SVG."""
        folder = self.args.output_dir
        write_json(folder / f"{name}.json", {"settings": self.settings, "rows": rows})
        flat = [{k: v for k, v in row.items() if not isinstance(v, list | dict)} for row in rows]
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(flat[0]))
            writer.writeheader()
            writer.writerows(flat)
        for title, figure in figures.items():
            for suffix in ("png", "svg"):
                figure.savefig(folder / f"{title}.{suffix}")
        print(f"{name}: {len(rows)} rows, {', '.join(f'{t}.png' for t in figures)} in {folder}.")


def blocks_timesteps(study: Study) -> None:
    """One classifier on one block at one timestep (paper, section 3, figure 3)."""
    blocks, timesteps = study.all_blocks, study.all_timesteps
    cells = study.cells("blocks-timesteps", folds=study.args.folds)
    table = study.table(study.extractor(blocks, timesteps))
    folds, classes = study.folds(table.labels), study.classes
    shares, small = class_sizes(table.labels, classes)
    rows = []
    pairs = [(b, t) for b in blocks for t in timesteps]
    for block, t in tqdm(pairs, "Blocks × timesteps", unit="cell"):
        result = cells.get(
            f"{block}@{t}", lambda b=block, t=t: cross_validated(table, [b], [t], classes, folds, seed=study.args.seed)
        )
        iou = np.array([np.nan if x is None else x for x in result["per_class_iou"]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # no class of a kind
            means = {
                f"{kind}_mean_iou": float(np.nanmean(iou[np.array(small) == (kind == "small")]))
                for kind in ("small", "large")
            }
        rows.append({"block": block, "timestep": t, **result, **means})
    best = max(rows, key=lambda r: r["mean_iou"])
    print(f"Best: block {best['block']} at timestep {best['timestep']}, mean IoU {best['mean_iou']:.4f}.")
    named = [f"{n} ({s:.1%})" for n, s, is_small in zip(classes.names, shares, small) if is_small]
    print(f"Small classes, below the median share of the area: {', '.join(named)}.")
    study.write(
        "blocks-timesteps", rows, {"blocks-timesteps": block_curves(rows), "blocks-timesteps-map": block_heat_map(rows)}
    )


def clusters(study: Study) -> None:
    """k-means of the pixels of a few images for a grid of blocks and timesteps (paper, section 3, figure 4)."""
    args = study.args
    if importlib.util.find_spec("sklearn") is None:
        raise UserError("scikit-learn is not installed; run `pip install diffuseseg-diffusers[analysis]`.")
    shown = study.dataset.select(range(min(args.num_images, len(study.dataset))))
    pictures = [shown[i].image for i in range(len(shown))]
    blocks = args.blocks or list(default_blocks(study.pipe.unet, RECIPES["paper"]))
    timesteps = args.timesteps or study.all_timesteps[1::2]
    table = study.table(study.extractor(blocks, timesteps), shown)
    maps: dict[tuple[int, int], list[np.ndarray]] = {}
    with tqdm(total=len(blocks) * len(timesteps), desc="Clusters", unit="cell") as bar:
        for i, block in enumerate(blocks):
            for j, t in enumerate(timesteps):
                entry = next(e for e, f in enumerate(table.info) if (f.block, f.timestep) == (block, t))
                found = cluster_maps(
                    [table.image(n, [entry])[0][0] for n in range(len(shown))], args.num_clusters, args.seed
                )
                beside = maps.get((block, timesteps[j - 1])) if j else maps.get((blocks[i - 1], t)) if i else None
                maps[block, t] = matched(found, beside, args.num_clusters) if beside else found
                bar.update()
    rows = [{"block": b, "timestep": t, "num_clusters": args.num_clusters} for b, t in maps]
    study.write("clusters", rows, {"clusters": cluster_page(pictures, maps, args.num_clusters)})


def noise(study: Study) -> None:
    """Variants of stochastic feature extraction, trained and tested in all combinations (paper, section 4)."""
    cells = study.cells(
        "noise", folds=study.args.folds, blocks=study.blocks, timesteps=study.timesteps, draws=study.args.draws
    )
    missing = [f"{a} / {b}" for a in NOISES for b in NOISES if f"{a} / {b}" not in cells.results]
    tables, heads = {}, {}
    for kind in NOISES if missing else ():
        extractor = NoiseVariant(
            *(study.pipe.unet, study.pipe.scheduler, study.blocks, study.timesteps),
            noise_seed=study.args.seed,
            noise=kind,
            draws=study.args.draws,
        )
        tables[kind] = study.table(extractor)
    rows = []
    folds = study.folds(tables["one"].labels) if missing else []
    for trained in tqdm(NOISES, "Noise", unit="row"):
        for tested in NOISES:

            def compute(trained: str = trained, tested: str = tested) -> dict:
                if trained not in heads:
                    heads[trained] = fit_groups(
                        tables[trained],
                        study.blocks,
                        study.timesteps,
                        study.classes,
                        others(folds),
                        5,
                        seed=study.args.seed,
                    )
                return score(heads[trained], tables[tested], folds, study.classes)

            result = cells.get(f"{trained} / {tested}", compute)
            rows.append({"trained": trained, "tested": tested, **result})
    print(f"{'trained with':<14}" + "".join(f"{n:>14}" for n in NOISES))
    for trained in NOISES:
        values = [r["mean_iou"] for r in rows if r["trained"] == trained]
        print(f"{trained:<14}" + "".join(f"{v:>14.4f}" for v in values))
    study.write("noise", rows, {})


def labels(study: Study) -> None:
    """Mean IoU on the test split over the number of labelled images."""
    args = study.args
    cells = study.cells(
        "labels", blocks=study.blocks, timesteps=study.timesteps, draws=args.draws, test_split=args.test_split
    )
    counts = [c for c in args.counts if c <= len(study.dataset)]
    if not counts:
        raise UserError(f"--counts {args.counts} asks for more than the {len(study.dataset)} images that there are.")
    train = test = None
    if any(str(c) not in cells.results for c in counts):
        extractor = study.extractor(study.blocks, study.timesteps)
        train = study.table(extractor)
        test = study.table(extractor, test_data(study))
    rows = []
    for count in tqdm(counts, "Labelled images", unit="count"):
        result = cells.get(
            str(count),
            lambda n=count: label_efficiency(
                train, test, study.blocks, study.timesteps, study.classes, n, args.draws, seed=args.seed
            ),
        )
        scores = np.array(result["mean_iou"])
        rows.append(
            {
                "labelled_images": count,
                "mean": float(scores.mean()),
                "std": float(scores.std()),
                "least": float(scores.min()),
                "most": float(scores.max()),
                **result,
            }
        )
        tqdm.write(f"{count:>3} labelled: {scores.mean():.4f} ± {scores.std():.4f}")
    study.write("labels", rows, {"labels": label_curves({"diffusion features": rows})})


def corruptions(study: Study) -> None:
    """Mean IoU under common corruptions (Hendrycks and Dietterich, ICLR 2019) at five severities."""
    args, pipe = study.args, study.pipe
    try:
        names = corruption_names()
    except ImportError as error:  # also where a library of the system is missing that OpenCV wants
        raise UserError(
            f"`imagecorruptions` cannot be used: {error}; run `pip install diffuseseg-diffusers[analysis]`."
        ) from error
    cells = study.cells("corruptions", blocks=study.blocks, timesteps=study.timesteps, test_split=args.test_split)
    pairs = [(name, severity) for name in names for severity in range(1, 6)]
    test = test_data(study)
    if any(f"{name} {severity}" not in cells.results for name, severity in pairs):
        pipe.segmentation_head = fit_segmentation_head(
            pipe,
            study.dataset,
            study.blocks,
            study.timesteps,
            recipe="fast",
            seed=args.seed,
            batch_size=args.batch_size,
        )
    clean = cells.get("clean", lambda: measured(pipe, test))["mean_iou"]
    rows = []
    for name, severity in tqdm(pairs, "Corruptions", unit="cell"):
        result = cells.get(f"{name} {severity}", lambda n=name, s=severity: measured(pipe, Corrupted(test, n, s)))
        rows.append(
            {
                "corruption": name,
                "severity": severity,
                "mean_iou": result["mean_iou"],
                "relative": result["mean_iou"] / clean,
            }
        )
    print(f"{'mean IoU':<18} clean {clean:.4f}; severity" + "".join(f"{s:>8}" for s in range(1, 6)))
    for name in names:
        print(f"{name:<38}" + "".join(f"{r['mean_iou']:>8.4f}" for r in rows if r["corruption"] == name))
    study.write("corruptions", rows, {"corruptions": corruption_curves(rows, clean)})


def measured(pipe: DiffuseSegPipeline, dataset: LabeledImages) -> dict:
    return {"mean_iou": evaluate_segmentation(pipe, dataset, show_progress=False)[0]["mean_iou"]}


def test_data(study: Study) -> LabeledImages:
    names, number = study.dataset.label_names, study.dataset.num_classes
    return load_data(study.args, study.args.test_split, label_names=names, num_classes=number)


STUDIES = {
    "blocks-timesteps": blocks_timesteps,
    "clusters": clusters,
    "noise": noise,
    "labels": labels,
    "corruptions": corruptions,
}


def main(args: argparse.Namespace) -> None:
    if args.overwrite:
        shutil.rmtree(args.output_dir, ignore_errors=True)
    if not any(args.output_dir.glob("*.jsonl")):
        check_output_folder(args.output_dir, overwrite=False)
    study = Study(args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name in args.study:
        STUDIES[name](study)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parsed = parser.parse_args()
    run_command(lambda: main(parsed))
