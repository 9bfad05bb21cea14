"""What every room stands on: types, options, geometry, files and errors; numpy and the standard library only."""
