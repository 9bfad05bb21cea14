"""Rendering with OpenGL: pyrender over EGL (a GPU, or Mesa without one) or OSMesa (Mesa in memory).

A process has one OpenGL platform: PyOpenGL binds it at its first import. OpenGL can also crash its process. So these
renderers are opened in worker processes only.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Any

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import invert_T, make_T
from picopose_cli.base.types import Array, Mesh, RenderedView
from picopose_cli.rendering.rasteriser import Window, place_mesh
from picopose_cli.rendering.shading import SAMPLES, Grey, Surface, Textured, average_samples, make_surface

GL_KINDS = ("egl", "osmesa")
_OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
_INSTALL = {"egl": "libegl1 and libgl1", "osmesa": "libosmesa6"}


class GlRenderer:
    """Renders one mesh with one camera in this process's only GL context; not for several threads.

    Colours have 2 x 2 samples per pixel without multisampling, and depth is rendered in a second pass at the pixels'
    centres, as by the software renderer: a depth buffer read from multisamples is off by a fifth of a millimetre.
    """

    thread_safe = False

    def __init__(self, kind: str, mesh: Mesh, K: Array, size_hw: tuple[int, int]) -> None:
        if K[0, 1] != 0:
            raise ValueError("a camera with skew cannot be drawn by OpenGL")
        self.name = kind
        self._pyrender = _import_pyrender(kind)
        self._K = np.asarray(K, np.float64)
        self._image = Window(0, 0, size_hw[1], size_hw[0])
        self._surface = make_surface(mesh)
        self._target = _open_target(self._pyrender, kind, size_hw[1] * SAMPLES, size_hw[0] * SAMPLES)
        self.detail = _gl_renderer_name()
        self._scene = self._pyrender.Scene(bg_color=[0.0, 0.0, 0.0, 0.0], ambient_light=[1.0, 1.0, 1.0])
        self._scene.add(_gl_mesh(self._pyrender, self._surface))
        self._camera: Any = None

    def render(self, T_cam_from_obj: Array) -> RenderedView:
        """Return the view at `T_cam_from_obj` (4,4), metres."""
        height, width = self._image.size_hw
        view = place_mesh(self._surface.raster_mesh, self._K, T_cam_from_obj, self._image)
        if view is None:
            blank = np.zeros((height, width), np.uint8)
            return RenderedView(np.zeros((height, width, 3), np.uint8), blank, blank.astype(np.float32))
        T_cam_from_vertices = T_cam_from_obj @ make_T(np.eye(3), self._surface.raster_mesh.centre)
        limits = (view.near_m, view.far_m)
        samples, sample_depth = self._draw(SAMPLES, T_cam_from_vertices, limits)
        colours = _surface_colours(self._surface, samples, T_cam_from_obj)
        rgb, alpha = average_samples(colours, (sample_depth > 0).astype(np.uint8) * 255)
        _, depth_m = self._draw(1, T_cam_from_vertices, limits)
        return RenderedView(rgb, alpha, np.ascontiguousarray(depth_m[:height, :width]))

    def close(self) -> None:
        """Release the GL context: without this, a few hundred objects exhaust the driver."""
        self._target.delete()

    def _draw(self, samples: int, T_cam_from_vertices: Array, limits: tuple[float, float]) -> tuple[Array, Array]:
        """Render `samples` per pixel side into the buffer for SAMPLES; with fewer, the image is its upper left part."""
        if self._camera is not None:
            self._scene.remove_node(self._camera)
        (fx, fy), (cx, cy) = samples * np.diag(self._K)[:2], samples * self._K[:2, 2]
        camera = self._pyrender.IntrinsicsCamera(fx, fy, cx, cy, znear=limits[0], zfar=limits[1])
        self._camera = self._scene.add(camera, pose=invert_T(T_cam_from_vertices) @ _OPENCV_FROM_OPENGL)
        flags = self._pyrender.RenderFlags
        # FLAT: albedo without light. Not DEPTH_ONLY: that would cull faces. RGB: OSMesa returns no alpha.
        colour, depth = self._target.render(self._scene, flags.FLAT | flags.SKIP_CULL_FACES)
        return colour, depth


def _import_pyrender(kind: str) -> Any:
    """Import pyrender for a platform; raises PicoPoseError where its GL library is missing."""
    bound = os.environ.get("PYOPENGL_PLATFORM")
    if "OpenGL" in sys.modules and bound != kind:
        raise RuntimeError(f"OpenGL is bound to {bound} in this process; {kind} needs a process of its own")
    os.environ["PYOPENGL_PLATFORM"] = kind
    viewer = types.ModuleType("pyrender.viewer")  # the real one opens a display when it is imported
    viewer.Viewer = None  # type: ignore[attr-defined]
    sys.modules.setdefault("pyrender.viewer", viewer)
    try:
        import pyrender
        import pyrender.renderer as gl_calls
    except (ImportError, AttributeError, OSError) as error:
        raise _unavailable(kind, error) from error
    gl_calls.glRenderbufferStorageMultisample = _without_multisampling(gl_calls.glRenderbufferStorageMultisample)
    return pyrender


def _without_multisampling(storage: Any) -> Any:
    """Return a glRenderbufferStorageMultisample that always allocates a single sample."""
    if getattr(storage, "is_single_sample", False):
        return storage

    def allocate(target: int, _: int, internal_format: int, width: int, height: int) -> None:
        storage(target, 0, internal_format, width, height)

    allocate.is_single_sample = True  # type: ignore[attr-defined]
    return allocate


def _open_target(pyrender: Any, kind: str, width: int, height: int) -> Any:
    try:
        return pyrender.OffscreenRenderer(width, height)
    except Exception as error:  # assertions, GL errors and more, depending on the driver
        raise _unavailable(kind, error) from error


def _unavailable(kind: str, error: Exception) -> PicoPoseError:
    # Without a library, PyOpenGL's functions are None, which gives an AttributeError.
    reason = "no library found" if isinstance(error, AttributeError) else str(error) or type(error).__name__
    return PicoPoseError(
        f"OpenGL with {kind} does not work on this machine ({reason})",
        fix=f"install {_INSTALL[kind]}, or pass --renderer software",
    )


def _gl_renderer_name() -> str:
    from OpenGL.GL import GL_RENDERER, glGetString

    name = glGetString(GL_RENDERER)
    return name.decode("utf-8", "replace") if name else "unknown"


def _gl_mesh(pyrender: Any, surface: Surface) -> Any:
    mesh = surface.raster_mesh
    assert mesh.attributes is not None
    material = pyrender.MetallicRoughnessMaterial(baseColorFactor=[1.0, 1.0, 1.0, 1.0])
    colour, uv = None, None
    if isinstance(surface, Textured):
        uv = mesh.attributes[:, :2]
        texture = surface.levels[0]
        opaque = np.full((*texture.shape[:2], 1), 255, np.uint8)  # RGBA: rows of three bytes would need aligning
        material.baseColorTexture = pyrender.Texture(
            source=np.concatenate([texture, opaque], axis=-1), source_channels="RGBA"
        )
    else:
        rgb = mesh.attributes / 2 + 0.5 if isinstance(surface, Grey) else mesh.attributes / 255
        colour = np.concatenate([rgb, np.ones((len(rgb), 1))], axis=1).astype(np.float32)
    primitive = pyrender.Primitive(
        positions=mesh.vertices, indices=mesh.faces, texcoord_0=uv, color_0=colour, material=material, mode=4
    )
    return pyrender.Mesh([primitive])


def _surface_colours(surface: Surface, samples: Array, T_cam_from_obj: Array) -> Array:
    """Return the colours (h,w,3) u8 of GL's samples; normals, encoded as colours, are shaded as by every renderer."""
    if not isinstance(surface, Grey):
        return np.ascontiguousarray(samples)
    normals = samples.astype(np.float32) / np.float32(127.5) - 1
    return surface.colour(normals, T_cam_from_obj, 1.0)
