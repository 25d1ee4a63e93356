# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The parts of training a diffusion model: U-Nets by image size, the objective, held-out losses, checkpoints.

Ho et al., "Denoising Diffusion Probabilistic Models" (NeurIPS 2020). Everything random in a step is a function of the
run's seed and the step's position in the stream of images, so a checkpoint needs no state of random generators.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..diffusion.batches import ShuffledBatches, StreamedBatches
from ..runs.errors import UserError
from ..runs.files import write_json


STATE_FILE = "run.json"


def checkpoints(output_dir: Path) -> list[Path]:
    """Whole checkpoints of a run, the newest last."""
    found = [p for p in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: Path,
    run: dict,
    unet: UNet2DModel,
    ema: EMAModel | None,
    batches: "ShuffledBatches | StreamedBatches",
    limit: int | None = None,
) -> Path:
    """Writes a checkpoint that takes its name only once all of it is on the disk, then drops the oldest.

    Args:
        run (`dict`): For `run.json`; its `step` names the folder.
        limit (`int`, *optional*): How many checkpoints are kept.

    Raises:
        OSError: It cannot be written; those before are still there.
    """
    folder = output_dir / f"checkpoint-{run['step']:06d}"
    partial = output_dir / f".{folder.name}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(partial))
        write_json(partial / f"data_{accelerator.process_index}.json", batches.state_dict())
        if accelerator.is_main_process:
            if ema is not None:
                ema.save_pretrained(partial / "unet_ema")
            write_json(partial / STATE_FILE, {**run, "unet": _comparable(unet)})
    except (OSError, RuntimeError, SafetensorError) as error:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        kept = checkpoints(output_dir)
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        raise OSError(f"The checkpoint of step {run['step']} cannot be saved ({error}); {last}.") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _to_disk(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        for old in checkpoints(output_dir)[: -limit if limit else 0]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return folder


def load_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    unet: UNet2DModel,
    ema: EMAModel | None,
    batches: "ShuffledBatches | StreamedBatches",
) -> dict:
    """Brings a run back to where a checkpoint was made.

    Returns:
        `dict`: What `run.json` says.

    Raises:
        UserError: The checkpoint is of another model or dataset, or made without EMA when there is one (what differs
            is named).
    """
    if not (folder / STATE_FILE).is_file():
        raise UserError(f"{folder} is no checkpoint of this script: it has no {STATE_FILE}.")
    run = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    now = _comparable(unet)
    different = [
        f"{k} is {run['unet'].get(k)} there and {now.get(k)} here" for k in now if run["unet"].get(k) != now[k]
    ]
    if different:
        raise UserError(f"The checkpoint {folder} is of another model: {'; '.join(different)}.")
    if (ema is not None) != (folder / "unet_ema").is_dir():
        raise UserError(f"The checkpoint {folder} was made {'without' if ema else 'with'} --use_ema; do the same here.")
    mine = folder / f"data_{accelerator.process_index}.json"
    # Images in any order are shared out by position alone, so a process that was not there can read another's state.
    state = json.loads((mine if mine.is_file() else folder / "data_0.json").read_text(encoding="utf-8"))
    batches.load_state_dict(state)
    accelerator.load_state(str(folder))
    accelerator.step = 0
    if ema is not None:
        # `EMAModel.from_pretrained` warns of what it wrote into the config itself.
        saved = load_file(folder / "unet_ema" / SAFETENSORS_WEIGHTS_NAME)
        for average, (name, _) in zip(ema.shadow_params, unet.named_parameters()):
            average.copy_(saved[name])  # in place, to stay on the device and in channels-last order
        config = json.loads((folder / "unet_ema" / "config.json").read_text(encoding="utf-8"))
        ema.load_state_dict({k: config[k] for k in ema.state_dict() if k in config})
    return run


def _comparable(unet: UNet2DModel) -> dict:
    """What of a U-Net's config its weights and images depend on, as JSON holds it."""
    config = {k: v for k, v in unet.config.items() if not k.startswith("_") and k != "dropout"}
    return json.loads(json.dumps(config))


def save_pipeline(output_dir: Path, unet: UNet2DModel, scheduler: DDPMScheduler) -> None:
    """Writes a plain [`DDPMPipeline`] into a folder that may hold other things; an old one stays until it is whole."""
    partial = output_dir / ".pipeline.partial"
    shutil.rmtree(partial, ignore_errors=True)
    DDPMPipeline(unet, scheduler).save_pretrained(partial)
    _to_disk(partial)
    for part in ("unet", "scheduler"):
        shutil.rmtree(output_dir / part, ignore_errors=True)
    for part in partial.iterdir():
        part.rename(output_dir / part.name)
    partial.rmdir()


def _to_disk(folder: Path) -> None:
    """Waits until the files are on the disk, so that a machine that dies does not leave empty ones under good names."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def read_log(path: Path, up_to_step: int) -> list[dict]:
    """Lines of a run's log up to a step; what a run that was cut off wrote after its checkpoint is left out."""
    if not path.is_file():
        return []
    lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines()
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # cut off while writing
            break
        if entry["step"] > up_to_step:
            break
        entries.append(entry)
    return entries
