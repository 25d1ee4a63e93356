# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Mean intersection over union, over a whole set, in constant memory."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Intersection over union (IoU) of each class over all pixels of a set of images, and its mean over the classes. Batches
are counted into a confusion matrix as they are added, so the memory does not depend on the number of images.
"""

_INPUTS = """
Args:
    predictions (list of arrays `[H, W]` of integers 0 to 255): Predicted class ids.
    references (list of arrays `[H, W]` of integers 0 to 255): True class ids; sizes may differ between images.
    num_labels (`int`): Number of classes.
    ignore_index (`int`, defaults to 255): Reference pixels of this value do not count.
    nan_to_num (`float`, *optional*): Replaces NaN in the results.
    label_map (`dict`, *optional*): Reference ids to replace, old to new.
    reduce_labels (`bool`, defaults to `False`):
        Reference 0 becomes 255, and all others one less, for datasets that do not count the background as a class.
    absent_as_zero (`bool`, defaults to `False`):
        A class that neither predictions nor references hold has no IoU: NaN, and left out of the mean. With `True` it
        counts as 0 in the mean, as in the published figures of Baranchuk et al. (ICLR 2022).
    count_ignored (`bool`, defaults to `False`):
        What is predicted on ignored pixels counts against the class that was predicted, as in the published figures.

Returns:
    `dict` with `mean_iou`, `mean_accuracy` and `overall_accuracy` (`float`, 0 to 1) and `per_category_iou` and
    `per_category_accuracy` (float64 arrays `[num_labels]`).
"""

_CITATION = """
@inproceedings{baranchuk2022labelefficient,
  title={Label-Efficient Semantic Segmentation with Diffusion Models},
  author={Baranchuk, Dmitry and Voynov, Andrey and Rubachev, Ivan and Khrulkov, Valentin and Babenko, Artem},
  booktitle={International Conference on Learning Representations},
  year={2022}
}
"""


class MeanIoU(evaluate.Metric):
    """Mean IoU over a set of images; arguments and results are those of the Hub's `mean_iou`."""

    def _info(self):
        self._confusion = np.zeros((256, 256), dtype=np.int64)  # references × predictions
        pixels = datasets.Sequence(datasets.Sequence(datasets.Value("uint8")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": pixels, "references": pixels}),
        )

    def add(self, *, prediction=None, reference=None):
        """Adds one image."""
        prediction, reference = np.asarray(prediction), np.asarray(reference)
        if prediction.shape != reference.shape:
            raise ValueError(f"Prediction and reference differ in size: {prediction.shape} and {reference.shape}.")
        for name, ids in (("prediction", prediction), ("reference", reference)):
            if ids.size and (ids.min() < 0 or ids.max() > 255 or ids.dtype.kind not in "biu"):
                raise ValueError(
                    f"Class ids are integers 0 to 255; a {name} has {ids.dtype}, {ids.min()} to {ids.max()}."
                )
        pairs = reference.astype(np.int64).ravel() * 256 + prediction.astype(np.int64).ravel()
        self._confusion += np.bincount(pairs, minlength=256 * 256).reshape(256, 256)

    def add_batch(self, *, predictions=None, references=None):
        """Adds a batch of images."""
        if len(predictions) != len(references):
            raise ValueError(f"Got {len(predictions)} predictions for {len(references)} references.")
        for prediction, reference in zip(predictions, references):
            self.add(prediction=prediction, reference=reference)

    def compute(
        self,
        *,
        predictions=None,
        references=None,
        num_labels=None,
        ignore_index=255,
        nan_to_num=None,
        label_map=None,
        reduce_labels=False,
        absent_as_zero=False,
        count_ignored=False,
    ):
        """Computes the metric over everything added, and starts anew."""
        if num_labels is None:
            raise ValueError("`compute` needs `num_labels`, the number of classes.")
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        confusion, self._confusion = self._confusion, np.zeros_like(self._confusion)
        for old, new in (label_map or {}).items():
            row, confusion[old] = confusion[old].copy(), 0
            confusion[new] += row
        if reduce_labels:
            confusion = np.concatenate([confusion[1:255], 0 * confusion[:1], confusion[:1] + confusion[255:]])
        kept = confusion.copy()
        if ignore_index is not None:
            kept[ignore_index] = 0
        for name, counts in (("reference", kept.sum(1)), ("prediction", kept.sum(0))):
            wrong = [i for i in counts.nonzero()[0].tolist() if i >= num_labels]
            if wrong:
                raise ValueError(f"A {name} holds the class {wrong[0]}, but there are {num_labels} classes, from 0 on.")
        predicted = (confusion if count_ignored else kept).sum(0)[:num_labels]
        kept = kept[:num_labels, :num_labels]
        right, true = kept.diagonal(), kept.sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            iou = right / (true + predicted - right)  # NaN for absent classes
            accuracy = right / true
            overall = right.sum() / kept.sum()
        if absent_as_zero:
            iou = np.nan_to_num(iou, nan=0.0)
        if ignore_index is not None and ignore_index < num_labels:
            iou[ignore_index] = accuracy[ignore_index] = np.nan  # an ignored class is no class
        result = {
            "mean_iou": float(np.nanmean(iou)) if not np.isnan(iou).all() else float("nan"),
            "mean_accuracy": float(np.nanmean(accuracy)) if not np.isnan(accuracy).all() else float("nan"),
            "overall_accuracy": float(overall),
            "per_category_iou": iou,
            "per_category_accuracy": accuracy,
        }
        if nan_to_num is not None:
            result = {name: np.nan_to_num(value, nan=nan_to_num) for name, value in result.items()}
        return result
