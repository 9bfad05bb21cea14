"""Texts of the help that several commands share."""

from __future__ import annotations

DATA_DIR_VARIABLE = "BOP_PATH"
"""Environment variable that replaces --data-dir."""
MAX_DEFAULT_PROCESSES = 16
"""Most processes that a command starts by default; more would wait for the disk."""
MAX_DEFAULT_THREADS = 8
"""Most threads of one kind that a command starts by default; more would wait for Python's lock."""

DATA_DIR_HELP = "Folder that contains the BOP data sets."
DATA_DIR_DEFAULT = f"environment variable {DATA_DIR_VARIABLE}"
DATASET_HELP = "BOP data set: its name, for example ycbv, or the path of its folder."
DATASET_DEFAULT = "from the file name"
SPLIT_HELP = "Folder of the split, for example test or val."
SPLIT_DEFAULT = "the data set's test split"
MODELS_HELP = "Name of the models folder in the data set."
MODELS_DEFAULT = "chosen by data set"
TARGETS_HELP = "Targets: bop19 (localisation) or bop24 (detection) for those of the data set, or a file of either."
TARGETS_VALUE = "KIND|FILE"
TARGETS_DEFAULT = "that of the data set, BOP19 before BOP24"
TEMPLATES_HELP = "Folder of the template banks."
TEMPLATES_DEFAULT = "templates/ in the data set"
WEIGHTS_HELP = "Network weights: .ckpt, .pth or .safetensors."
WEIGHTS_DEFAULT = "the small network of the package"
ONE_DEVICE_HELP = "Device: auto, cpu or cuda:N."
DEPTHS = ("off", "on")
DEPTH_HELP = "Finish the poses on the depth images: RGB-D results."
PROCESSES_DEFAULT = f"one per core, at most {MAX_DEFAULT_PROCESSES}"
THREADS_DEFAULT = f"one per core, at most {MAX_DEFAULT_THREADS}"
RAY_HELP = "Share the work out on a Ray cluster: auto (this machine's, else a new one here) or its address."
RAY_VALUE = "auto|ADDRESS"
