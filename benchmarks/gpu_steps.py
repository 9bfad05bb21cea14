"""Short steps of `bench_gpu.py`: machine, data, tests, templates, bf16 against fp32, training samples."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
DATASET = "gpu"
EGL_WORKERS = (4, 1)

Numbers = dict[str, Any]


class Notes:
    """The numbers of a step, written to the disk whenever one is added: a step that is stopped leaves what it has."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: Numbers = {}

    def add(self, name: str, value: Any) -> None:
        """Store and print a number."""
        self.values[name] = value
        self._path.write_text(json.dumps(self.values, default=float))
        text = json.dumps(value, default=float)
        print(f"{name}: {text if len(text) < 500 else text[:500] + ' ...'}", flush=True)


class Settings:
    """The work folder, the device, and the sizes of all steps."""

    def __init__(self, work: Path, dry: bool) -> None:
        self.work, self.dry = work, dry
        self.cores = min(len(os.sched_getaffinity(0)), 16)
        self.device = "cpu" if dry else "cuda:0"
        self.objects, self.images = (2, 2) if dry else (5, 20)
        self.faces, self.render_objects = (2_000, 1) if dry else (50_000, 4)
        self.views = 16 if dry else 162


def picopose(*arguments: object) -> list[str]:
    """Return a command line of the tool."""
    return [sys.executable, "-m", "picopose_cli", *map(str, arguments)]


def call(command: Sequence[str], timeout_s: float) -> float:
    """Run a command and return its seconds; raises where it fails or exceeds `timeout_s`."""
    print("$", " ".join(command), flush=True)
    started = time.perf_counter()
    subprocess.run(command, check=True, timeout=timeout_s, cwd=ROOT)
    return time.perf_counter() - started


