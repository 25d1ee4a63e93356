# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of a training run: `Accelerator.save_state` into folders that appear whole or not at all.

Accelerate's own naming and limit are not used: it writes under the final name and removes folders with all that is in
them.
"""

import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.training_utils import EMAModel
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..jobs.errors import UserError
from ..jobs.files import flush_to_disk, read_json, remove_matching, write_json


STATE_FILE = "run.json"
BEST = "best"  # in a checkpoint: the model as it was measured to be best
EMA = "unet_ema"
SIX = "[0-9]" * 6  # digits of a step in names; from a million on there are more
MODEL_FILES = ("config.json", "diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model.safetensors.index.json")
# What a run writes, as patterns for its record.
IN_CHECKPOINTS = (
    *("model*.safetensors", "model.safetensors.index.json", "optimizer*.bin", "scheduler*.bin", "scaler.pt"),
    *("sampler*.bin", "random_states_[0-9]*.pkl", "data_[0-9]*.json", STATE_FILE, f"{BEST}/*"),
    *(f"{EMA}/{name}" for name in MODEL_FILES),
)
CHECKPOINT_FILES = (
    *(f"{folder}/{n}" for folder in (f"checkpoint-{SIX}", f"checkpoint-[1-9]{SIX}") for n in IN_CHECKPOINTS),
    *(f".checkpoint-{SIX}{more}.partial/*" for more in ("", "[0-9]")),
)
NEW_PIPELINE_FILES = (
    *(".pipeline.partial/*", ".pipeline.old/*"),
    *(f"{part}/{name}" for part in ("unet", "transformer", "vqvae", "vae") for name in MODEL_FILES),
    *("scheduler/scheduler_config.json", "model_index.json", *MODEL_FILES),
)
LATEST = "latest"


def checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, the newest last; folders of that name that hold something else are left out."""
    named = [p for p in output_dir.glob("checkpoint-*") if p.name[11:].isdecimal() and (p / STATE_FILE).is_file()]
    return sorted(named, key=lambda p: int(p.name[11:]))


def find_checkpoint(output_dir: Path, named: str, overwrite: bool) -> Path | None:
    """The checkpoint to resume from: a folder that is named; or for `"latest"`, the newest of a run that stays."""
    if named != LATEST:
        return Path(named)
    found = checkpoints(output_dir)
    return found[-1] if found and not overwrite else None


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: Path,
    run: Mapping[str, Any],
    model: torch.nn.Module,
    ema: EMAModel | None,
    data: Mapping[str, Any],
    limit: int = 0,
    write: Callable[[Path], None] | None = None,
) -> Path:
    """Writes a checkpoint that takes its name only once all of it is on the disk, then removes the oldest.

    Args:
        accelerator (`Accelerator`): Of this process; all processes save together.
        output_dir (`Path`): The run's folder.
        run (mapping): For `run.json`; its `step` names the folder.
        model (`torch.nn.Module`), ema (`EMAModel`, *optional*): What is trained, and its average.
        data (mapping): Where this process stands in its batches.
        limit (`int`, defaults to 0): Number of checkpoints to keep; 0: all.
        write (`Callable`, *optional*): Writes more into the folder, on the main process.

    Raises:
        UserError: It cannot be written, as on a full disk; those before are still there.
    """
    folder = output_dir / f"checkpoint-{run['step']:06d}"
    partial = output_dir / f".{folder.name}.partial"
    if accelerator.is_main_process:
        _remove(partial)  # of a run that was killed while it saved
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    with _cleared_on_failure(partial, accelerator.is_main_process, f"The checkpoint of step {run['step']}"):
        accelerator.save_state(str(partial))
        write_json(partial / f"data_{accelerator.process_index}.json", data)
        if accelerator.is_main_process:
            if ema is not None:
                ema.save_pretrained(partial / EMA)
            if write is not None:
                write(partial)
            write_json(partial / STATE_FILE, {**run, "model": describe_model(model)})
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        flush_to_disk(partial)
        if folder.is_dir():  # of the same step, when an earlier checkpoint was resumed; others' files in it stay
            (folder / STATE_FILE).unlink(missing_ok=True)  # it is no checkpoint from here on, until the last file
            remove_matching(folder, IN_CHECKPOINTS)
            _move_files(partial, folder)
        else:
            partial.rename(folder)
        if limit:
            remove_checkpoints(output_dir, keep=limit)
    accelerator.wait_for_everyone()
    return folder


