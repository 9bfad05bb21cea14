"""Made-up objects, scenes, sensors and whole BOP data sets."""
