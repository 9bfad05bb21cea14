"""Parts of `bench_accuracy.py`: data, variants of the inference, passes of the network, measurements and tables."""
