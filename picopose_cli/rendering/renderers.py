"""The interface of all renderers (software, EGL, OSMesa), and the choice between them."""

from __future__ import annotations

import ctypes.util
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Array, Mesh, RenderedView
from picopose_cli.base.workers import run_jobs
from picopose_cli.rendering.gl import GL_KINDS, GlRenderer
from picopose_cli.rendering.software import SoftwareRenderer

_SELF_TEST_S = 60.0
_TEST_SIZE_HW = (480, 640)
_TEST_K = np.array([[570.0, 0, 320], [0, 570, 240], [0, 0, 1]])
_SOFTWARE_GL = ("llvmpipe", "softpipe", "swrast", "software rasterizer", "swr")
"""GL_RENDERER of Mesa without a GPU."""


class Renderer(Protocol):
    """Renders one mesh with one camera.

    `name` is the kind (`egl`, `osmesa`, `software`), `detail` its implementation (GL_RENDERER, a library's version).
    """

    name: str
    detail: str
    thread_safe: bool
    """Whether several threads may render at once."""

    def render(self, T_cam_from_obj: Array) -> RenderedView:
        """Return the view at `T_cam_from_obj` (4,4), metres, OpenCV axes; lighting and sampling are the same in all."""

    def close(self) -> None:
        """Release the renderer's resources."""


def open_renderer(kind: str, mesh: Mesh, K: Array, size_hw: tuple[int, int]) -> Renderer:
    """Return a renderer of a kind for one mesh, the camera K (3,3) and images of (height, width) px.

    The GL kinds must be opened in a worker process. Raises PicoPoseError where the kind does not work.
    """
    return GlRenderer(kind, mesh, K, size_hw) if kind in GL_KINDS else SoftwareRenderer(mesh, K, size_hw)


@dataclass(frozen=True)
class RendererChoice:
    """The renderer to use: its `kind`, the `detail` of its implementation, and `why` it was chosen."""

    kind: str
    detail: str
    why: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.detail}), {self.why}"


def choose_renderer(requested: str) -> RendererChoice:
    """Return the requested renderer, or for `auto` the fastest that works, after a test view in a child process.

    `auto` is EGL on a GPU, else the software renderer: OpenGL without a GPU (Mesa's llvmpipe, also behind OSMesa)
    renders the same image two to three times slower and needs more libraries.
    Raises PicoPoseError when the requested renderer fails its test.
    """
    software = f"cv2.triangleRasterize, OpenCV {cv2.__version__}"
    if requested == "software":
        return RendererChoice(requested, software, "as requested")
    if requested != "auto":
        return RendererChoice(requested, _tested(requested), "as requested")
    if ctypes.util.find_library("EGL") is None:
        return RendererChoice("software", software, "no EGL library found")
    try:
        detail = _tested("egl")
    except PicoPoseError as error:
        return RendererChoice("software", software, error.what)
    if any(name in detail.lower() for name in _SOFTWARE_GL):
        return RendererChoice("software", software, f"EGL has no GPU, only {detail}")
    return RendererChoice("egl", detail, "passed its test")


def _tested(kind: str) -> str:
    # in a process of its own: a broken driver can kill or hang the process that uses it
    [(_, outcome)] = run_jobs(draw_test_view, [kind], 1, timeout_s=_SELF_TEST_S)
    if isinstance(outcome, PicoPoseError):
        fix = outcome.fix or "pass --renderer software"
        raise PicoPoseError(f"{kind} failed its test view: {outcome.what}", fix=fix)
    return outcome


def draw_test_view(kind: str, _: int = 1) -> str:
    """Render one view with a GL renderer, compare it with the software renderer's and return GL_RENDERER.

    Raises PicoPoseError when the renderer cannot be opened or its image differs.
    """
    mesh = Mesh(
        np.array([[0, 0, 0.05], [0.05, 0, -0.03], [-0.04, 0.04, -0.03], [-0.03, -0.04, -0.03]]),
        np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]], np.int32),
        np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [250, 250, 250]], np.uint8),
    )
    T = make_T(np.array([[0.8, 0.6, 0.0], [0.0, 0.0, -1.0], [-0.6, 0.8, 0.0]]), np.array([0.01, 0.02, 0.3]))
    renderer = open_renderer(kind, mesh, _TEST_K, _TEST_SIZE_HW)
    try:
        drawn = renderer.render(T)
    finally:
        renderer.close()
    _check_view(drawn, SoftwareRenderer(mesh, _TEST_K, _TEST_SIZE_HW).render(T))
    return renderer.detail


def _check_view(drawn: RenderedView, expected: RenderedView) -> None:
    both = (drawn.depth_m > 0) & (expected.depth_m > 0)
    either = (drawn.depth_m > 0) | (expected.depth_m > 0)
    overlap = both.sum() / either.sum()
    depth_mm = float(np.median(np.abs(drawn.depth_m - expected.depth_m)[both])) * 1000 if both.any() else np.inf
    colour = float(np.abs(drawn.rgb.astype(int) - expected.rgb)[either].mean())
    if overlap < 0.995 or depth_mm > 0.1 or colour > 2:
        raise PicoPoseError(
            f"its image is wrong (mask IoU {overlap:.4f}, depth {depth_mm:.3f} mm and colour {colour:.1f} off)",
            fix="pass --renderer software",
        )
