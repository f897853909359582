"""The phantom: an analytic frontal chest radiograph with five findings and their exact masks.

Bodies are ellipsoids and mitred tubes with lengths in mm (`anatomy`, `skeleton`, `findings`); a pixel is the
line integral of attenuation along its rays (`geometry`), through Beer-Lambert, Poisson noise, logarithm and
window (`radiograph`).  Everything of an image follows from (seed, patient, image) and the options
(`generate`); `load` makes the data set once and keeps it on disk (`storage`).  Sizes, attenuations, exposure
and prevalences follow anatomy and radiography, with the source beside the numbers.

Where it departs from a real radiograph is listed in `radiograph` and `findings`.  Needs numpy alone.
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
