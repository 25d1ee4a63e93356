# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""JSON schemas of OME-Zarr: what 0.4 and 0.5 of the specification demand of images and labels, in our words."""

_NUMBERS = {"type": "array", "minItems": 1, "items": {"type": "number"}}
_SCALE = {
    "type": "object",
    "required": ["type", "scale"],
    "properties": {"type": {"const": "scale"}, "scale": _NUMBERS},
}
_TRANSLATION = {
    "type": "object",
    "required": ["type", "translation"],
    "properties": {"type": {"const": "translation"}, "translation": _NUMBERS},
}
_TRANSFORMATIONS = {
    "type": "array",
    "minItems": 1,
    "contains": _SCALE,
    "maxContains": 1,
    "items": {"oneOf": [_SCALE, _TRANSLATION]},
}
_AXES = {
    "type": "array",
    "uniqueItems": True,
    "minItems": 2,
    "maxItems": 5,
    "contains": {"properties": {"type": {"const": "space"}}, "required": ["name", "type"]},
    "minContains": 2,
    "maxContains": 3,
    "items": {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "type": {"enum": ["space", "time", "channel"]}},
    },
}
_MULTISCALES = {
    "type": "array",
    "minItems": 1,
    "uniqueItems": True,
    "items": {
        "type": "object",
        "required": ["axes", "datasets"],
        "properties": {
            "name": {"type": "string"},
            "axes": _AXES,
            "coordinateTransformations": _TRANSFORMATIONS,
            "datasets": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["path", "coordinateTransformations"],
                    "properties": {"path": {"type": "string"}, "coordinateTransformations": _TRANSFORMATIONS},
                },
            },
        },
    },
}
_LABEL = {
    "type": "object",
    "properties": {
        "colors": {
            "type": "array",
            "minItems": 1,
            "uniqueItems": True,
            "items": {
                "type": "object",
                "required": ["label-value"],
                "properties": {
                    "label-value": {"type": "number"},
                    "rgba": {
                        "type": "array",
                        "minItems": 4,
                        "maxItems": 4,
                        "items": {"type": "integer", "minimum": 0, "maximum": 255},
                    },
                },
            },
        },
    },
}
_GROUP = {
    "type": "object",
    "required": ["multiscales", "image-label"],
    "properties": {"multiscales": _MULTISCALES, "image-label": _LABEL},
}
SCHEMAS = {
    2: {**_GROUP, "properties": {**_GROUP["properties"]}},
    3: {
        "type": "object",
        "required": ["ome"],
        "properties": {
            "ome": {
                **_GROUP,
                "required": [*_GROUP["required"], "version"],
                "properties": {**_GROUP["properties"], "version": {"const": "0.5"}},
            }
        },
    },
}
