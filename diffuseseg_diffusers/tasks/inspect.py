# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Shows what is understood of a dataset before anything is fitted: `diffuseseg inspect`."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from ..jobs.config import option
from ..jobs.errors import UserError
from .options import CachesDownloads, ReadsLabels, WritesFolder


logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InspectConfig(ReadsLabels, CachesDownloads, WritesFolder):
    """Show what is understood of a dataset: splits, pictures, masks, classes, and what does not fit."""

    dataset_name: str = option(
        help="Images, with or without masks: a local folder or a name on the Hub.", positional=True, reads=True
    )
    split: str | None = option(None, "Part of the dataset (default: all).", group="data")
    output_dir: Path | None = option(
        None,
        "Folder for a page and a contact sheet of pictures, masks and overlays (default: only text).",
        group="output",
        influence=False,
        why="where, not what",
    )
    num_examples: int = option(24, "Pictures of each split on the page.")
    json: bool = option(False, "Print JSON in place of text.", influence=False, why="it only prints")
    fix: Path | None = option(
        None,
        "Folder for a clean copy: a folder for each split with images, and masks of class ids.",
        group="output",
        influence=False,
        why="where, not what",
    )


def inspect(config: InspectConfig) -> dict:
    """Reads all images and masks as `segment` and `fit` do, and tells what was understood.

    Args:
        config ([`InspectConfig`]): What to read, and where to write.

    Returns:
        `dict`: What `inspection.json` holds.

    Raises:
        UserError: There is no such dataset, or a folder cannot be written.

    Examples:
        >>> from diffuseseg_diffusers import InspectConfig, inspect
        >>> found = inspect(InspectConfig(dataset_name="DATA", output_dir="out/inspection"))
        >>> found["splits"], found["warnings"]
    """
    from ..datasets.clean_copy import write_clean_copy
    from ..datasets.inspection import inspect_dataset
    from ..figures.inspection import contact_sheet_of, inspection_page
    from ..jobs.files import check_output_folder, output_folder, write_json, write_text

    for folder in (config.output_dir, config.fix):
        if folder is not None:
            check_output_folder(folder, config.overwrite, config.inputs(), "inspect")
    found, views, splits = inspect_dataset(config, config.num_examples if config.output_dir else 0)
    content = found.as_json()
    print(json.dumps(content, indent=2) if config.json else found.as_text())
    if config.output_dir is not None:
        with output_folder(config.output_dir, config.overwrite, "inspect", config.inputs()) as folder:
            write_json(folder / "inspection.json", content)
            write_text(folder / "inspection.html", inspection_page(found, views, found.palette))
            if views:
                contact_sheet_of(views, found.palette).save(folder / "contact_sheet.png")
        logger.info(f"The page is {config.output_dir / 'inspection.html'}.")
    if config.fix is not None:
        if found.refusals or not splits:
            raise UserError(
                f"There is no clean copy of {config.dataset_name}: its masks cannot be read yet; see above."
            )
        with output_folder(config.fix, config.overwrite, "inspect", config.inputs()) as folder:
            write_clean_copy(splits, found.label_names, found.palette, folder)
        logger.info(f"The clean copy is in {config.fix}.")
    return content
