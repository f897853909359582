"""Phantom: computed frontal chest radiographs with five findings and exact masks.

Bodies are ellipsoids and mitred tubes with lengths in mm (`anatomy`, `skeleton`, `findings`). A pixel is computed from
the line integral of attenuation along its rays (`geometry`), by Beer-Lambert's law, Poisson noise, logarithm and window
(`radiograph`). An image is determined by (seed, patient, image) and the options (`generate`). `load` generates the data
set once and stores it on disk (`storage`). Sizes, attenuations, exposure and prevalences follow anatomy and
radiography; sources are given with the numbers.

Departures from real radiographs are listed in `radiograph` and `findings`. Only numpy is needed.
"""

from datasets.phantom.findings import NAMES, PREVALENCE
from datasets.phantom.generate import Images, generate, scene
from datasets.phantom.radiograph import EPSILON, FIELD_MM, Scene, project
from datasets.phantom.storage import VERSION, disk_bytes, load

__all__ = [
    "EPSILON",
    "FIELD_MM",
    "NAMES",
    "PREVALENCE",
    "VERSION",
    "Images",
    "Scene",
    "disk_bytes",
    "generate",
    "load",
    "project",
    "scene",
]