def load_checkpoint(
    accelerator: Accelerator, folder: Path, model: torch.nn.Module, ema: EMAModel | None, batches: Any
) -> dict[str, Any]:
    """Brings a run back to where a checkpoint was made; returns what was given for `run.json`.

    Arguments are those of [`save_checkpoint`]; `batches` get their position by `load_state_dict`.

    Raises:
        UserError: The folder is no checkpoint, one of another version, model or dataset, damaged, or made without EMA
            when there is one; what differs is named.
    """
    run = read_json(folder / STATE_FILE) if (folder / STATE_FILE).is_file() else {}
    if "model" not in run:
        raise UserError(
            f"{folder} is no checkpoint, or one of another version of DiffuseSeg: a {STATE_FILE} that describes the "
            f"model was expected. Choose another --output_dir, or pass --overwrite."
        )
    there, now = run.pop("model"), describe_model(model)
    different = [f"{k} is {there.get(k)} there and {now.get(k)} here" for k in now if there.get(k) != now[k]]
    if different:
        raise UserError(f"The checkpoint {folder} is of another model: {'; '.join(different)}.")
    if (ema is not None) != (folder / EMA).is_dir():
        raise UserError(f"The checkpoint {folder} was made {'without' if ema else 'with'} --use_ema; do the same here.")
    mine = folder / f"data_{accelerator.process_index}.json"
    # Images in any order are shared out by position alone, so a process that was not there can read another's state.
    batches.load_state_dict(read_json(mine if mine.is_file() else folder / "data_0.json"))
    try:
        accelerator.load_state(str(folder))
    except torch.OutOfMemoryError:
        raise
    except (OSError, RuntimeError, ValueError, SafetensorError, EOFError, pickle.UnpicklingError) as error:
        others = [path.name for path in checkpoints(folder.parent) if path != folder]
        instead = f"--resume_from_checkpoint {folder.parent / others[-1]}" if others else "--overwrite"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"The checkpoint {folder} cannot be read ({reason}); resume with {instead}.") from error
    accelerator.step = 0
    if ema is not None:
        # `EMAModel.from_pretrained` warns of what it wrote into the config itself.
        saved = load_file(folder / EMA / SAFETENSORS_WEIGHTS_NAME)
        for average, (name, _) in zip(ema.shadow_params, model.named_parameters()):
            average.copy_(saved[name])  # in place, to stay on the device and in channels-last order
        config = read_json(folder / EMA / "config.json")
        ema.load_state_dict({k: config[k] for k in ema.state_dict() if k in config})
    return run


def describe_model(model: torch.nn.Module) -> dict[str, Any]:
    """What of a model's config its weights and images depend on, as JSON holds it.

    And what `training_identity`, a mapping, says of it: what else a run has to agree in that goes on.
    """
    config: Any = getattr(model, "config", {})
    if not isinstance(config, Mapping):  # of transformers, which changes some values when it saves
        return {"model_type": getattr(config, "model_type", type(model).__name__)}
    config = {k: v for k, v in config.items() if not k.startswith("_") and k != "dropout"}
    return json.loads(json.dumps(config | dict(getattr(model, "training_identity", {}))))


def last_good(output_dir: Path) -> str:
    """The newest checkpoint of a run, in a clause for messages."""
    kept = checkpoints(output_dir)
    return f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"


def remove_checkpoints(output_dir: Path, keep: int = 0) -> None:
    """Removes the files of all but the newest checkpoints of a run."""
    found = checkpoints(output_dir)
    for old in found[: max(0, len(found) - keep)]:
        remove_matching(old, IN_CHECKPOINTS)


def remove_leftovers(output_dir: Path) -> None:
    """Removes what processes that were killed while saving left in the folder of a run."""
    for path in output_dir.glob(".checkpoint-*.partial"):
        if re.fullmatch(r"\.checkpoint-\d+\.partial", path.name):
            _remove(path)


def save_pipeline(output_dir: Path, made: DiffusionPipeline | ModelMixin) -> None:
    """Writes a pipeline, or a model, into a run's folder.

    Files of an earlier one are replaced, each at once, when all new ones are on the disk.

    Raises:
        UserError: It cannot be written, as on a full disk; an earlier one is still there.
    """
    partial = output_dir / ".pipeline.partial"
    _remove(partial)
    with _cleared_on_failure(partial, True, "The pipeline"):
        made.save_pretrained(partial)
        flush_to_disk(partial)
    _move_files(partial, output_dir)
    _remove(output_dir / ".pipeline.old")  # which earlier versions left when they were killed


@contextmanager
def _cleared_on_failure(partial: Path, mine: bool, what: str) -> Iterator[None]:
    """Removes what could not be written in full, and says so."""
    try:
        yield
    # PyTorch and safetensors have their own classes of error for a full disk.
    except (OSError, RuntimeError, SafetensorError) as error:
        if mine:
            _remove(partial)
        raise UserError(
            f"{what} cannot be saved ({error}); {last_good(partial.parent)}. The same command line resumes."
        ) from error


def _move_files(source: Path, folder: Path) -> None:
    """Moves all files below a folder into another one, `run.json` last; replaces those of the same name alone."""
    for path in sorted(source.rglob("*"), key=lambda path: path.name == STATE_FILE):
        if not path.is_dir():
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    _remove(source)


def _remove(path: Path) -> None:
    """Removes a file or folder of a run, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
