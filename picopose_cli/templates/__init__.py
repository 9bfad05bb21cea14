"""Template views, crops and the HDF5 template bank."""