def environment(settings: Settings, notes: Notes) -> None:
    """Describe the machine, its packages and its GPU."""
    from run_info import describe_run

    notes.add("commit", _commit())
    try:
        notes.add("run", describe_run())
    except OSError as error:  # there is no git
        notes.add("run", repr(error))
    query = "name,driver_version,memory.total,memory.free,clocks.sm,clocks.max.sm,power.limit"
    notes.add("nvidia_smi", _output_of(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]))
    notes.add("memory", Path("/proc/meminfo").read_text().splitlines()[:3])
    folders = {"shared memory": "/dev/shm", "work folder": str(settings.work)}
    notes.add("free_gb", {name: shutil.disk_usage(folder).free / 1e9 for name, folder in folders.items()})
    notes.add("missing", _missing_packages())
    import torch

    notes.add("torch", {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": torch.cuda.device_count()})
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        notes.add("gpu", {"name": properties.name, "multiprocessors": properties.multi_processor_count})
        notes.add("gpu_free_gb", torch.cuda.mem_get_info(0)[0] / 1e9)


def _commit() -> str:
    file = ROOT / "COMMIT"
    written = file.read_text().strip() if file.is_file() else ""
    return os.environ.get("PICOPOSE_COMMIT") or written or _output_of(["git", "rev-parse", "HEAD"])


def _output_of(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, cwd=ROOT)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"({error})"
    return (done.stdout or done.stderr).strip()


def _missing_packages() -> dict[str, str]:
    os.environ.setdefault("PYOPENGL_PLATFORM", "egl")  # as the renderer sets it: the default needs libGLX
    missing = {}
    for name in ("torch", "numpy", "cv2", "h5py", "scipy", "pandas", "matplotlib", "trimesh", "pyrender", "typer"):
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - any problem of a package is reported
            missing[name] = str(error)
    return missing


def prepare(settings: Settings, notes: Notes) -> None:
    """Make the data set and templates on which bf16 and fp32 are compared."""
    from picopose_cli.synthesis.bop_dataset import write_procedural_dataset

    started = time.perf_counter()
    write_procedural_dataset(settings.work, DATASET, objects=settings.objects, images=settings.images, seed=11)
    notes.add("data_s", time.perf_counter() - started)
    templates = picopose(
        *("render-templates", "--dataset", DATASET, "--data-dir", settings.work, "--renderer", "software"),
        *("--workers", settings.cores),
    )
    notes.add("templates_s", call(templates, 120))


def tests(settings: Settings, notes: Notes) -> None:
    """Run the tests marked `gpu`."""
    results = settings.work / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-rA", "--durations=8", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "--junitxml", str(results), "tests/gpu"], check=False, cwd=ROOT)
    suite = next(ElementTree.parse(results).iter("testsuite"))
    notes.add("summary", {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped", "time")})
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    wrong = {name: part for name, case in cases.items() for part in case if part.tag in ("failure", "error", "skipped")}
    notes.add("not passed", {name: f"{part.tag}: {(part.get('message') or '')[:300]}" for name, part in wrong.items()})
    if done.returncode:
        sys.exit(done.returncode)


def render(settings: Settings, notes: Notes) -> None:
    """Record which renderer `auto` chooses, and time template banks: EGL against the software renderer."""
    from bench_render import write_textured_mesh

    from picopose_cli.rendering.renderers import choose_renderer

    choice = choose_renderer("auto")
    notes.add("auto", str(choice))
    models = settings.work / "bench/models"
    models.mkdir(parents=True)
    first = models / "obj_000001.ply"
    write_textured_mesh(first, settings.faces)
    for obj_id in range(2, settings.render_objects + 1):
        shutil.copy(first, models / f"obj_{obj_id:06d}.ply")  # with the texture of the first
    runs = [("egl", workers) for workers in EGL_WORKERS] if choice.kind == "egl" else []
    for kind, workers in [("software", settings.cores), *runs]:
        command = picopose(
            *("render-templates", "--dataset", "bench", "--data-dir", settings.work, "--renderer", kind),
            *("--workers", workers, "--overwrite"),
        )
        seconds = call(command, 60)
        rate = 60 * settings.render_objects / seconds
        notes.add(
            f"{kind}, {settings.render_objects} objects of {settings.faces} faces, {workers} workers",
            {"seconds": seconds, "objects_per_minute": rate},
        )


def precision(settings: Settings, notes: Notes) -> None:
    """Score the network of the package in fp32 and in bf16, by the default rules; both run at the same time."""
    names = ("fp32", "bf16")
    outputs = {name: settings.work / f"{name}_{DATASET}-test.csv" for name in names}
    children = {name: subprocess.Popen(_infer(settings, name, outputs[name]), cwd=ROOT) for name in names}
    for name, child in children.items():
        if child.wait():
            sys.exit(f"infer --precision {name} failed")
        report = json.loads(outputs[name].with_suffix(".json").read_text())
        kept = ("images_per_second", "onboarding_s", "peak_device_memory_mb", "estimates", "stages_s")
        notes.add(f"infer {name}", {key: report.get(key) for key in kept})
    scores = settings.work / "scores.json"
    command = picopose("score", *outputs.values(), "--data-dir", settings.work, "--output", scores)
    call([*command, "--workers", str(settings.cores)], 60)
    found = json.loads(scores.read_text())
    for name, output in outputs.items():
        of_file = next(value for key, value in found.items() if output.stem in key)
        notes.add(f"scores {name}", {key: of_file[key] for key in of_file if "average_recall" in key})


def _infer(settings: Settings, precision_name: str, output: Path) -> list[str]:
    return picopose(
        *("infer", "--dataset", DATASET, "--data-dir", settings.work, "--device", settings.device),
        *("--detections", settings.work / DATASET / "detections_rough.json", "--precision", precision_name),
        *("--output", output, "--no-cache", "--restart", "--workers", max(1, settings.cores // 4)),
    )


def samples(settings: Settings, notes: Notes) -> None:
    """Time how many training samples all cores make, at the hardest level."""
    from bench_training_data import measure

    os.environ["OMP_NUM_THREADS"] = "1"
    notes.add("level 1", measure(1.0, None, settings.cores, 1 if settings.dry else 5))
