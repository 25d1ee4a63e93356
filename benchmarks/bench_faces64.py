# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Fitting, segmenting and accuracy against the published code, on the same U-Net, images and machine.

    git clone https://github.com/yandex-research/ddpm-segmentation
    python benchmarks/bench_faces64.py --model MODEL --dataset_name DATA --published_code ddpm-segmentation

The published side runs that repository's own `train_interpreter.train`, `collect_features`, `predict_labels` and
`compute_iou`. Its U-Net is replaced by the diffusers one (a pass for each timestep, hooks on the up-blocks), and calls
to `.cuda()` do nothing where there is no GPU. Without `--published_code`, only our side runs.
"""

import argparse
import contextlib
import importlib
import io
import json
import statistics
import sys
import tempfile
import time
import types
from collections import defaultdict

import torch
from tqdm.auto import tqdm

from diffuseseg_diffusers import LabeledImages, evaluate_segmentation, fit_segmentation_head, load_labeled_images
from diffuseseg_diffusers.images.image_processor import DiffuseSegImageProcessor
from diffuseseg_diffusers.jobs.command import keep_freed_memory
from diffuseseg_diffusers.pipelines.loading import load_pipeline


TIMESTEPS = [50, 150, 250]


def import_published(folder: str):
    """Imports the published training script, standing in for what it imports and this benchmark does not use."""
    sys.path.insert(0, folder)
    names = ["cv2", "torchvision", "guided_diffusion", "guided_diffusion.guided_diffusion"]
    names += [f"guided_diffusion.guided_diffusion.{m}" for m in ("script_util", "dist_util", "image_datasets")]
    for name in names:
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torchvision"].transforms = None
    sys.modules[names[-3]].model_and_diffusion_defaults = sys.modules[names[-3]].add_dict_to_argparser = None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sys.modules[names[-2]].dev = lambda: device
    sys.modules[names[-1]]._list_image_files_recursively = None
    if device == "cpu":
        torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    return tuple(
        importlib.import_module(m) for m in ("train_interpreter", "src.feature_extractors", "src.pixel_classifier")
    )


class Published:
    """The published code on a diffusers U-Net, outputs of whole up-blocks as features."""

    def __init__(self, folder: str, model: str):
        self.interpreter, self.features, self.classifier = import_published(folder)
        self.pipe = load_pipeline(model, dtype="float32")
        self.pipe.unet.to(memory_format=torch.contiguous_format)
        self.processor = DiffuseSegImageProcessor(self.pipe.unet.config.in_channels)

    @torch.no_grad()
    def extract(self, example, noise, args):
        size = args["dim"][:2]
        image = self.processor.preprocess(self.processor.load(example.image), *size).to(self.pipe.device)
        outputs, activations = [], []
        hooks = [
            b.register_forward_hook(lambda m, i, o: outputs.append(o.detach().float()))
            for b in self.pipe.unet.up_blocks
        ]
        for t in TIMESTEPS:
            step = torch.tensor([t], device=image.device)
            self.pipe.unet(self.pipe.scheduler.add_noise(image, noise, step), step)
            activations += outputs
            outputs.clear()
        for hook in hooks:
            hook.remove()
        return self.features.collect_features(args, activations)  # [D,H,W]

    def run(self, train: LabeledImages, test: LabeledImages, seed: int) -> dict:
        unet = self.pipe.unet.config
        height = width = unet.sample_size
        channels = sum(unet.block_out_channels) * len(TIMESTEPS)
        args = {
            "dim": [height, width, channels],
            "upsample_mode": "bilinear",
            "number_class": train.num_classes,
            "ignore_label": 255,
            "batch_size": 64,
            "model_num": 10,
            "start_model_num": 0,
            "category": "",
        }
        seeded = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, unet.in_channels, height, width, generator=seeded).to(self.pipe.device)

        def prepare_data(args):
            features = torch.zeros(len(train), channels, height, width)
            labels = torch.zeros(len(train), height, width, dtype=torch.uint8)
            for i, example in enumerate(train):
                features[i] = self.extract(example, noise, args).cpu()
                labels[i] = torch.from_numpy(example.mask)
                for c in range(train.num_classes):
                    if 0 < (labels[i] == c).sum() < 20:
                        labels[i][labels[i] == c] = 255
            features = features.permute(1, 0, 2, 3).reshape(channels, -1).permute(1, 0)
            return features[labels.flatten() != 255], labels.flatten()[labels.flatten() != 255]

        self.interpreter.prepare_data = prepare_data
        self.classifier.get_class_names = lambda category: train.label_names
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            args["exp_dir"] = folder
            self.interpreter.setup_seed(seed)
            began = time.perf_counter()
            self.interpreter.train(args)
            fit = time.perf_counter() - began
            models = []
            for i in range(10):
                state = torch.load(f"{folder}/model_{i}.pth", weights_only=True)["model_state_dict"]
                model = self.classifier.pixel_classifier(train.num_classes, channels)
                model.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
                models.append(model.to(self.pipe.device).eval())
            predictions, references, seconds = [], [], []
            for example in test:
                began = time.perf_counter()
                x = self.extract(example, noise, args).view(channels, -1).permute(1, 0)
                mask, _ = self.classifier.predict_labels(models, x, size=(height, width))
                seconds.append(time.perf_counter() - began)
                predictions.append(mask.numpy())
                references.append(example.mask)
            miou = self.classifier.compute_iou(args, predictions, references)
        return {"fit_seconds": fit, "seconds_per_image": statistics.median(seconds), "mean_iou": float(miou)}


def run_ours(pipe, train: LabeledImages, test: LabeledImages, seed: int, recipe: str) -> dict:
    """The default recipe reads features of its own; the others those that the published side reads."""
    pipe.segmentation_head = None
    features = dict(up_blocks=range(len(pipe.unet.config.block_out_channels)), timesteps=TIMESTEPS)
    began = time.perf_counter()
    head = fit_segmentation_head(pipe, train, recipe=recipe, seed=seed, **({} if recipe == "default" else features))
    fit = time.perf_counter() - began
    pipe.segmentation_head = head
    metrics, _ = evaluate_segmentation(pipe, test, show_progress=False)
    result = {"fit_seconds": fit, "mean_iou": metrics["mean_iou"]}
    for batch_size in (1, 8):
        metrics, _ = evaluate_segmentation(pipe, test, batch_size, show_progress=False)
        result["seconds_per_image" + ("_one_by_one" if batch_size == 1 else "")] = metrics["seconds_per_image"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--dataset_config_name", default="labeled")
    parser.add_argument("--published_code", help="Clone of yandex-research/ddpm-segmentation.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dtypes", nargs="+", default=["auto", "float32"])
    parser.add_argument("--recipes", nargs="+", default=["default", "fast", "paper"])
    args = parser.parse_args()
    keep_freed_memory()  # as in every command, here for both sides

    train = load_labeled_images(args.dataset_name, args.dataset_config_name, "train")
    test = load_labeled_images(args.dataset_name, args.dataset_config_name, "test", num_classes=train.num_classes)
    published = Published(args.published_code, args.model) if args.published_code else None
    pipes = {dtype: load_pipeline(args.model, dtype=dtype) for dtype in args.dtypes}
    runs = defaultdict(list)
    for seed in tqdm(args.seeds, desc="Seeds"):  # both sides in turn, so that both see the machine's moods
        if published:
            runs["published code"].append(published.run(train, test, seed))
        for pipe in pipes.values():
            dtype = str(pipe.unet.dtype).removeprefix("torch.")
            for recipe in args.recipes:
                runs[f"ours, {recipe}, {dtype}"].append(run_ours(pipe, train, test, seed, recipe))
        print(json.dumps(runs), flush=True)

    print(f"\n{torch.get_num_threads()} threads; medians over seeds {args.seeds}, mean and range of the mean IoU\n")
    print("| | fit, s | | segment, s an image | | mean IoU |")
    print("|---|---|---|---|---|---|")
    base = (
        {k: statistics.median(r[k] for r in runs["published code"]) for k in ("fit_seconds", "seconds_per_image")}
        if published
        else {}
    )
    for name, results in runs.items():
        cells = [name]
        for key in ("fit_seconds", "seconds_per_image"):
            value = statistics.median(r[key] for r in results)
            cells += [f"{value:.3g}", f"{base[key] / value:.1f}×" if base else ""]
        iou = [r["mean_iou"] for r in results]
        cells.append(f"{statistics.mean(iou):.4f} ({min(iou):.4f} to {max(iou):.4f})")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
