"""CAD meshes, view poses, renderers and the HDF5 template bank."""
