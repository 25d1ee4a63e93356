# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""How fast and how accurate is it beside the published code, on the same U-Net, images and machine?

    git clone https://github.com/yandex-research/ddpm-segmentation
    python benchmarks/bench_published.py --published_code ddpm-segmentation

The published side runs that repository's own `train_interpreter.train`, `collect_features`, `predict_labels` and
`compute_iou`. Its U-Net is replaced by the diffusers one (a pass for each timestep, hooks on the up-blocks), and calls
to `.cuda()` do nothing where there is no GPU. `fast` and `paper` read the published features, `default` its own.
"""

import contextlib
import importlib
import io
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any

import torch
from harness import Result, Task, arguments, fit, in_turn, mean_iou, now, ratio

from diffuseseg_diffusers import LabeledImages
from diffuseseg_diffusers.images.image_processor import DiffuseSegImageProcessor


TIMESTEPS = [50, 150, 250]
MEMBERS = 10


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

    def __init__(self, folder: str, pipe: Any):
        self.interpreter, self.features, self.classifier = import_published(folder)
        self.pipe = pipe
        self.pipe.unet.to(memory_format=torch.contiguous_format)
        self.processor = DiffuseSegImageProcessor(self.pipe.unet.config.in_channels)

    @torch.no_grad()
    def extract(self, example):
        size, noise, args = self.args["dim"][:2], self.noise, self.args
        image = self.processor.preprocess(self.processor.load(example.image), *size).to(self.pipe.device)
        outputs, activations = [], []
        keep = lambda module, inputs, output: outputs.append(output.detach().float())  # noqa: E731
        hooks = [block.register_forward_hook(keep) for block in self.pipe.unet.up_blocks]
        for t in TIMESTEPS:
            step = torch.tensor([t], device=image.device)
            self.pipe.unet(self.pipe.scheduler.add_noise(image, noise, step), step)
            activations += outputs
            outputs.clear()
        for hook in hooks:
            hook.remove()
        return self.features.collect_features(args, activations)  # [D,H,W]

    def fit(self, train: LabeledImages, seed: int) -> None:
        """Trains the classifiers as published, and keeps them in `models`."""
        unet = self.pipe.unet.config
        height = width = unet.sample_size
        channels = sum(unet.block_out_channels) * len(TIMESTEPS)
        self.args = args = {
            "dim": [height, width, channels],
            "upsample_mode": "bilinear",
            "number_class": train.num_classes,
            "ignore_label": 255,
            "batch_size": 64,
            "model_num": MEMBERS,
            "start_model_num": 0,
            "category": "",
        }
        seeded = torch.Generator().manual_seed(seed)
        self.noise = torch.randn(1, unet.in_channels, height, width, generator=seeded).to(self.pipe.device)

        def prepare_data(args):
            features = torch.zeros(len(train), channels, height, width)
            labels = torch.zeros(len(train), height, width, dtype=torch.uint8)
            for i, example in enumerate(train):
                features[i] = self.extract(example).cpu()
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
            self.interpreter.train(args)
            self.models = []
            for i in range(MEMBERS):
                state = torch.load(f"{folder}/model_{i}.pth", weights_only=True)["model_state_dict"]
                model = self.classifier.pixel_classifier(train.num_classes, channels)
                model.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
                self.models.append(model.to(self.pipe.device).eval())

    def segment(self, example) -> Any:
        """The mask of an image, `[H, W]`."""
        x = self.extract(example).view(self.args["dim"][-1], -1).permute(1, 0)
        return self.classifier.predict_labels(self.models, x, size=tuple(self.args["dim"][:2]))[0].numpy()

    def mean_iou(self, test: LabeledImages) -> float:
        predictions = [self.segment(example) for example in test]
        with contextlib.redirect_stdout(io.StringIO()):
            return float(self.classifier.compute_iou(self.args, predictions, [example.mask for example in test]))


def seconds_of(run: Callable[[], Any]) -> float:
    began = now()
    run()
    return now() - began


def main() -> None:
    options = dict(dtypes=["auto", "float32"], recipes=["default", "fast"], rounds=3, images=16)
    args = arguments(__doc__, published_code="ddpm-segmentation", seeds=[0], **options)
    task = Task(args.task)
    published = Published(args.published_code, task.pipe("float32"))
    pipes: dict[str, Any] = {}
    for dtype in args.dtypes:
        for recipe in args.recipes:
            pipe = task.pipe(dtype)
            pipes[f"`--recipe {recipe}`, {str(pipe.unet.dtype).removeprefix('torch.')}"] = pipe
    up_blocks = range(len(published.pipe.unet.config.block_out_channels))
    columns = {
        "side": ("", "text"),
        "fit": ("fit, s", "1"),
        "fit_times": ("", "times"),
        "segment": ("segment an image, ms", "ms"),
        "segment_times": ("", "times"),
        "alone_times": ("one by one", "times"),
        "mean_iou": ("mean IoU, %", "percent"),
    }
    about = (
        f"{len(task.train)} labelled images to fit on, {len(task.test)} to test on; up-blocks at {TIMESTEPS}, "
        f"{MEMBERS} members, but the default recipe its own; {args.images} images segmented in batches of 8 and one by "
        f"one, by the published code one by one, medians of {args.rounds} rounds in turn. Ratios are to the published "
        f"code."
    )
    result = Result(args.name or f"published-{args.task}", columns, args, about)

    def measure(seed: int) -> dict[str, dict]:
        found = {"published code": {"fit": seconds_of(lambda: published.fit(task.train, seed))}}
        for (name, pipe), recipe in zip(pipes.items(), args.recipes * len(args.dtypes)):
            features = {} if recipe == "default" else {"up_blocks": up_blocks, "timesteps": TIMESTEPS}

            def own_fit(pipe=pipe, recipe=recipe, features=features) -> None:
                fit(pipe, task.train, recipe=recipe, seed=seed, **features)

            found[name] = {"fit": seconds_of(own_fit)}
        examples = [task.test[i] for i in range(args.images)]
        pictures = [example.image for example in examples]
        sides = {"published code": lambda: [published.segment(example) for example in examples]}
        sides |= {k: lambda p=p: p.segment(pictures, batch_size=8, output_type="np") for k, p in pipes.items()}
        alone = {
            f"{k}, alone": lambda p=p: [p.segment(x, output_type="np") for x in pictures] for k, p in pipes.items()
        }
        seconds = in_turn(sides | alone, args.rounds)
        for name in found:
            found[name]["segment"] = [s / args.images for s in seconds[name]]
            found[name]["segment_times"] = ratio(seconds, "published code", name)
            found[name]["fit_times"] = found["published code"]["fit"] / found[name]["fit"]
            ours = name in pipes
            if ours:
                found[name]["alone_times"] = ratio(seconds, "published code", f"{name}, alone")
            found[name]["mean_iou"] = mean_iou(pipes[name], task.test) if ours else published.mean_iou(task.test)
        return found

    runs = [result.cell(f"seed {seed}", lambda seed=seed: measure(seed)) for seed in args.seeds]
    for name in runs[0]:
        own = {key: [run[name][key] for run in runs] for key in runs[0][name]}
        result.row(side=name, **own | {"segment": [s for values in own["segment"] for s in values]})
    result.show()


if __name__ == "__main__":
    main()
