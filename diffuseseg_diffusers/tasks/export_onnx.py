# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Writes a student as an ONNX file: `diffuseseg export-onnx`."""

import argparse
from pathlib import Path

from ..arguments import add_cache_argument
from ..jobs.errors import UserError
from ..jobs.files import check_writable
from ..pipelines.loading import ONNX, load_pipeline
from ..students.export import export_onnx
from ..students.student import Student


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="STUDENT", help="Student: a local folder or a name on the Hub.")
    parser.add_argument("file", type=Path, metavar="FILE", help="ONNX file to write.")
    parser.add_argument("--revision", help="Branch, tag or commit of a student on the Hub.")
    add_cache_argument(parser)
    parser.add_argument("--overwrite", action="store_true", help="Replacement of a file of that name.")


def main(args: argparse.Namespace) -> None:
    if args.file.suffix != ONNX:
        raise UserError(f"{args.file} does not end in {ONNX}, by which commands know such files; give such a name.")
    check_writable(args.file.parent, "file")
    if args.file.is_dir() or (args.file.exists() and not args.overwrite):
        raise UserError(f"{args.file} exists and is kept; choose another name, or pass --overwrite for a file.")
    student = load_pipeline(args.model, args.revision, "cpu", "float32", args.cache_dir)
    if not isinstance(student, Student):
        raise UserError(f"{args.model} is no student; `diffuseseg train-student` makes one of it.")
    export_onnx(student, args.file)
    height, width = student.image_size
    print(f"Written to {args.file}: pixels [N, {student.in_channels}, {height}, {width}] in [0, 1] to masks.")
